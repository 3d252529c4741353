//! From a batch of samples to accesses of a trace. Pure.

use std::time::Duration;

use tier_core::{
    addr::{Gpa, Hva},
    map::GuestMemoryMap,
    sample::{AccessSample, DropReason, SampleAccount, SampleAddress, SampleBatch},
    time::Time,
};
use tier_replay::{
    format::{BatchEnd, TraceRange},
    machine::Access,
};

/// Brings batches to guest-physical addresses and to the trace's clock, which begins with the first batch
/// and never goes back.
#[derive(Debug)]
pub(super) struct Translator {
    /// The memory that the trace tells of.
    ranges: Vec<TraceRange>,
    began: Option<Time>,
    last: Time,
}

/// What a batch became.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    pub(super) accesses: Vec<Access>,
    pub(super) end: BatchEnd,
    /// Samples outside the memory that the trace tells of.
    pub(super) outside: u64,
}

impl Translator {
    pub(super) const fn new() -> Self {
        Self {
            ranges: Vec::new(),
            began: None,
            last: Time(0),
        }
    }

    /// The trace tells of this memory from now on.
    pub(super) fn set_memory(&mut self, ranges: &[TraceRange]) {
        self.ranges = ranges.to_vec();
    }

    /// The time on the trace's clock; 0 before the first batch.
    pub(super) fn at(&self, now: Time) -> Time {
        let at = self.began.map_or(0, |began| nanos(now.since(began)));
        Time(at).max(self.last)
    }

    /// Translates a batch that was made under `map`.
    pub(super) fn batch(&mut self, batch: &SampleBatch, map: &GuestMemoryMap) -> Translated {
        let span = nanos(batch.span);
        let start = Time(batch.end.0.saturating_sub(span));
        self.began.get_or_insert(start);
        let end = self.at(batch.end);
        let start = self.at(start);
        let mut account = dropped(&batch.account);
        let mut accesses = Vec::with_capacity(batch.samples.len());
        let mut outside = 0;
        if batch.map_generation == map.generation() {
            for (index, sample) in batch.samples.iter().enumerate() {
                // Samples are in the order in which they came, without a time of their own: they are spread
                // over the span. A test of a page speaks for all of the span.
                let at = match batch.tests {
                    0 => spread(start, end, index, batch.samples.len()),
                    _ => end,
                };
                let before = accesses.len();
                self.add_pieces(sample, at, map, &mut accesses);
                if accesses.len() == before {
                    outside += 1;
                }
            }
        } else {
            let n = batch.samples.len() as u64;
            account.drop_records(DropReason::StaleMap, n);
        }
        account.drop_records(DropReason::NotGuestRam, outside);
        self.last = end;
        Translated {
            accesses,
            end: BatchEnd {
                source: batch.source,
                end,
                span: batch.span,
                tests: batch.tests,
                period: batch.period,
                settled: batch.settled,
                account,
            },
            outside,
        }
    }

    /// Adds the pieces of a sample that lie in memory that the trace tells of.
    fn add_pieces(
        &self,
        sample: &AccessSample,
        at: Time,
        map: &GuestMemoryMap,
        accesses: &mut Vec<Access>,
    ) {
        let len = sample.len.max(1);
        let mut add = |gpa: Gpa, len: u64| {
            let (start, end) = (gpa.0, gpa.0.saturating_add(len));
            let after = self
                .ranges
                .partition_point(|range| range.gpa + range.len <= start);
            let touched = self.ranges[after..]
                .iter()
                .take_while(|range| range.gpa < end);
            accesses.extend(touched.map(|range| {
                let from = start.max(range.gpa);
                Access {
                    at,
                    address: from,
                    len: end.min(range.gpa + range.len) - from,
                    // What is no count becomes 0.
                    weight: sample.weight.round() as u32,
                    kind: sample.kind,
                }
            }));
        };
        match sample.address {
            SampleAddress::Guest(gpa) => add(gpa, len),
            SampleAddress::Host(hva) => host_pieces(map, hva, len, add),
        }
    }
}

