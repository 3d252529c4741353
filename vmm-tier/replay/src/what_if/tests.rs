//! What-if for a host, as a whole.

use std::{fmt::Write as _, path::Path};

use clap::Parser as _;
use tempfile::TempDir;
use tier_core::{
    addr::BASE_PAGE,
    arbiter::DemandCurve,
    random::Random,
    sample::{AccessKind, SourceKind},
    time::Time,
};

use super::{report::Verdict, *};
use crate::{
    format::{Encoder, Header, Origin},
    machine::Access,
};

const MIB: u64 = 1 << 20;
const LIMITS: Limits = Limits {
    target_ratio: TARGET,
    loss: LOSS,
    latency: Latency {
        fast_ns: 100,
        slow_ns: 250,
    },
};

fn host(mode: Mode) -> Host {
    let rules = Rules {
        mode,
        ..Rules::default()
    };
    Host {
        rules,
        limits: LIMITS,
    }
}

fn guest(name: &str, memory: u64, guarantee: u64, weight: f64, curves: Curves) -> Candidate {
    Candidate {
        name: name.to_owned(),
        terms: Terms {
            guarantee_bytes: guarantee,
            cap_bytes: memory,
            weight,
            page_bytes: BASE_PAGE,
            goal: None,
        },
        curves: Arc::new(curves),
        offset_s: 0,
        vcpu_s_per_s: None,
    }
}

