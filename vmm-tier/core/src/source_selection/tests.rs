//! The selection against sources that do as they like.

use proptest::prelude::*;

use super::*;
use crate::sample::DropReason;

const SECOND: u64 = 1_000_000_000;

struct Lab {
    now: Time,
    selection: SourceSelection,
    stats: BTreeMap<SourceKind, SourceStats>,
    believed: Vec<Option<SourceKind>>,
    told: Vec<(SourceKind, &'static str)>,
    working: BTreeMap<SourceKind, bool>,
}

/// Usable records a second of each source, and how exact they are.
type Delivers<'a> = &'a [(SourceKind, u64, f64)];

impl Lab {
    fn new(kinds: &[SourceKind]) -> Self {
        Self {
            now: Time(0),
            selection: SourceSelection::new(
                kinds.iter().copied(),
                Duration::from_millis(400),
                Duration::from_secs(20),
                Time(0),
            ),
            stats: BTreeMap::new(),
            believed: Vec::new(),
            told: Vec::new(),
            working: kinds.iter().map(|&kind| (kind, true)).collect(),
        }
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Work(kind, work) => {
                    self.working.insert(kind, work);
                    if work {
                        self.up(kind, Sight::Guest);
                    }
                }
                Step::Believe { source, before, .. } => {
                    assert_eq!(before, self.believed.last().copied().flatten());
                    self.believed.push(source);
                }
                Step::Tell(kind, health) => self.told.push((kind, health.word().name())),
            }
        }
    }

    fn up(&mut self, kind: SourceKind, sight: Sight) {
        let steps = self.selection.up(self.now, kind, sight, kind.to_string());
        self.take(steps);
    }

    fn run(&mut self, seconds: u64, delivers: Delivers<'_>) {
        for _ in 0..seconds {
            self.now = Time(self.now.0 + SECOND);
            for &(kind, records, precision) in delivers {
                if self.working[&kind] {
                    let stats = self.stats.entry(kind).or_default();
                    stats.account.accept(records);
                    (stats.precision, stats.coverage) = (Some(precision), Some(1.0));
                    stats.tests_pages = kind == SourceKind::Damon;
                }
            }
            let stats = self.stats.clone();
            let steps = self
                .selection
                .look(self.now, stats.iter().map(|(&k, s)| (k, s)));
            self.take(steps);
        }
    }

    fn health(&self, kind: SourceKind) -> Health {
        let mut rungs = self.selection.statuses();
        rungs.find(|rung| rung.kind == kind).unwrap().health
    }
}

const DAMON: (SourceKind, u64, f64) = (SourceKind::Damon, 3000, 0.2);
const IBS: (SourceKind, u64, f64) = (SourceKind::Ibs, 10_000, 1.0);

fn both() -> Lab {
    let mut lab = Lab::new(&[SourceKind::Damon, SourceKind::Ibs]);
    lab.up(SourceKind::Damon, Sight::Guest);
    lab.up(SourceKind::Ibs, Sight::Guest);
    lab
}

#[test]
fn first_source_when_it_delivers_is_believed_and_the_better_one_after_a_trial() {
    let mut lab = both();
    assert_eq!(lab.believed, [Some(SourceKind::Damon)]);
    lab.run(5, &[DAMON, IBS]);
    assert_eq!(lab.believed.len(), 1, "still on trial");
    lab.run(3, &[DAMON, IBS]);
    assert_eq!(lab.believed[1..], [Some(SourceKind::Ibs)]);
    assert_eq!(lab.health(SourceKind::Damon), Health::Resting);
    assert!(!lab.working[&SourceKind::Damon]);
}

#[test]
fn resting_source_when_the_believed_one_falls_silent_takes_over_at_once() {
    let mut lab = both();
    lab.run(10, &[DAMON, IBS]);
    lab.run(5, &[DAMON]);
    assert_eq!(lab.selection.believed(), Some(SourceKind::Damon));
    assert!(matches!(lab.health(SourceKind::Ibs), Health::Silent { .. }));
    lab.run(8, &[DAMON, IBS]);
    assert_eq!(
        lab.selection.believed(),
        Some(SourceKind::Ibs),
        "it came back"
    );
}

