//! What is saved is restored; what can't be understood is put aside.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tier_core::{
    addr::Gpa,
    engine::{Pin, WhenFull},
    settings::Tier,
};

use super::*;

/// This process plays QEMU.
fn open(folder: &TempDir, vm: &str) -> (StateFile, Overrides) {
    StateFile::open(
        folder.path(),
        &SysRoot::real(),
        vm,
        true,
        std::process::id(),
    )
}

/// The members `state-file` and `restored` of `query-tier`.
fn reported(saved: &StateFile) -> (Value, Value) {
    (json!(saved.report()), json!(saved.restored()))
}

fn overrides() -> Overrides {
    Overrides {
        paused: true,
        limit: Some(LimitOverride { bytes: None }),
        policy: PolicyOverride {
            half_life: Some(2.5),
            rate: Some(64 << 20),
            ..PolicyOverride::default()
        },
        pins: vec![Pin {
            start: Gpa(1 << 20),
            bytes: 2 << 20,
            tier: Tier::Fast,
            when_full: WhenFull::Demote,
        }],
    }
}

fn file(folder: &TempDir, vm: &str) -> PathBuf {
    folder.path().join("state").join(name_of(vm))
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path().join("state")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Writes `text` as the VM's file and opens it.
fn open_with(folder: &TempDir, text: &[u8]) -> (StateFile, Overrides) {
    let path = file(folder, "vm1");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    open(folder, "vm1")
}

/// A file as this version writes it.
fn written(folder: &TempDir) -> String {
    open(folder, "vm1").0.save(&overrides());
    fs::read_to_string(file(folder, "vm1")).unwrap()
}

#[test]
fn overrides_when_saved_are_restored_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let (mut saved, none) = open(&folder, "vm1");
    assert_eq!(none, Overrides::default());
    assert_eq!(reported(&saved).1, Value::Null, "nothing was restored");
    saved.save(&overrides());
    drop(saved);

    let (saved, restored) = open(&folder, "vm1");

    assert_eq!(restored, overrides());
    let (file, restored) = reported(&saved);
    assert_eq!(
        restored["what"],
        json!(["paused", "limit", "policy", "pins"])
    );
    assert_eq!(restored["same-qemu"], true);
    assert!(restored["written"].as_u64().unwrap() > 0);
    assert_eq!(file["error"], Value::Null);
    let mode = fs::metadata(file["path"].as_str().unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(names(&folder), ["vm1.json"], "nothing half-written stays");
}

#[test]
fn overrides_when_all_are_taken_back_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (mut saved, _) = open(&folder, "vm1");
    saved.save(&overrides());
    saved.save(&Overrides::default());
    assert!(names(&folder).is_empty());
    assert_eq!(reported(&saved).0["written"], Value::Null);
}

#[test]
fn file_when_qemu_was_restarted_applies_by_name_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    // A process of an earlier boot can't be alive.
    let text = written(&folder);
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document["qemu"]["boot-id"] = "earlier".into();
    let text = document.to_string();

    let (saved, restored) = open_with(&folder, text.as_bytes());
    assert_eq!(restored, overrides());
    assert_eq!(reported(&saved).1["same-qemu"], false);

    // Without a name of its own the VM is another one.
    let root = SysRoot::real();
    let (saved, restored) = StateFile::open(folder.path(), &root, "vm1", false, std::process::id());
    assert_eq!(restored, Overrides::default());
    assert_eq!(reported(&saved).1, Value::Null);
}

#[test]
fn file_when_another_vm_of_the_name_runs_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = written(&folder);
    // Whatever process is another one: the parent of this one.
    let root = SysRoot::real();
    let other = std::os::unix::process::parent_id();

    let (mut saved, restored) = StateFile::open(folder.path(), &root, "vm1", true, other);
    saved.save(&Overrides {
        paused: true,
        ..Overrides::default()
    });

    assert_eq!(restored, Overrides::default());
    let (report, _) = reported(&saved);
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("--name"), "{error}");
    assert_eq!(fs::read_to_string(file(&folder, "vm1")).unwrap(), text);
}

#[test]
fn file_when_another_vm_of_the_name_wrote_it_first_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let root = SysRoot::real();
    let (mut others, _) = StateFile::open(folder.path(), &root, "vm1", true, other.id());
    // Neither has a file yet.
    let (mut saved, _) = open(&folder, "vm1");
    others.save(&overrides());
    let paused = Overrides {
        paused: true,
        ..Overrides::default()
    };
    let before = fs::read_to_string(file(&folder, "vm1")).unwrap();

    for mine in [paused, Overrides::default()] {
        saved.save(&mine);
        assert_eq!(
            fs::read_to_string(file(&folder, "vm1")).unwrap(),
            before,
            "neither replaced nor removed"
        );
    }

    let (report, _) = reported(&saved);
    assert!(report["error"].as_str().unwrap().contains("--name"));
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(saved.take_over(), Some(overrides()));
}

#[test]
fn file_when_its_folder_can_be_written_again_is_written_without_an_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("state"), "").unwrap();
    let (mut saved, _) = open(&folder, "vm1");
    saved.save(&overrides());
    saved.try_again(&overrides());
    assert!(reported(&saved).0["error"].is_string());
    fs::remove_file(folder.path().join("state")).unwrap();

    saved.try_again(&overrides());

    assert_eq!(reported(&saved).0["error"], Value::Null);
    assert_eq!(open(&folder, "vm1").1, overrides());
}

