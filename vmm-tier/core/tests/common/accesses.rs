//! Batches of single accesses, as hardware samples them.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, Hva},
    engine::Event,
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    time::Time,
};

use crate::common::BASE;

/// How long a batch lasts.
pub(crate) const SPAN: Duration = Duration::from_millis(400);

/// The accesses of the span before `end`, each to one of these frames.
pub(crate) fn accesses(
    source: SourceKind,
    end: Time,
    frames: impl IntoIterator<Item = u64>,
) -> Event {
    let samples = frames.into_iter().map(|frame| AccessSample {
        address: SampleAddress::Host(Hva(BASE + frame * BASE_PAGE + 64)),
        len: 1,
        weight: 1.0,
        kind: AccessKind::Load,
    });
    Event::Samples(SampleBatch {
        source,
        end,
        span: SPAN,
        tests: 0,
        period: 1000,
        settled: true,
        map_generation: 1,
        samples: samples.collect(),
        account: SampleAccount::default(),
    })
}