#[test]
fn source_when_all_it_brings_is_dropped_is_broken_with_the_likeliest_cause() {
    let mut lab = both();
    for _ in 0..6 {
        let stats = lab.stats.entry(SourceKind::Ibs).or_default();
        stats.account.drop_records(DropReason::Unmapped, 1000);
        stats.account.drop_records(DropReason::Malformed, 1);
        lab.run(1, &[DAMON]);
    }
    let Health::Broken { reason } = lab.health(SourceKind::Ibs) else {
        panic!("{:?}", lab.health(SourceKind::Ibs));
    };
    assert!(reason.contains("host-physical addresses"), "{reason}");
    assert_eq!(lab.selection.believed(), Some(SourceKind::Damon));
    assert_eq!(
        lab.told.iter().filter(|told| told.1 == "broken").count(),
        1,
        "said once: {:?}",
        lab.told
    );
}

#[test]
fn source_when_it_does_not_see_the_guest_is_never_believed() {
    let mut lab = Lab::new(&[SourceKind::Pebs]);
    lab.up(SourceKind::Pebs, Sight::HostMode);
    lab.run(20, &[(SourceKind::Pebs, 10_000, 1.0)]);
    assert_eq!(lab.selection.believed(), None);
    assert!(lab.believed.is_empty());
}

#[test]
fn sources_when_the_guest_is_stopped_are_not_blamed() {
    let mut lab = both();
    lab.run(10, &[DAMON, IBS]);
    lab.selection.set_guest_runs(lab.now, false);
    lab.run(60, &[]);
    assert_eq!(lab.health(SourceKind::Ibs), Health::Good);
    lab.selection.set_guest_runs(lab.now, true);
    lab.run(4, &[]);
    assert_eq!(lab.health(SourceKind::Ibs), Health::Good, "not yet");
    lab.run(2, &[]);
    assert!(matches!(lab.health(SourceKind::Ibs), Health::Silent { .. }));
}

#[test]
fn source_when_the_guest_is_at_rest_may_look_in_turns() {
    let mut lab = Lab::new(&[SourceKind::Damon]);
    lab.up(SourceKind::Damon, Sight::Guest);
    lab.run(10, &[DAMON]);
    lab.selection.set_quiet(lab.now, true);
    for _ in 0..5 {
        lab.run(18, &[]);
        lab.run(2, &[DAMON]);
    }
    assert_eq!(lab.believed, [Some(SourceKind::Damon)]);
    lab.run(25, &[]);
    assert_eq!(lab.selection.believed(), None, "that is no turn");
}

#[test]
fn last_source_when_it_goes_down_leaves_none_and_comes_back() {
    let mut lab = Lab::new(&[SourceKind::Damon]);
    lab.up(SourceKind::Damon, Sight::Guest);
    lab.run(10, &[DAMON]);
    let steps = lab
        .selection
        .down(lab.now, SourceKind::Damon, "gone".to_owned());
    let Some(Step::Believe {
        source: None, why, ..
    }) = steps.last()
    else {
        panic!("{steps:?}");
    };
    assert_eq!(why, "damon: gone");
    lab.take(steps);
    lab.up(SourceKind::Damon, Sight::Guest);
    assert_eq!(lab.selection.believed(), Some(SourceKind::Damon));
}

#[test]
fn equal_sources_when_they_vary_a_little_do_not_take_turns() {
    let mut lab = Lab::new(&[SourceKind::Ibs, SourceKind::Guest]);
    lab.up(SourceKind::Ibs, Sight::Guest);
    lab.up(SourceKind::Guest, Sight::Guest);
    for _ in 0..50 {
        lab.run(7, &[IBS, (SourceKind::Guest, 12_000, 0.95)]);
        lab.run(7, &[IBS, (SourceKind::Guest, 12_000, 1.0)]);
    }
    assert_eq!(lab.believed, [Some(SourceKind::Ibs)]);
}

