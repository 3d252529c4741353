//! `vmm-tier replay` as users run it: on small workloads and traces.

use std::{
    fmt::Write as _,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

/// A workload small enough for a test: 8 MiB and 300 000 accesses.
const SMALL: [&str; 8] = [
    "--pages",
    "2048",
    "--rate",
    "100000",
    "--seconds",
    "3",
    "--period",
    "11",
];

fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .arg("replay")
        .args(arguments)
        .output()
        .unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = replay(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn runs(report: &Value) -> &Vec<Value> {
    report["runs"].as_array().unwrap()
}

fn run_of<'a>(report: &'a Value, policy: &str) -> &'a Value {
    let found = runs(report).iter().find(|run| run["policy"] == policy);
    found.unwrap_or_else(|| panic!("no {policy} in {report:#}"))
}

/// What does not follow from the input alone: CPU time.
fn without_cpu_time(mut report: Value) -> Value {
    for run in report["runs"].as_array_mut().unwrap() {
        run.as_object_mut().unwrap().remove("ns-per-sample");
    }
    report
}

#[test]
fn json_when_a_workload_is_replayed_has_the_keys_of_the_contract() {
    let report = json(&[&["--workload", "zipf"][..], &SMALL].concat());

    assert_eq!(runs(&report).len(), 2, "the default policy, and the oracle");
    for run in runs(&report) {
        assert_eq!(run["trace"], "zipf");
        assert_eq!(run["guest-bytes"], 8 << 20);
        assert_eq!(run["fast-bytes"], 2 << 20, "a quarter");
        assert_eq!(run["accesses"], 300_000);
        for key in ["hit-ratio", "ping-pong"] {
            let share = run[key].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&share), "{key}: {share}");
        }
        for key in ["oracle-share", "slowdown", "ns-per-sample"] {
            assert!(run[key].as_f64().unwrap() > 0.0, "{key}");
        }
        for key in ["moved-bytes", "least-bytes", "memory-bytes"] {
            assert!(run[key].is_u64(), "{key}");
        }
        assert_eq!(run["plateaus"][0]["from-s"], 0.0);
        assert_eq!(run["samples"]["arrived"], run["samples"]["accepted"]);
        // One in eleven of 300 000, less what the jitter does at the end.
        let arrived = run["samples"]["arrived"].as_u64().unwrap();
        assert!((26_000..28_500).contains(&arrived), "{arrived}");
    }
    assert_eq!(run_of(&report, "oracle")["oracle-share"], 1.0);
    assert_eq!(report["traces"][0]["period"], 11);
    assert_eq!(report["needs"], Value::Array(Vec::new()), "one size only");
}

#[test]
fn figures_when_replayed_again_are_the_same() {
    let arguments = [
        &["--workload", "gups-demeter,zipf", "--policy", "all"][..],
        &["--fast", "1:8,1:2", "--loss", "5", "--bias", "3"],
        &SMALL,
    ]
    .concat();
    let first = without_cpu_time(json(&arguments));
    let again = without_cpu_time(json(&arguments));
    assert_eq!(first, again);
    let other = without_cpu_time(json(&[&arguments[..], &["--seed", "2"]].concat()));
    assert_ne!(first, other);

    for run in runs(&first) {
        assert!(run["samples"]["lost"].as_u64().unwrap() > 0, "{run}");
    }
    let unseen: u64 = runs(&first)
        .iter()
        .map(|run| run["samples"]["unseen"].as_u64().unwrap())
        .sum();
    assert!(unseen > 0, "the bias takes samples of slow pages away");
}

