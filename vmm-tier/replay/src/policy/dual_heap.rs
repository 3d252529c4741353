//! `dual-heap`: the engine that `vmm-tier run` runs, on a simulated machine.
//!
//! The engine gets samples in batches of 100 ms, as the agent's sources deliver them; see
//! [`engine_host`](super::engine_host).

use std::time::Duration;

use tier_core::{
    engine::Event,
    sample::{AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    settings::PolicyName,
    time::Time,
};

use super::{Policy, PolicySetup, Seen, engine_host::EngineHost};
use crate::machine::Host;

/// How often a source delivers: as the agent's sources do.
const BATCH: Duration = Duration::from_millis(100);

/// See the [module](self).
pub struct DualHeaps {
    engine: EngineHost,
    batch: Vec<AccessSample>,
    lost: u64,
    since: Option<Time>,
}

impl DualHeaps {
    /// The engine with its default settings, but for the half-life. A guest whose pages can't be
    /// numbered has no map, and nothing of it moves.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        Self {
            engine: EngineHost::new(host, setup.half_life),
            batch: Vec::new(),
            lost: 0,
            since: None,
        }
    }
}

impl Policy for DualHeaps {
    fn name(&self) -> &'static str {
        PolicyName::DualHeap.name()
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        let since = match self.since {
            Some(since) => since,
            None => {
                let source = Event::Source(Some(SourceKind::Ibs));
                self.engine.give(seen.start, source, host);
                self.since = Some(seen.start);
                seen.start
            }
        };
        self.lost += seen.lost;
        for sample in seen.samples {
            if let Some(hva) = self.engine.hva(sample.page) {
                self.batch.push(AccessSample {
                    address: SampleAddress::Host(hva),
                    len: 1,
                    weight: sample.weight,
                    kind: sample.kind,
                });
            }
        }
        let span = seen.end.since(since);
        let event = if span < BATCH {
            Event::Tick
        } else {
            self.since = Some(seen.end);
            Event::Samples(SampleBatch {
                source: SourceKind::Ibs,
                end: seen.end,
                span,
                tests: seen.tests,
                period: seen.period,
                settled: true,
                map_generation: self.engine.map_generation(),
                samples: std::mem::take(&mut self.batch),
                account: SampleAccount {
                    lost: std::mem::take(&mut self.lost),
                    ..SampleAccount::default()
                },
            })
        };
        self.engine.give(seen.end, event, host);
    }

    fn memory_bytes(&self) -> usize {
        self.engine.engine().memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tier_core::sample::AccessKind;

    use super::*;
    use crate::machine::{Conditions, Guest, Sample, Slice};

    #[test]
    fn engine_when_it_is_replayed_moves_what_is_hot_to_dram() {
        // 16 MiB with 1 MiB of DRAM at its begin; the hot pages lie at the end.
        let guest = Arc::new(Guest::uniform(1 << 32, 4096, 4096));
        let mut host = Host::new(guest, 1 << 20, Conditions::default());
        let mut policy = DualHeaps::new(&host, &PolicySetup::default());
        for number in 0..500 {
            let (start, end) = (Time(number * 10_000_000), Time((number + 1) * 10_000_000));
            let slice = Slice {
                start,
                end,
                period: 4093,
                samples: (0..80)
                    .map(|n| Sample {
                        at: start,
                        page: 4000 + n,
                        weight: 1.0,
                        kind: AccessKind::Load,
                        luck: 0,
                    })
                    .collect(),
                ..Slice::default()
            };
            host.enter(&slice);
            let seen = Seen {
                start,
                end,
                samples: &slice.samples,
                lost: 0,
                period: slice.period,
                tests: 0,
                touched: &[],
            };
            policy.step(&seen, &mut host);
        }
        assert!((4000..4080).all(|page| host.is_fast(page)));
        assert_eq!(host.ledger().promoted_bytes, 80 * 4096);
        assert_eq!(host.ledger().demoted_bytes, 80 * 4096);
        let samples = policy.engine.engine().samples();
        assert_eq!((samples.samples, samples.accepted), (40_000, 40_000));
    }
}
