//! From an agent's observations to samples of the engine.

use std::time::Duration;

use tier_core::{
    addr::Gpa,
    map::GuestMemoryMap,
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    time::Time,
    wire::{Access, Batch, Region},
};

/// The longest time that a batch speaks for, in nanoseconds.
pub(super) const MAX_SPAN_NS: u64 = 10_000_000_000;
/// Least time between two tests of a page, in nanoseconds: no kernel can do better.
const LEAST_TEST_NS: u64 = 500_000;

/// A sampled access counts once, whatever the guest says.
pub(super) fn access_sample(access: &Access) -> AccessSample {
    AccessSample {
        address: SampleAddress::Guest(access.gpa),
        len: 1,
        weight: 1.0,
        kind: access.kind,
    }
}

/// How long a report of regions speaks for, in nanoseconds: what the agent says, as far as that is possible.
pub(super) fn region_span(batch: &Batch, tests: u32) -> u64 {
    let least = u64::from(tests) * LEAST_TEST_NS;
    batch.span_ns.clamp(least.min(MAX_SPAN_NS), MAX_SPAN_NS)
}

/// A batch without samples yet.
pub(super) fn empty(now: Time, map_generation: u64, tests: u32, period: u64) -> SampleBatch {
    SampleBatch {
        source: SourceKind::Guest,
        end: now,
        span: Duration::ZERO,
        tests,
        period,
        settled: true,
        map_generation,
        samples: Vec::new(),
        account: SampleAccount::default(),
    }
}

/// A region as samples that each lie in one range of the map: what is contiguous for the guest may not
/// be so in QEMU. One that lies in none is left whole, for the engine to refuse.
///
/// A batch's regions are disjoint, so all their pieces together are at most as many as regions and
/// ranges.
pub(super) fn push_region(samples: &mut Vec<AccessSample>, region: &Region, map: &GuestMemoryMap) {
    let sample = |start: u64, len: u64| AccessSample {
        address: SampleAddress::Guest(Gpa(start)),
        len,
        // A count of at most `MAX_TESTS`: far below the 2²⁴ that an f32 holds exactly.
        weight: region.used as f32,
        kind: AccessKind::Any,
    };
    let (start, end) = (region.start.0, region.start.0.saturating_add(region.len));
    let before = samples.len();
    let pieces = map.pieces(start, end);
    samples.extend(pieces.map(|piece| sample(piece.gpa.0, piece.len)));
    if samples.len() == before {
        samples.push(sample(start, region.len));
    }
}
