//! A few memory layouts on live QEMU of both versions: scripts/layouts has them all.
//!
//! The program under test is the `vmm-tier` that cargo built beside this test: `cargo test --workspace`
//! builds it, `cargo test --package tests` alone does not.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::{slice, thread};

use lab::image::Cache;
use lab::layouts::{Options, Outcome, Version, run, short};

static STOP: AtomicBool = AtomicBool::new(false);

/// What the test needs, or why it can't be had.
fn needed() -> Result<(PathBuf, Vec<Version>), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("guest memory can be read by root only".to_owned());
    }
    let cache = Cache::open().map_err(|error| format!("{error:#}"))?;
    let versions = Version::of(&cache).map_err(|error| format!("{error:#}"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_layouts")).with_file_name("vmm-tier");
    if !program.is_file() {
        return Err(format!(
            "no {}; run cargo build --package vmm-tier",
            program.display()
        ));
    }
    Ok((program, versions))
}

#[test]
fn map_when_made_on_live_qemu_has_all_ram_and_nothing_else() {
    let (program, versions) = match needed() {
        Ok(needed) => needed,
        Err(why) => {
            println!("SKIPPED: {why}");
            return;
        }
    };
    let options = Options {
        program,
        addresses: 1000,
        maps: 1,
        seed: 1,
        stop: &STOP,
    };

    let check = |version: &Version| {
        run(&options, slice::from_ref(version), &short(), &mut |line| {
            println!("{line}");
        })
        .unwrap()
    };
    // The versions have nothing in common, so they are checked at the same time.
    let reports: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = versions
            .iter()
            .map(|version| scope.spawn(|| check(version)))
            .collect();
        running.into_iter().map(|run| run.join().unwrap()).collect()
    });

    for report in &reports {
        assert!(report.is_good(), "{}", report.text());
    }
    // Two versions, eight layouts, and none of them needs what a machine may lack.
    let rows: usize = reports.iter().map(|report| report.rows.len()).sum();
    assert_eq!(rows, 16);
    for report in &reports {
        for row in &report.rows {
            let Outcome::Checked(found) = &row.outcome else {
                panic!("{}", report.text());
            };
            assert!(found.inside >= 1000 && found.outside >= 1000, "{row:?}");
        }
    }
}
