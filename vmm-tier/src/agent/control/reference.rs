//! docs/qmp.md: made of the descriptions that the control socket itself goes by.

use std::path::Path;

use qmp::server;

use super::Commands;

/// Set, the test writes the page instead of comparing it.
const WRITE: &str = "VMM_TIER_WRITE_REFERENCE";
/// What stands above this line is written by hand.
const MARK: &str = "<!-- Below this line the page is made by a test: VMM_TIER_WRITE_REFERENCE=1 cargo test -p vmm-tier reference_when -->\n";

/// The page with its part below the mark generated again.
fn regenerated(page: &str) -> String {
    let by_hand = page.split_once(MARK).map_or(page, |(by_hand, _)| by_hand);
    let (commands, _) = Commands::new();
    let reference = server::reference(&*commands);
    format!("{by_hand}{MARK}\n{reference}")
}

#[test]
fn reference_when_compared_with_the_commands_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/qmp.md");
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page.contains(MARK), "docs/qmp.md has lost its mark: {MARK}");
    let fresh = regenerated(&page);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, fresh).unwrap();
        return;
    }
    let differs = page
        .lines()
        .zip(fresh.lines())
        .find(|(old, new)| old != new);
    assert!(
        page == fresh,
        "docs/qmp.md is out of date, at {differs:?}; write it again with\n  {WRITE}=1 cargo test -p \
         vmm-tier reference_when"
    );
}