#[test]
fn file_when_the_other_vm_of_the_name_has_ended_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let root = SysRoot::real();
    let (mut others, _) = StateFile::open(folder.path(), &root, "vm1", true, other.id());
    others.save(&overrides());
    let (mut saved, restored) = open(&folder, "vm1");
    assert_eq!(restored, Overrides::default());
    assert_eq!(saved.take_over(), None, "it still runs");

    other.kill().unwrap();
    other.wait().unwrap();

    assert_eq!(saved.take_over(), Some(overrides()));
    let (report, restored) = reported(&saved);
    assert_eq!(report["error"], Value::Null);
    assert_eq!(restored["same-qemu"], false);
    assert_eq!(saved.take_over(), None, "once");
}

#[test]
fn file_when_cut_short_anywhere_is_put_aside_and_replaced_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let text = written(&folder);
    let text = text.trim_end();
    for end in (0..text.len()).step_by(7) {
        let (mut saved, restored) = open_with(&folder, &text.as_bytes()[..end]);
        assert_eq!(restored, Overrides::default(), "{end} bytes of it");
        assert_eq!(names(&folder), ["vm1.json.damaged"], "{end} bytes of it");
        saved.save(&overrides());
        assert_eq!(open(&folder, "vm1").1, overrides());
    }
}

#[test]
fn file_when_damaged_is_put_aside_whatever_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = written(&folder);
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replacen(from, to, 1).into_bytes()
    };
    let cases = [
        with("\"version\": 1", "\"version\": 0"),
        with("\"version\": 1", "\"version\": \"1\""),
        with("\"vm\": \"vm1\"", "\"vm\": \"vm2\""),
        with("2.5", "-2.5"),
        with("2.5", "1e300"),
        with("half-life", "half-live"),
        with("\"paused\": true", "\"paused\": 1"),
        vec![b'['; 100_000],
        vec![0xff; 100],
        vec![b' '; (1 << 20) + 1],
    ];
    for case in cases {
        let (_, restored) = open_with(&folder, &case);
        assert_eq!(restored, Overrides::default());
        assert_eq!(names(&folder), ["vm1.json.damaged"]);
        let kept = fs::read(folder.path().join("state/vm1.json.damaged")).unwrap();
        assert_eq!(kept, case);
    }
}

#[test]
fn file_when_newer_is_put_aside_under_a_name_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let newer = br#"{"version": 2, "what": "nobody knows"}"#;
    let (saved, restored) = open_with(&folder, newer);
    assert_eq!(restored, Overrides::default());
    assert_eq!(names(&folder), ["vm1.json.newer"]);
    assert_eq!(
        reported(&saved).0["error"],
        Value::Null,
        "the next one can be written"
    );
}

#[test]
fn file_when_it_can_not_be_written_is_told_and_nothing_fails() {
    let folder = tempfile::tempdir().unwrap();
    // A file where the folder should be.
    fs::write(folder.path().join("state"), "").unwrap();
    let (mut saved, restored) = open(&folder, "vm1");
    saved.save(&overrides());
    assert_eq!(restored, Overrides::default());
    let (report, _) = reported(&saved);
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("run-dir"), "{error}");

    fs::remove_file(folder.path().join("state")).unwrap();
    saved.save(&overrides());
    assert_eq!(reported(&saved).0["error"], Value::Null, "it works again");
}

#[test]
fn file_when_a_half_written_one_is_left_behind_is_written_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let half = format!("vm1.json.{}.new", std::process::id());
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("state").join(half), "{\"vers").unwrap();
    let (mut saved, _) = open(&folder, "vm1");
    saved.save(&overrides());
    assert_eq!(names(&folder), ["vm1.json"]);
}

#[test]
fn half_written_files_when_their_agents_are_gone_are_removed_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let of = |vm: &str, pid: u32| format!("{vm}.json.{pid}.new");
    let other = std::os::unix::process::parent_id();
    let kept = [of("vm1", other), of("vm2", gone.id())];
    fs::create_dir(folder.path().join("state")).unwrap();
    for name in kept.iter().chain([&of("vm1", gone.id())]) {
        fs::write(folder.path().join("state").join(name), "{\"vers").unwrap();
    }
    open(&folder, "vm1");
    assert_eq!(
        names(&folder),
        kept,
        "only what this VM's dead agent left goes"
    );
}

#[test]
fn file_when_its_place_is_a_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, written(&folder)).unwrap();
    let path = file(&folder, "vm1");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();

    let (mut saved, restored) = open(&folder, "vm1");
    saved.save(&Overrides::default());
    saved.save(&overrides());

    assert_eq!(restored, Overrides::default());
    assert!(reported(&saved).0["error"].is_string());
    assert!(path.is_symlink(), "neither replaced nor removed");
    fs::remove_file(&path).unwrap();
    saved.try_again(&overrides());
    assert_eq!(
        reported(&saved).0["error"],
        Value::Null,
        "nothing is in the way"
    );
    assert_eq!(open(&folder, "vm1").1, overrides());
}

#[test]
fn guest_when_gone_takes_the_file_with_it_only_without_a_name() {
    for is_named in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::real();
        let pid = std::process::id();
        let (mut saved, _) = StateFile::open(folder.path(), &root, "qemu-1", is_named, pid);
        saved.save(&overrides());
        saved.on_guest_gone();
        assert_eq!(file(&folder, "qemu-1").exists(), is_named);
    }
}

#[test]
fn names_of_files_when_vms_have_any_names_differ_and_stay_in_the_folder() {
    let long = "x".repeat(4096);
    let longer = "x".repeat(4097);
    let vms = [
        "vm1", "VM1", "vm/1", "vm%2f1", "..", ".", "../vm1", "a b", "ä", "vm1.json", "\n", "",
        &long, &longer,
    ];
    let names: BTreeSet<String> = vms.iter().map(|vm| name_of(vm)).collect();
    assert_eq!(names.len(), vms.len(), "{names:?}");
    for name in names {
        assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
        assert!(name.len() + ".4194304.new".len() <= 255, "{name}");
    }
}