#[test]
fn resting_source_when_a_while_has_passed_is_tried_again() {
    let mut lab = both();
    lab.run(20, &[DAMON, IBS]);
    lab.told.clear();
    lab.run(ANEW.as_secs() + 20, &[DAMON, IBS]);
    let trials = lab
        .told
        .iter()
        .filter(|told| **told == (SourceKind::Damon, "on-trial"));
    assert_eq!(trials.count(), 1);
    assert_eq!(lab.health(SourceKind::Damon), Health::Resting);
    // A better one is found so.
    lab.run(
        ANEW.as_secs() + 20,
        &[(SourceKind::Damon, 3000, 1.0), (SourceKind::Ibs, 20, 1.0)],
    );
    assert_eq!(lab.selection.believed(), Some(SourceKind::Damon));
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Up(SourceKind, Sight),
    Down(SourceKind),
    Delivers(SourceKind, u64),
    Drops(SourceKind, u64),
    Runs(bool),
    Quiet(bool),
    Looks(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let kind = || prop::sample::select(SourceKind::ALL.to_vec());
    let sight = prop::sample::select(vec![Sight::Guest, Sight::HostMode]);
    prop_oneof![
        2 => (kind(), sight).prop_map(|(kind, sight)| Happens::Up(kind, sight)),
        1 => kind().prop_map(Happens::Down),
        4 => (kind(), 1..5000_u64).prop_map(|(kind, n)| Happens::Delivers(kind, n)),
        2 => (kind(), 1..5000_u64).prop_map(|(kind, n)| Happens::Drops(kind, n)),
        1 => any::<bool>().prop_map(Happens::Runs),
        1 => any::<bool>().prop_map(Happens::Quiet),
        8 => (1..40_u64).prop_map(Happens::Looks),
    ]
}

proptest! {
    /// Whatever happens, who is believed sees the guest and was not found wanting, the steps tell every
    /// change, and while none is believed no source rests.
    #[test]
    fn ladder_when_anything_happens_believes_who_delivers(
        story in prop::collection::vec(happens(), 1..200),
    ) {
        let mut lab = Lab::new(&SourceKind::ALL);
        for what in story {
            match what {
                // Only what works can come up.
                Happens::Up(kind, sight) if lab.working[&kind] => lab.up(kind, sight),
                Happens::Up(..) => {}
                Happens::Down(kind) if lab.working[&kind] => {
                    let steps = lab.selection.down(lab.now, kind, "gone".to_owned());
                    lab.take(steps);
                }
                Happens::Down(_) => {}
                Happens::Delivers(kind, n) => {
                    let stats = lab.stats.entry(kind).or_default();
                    stats.account.accept(n);
                    (stats.precision, stats.coverage) = (Some(1.0 / n as f64), Some(1.0));
                }
                Happens::Drops(kind, n) => {
                    let stats = lab.stats.entry(kind).or_default();
                    stats.account.drop_records(DropReason::NoAddress, n);
                }
                Happens::Runs(runs) => lab.selection.set_guest_runs(lab.now, runs),
                Happens::Quiet(quiet) => lab.selection.set_quiet(lab.now, quiet),
                Happens::Looks(seconds) => lab.run(seconds, &[]),
            }
            let believed = lab.selection.believed();
            prop_assert_eq!(believed, lab.believed.last().copied().flatten());
            for rung in lab.selection.statuses() {
                prop_assert_eq!(rung.believed, believed == Some(rung.kind));
                prop_assert_eq!(rung.health == Health::Resting, !lab.working[&rung.kind]);
                if rung.believed {
                    prop_assert_eq!(rung.sight, Some(Sight::Guest));
                    prop_assert!(matches!(rung.health, Health::OnTrial | Health::Good));
                }
                prop_assert!(believed.is_some() || rung.health != Health::Resting);
            }
        }
    }
}