#[test]
fn hits_when_dram_grows_do_not_fall_for_the_oracle() {
    let sizes = ["--fast", "1:16,50%,1:4,1M", "--policy", "oracle"];
    let report = json(&[&["--workload", "zipf"][..], &sizes, &SMALL].concat());

    let sizes: Vec<u64> = runs(&report)
        .iter()
        .map(|run| run["fast-bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(sizes, [512 << 10, 1 << 20, 2 << 20, 4 << 20], "rising");
    let hits: Vec<f64> = runs(&report)
        .iter()
        .map(|run| run["hit-ratio"].as_f64().unwrap())
        .collect();
    assert!(hits.is_sorted(), "{hits:?}");
    let need = &report["needs"][0];
    assert_eq!(need["policy"], "oracle");
    assert_eq!(need["hit-ratio"], 0.95);
    assert!(
        need["bytes"].is_u64() && need["bound"].is_string(),
        "{need}"
    );
}

#[cfg(not(feature = "charts"))]
#[test]
fn curves_when_the_program_draws_none_are_told_how_to_get() {
    let sizes = [&["--workload", "zipf", "--fast", "1:8,1:4"][..], &SMALL].concat();
    let how = "cargo build --release -p vmm-tier --features charts";

    let output = replay(&sizes);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert_eq!(shown.matches(how).count(), 1, "{shown}");
    assert!(shown.contains("DRAM for 95.0 % of the accesses"), "{shown}");
    let output = replay(&[&sizes[..], &["--no-chart"]].concat());
    assert!(!text(&output.stdout).contains(how), "nobody asks for it");

    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("curve.svg");
    let output = replay(&[&sizes[..], &["--svg", picture.to_str().unwrap()]].concat());
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains(how) && error.contains("--svg"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!picture.exists());
}

#[cfg(feature = "charts")]
#[test]
fn text_and_picture_when_several_sizes_are_replayed_show_the_curve() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("curve.svg");
    let arguments = [
        &["--workload", "zipf", "--fast", "1:8,1:4"][..],
        &["--svg", picture.to_str().unwrap()],
        &SMALL,
    ]
    .concat();

    let output = replay(&arguments);

    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for part in [
        "1 MiB of DRAM, 12.5 % of the guest",
        "2 MiB of DRAM, 25.0 % of the guest",
        "ns/sample",
        "arrived",
        "a dual-heap  b oracle",
        "DRAM for 95.0 % of the accesses",
    ] {
        assert!(shown.contains(part), "{part} is missing:\n{shown}");
    }
    assert_eq!(text(&output.stderr), "", "no progress without a terminal");
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(picture.starts_with("<svg"), "{picture}");
    assert!(picture.contains("dual-heap"));
}

#[test]
fn arguments_when_wrong_are_told_with_what_to_do() {
    let small = |more: &[&'static str]| [more, &SMALL].concat();
    let cases = [
        (small(&["--workload", "none"]), "gups-demeter"),
        (
            small(&["--workload", "zipf", "--policy", "best"]),
            "dual-heap",
        ),
        (small(&["--workload", "zipf", "--fast", "1K"]), "--fast"),
        (small(&["--workload", "zipf", "--fast", "lots"]), "512M"),
        (small(&["--workload", "zipf", "--fast", "4:1"]), "1:16"),
        (vec!["--workload", "zipf", "--period", "0"], "1.."),
        (vec!["--workload", "zipf", "--target", "120"], "percentage"),
        (vec![], "--workload"),
    ];
    for (arguments, hint) in cases {
        let output = replay(&arguments);
        let error = text(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains(hint), "{arguments:?}: {error}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

/// A trace of lines in a folder of its own.
struct Trace {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Trace {
    fn new(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.csv");
        std::fs::write(&path, lines).unwrap();
        Self {
            path,
            _folder: folder,
        }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// Pages 0 to 3 are touched one after the other, then for 5 s page 3 nine times and page 0 once, again and again.
fn four_pages() -> Trace {
    let mut lines = String::from("time_ns,address,kind\n");
    for page in 0..4 {
        writeln!(lines, "{page},{:#x},load", page * 4096).unwrap();
    }
    for round in 1..500_u64 {
        for step in 0..10 {
            let at = round * 10_000_000 + step;
            let address = if step == 9 { 0 } else { 3 * 4096 + 8 * step };
            writeln!(lines, "{at},{address},store").unwrap();
        }
    }
    Trace::new(&lines)
}

#[test]
fn hits_when_nothing_moves_are_those_of_the_pages_touched_first() {
    let trace = four_pages();
    let report = json(&[
        trace.path(),
        "--policy=static,oracle-free",
        "--fast=50%,8K",
        "--stretch=1",
        "--period=1",
    ]);

    // Pages 0 and 1 are in DRAM: they have 1 + 499 and 1 of 4994 accesses.
    let fixed = run_of(&report, "static");
    assert_eq!(fixed["hit-ratio"], 501.0 / 4994.0);
    assert_eq!(fixed["moved-bytes"], 0);
    assert_eq!(fixed["ping-pong"], 0.0);
    assert_eq!(fixed["fast-bytes"], 8192);
    // 501 accesses of 100 ns and 4493 of 250 ns (the latencies that are assumed), over 4994 of 100 ns.
    let slowdown = (501.0 * 100.0 + 4493.0 * 250.0) / (4994.0 * 100.0);
    let shown = fixed["slowdown"].as_f64().unwrap();
    assert!((shown - slowdown).abs() < 1e-9, "{shown} {slowdown}");
    let oracle = run_of(&report, "oracle");
    // Page 3 is worth a place: it comes for page 1, before the first slice of its nine in ten is over.
    assert!(oracle["hit-ratio"].as_f64().unwrap() > 0.99, "{oracle}");
    assert_eq!(oracle["moved-bytes"], 8192, "one page up, one down");
    assert_eq!(fixed["least-bytes"], 8192);
    assert_eq!(report["traces"][0]["guest-bytes"], 16384);
    assert_eq!(report["traces"][0]["touched-only"], true);
    assert_eq!(runs(&report).len(), 3, "50% of 16 KiB are 8 KiB");
    assert_eq!(runs(&report)[0]["policy"], "static", "what was asked first");
}

#[test]
fn trace_when_short_is_slowed_down_and_says_so() {
    let trace = four_pages();

    let slow = json(&[trace.path(), "--timeline"]);
    let seconds = slow["traces"][0]["seconds"].as_f64().unwrap();
    assert!((seconds - 119.99).abs() < 1e-6, "{seconds}");
    assert_eq!(runs(&slow)[0]["timeline"].as_array().unwrap().len(), 120);
    let notes = slow["traces"][0]["notes"].to_string();
    assert!(notes.contains("--stretch 1"), "{notes}");
    assert!(notes.contains("few samples"), "{notes}");

    let as_it_was = json(&[trace.path(), "--stretch", "1"]);
    let seconds = as_it_was["traces"][0]["seconds"].as_f64().unwrap();
    assert!((seconds - 4.99).abs() < 0.001, "{seconds}");
    assert_eq!(runs(&as_it_was)[0]["timeline"], Value::Null);
}

#[test]
fn recording_when_imported_from_a_trace_brings_the_same_figures() {
    let trace = four_pages();
    let native = trace.path.with_extension("vmt");
    let import = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .args(["record", "--import", trace.path()])
        .args(["--output", native.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(import.status.success(), "{}", text(&import.stderr));

    let figures = |path: &str| {
        let mut report = without_cpu_time(json(&[path, "--policy", "all", "--period", "3"]));
        let runs = report["runs"].as_array_mut().unwrap();
        for run in &mut *runs {
            run.as_object_mut().unwrap().remove("trace");
        }
        Value::Array(std::mem::take(runs))
    };
    assert_eq!(figures(trace.path()), figures(native.to_str().unwrap()));
}

#[test]
fn guest_when_on_huge_pages_has_them_as_one() {
    let trace = four_pages();
    let report = json(&[trace.path(), "--huge", "--fast", "1:1"]);
    assert_eq!(report["traces"][0]["pages"], 1);
    assert_eq!(report["traces"][0]["guest-bytes"], 2 << 20);
    assert_eq!(runs(&report)[0]["hit-ratio"], 1.0);

    let none = replay(&[trace.path(), "--huge", "--fast", "50%"]);
    let error = text(&none.stderr);
    assert!(!none.status.success());
    assert!(error.contains("less than one of its pages"), "{error}");
}

#[test]
fn trace_when_it_cannot_be_read_is_told_with_its_name_and_what_to_do() {
    let cases = [
        ("", "trace.csv", "no bytes"),
        ("what is this\n", "line 1 (byte 0)", "time_ns,address,kind"),
        (
            "5,4096,load\n4,4096,load\n",
            "line 2 (byte 12)",
            "goes back",
        ),
        ("# nothing\n1,2,3,4\n", "line 2", "three fields"),
        ("# nothing\n", "trace.csv", "no access"),
    ];
    for (lines, place, hint) in cases {
        let trace = Trace::new(lines);
        let output = replay(&[trace.path(), "--format=csv"]);
        let error = text(&output.stderr);
        assert!(!output.status.success(), "{lines:?}");
        assert_eq!(text(&output.stdout), "");
        assert!(error.contains(place), "{lines:?}: {error}");
        assert!(error.contains(hint), "{lines:?}: {error}");
    }
    let missing = text(&replay(&["/does/not/exist"]).stderr);
    assert!(missing.contains("/does/not/exist"), "{missing}");
    assert!(missing.contains("No such file"), "{missing}");
    let pipe = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "echo 1,4096,load | {} replay -",
            env!("CARGO_BIN_EXE_vmm-tier")
        ))
        .output()
        .unwrap();
    let error = text(&pipe.stderr);
    assert!(!pipe.status.success());
    assert!(error.contains("record --import"), "{error}");
}

#[test]
fn vms_when_they_share_a_host_are_compared_by_rule_for_each_size() {
    let sizes = ["--vms", "3", "--seconds", "20", "--fast", "10%,1:4"];
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables.md");
    let report = json(&[&sizes[..], &["--markdown", tables.to_str().unwrap()]].concat());
    let tables = std::fs::read_to_string(tables).unwrap();
    assert_eq!(tables.matches("| rule | in DRAM |").count(), 2);
    let hosts = report["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 2);
    for host in hosts {
        let rules = runs(host).iter().map(|run| run["rule"].as_str().unwrap());
        let all = [
            "first-come",
            "static",
            "weighted",
            "utility",
            "pure-utility",
            "weighted-no-credits",
            "weighted-full-tax",
            "weighted-no-hysteresis",
            "utility-no-hysteresis",
        ];
        assert!(rules.eq(all), "{host}");
        assert_eq!((&host["vms"], &host["seconds"]), (&3.into(), &20.into()));
    }
    assert!(hosts[0]["pool-bytes"].as_u64() < hosts[1]["pool-bytes"].as_u64());
    // What belongs to traces is refused, not ignored.
    let refused = replay(&["--vms", "3", "--policy", "all"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("cannot be used with"));
    assert_eq!(replay(&["--vms", "1001"]).status.code(), Some(2));
}