/// A guest that uses so many MiB, each alike.
fn uses(mib: u64) -> DemandCurve {
    DemandCurve::of_buckets([(mib * MIB, 1000.0 * mib as f64)])
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

/// The example of docs/fairness.md: 84 MiB, guarantees of 8 MiB, weights of 1, 1 and 2; they use 24, 48
/// and 96 MiB and have 23, 23 and 38.
fn example() -> Vec<Candidate> {
    [("a", 24, 1.0), ("b", 48, 1.0), ("c", 96, 2.0)]
        .map(|(name, mib, weight)| {
            guest(name, mib * MIB, 8 * MIB, weight, Curves::steady(uses(mib)))
        })
        .to_vec()
}

#[test]
fn guests_when_they_share_dram_have_what_can_be_reckoned_by_hand() {
    let answer = host(Mode::Weighted).with(84 * MIB, &example());

    // Of 24, 48 and 96 parts 23, 23 and 38 are hits; a miss takes 2.5 times as long.
    let expected = [(23, 23.0 / 24.0), (23, 23.0 / 48.0), (38, 38.0 / 96.0)];
    for (guest, (mib, hits)) in answer.guests.iter().zip(expected) {
        assert_eq!(
            (guest.share_bytes, guest.least_share_bytes),
            (mib * MIB, mib * MIB)
        );
        assert!(near(guest.hit_ratio, hits), "{guest:?}");
        assert!(near(guest.slowdown, 1.0 + 1.5 * (1.0 - hits)), "{guest:?}");
        // 23 of 24 are 95.8 %: 6.25 % slower, above the limit.
        assert_eq!(guest.verdict, Verdict::Suffers);
    }
    assert!(near(answer.hit_ratio, 84.0 / 168.0));
    assert_eq!((answer.fits, answer.suffers, answer.refused), (0, 3, 0));
    assert!(
        near(answer.jain, 1.0),
        "all have what is fair: {}",
        answer.jain
    );
    assert_eq!(answer.moved_bytes_per_s, 0.0);
}

#[test]
fn guest_when_its_cpus_did_more_than_wait_loses_less() {
    let mut busy = example();
    busy[0].vcpu_s_per_s = Some(1.0);
    let answer = host(Mode::Weighted).with(84 * MIB, &busy);
    // 24,000 accesses a second, a 24th of which miss: 1000 · 150 ns of each second.
    let slowdown = answer.guests[0].slowdown;
    assert!(near(slowdown, 1.0 / (1.0 - 1000.0 * 150e-9)), "{slowdown}");
    assert_eq!(answer.guests[0].verdict, Verdict::Fits);
}

#[test]
fn guest_when_its_guarantee_does_not_fit_is_refused_with_the_sums() {
    let mut guests = example();
    guests[1].terms.guarantee_bytes = 20 * MIB;
    let answer = host(Mode::Weighted).with(24 * MIB, &guests);

    let verdicts: Vec<Verdict> = answer.guests.iter().map(|guest| guest.verdict).collect();
    assert_eq!(
        verdicts,
        [Verdict::Suffers, Verdict::Refused, Verdict::Suffers]
    );
    let why = answer.guests[1].refused_because.as_deref();
    assert_eq!(
        why,
        Some(
            "VM b can't be guaranteed 20971520 bytes: the other VMs' guarantees take 8388608 of the pool's \
             25165824 bytes"
        )
    );
    // The two others share all of it: 8 MiB above their guarantees by 1 : 2, in whole pages.
    let shares = [8.0 + 8.0 / 3.0, 8.0 + 16.0 / 3.0];
    for (guest, mib) in [&answer.guests[0], &answer.guests[2]]
        .into_iter()
        .zip(shares)
    {
        let wanted = mib * MIB as f64;
        assert!(
            (guest.share_bytes as f64 - wanted).abs() <= BASE_PAGE as f64,
            "{guest:?}"
        );
    }
}

/// Random curves of 40 seconds that rise and fall.
fn some_curves(random: &mut Random, mib: u64) -> Curves {
    let curves: Vec<DemandCurve> = (0..40)
        .map(|_| {
            let hot = 1 + random.below(mib / 4);
            let parts = [
                (hot, 1e4 * random.share()),
                (mib - hot, 1e3 * random.share()),
            ];
            DemandCurve::of_buckets(parts.map(|(mib, hits)| (mib * MIB, hits)))
        })
        .collect();
    Curves::new(1, curves.clone(), curves)
}

#[test]
fn shares_when_guests_come_and_go_to_heat_are_within_dram_and_within_caps() {
    let mut random = Random::new(3);
    for mode in Mode::ALL {
        let guests: Vec<Candidate> = (0..5)
            .map(|number| {
                let mib = 32 + 32 * random.below(4);
                let curves = some_curves(&mut random, mib);
                guest(&format!("g{number}"), mib * MIB, 4 * MIB, 1.0, curves)
            })
            .collect();
        for dram in [32, 100, 1000] {
            let answer = host(mode).with(dram * MIB, &guests);
            let shares: u64 = answer.guests.iter().map(|guest| guest.share_bytes).sum();
            assert!(shares <= dram * MIB, "{mode}: {answer:?}");
            for (guest, candidate) in answer.guests.iter().zip(&guests) {
                assert!(guest.least_share_bytes <= guest.share_bytes);
                assert!(guest.share_bytes <= candidate.terms.cap_bytes);
                assert!((0.0..=1.0).contains(&guest.hit_ratio), "{guest:?}");
            }
        }
    }
}

#[test]
fn guests_when_there_is_more_dram_hit_more() {
    let mut random = Random::new(7);
    for mode in Mode::ALL {
        let guests: Vec<Candidate> = (0..4)
            .map(|number| {
                let curves = some_curves(&mut random, 64);
                guest(&format!("g{number}"), 64 * MIB, 0, 1.0, curves)
            })
            .collect();
        let hits = (1..=16).map(|step| host(mode).with(step * 16 * MIB, &guests).hit_ratio);
        let hits: Vec<f64> = hits.collect();
        assert!(hits.is_sorted(), "{mode}: {hits:?}");
        assert!(near(hits[15], 1.0), "all memory is DRAM: {hits:?}");
    }
}

#[test]
fn density_when_guests_are_alike_is_what_can_be_reckoned_by_hand() {
    // Each needs 29/30 of 30 MiB for a loss of 5 %: 29 MiB, of which 290 MiB hold ten.
    let one = [guest("a", 30 * MIB, 0, 1.0, Curves::steady(uses(30)))];
    let host = host(Mode::Static);
    let times = |mib, from| host.times(mib * MIB, &one, true, from);
    assert_eq!(
        [28, 29, 289, 290, 291].map(|mib| times(mib, 0)),
        [0, 1, 9, 10, 10]
    );
    assert_eq!(times(290, 9), 10);
    assert_eq!(times(1 << 20, 0), 1000, "no more than a host can have");
}

#[test]
fn copies_when_they_are_spread_take_turns() {
    // A minute of 64 MiB, a minute of nothing.
    let curves: Vec<DemandCurve> = (0..120)
        .map(|second| {
            if second < 60 {
                uses(64)
            } else {
                DemandCurve::default()
            }
        })
        .collect();
    let one = [guest(
        "a",
        64 * MIB,
        0,
        1.0,
        Curves::new(1, curves.clone(), curves),
    )];
    let host = host(Mode::Weighted);
    // With the idle tax a guest at rest keeps a quarter of what it is entitled to.
    let times = |spread| host.times(88 * MIB, &one, spread, 0);
    assert_eq!((times(false), times(true)), (1, 2));
}

/// Lines of a trace of two minutes: each second page 0 four times, page 1 twice, pages 2 and 3 once.
fn trace() -> String {
    let mut text = String::new();
    for second in 0..120_u64 {
        for (number, page) in [0, 1, 0, 2, 0, 1, 0, 3].into_iter().enumerate() {
            let at = second * 1_000_000_000 + number as u64 * 125_000_000;
            let _ = writeln!(text, "{at},{},load", page * BASE_PAGE);
        }
    }
    // Its last access is 125 ms before the two minutes' end.
    text
}

fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: WhatIfArgs,
}

