//! `vmm-tier report` of a recording of every access, as a user calls it.

use std::{
    path::Path,
    process::{Command, Output},
};

fn vmm_tier(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn report_when_made_of_a_recording_is_a_page_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for number in 0..20_000_u64 {
        let page = if number.is_multiple_of(10) {
            number % 512
        } else {
            number % 32
        };
        text += &format!("{},{:#x},r\n", number * 1_000_000, page * 4096);
    }
    std::fs::write(folder.path().join("vm1.csv"), text).unwrap();
    let import = ["record", "--import", "vm1.csv", "--output", "vm1.vmt"];
    assert!(vmm_tier(folder.path(), &import).status.success());

    let report = [
        "report",
        "vm1.vmt",
        "--policy",
        "dual-heap,lru",
        "--fast",
        "10%,50%",
    ];
    let output = vmm_tier(folder.path(), &report);

    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"vm1.html\n");
    let page = std::fs::read_to_string(folder.path().join("vm1.html")).unwrap();
    assert!(page.contains("<title>vm1.csv: recorded memory</title>"));
    for part in [
        "dual-heap",
        "lru",
        "oracle",
        "data:image/png;base64,",
        "<dd>20.0 s</dd>",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!folder.path().join("vm1.html.part").exists());
}

#[test]
fn report_when_it_cannot_be_made_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cut.vmt"), "no recording").unwrap();
    let output = vmm_tier(folder.path(), &["report", "cut.vmt"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let output = vmm_tier(
        folder.path(),
        &["report", "none.vmt", "--output", "no/such/folder.html"],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("no/such/folder.html.part can't be written"),
        "{said}"
    );
}
