//! A page of docs/ whose lower part is made by a test.

use std::path::Path;

/// Set, tests write the pages instead of comparing them.
const WRITE: &str = "VMM_TIER_WRITE_REFERENCE";
/// What stands above this line is written by hand.
const MARK: &str = "<!-- Below this line the page is made by a test: VMM_TIER_WRITE_REFERENCE=1 cargo test -p vmm-tier reference_when -->\n";

/// Panics if the page `docs/NAME` does not end in `generated`, or writes the page anew.
pub(crate) fn check(name: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    let page = std::fs::read_to_string(&path).unwrap();
    let Some((by_hand, _)) = page.split_once(MARK) else {
        panic!("docs/{name} has lost its mark: {MARK}");
    };
    let fresh = format!("{by_hand}{MARK}\n{generated}");
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
        "docs/{name} is out of date, at {differs:?}; write it anew with\n  {WRITE}=1 cargo test -p \
         vmm-tier reference_when"
    );
}
