//! One policy on one machine, and what comes of it.

pub mod score;

use std::{sync::Arc, time::Duration};

use self::score::Tally;
pub use self::score::{Plateau, Samples, Score};
use crate::{
    machine::{Conditions, Guest, Host, Sample, Slice},
    policy::{Policy, Seen},
};

/// See the [module](self).
pub struct Simulation {
    host: Host,
    policy: Box<dyn Policy + Send>,
    tally: Tally,
    /// The slice's samples that this machine's source delivers.
    delivered: Vec<Sample>,
}

impl Simulation {
    /// A machine with `fast_bytes` bytes of DRAM, and the policy that `make` makes for it.
    pub fn new<E>(
        guest: Arc<Guest>,
        fast_bytes: u64,
        conditions: Conditions,
        make: impl FnOnce(&Host) -> Result<Box<dyn Policy + Send>, E>,
    ) -> Result<Self, E> {
        let host = Host::new(guest, fast_bytes, conditions);
        let policy = make(&host)?;
        Ok(Self {
            host,
            policy,
            tally: Tally::default(),
            delivered: Vec::new(),
        })
    }

    /// The machine.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Scores a slice's accesses by where pages lie, then lets the policy see it and move pages. `clock`
    /// says how much CPU time the caller's thread has used: what the policy takes is taken note of.
    pub fn step(&mut self, slice: &Slice, clock: &mut dyn FnMut() -> Duration) {
        let (mut all, mut fast) = (0_u64, 0_u64);
        for touch in &slice.touched {
            let accesses = u64::from(touch.accesses);
            all += accesses;
            fast += if self.host.is_fast(touch.page) {
                accesses
            } else {
                0
            };
        }
        self.tally.accesses(slice, all, fast);
        let biased = self.deliver(slice);
        self.tally.samples(&Samples {
            arrived: self.delivered.len() as u64,
            lost: slice.lost,
            unseen: biased,
            outside: slice.outside,
        });
        self.host.enter(slice);
        let seen = Seen {
            start: slice.start,
            end: slice.end,
            samples: &self.delivered,
            lost: slice.lost,
            period: slice.period,
            tests: slice.tests,
            touched: &slice.touched,
        };
        let before = clock();
        self.policy.step(&seen, &mut self.host);
        self.tally.cpu(clock().saturating_sub(before));
    }

    /// The score. `phases` says when the pattern of accesses changed, on the slices' clock.
    #[must_use]
    pub fn finish(self, phases: &[tier_core::time::Time]) -> Score {
        self.tally.finish(&self.host, self.policy.as_ref(), phases)
    }

    /// Takes the samples that a source with this bias delivers; returns how many it does not.
    fn deliver(&mut self, slice: &Slice) -> u64 {
        self.delivered.clear();
        let bias = self.host.conditions().fast_bias.max(1.0);
        let kept_below = (65_536.0 / bias) as u32;
        let host = &self.host;
        let seen = slice
            .samples
            .iter()
            .filter(|sample| host.is_fast(sample.page) || u32::from(sample.luck) < kept_below);
        self.delivered.extend(seen);
        (slice.samples.len() - self.delivered.len()) as u64
    }
}
