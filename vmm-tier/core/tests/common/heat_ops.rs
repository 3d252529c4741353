//! What happens to a store of heat, drawn for property tests: of pages, their places and the time.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{ops::Range, time::Duration};

use proptest::{collection::vec, option, prelude::*};
use tier_core::{dual_heap::Placement, time::Time};

/// Pages of a small guest.
pub(crate) const PAGES: u32 = 400;

/// What every store knows.
#[derive(Clone, Debug)]
pub(crate) enum Usual {
    Pass(Duration),
    Place(u32, Placement),
    PlaceRun(Range<u32>, Placement),
    Sample(u32, f32),
    SampleBatch(Vec<u32>, f32),
    Take(u32),
    Settle(u32, Placement, Option<Duration>),
    Exclude(u32),
    Readmit(u32),
    Tick,
    HalfLife(Duration),
}

/// How often any of them is drawn, beside what a test adds: the sum of what [`usual`] has before each.
pub(crate) const USUAL: u32 = 38;

/// Any of them, on pages, runs and weights that these draw.
pub(crate) fn usual<I, R, W>(
    id: impl Fn() -> I,
    run: impl Fn() -> R,
    weight: impl Fn() -> W,
) -> impl Strategy<Value = Usual>
where
    I: Strategy<Value = u32> + 'static,
    R: Strategy<Value = Range<u32>> + 'static,
    W: Strategy<Value = f32> + 'static,
{
    prop_oneof![
        6 => span().prop_map(Usual::Pass),
        4 => (id(), placement()).prop_map(|(id, to)| Usual::Place(id, to)),
        2 => (run(), placement()).prop_map(|(run, to)| Usual::PlaceRun(run, to)),
        8 => (id(), weight()).prop_map(|(id, w)| Usual::Sample(id, w)),
        4 => (vec(id(), 0..60), weight()).prop_map(|(ids, w)| Usual::SampleBatch(ids, w)),
        2 => id().prop_map(Usual::Take),
        6 => (id(), placement(), option::of(span()))
            .prop_map(|(id, to, cool)| Usual::Settle(id, to, cool)),
        1 => id().prop_map(Usual::Exclude),
        1 => id().prop_map(Usual::Readmit),
        3 => Just(Usual::Tick),
        1 => (1_000..10_000u64).prop_map(|ms| Usual::HalfLife(Duration::from_millis(ms))),
    ]
}

/// A page of a guest of [`PAGES`].
pub(crate) fn page() -> impl Strategy<Value = u32> {
    // Mostly the same few, so that operations meet; anywhere; past the end.
    prop_oneof![8 => 0..24u32, 8 => 0..PAGES, 1 => PAGES - 2..PAGES + 2]
}

/// Few pages of it or many.
pub(crate) fn run() -> impl Strategy<Value = Range<u32>> {
    (page(), prop_oneof![0..8u32, 0..300u32]).prop_map(|(first, len)| first..first + len)
}

pub(crate) fn placement() -> impl Strategy<Value = Placement> {
    prop_oneof![
        4 => Just(Placement::Fast),
        4 => Just(Placement::Slow),
        1 => Just(Placement::Untracked),
    ]
}

/// Mostly one access; nothing, and what is no number.
pub(crate) fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![4 => Just(1.0), 1 => Just(0.0), 1 => Just(f32::NAN), 2 => 0.01..20.0f32]
}

pub(crate) fn span() -> impl Strategy<Value = Duration> {
    // Against half-lives of 1 to 10 s: the landmark (64 half-lives) moves often.
    prop_oneof![
        6 => (0..2_000u64).prop_map(Duration::from_millis),
        1 => (0..200u64).prop_map(Duration::from_secs),
    ]
}

/// Why a page of a model may not be taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Hold {
    No,
    Flight,
    Cooling(Time),
    Excluded,
}
