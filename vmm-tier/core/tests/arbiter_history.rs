//! The history of fairness against a model that keeps everything.

use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, prelude::*};
use tier_core::{
    arbiter::{
        Fairness,
        history::{
            COARSE_S, COARSE_STEP_S, Column, FINE_S, History, HostHistory, HostSample, MAX_POINTS,
            VmSample, Wanted,
        },
    },
    time::Time,
};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What happens: how the clock moves, and what each VM that is there holds.
#[derive(Clone, Debug)]
struct Round {
    moves_by: i64,
    vms: [Option<(u64, Option<f64>)>; 3],
}

fn round() -> impl Strategy<Value = Round> {
    let moves_by = prop_oneof![
        12 => Just(1_i64),
        3 => 0..5_i64,
        2 => -20..0_i64,
        1 => 100..5000_i64,
        1 => -2000..0_i64,
    ];
    // Whole pages of less than 64 GiB are kept as they are.
    let holds = (0..1_u64 << 24).prop_map(|pages| pages * 4096);
    let vm = prop::option::weighted(0.8, (holds, prop::option::of(0.0..=1.0)));
    (moves_by, [vm.clone(), vm.clone(), vm]).prop_map(|(moves_by, vms)| Round { moves_by, vms })
}

type Samples = BTreeMap<u64, (u64, Option<f64>)>;

/// All samples that count, by VM and second.
#[derive(Default)]
struct Model {
    newest: u64,
    vms: BTreeMap<&'static str, Samples>,
}

impl Model {
    fn add(&mut self, second: u64, vms: impl Iterator<Item = (&'static str, (u64, Option<f64>))>) {
        if second + FINE_S <= self.newest {
            *self = Self::default();
        }
        self.newest = self.newest.max(second);
        let newest = self.newest;
        let last = |samples: &Samples| *samples.keys().next_back().unwrap();
        self.vms
            .retain(|_, samples| newest - last(samples) < COARSE_S);
        for (name, sample) in vms {
            let samples = self.vms.entry(name).or_default();
            samples.entry(second).or_insert(sample);
        }
    }

    /// The samples of a VM in the seconds from `from` to before `to`, as far as they are kept.
    fn between(&self, name: &str, is_fine: bool, from: u64, to: u64) -> Vec<(u64, Option<f64>)> {
        let samples = &self.vms[name];
        let newest = *samples.keys().next_back().unwrap();
        let kept = |second: u64| match is_fine {
            true => second + FINE_S > newest,
            false => second / COARSE_STEP_S + COARSE_S / COARSE_STEP_S >= newest / COARSE_STEP_S,
        };
        let between = samples.range(from..to).filter(|(second, _)| kept(**second));
        between.map(|(_, sample)| *sample).collect()
    }
}

/// Whether a step of a column is what these values amount to, but for rounding.
fn agrees(column: &Column, at: usize, values: &[f64], rounding: f64) -> bool {
    let told = (column.mean[at], column.min[at], column.max[at]);
    let (Some(mean), Some(min), Some(max)) = told else {
        return values.is_empty() && told == (None, None, None);
    };
    let sum: f64 = values.iter().sum();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // A mean of steps is kept with 24 bits, and rounded anew with each second of the step.
    let precision = most.abs() * 1e-6 + rounding;
    !values.is_empty()
        && (mean - sum / values.len() as f64).abs() <= precision
        && (min - least).abs() <= rounding
        && (max - most).abs() <= rounding
}

fn check(model: &Model, told: &HostHistory, end: u64, is_fine: bool) -> Result<(), TestCaseError> {
    let first = end + 1 - told.begins_s_ago;
    prop_assert_eq!(first % told.step_s, 0);
    for vm in &told.vms {
        prop_assert_eq!(vm.fast_bytes.mean.len() as u64, told.steps);
        prop_assert_eq!(
            vm.present,
            model.vms[vm.name.as_str()].contains_key(&model.newest)
        );
        for at in 0..told.steps as usize {
            let from = first + at as u64 * told.step_s;
            let samples = model.between(&vm.name, is_fine, from, from + told.step_s);
            let fast: Vec<f64> = samples.iter().map(|(fast, _)| *fast as f64).collect();
            prop_assert!(
                agrees(&vm.fast_bytes, at, &fast, 1.0),
                "{fast:?} in step {at} of {told:?}"
            );
            let hits: Vec<f64> = samples.iter().filter_map(|(_, hits)| *hits).collect();
            prop_assert!(
                agrees(&vm.hit_ratio, at, &hits, 1e-4),
                "{hits:?} in step {at}"
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever comes late, twice or never, a step is the mean and the extremes of its seconds.
    #[test]
    fn steps_are_what_came_in(
        rounds in vec(round(), 1..500),
        since_s in 1..4000_u64,
        step_s in 1..100_u64,
        later in 0..30_u64,
    ) {
        let (mut history, mut model) = (History::default(), Model::default());
        let fairness = Fairness::default();
        let host = HostSample { fairness: &fairness, pool_bytes: 7, free_bytes: 0 };
        let mut second = 10_000_u64;
        for round in &rounds {
            second = second.saturating_add_signed(round.moves_by);
            let vms = NAMES.into_iter().zip(round.vms);
            let vms: Vec<_> = vms.filter_map(|(name, vm)| Some((name, vm?))).collect();
            let samples = vms.iter().map(|&(name, (fast_bytes, hit_ratio))| {
                (name, VmSample { fast_bytes, hit_ratio, ..VmSample::default() })
            });
            // Anywhere within the second.
            let now = Time(0) + Duration::from_secs(second) + Duration::from_nanos(second % 1_000_000_000);
            history.add(now, &host, samples);
            model.add(second, vms.into_iter());
        }

        let end = model.newest + later;
        let now = Time(0) + Duration::from_secs(end);
        let wanted = Wanted { name: None, since_s: Some(since_s), step_s: Some(step_s) };
        let told = history.read(now, wanted).unwrap();

        check(&model, &told, end, since_s <= FINE_S)?;
        prop_assert!(told.step_s >= step_s);
        prop_assert!(told.steps * (told.vms.len() as u64 + 1) <= MAX_POINTS);
        for (name, samples) in &model.vms {
            let last = samples.keys().next_back().unwrap();
            let is_told = told.vms.iter().any(|vm| vm.name == *name);
            prop_assert_eq!(is_told, last + since_s.min(COARSE_S) > end, "{}", name);
        }
    }
}
