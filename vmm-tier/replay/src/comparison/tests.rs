//! What people and programs read, from figures that are made up.

use std::collections::BTreeMap;

use tier_core::{moves::Outcome, sample::DropReason};

use super::{
    markdown,
    report::{Plateau, Report, Run, Samples, Trace},
    svg, text,
};

const MIB: u64 = 1 << 20;

fn run(policy: &str, fast_mib: u64, hit_ratio: f64, oracle: f64, moved_mib: u64) -> Run {
    let plateau = |from_s, reached_after_s| Plateau {
        from_s,
        level: hit_ratio,
        reached_after_s,
    };
    Run {
        trace: "phases".to_owned(),
        policy: policy.to_owned(),
        fast_bytes: fast_mib * MIB,
        guest_bytes: 128 * MIB,
        accesses: 3_840_000_000,
        hit_ratio,
        oracle_share: Some(hit_ratio / oracle),
        moved_bytes: moved_mib * MIB,
        least_bytes: 2 * fast_mib * MIB,
        ping_pong: 0.001 * moved_mib as f64,
        slowdown: 1.0 + (1.0 - hit_ratio) * 1.5,
        plateaus: vec![plateau(0.0, Some(2.0)), plateau(60.0, None)],
        samples: Samples {
            arrived: 938_196,
            accepted: 938_000,
            lost: 12,
            dropped: BTreeMap::from([(DropReason::NotGuestRam, 196)]),
            unseen: 0,
        },
        ns_per_sample: (policy != "static").then_some(41.4),
        failed: BTreeMap::from([(Outcome::Busy, 3)]),
        faults: 0,
        memory_bytes: 400_000,
        timeline: None,
    }
}

/// Three policies with four sizes.
fn report() -> Report {
    let mut report = Report::default();
    let trace = Trace {
        trace: "phases".to_owned(),
        seconds: 120.0,
        stretched: 1.0,
        guest_bytes: 128 * MIB,
        pages: 32_768,
        touched_only: false,
        accesses: 3_840_000_000,
        outside: 5,
        period: 4093,
        samples_recorded: false,
        notes: vec!["something that a reader should know".to_owned()],
    };
    let sizes = [
        (8, 0.60, 0.75),
        (16, 0.80, 0.85),
        (32, 0.93, 0.94),
        (64, 0.97, 0.99),
    ];
    let runs = sizes.iter().flat_map(|&(mib, hits, oracle)| {
        [
            run("dual-heap", mib, hits, oracle, 2 * mib + 4),
            run("static", mib, mib as f64 / 128.0, oracle, 0),
            run("oracle", mib, oracle, oracle, 2 * mib),
        ]
    });
    super::curve::add_with_needs(&mut report, trace, runs.collect(), 0.95);
    report
}

#[test]
fn text_when_there_are_several_sizes_has_a_table_each_and_the_curve() {
    insta::assert_snapshot!(text::report(&report(), true));
}

#[test]
fn text_when_there_are_many_phases_gives_the_median() {
    let mut report = report();
    report.runs.truncate(3);
    report.needs.clear();
    let more = [1.0, 9.0, 4.0].map(|after| Plateau {
        from_s: 1.0,
        level: 0.5,
        reached_after_s: Some(after),
    });
    report.runs[0].plateaus.extend(more);
    report.runs[0].samples.unseen = 100;
    report.runs[0].samples.arrived -= 100;
    report.traces[0].notes.clear();

    insta::assert_snapshot!(text::report(&report, true));
}

#[test]
fn json_keeps_its_keys() {
    let mut report = report();
    report.runs.truncate(2);
    report.needs.truncate(1);
    report.runs[0].timeline = Some(vec![None, Some(0.5)]);

    insta::assert_json_snapshot!(report);
}

#[test]
fn markdown_has_policies_as_columns() {
    insta::assert_snapshot!(markdown::tables(&report()));
}

#[test]
fn picture_has_a_line_for_each_policy() {
    let mut report = report();
    report.traces.push(Trace {
        trace: "empty".to_owned(),
        ..report.traces[0].clone()
    });
    let one = super::tests::report();

    let picture = svg::draw(&one, 0.95).unwrap();
    insta::assert_snapshot!(picture);
    // Two stand beside each other, even if one has no run.
    let two = svg::draw(&report, 0.95).unwrap();
    assert!(
        two.starts_with("<svg width=\"1520\" height=\"460\""),
        "{two}"
    );
}