/// What `what-if` prints, with paths as seen from the folder.
fn what_if(folder: &TempDir, arguments: &[&str]) -> Result<String, String> {
    let path = folder.path().display().to_string();
    let arguments = arguments
        .iter()
        .map(|argument| argument.replace('@', &format!("{path}/")));
    let cli = Cli::try_parse_from(["what-if".to_owned()].into_iter().chain(arguments));
    let cli = cli.map_err(|error| error.to_string())?;
    match run(&cli.args) {
        Ok(text) => Ok(text.replace(&format!("{path}/"), "")),
        Err(error) => {
            let mut line = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                let _ = write!(line, ": {error}");
                source = error.source();
            }
            Err(line.replace(&format!("{path}/"), ""))
        }
    }
}

#[test]
fn guest_when_alone_has_what_its_demand_curve_says() {
    let folder = folder_with(&[("a.csv", &trace())]);
    let path = folder.path().join("a.csv");
    let progress = Progress::new(true);
    let recording = Recording::read(
        (&path, Format::Auto),
        Options::default(),
        Bounds::default(),
        &progress,
    )
    .unwrap();
    let alone = [Candidate {
        curves: Arc::clone(&recording.curves),
        ..guest("a", recording.memory_bytes, 0, 1.0, Curves::steady(uses(1)))
    }];

    // Four, six, seven and eight of eight accesses.
    for (pages, hits) in (1..).zip([0.5, 0.75, 0.875, 1.0]) {
        let bytes = pages * BASE_PAGE;
        assert!(
            near(recording.hit_ratio(bytes), hits),
            "{pages}: {}",
            recording.hit_ratio(bytes)
        );
        let answer = host(Mode::Weighted).with(bytes, &alone);
        assert!(near(answer.guests[0].hit_ratio, hits), "{answer:?}");
    }
    let report = recording.report("a", 1, None, &LIMITS);
    assert_eq!(
        (report.memory_bytes, report.target_bytes),
        (4 * BASE_PAGE, 4 * BASE_PAGE)
    );
}

#[test]
fn text_and_json_when_guests_share_dram_stay_as_they_are() {
    let folder = folder_with(&[("a.csv", &trace()), ("b.csv", &trace())]);
    let arguments = [
        "db=@a.csv*2",
        "@b.csv",
        "--dram",
        "16K,48K",
        "--guarantee",
        "b=16K,4K",
        "--weight",
        "b=2",
        "--cpus",
        "b=1",
    ];
    insta::assert_snapshot!(what_if(&folder, &arguments).unwrap());
    let json = what_if(&folder, &[&arguments[..], &["--json"]].concat()).unwrap();
    insta::assert_snapshot!(json);
}

#[test]
fn picture_when_it_is_asked_for_has_a_line_for_each_recording_and_for_all() {
    let folder = folder_with(&[("a.csv", &trace())]);
    what_if(
        &folder,
        &["a<b=@a.csv*2", "@a.csv", "--dram", "32K", "--svg", "@x.svg"],
    )
    .unwrap();
    let svg = std::fs::read_to_string(folder.path().join("x.svg")).unwrap();
    let lines = svg.matches("<polyline").count();
    assert!(
        lines >= 6,
        "three in the chart, three in the legend: {lines}"
    );
    assert!(svg.contains("a&lt;b") && !svg.contains("a<b"), "{svg}");
}

