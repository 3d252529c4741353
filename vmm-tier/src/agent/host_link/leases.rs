//! The leases that a host daemon grants: which of them are believed, and for how long they hold.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use tier_core::engine::HostGrant;

use crate::host::protocol::{Lease, REPORT_EVERY_MS};

/// Leases that are shorter would run out between two reports, and the limit would swing.
const LEAST_LEASE: Duration = Duration::from_millis(2 * REPORT_EVERY_MS);
/// A longer lease counts as one of this length: nobody waits longer for a daemon that is dead.
const MOST_LEASE: Duration = Duration::from_secs(600);
/// How often to report, whatever the daemon asks for.
const REPORTS: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);
/// The least budget of moves: with less a guest could not obey a share that falls.
const LEAST_MOVES_PER_S: u64 = 1 << 20;

/// Why a lease is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LeaseError {
    #[error(
        "a lease of {0} ms is shorter than two reports ({least} ms)",
        least = LEAST_LEASE.as_millis()
    )]
    TooShort(u64),
}

/// Something granted until a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    amount: u64,
    ends: Instant,
}

/// What is granted now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leases {
    share: Option<Held>,
    moves: Option<Held>,
}

impl Leases {
    /// Takes a lease that came at `now`; returns when to report again. More than the guest's memory is
    /// as much as the guest's memory. A lease without a share leaves the share before it until that
    /// ends.
    ///
    /// A share of 0 is believed: a daemon grants it where it is told to drain DRAM.
    ///
    /// # Errors
    /// If the lease is not believed. What was granted before holds.
    pub(super) fn take(
        &mut self,
        lease: &Lease,
        guest_bytes: u64,
        now: Instant,
    ) -> Result<Duration, LeaseError> {
        let span = Duration::from_millis(lease.lease_ms).min(MOST_LEASE);
        if span < LEAST_LEASE {
            return Err(LeaseError::TooShort(lease.lease_ms));
        }
        let held = |amount| Held {
            amount,
            ends: now + span,
        };
        if let Some(share) = lease.share_bytes {
            self.share = Some(held(share.min(guest_bytes)));
        }
        self.moves = Some(held(lease.move_bytes_per_s.max(LEAST_MOVES_PER_S)));
        let asked = Duration::from_millis(lease.report_ms);
        Ok(asked.clamp(*REPORTS.start(), *REPORTS.end()).min(span / 2))
    }

    /// Ends what has run out at `now`. Returns whether the share did.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        let had_share = self.share.is_some();
        for held in [&mut self.share, &mut self.moves] {
            *held = held.filter(|held| held.ends > now);
        }
        had_share && self.share.is_none()
    }

    /// What is granted.
    pub(super) fn grant(&self) -> HostGrant {
        HostGrant {
            share_bytes: self.share.map(|held| held.amount),
            rate_bytes_per_s: self.moves.map(|held| held.amount),
        }
    }

    /// For how long the share holds yet.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.share?.ends.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: u64 = 1 << 30;

    fn lease(share_bytes: Option<u64>) -> Lease {
        Lease {
            share_bytes,
            lease_ms: 10_000,
            report_ms: 1000,
            move_bytes_per_s: 64 << 20,
        }
    }

    #[test]
    fn share_when_nothing_more_is_heard_holds_until_the_lease_ends() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let every = leases.take(&lease(Some(4 << 20)), GUEST, start);
        assert_eq!(every, Ok(Duration::from_secs(1)));
        let later = start + Duration::from_secs(9);
        assert!(!leases.end(later));
        assert_eq!(leases.grant().share_bytes, Some(4 << 20));
        assert_eq!(leases.left(later), Some(Duration::from_secs(1)));
        assert!(leases.end(start + Duration::from_secs(10)));
        assert_eq!(leases.grant(), HostGrant::default());
        assert!(!leases.end(start + Duration::from_secs(11)), "said once");
    }

    #[test]
    fn share_when_a_reply_has_none_ends_in_its_own_time() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.take(&lease(Some(4 << 20)), GUEST, start).unwrap();
        let later = start + Duration::from_secs(6);
        leases.take(&lease(None), GUEST, later).unwrap();
        assert_eq!(leases.left(later), Some(Duration::from_secs(4)));
        assert!(leases.end(start + Duration::from_secs(10)));
        // The budget of moves was granted again.
        assert_eq!(leases.grant().rate_bytes_per_s, Some(64 << 20));
    }

    #[test]
    fn lease_when_it_says_nonsense_is_bounded_or_refused() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.take(&lease(Some(4 << 20)), GUEST, start).unwrap();
        let before = leases;
        for lease_ms in [0, 1, 1999] {
            let short = Lease {
                lease_ms,
                ..lease(Some(0))
            };
            let refused = leases.take(&short, GUEST, start);
            assert_eq!(refused, Err(LeaseError::TooShort(lease_ms)));
            assert_eq!(leases, before, "what was granted holds");
        }
        let most = Lease {
            share_bytes: Some(u64::MAX),
            lease_ms: u64::MAX,
            report_ms: u64::MAX,
            move_bytes_per_s: 0,
        };
        assert_eq!(leases.take(&most, GUEST, start), Ok(Duration::from_secs(5)));
        assert_eq!(leases.left(start), Some(MOST_LEASE));
        let expected = HostGrant {
            share_bytes: Some(GUEST),
            rate_bytes_per_s: Some(LEAST_MOVES_PER_S),
        };
        assert_eq!(leases.grant(), expected);
        let often = Lease {
            report_ms: 0,
            ..lease(Some(0))
        };
        assert_eq!(
            leases.take(&often, GUEST, start),
            Ok(Duration::from_millis(500))
        );
        assert_eq!(leases.grant().share_bytes, Some(0), "a drain");
    }

    proptest! {
        /// Whatever a daemon says, a share holds only as long as a lease that said so, and the
        /// operator's limit is in force again after that.
        #[test]
        fn grant_when_leases_are_random_is_of_a_lease_that_holds(
            replies in prop::collection::vec(
                (
                    prop::option::of(prop_oneof![Just(0), Just(u64::MAX), 0..2 * GUEST]),
                    prop_oneof![Just(0), Just(u64::MAX), 0..20_000_u64],
                    any::<u64>(),
                    any::<u64>(),
                    0..30_000_u64,
                ),
                1..50,
            )
        ) {
            let mut now = Instant::now();
            let mut leases = Leases::default();
            let mut granted: Option<(u64, Instant)> = None;
            for (share_bytes, lease_ms, report_ms, move_bytes_per_s, wait) in replies {
                let lease = Lease { share_bytes, lease_ms, report_ms, move_bytes_per_s };
                leases.end(now);
                match leases.take(&lease, GUEST, now) {
                    Ok(every) => {
                        prop_assert!(REPORTS.contains(&every));
                        let span = Duration::from_millis(lease_ms).min(MOST_LEASE);
                        if let Some(share) = share_bytes {
                            granted = Some((share.min(GUEST), now + span));
                        }
                    }
                    Err(_) => prop_assert!(lease_ms < 2000),
                }
                now += Duration::from_millis(wait);
                leases.end(now);
                let holds = granted.filter(|&(_, ends)| ends > now).map(|(share, _)| share);
                prop_assert_eq!(leases.grant().share_bytes, holds);
                let rate = leases.grant().rate_bytes_per_s;
                prop_assert!(rate.is_none_or(|rate| rate >= LEAST_MOVES_PER_S));
            }
            leases.end(now + MOST_LEASE);
            prop_assert_eq!(leases.grant(), HostGrant::default());
        }
    }
}