/// The runs of guest-physical memory that QEMU has at `hva .. hva + len`.
fn host_pieces(map: &GuestMemoryMap, hva: Hva, len: u64, mut add: impl FnMut(Gpa, u64)) {
    let end = hva.0.saturating_add(len);
    let mut at = hva.0;
    while at < end {
        if let Some((gpa, range)) = map.hva_to_gpa(Hva(at)) {
            let piece = (range.hva.0 + range.len).min(end) - at;
            add(gpa, piece);
            at += piece;
        } else {
            // A page that begins below the guest's memory, or a hole.
            let starts = map.ranges().iter().map(|range| range.hva.0);
            match starts.filter(|&start| start > at).min() {
                Some(start) => at = start,
                None => return,
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The time of access `index` of `count` between two times.
fn spread(start: Time, end: Time, index: usize, count: usize) -> Time {
    let span = u128::from(end.0.saturating_sub(start.0));
    let share = span * (index as u128 + 1) / count.max(1) as u128;
    Time(start.0 + u64::try_from(share).unwrap_or(u64::MAX))
}

/// The part of an account that tells what was lost and dropped.
fn dropped(account: &SampleAccount) -> SampleAccount {
    let mut only = SampleAccount {
        lost: account.lost,
        throttled: account.throttled,
        ..SampleAccount::default()
    };
    for (&reason, &n) in &account.dropped {
        only.drop_records(reason, n);
    }
    only
}

#[cfg(test)]
mod tests {
    use tier_core::{
        map::{BlockIndex, MapRange, RamBlock},
        sample::{AccessKind, SourceKind},
    };

    use super::*;

    const MIB: u64 = 1 << 20;

    /// 1 to 4 MiB and 16 to 20 MiB of the guest, 100 MiB further on in QEMU, beside each other.
    fn map() -> GuestMemoryMap {
        let block = RamBlock {
            name: "ram".to_owned(),
            hva: Hva(100 * MIB),
            used: 8 * MIB,
            total: 8 * MIB,
            page_size: 4096,
            backing: None,
        };
        let range = |gpa: u64, len: u64, offset: u64| MapRange {
            gpa: Gpa(gpa * MIB),
            len: len * MIB,
            block: BlockIndex(0),
            offset: offset * MIB,
            hva: Hva((100 + offset) * MIB),
        };
        GuestMemoryMap::new(3, vec![block], vec![range(1, 3, 1), range(16, 4, 4)]).unwrap()
    }

    fn translator(map: &GuestMemoryMap) -> Translator {
        let ranges = map.ranges().iter();
        let ranges: Vec<_> = ranges
            .map(|range| TraceRange {
                gpa: range.gpa.0,
                len: range.len,
                page_size: 4096,
            })
            .collect();
        let mut translator = Translator::new();
        translator.set_memory(&ranges);
        translator
    }

    fn sample(address: SampleAddress, len: u64, weight: f32) -> AccessSample {
        AccessSample {
            address,
            len,
            weight,
            kind: AccessKind::Load,
        }
    }

    fn batch(end: u64, span: u64, tests: u32, samples: Vec<AccessSample>) -> SampleBatch {
        SampleBatch {
            source: SourceKind::Ibs,
            end: Time(end),
            span: Duration::from_nanos(span),
            tests,
            period: 64,
            settled: true,
            map_generation: 3,
            samples,
            account: SampleAccount::default(),
        }
    }

    fn places(translated: &Translated) -> Vec<(u64, u64, u64, u32)> {
        let accesses = translated.accesses.iter();
        accesses
            .map(|access| (access.at.0, access.address, access.len, access.weight))
            .collect()
    }

    #[test]
    fn samples_when_they_are_host_addresses_become_guest_addresses_in_order_of_time() {
        let map = map();
        let host = |hva| sample(SampleAddress::Host(Hva(hva)), 1, 1.0);
        let guest = sample(SampleAddress::Guest(Gpa(2 * MIB)), 1, 1.0);
        let samples = vec![host(101 * MIB + 5), host(50 * MIB), guest, host(104 * MIB)];
        let mut translator = translator(&map);
        let first = translator.batch(&batch(5400, 400, 0, samples), &map);
        assert_eq!(
            places(&first),
            [
                (100, MIB + 5, 1, 1),
                (300, 2 * MIB, 1, 1),
                (400, 16 * MIB, 1, 1)
            ]
        );
        assert_eq!((first.outside, first.end.end), (1, Time(400)));
        assert_eq!(first.end.account.dropped[&DropReason::NotGuestRam], 1);
        assert!(first.end.account.is_valid());
        let late = translator.batch(&batch(5300, 1000, 0, vec![guest]), &map);
        assert_eq!(places(&late), [(400, 2 * MIB, 1, 1)], "never back");
    }

    #[test]
    fn regions_when_they_cross_ranges_are_cut_and_keep_their_counts() {
        let map = map();
        let region = sample(SampleAddress::Host(Hva(100 * MIB)), 6 * MIB, 7.0);
        let idle = sample(SampleAddress::Guest(Gpa(0)), 32 * MIB, 0.0);
        let translated = translator(&map).batch(&batch(900, 900, 20, vec![region, idle]), &map);
        assert_eq!(
            places(&translated),
            [
                (900, MIB, 3 * MIB, 7),
                (900, 16 * MIB, 2 * MIB, 7),
                (900, MIB, 3 * MIB, 0),
                (900, 16 * MIB, 4 * MIB, 0),
            ]
        );
        assert_eq!(translated.outside, 0);
    }

    #[test]
    fn batch_when_it_was_made_under_another_map_is_counted_and_left_out() {
        let map = map();
        let mut stale = batch(
            10,
            10,
            0,
            vec![sample(SampleAddress::Guest(Gpa(MIB)), 1, 1.0)],
        );
        stale.map_generation = 2;
        let translated = translator(&map).batch(&stale, &map);
        assert_eq!(translated.accesses, []);
        assert_eq!(translated.end.account.dropped[&DropReason::StaleMap], 1);
    }
}