#[test]
fn input_when_it_is_no_guest_is_refused_in_one_line() {
    let folder = folder_with(&[
        ("empty", ""),
        ("poem", "Whose woods these are\nI think I know\n"),
        ("a.csv", &trace()),
    ]);
    recording(&folder.path().join("second.vmt"), 10, 11);
    let refused = |arguments: &[&str]| {
        let line = what_if(&folder, arguments).unwrap_err();
        assert!(!line.contains('\n'), "{line}");
        line
    };
    assert_eq!(
        refused(&["@empty"]),
        "trace empty can't be used: it has no bytes: the recording was never begun, or is elsewhere"
    );
    assert!(refused(&["@poem"]).contains("of no format that is known"));
    assert!(refused(&["@nothing"]).contains("can't be opened"));
    assert!(refused(&["@"]).contains("is a folder"));
    assert_eq!(
        refused(&["@second.vmt"]),
        "second.vmt took 1.0 s, and heat is learnt over some seconds: record 10 s or more, better two minutes"
    );
    assert_eq!(
        refused(&["@a.csv*1001"]),
        "1001 guests are more than the 1000 that can share a host's DRAM"
    );
    assert!(refused(&["@a.csv", "--dram", "1K"]).contains("less than a page"));
    assert!(refused(&["@a.csv", "--guarantee", "a=1G"]).contains("below its guarantee"));
    assert!(refused(&["@a.csv", "--weight", "0"]).contains("weights are numbers from"));
    assert!(refused(&["@a.csv", "--cpus", "0"]).contains("busy virtual CPUs"));
    let many = vec!["4K"; 65].join(",");
    assert!(refused(&["@a.csv", "--dram", &many]).contains("65 sizes"));
}

/// A recording of a source: so many accesses, ten a second, to as many pages in turn.
fn recording(path: &Path, accesses: u64, pages: u64) {
    let header = Header {
        origin: Origin::Source(SourceKind::Pebs),
        period: 4093,
        ..Header::import("", "vm1")
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&header, &mut bytes).unwrap();
    for number in 0..=accesses {
        let access = Access {
            at: Time(number * 100_000_000),
            address: number % pages * BASE_PAGE,
            len: 1,
            weight: 1,
            kind: AccessKind::Load,
        };
        encoder.access(&access, &mut bytes).unwrap();
    }
    encoder.finish(&mut bytes).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn guest_when_it_is_added_to_a_host_takes_what_is_its_own() {
    let folder = folder_with(&[]);
    let path = folder.path().join("a.vmt");
    recording(&path, 300, 4);
    let vms = [("x", 8), ("y", 8)].map(|(name, mib)| {
        let guest = guest(name, mib * MIB, 0, 1.0, Curves::steady(uses(mib)));
        let vm = Vm {
            terms: guest.terms,
            curve: uses(mib),
            holds_bytes: 4 * MIB,
            vcpu_s_per_s: 1.0,
        };
        (name.to_owned(), vm)
    });
    let host = HostNow {
        rules: Rules::default(),
        pool_bytes: 8 * MIB,
        latency: Latency::default(),
        vms: vms.into(),
    };
    let new = NewGuest {
        name: "a",
        recording: &path,
        guarantee_bytes: 16 << 10,
        cap_bytes: None,
        weight: 1.0,
        goal: None,
        vcpu_s_per_s: None,
    };
    let answer = add_guest(&host, &new, Duration::from_secs(60)).unwrap();

    let shares = |host: &WhatIfHost| -> Vec<u64> {
        host.guests.iter().map(|guest| guest.share_bytes).collect()
    };
    assert_eq!(shares(&answer.now), [4 * MIB, 4 * MIB]);
    // The new guest has 16 KiB, all of its memory; the others share the rest.
    assert_eq!(
        shares(&answer.then),
        [4 * MIB - (8 << 10), 4 * MIB - (8 << 10), 16 << 10]
    );
    assert_eq!(answer.then.guests[2].hit_ratio, 1.0);
    assert_eq!(answer.then.guests[2].name, "a");

    let late = add_guest(&host, &new, Duration::ZERO).unwrap_err();
    let why = std::error::Error::source(&late).unwrap().to_string();
    assert!(why.contains("not read within"), "{why}");
    let taken = NewGuest { name: "x", ..new };
    let answer = add_guest(&host, &taken, Duration::from_secs(60)).unwrap();
    assert_eq!(answer.then.guests[2].verdict, Verdict::Refused);
}
