//! A migration of the guest: how it stands, and when QEMU is asked about it.

use std::time::{Duration, Instant};

use qmp::commands::MigrationStatus;

/// How often QEMU is asked about a migration: it sends events about it only if its manager has switched
/// the migration capability `events` on.
const CHECK: Duration = Duration::from_secs(1);
/// The same while the guest is at rest, where less than 1 MiB moves meanwhile. When the rest ends, QEMU
/// is asked at once.
const REST_CHECK: Duration = Duration::from_secs(5);

/// See the [module](self).
pub(in crate::agent) struct Migration {
    status: Option<MigrationStatus>,
    at_rest: bool,
    pub(super) next_look: Instant,
}

impl Migration {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            status: None,
            at_rest: false,
            next_look: now,
        }
    }

    /// QEMU was asked at `now`, or has said by itself how a migration stands.
    pub(in crate::agent) fn asked(&mut self, now: Instant) {
        self.next_look = now + if self.at_rest { REST_CHECK } else { CHECK };
    }

    /// The guest is at rest from `now` on, or no longer.
    pub(in crate::agent) fn set_at_rest(&mut self, at_rest: bool, now: Instant) {
        self.at_rest = at_rest;
        if !at_rest {
            self.next_look = self.next_look.min(now);
        }
    }

    /// QEMU is to be asked at `at`: what happened may belong to a migration.
    pub(in crate::agent) const fn look_at(&mut self, at: Instant) {
        self.next_look = at;
    }

    /// Takes the newest status; returns the earlier one.
    pub(in crate::agent) const fn set(
        &mut self,
        status: Option<MigrationStatus>,
    ) -> Option<MigrationStatus> {
        std::mem::replace(&mut self.status, status)
    }

    /// The newest status.
    pub(in crate::agent) const fn status(&self) -> Option<&MigrationStatus> {
        self.status.as_ref()
    }

    /// The status, while a migration is under way.
    pub(in crate::agent) fn under_way(&self) -> Option<&MigrationStatus> {
        self.status.as_ref().filter(|status| is_under_way(status))
    }
}

/// Whether pages had better stay where they are: QEMU reads or writes all of them anyway, and each move
/// would make it wait. A status that this program doesn't know counts as under way.
const fn is_under_way(status: &MigrationStatus) -> bool {
    !matches!(
        status,
        MigrationStatus::None
            | MigrationStatus::Completed
            | MigrationStatus::Failed
            | MigrationStatus::Cancelled
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_when_the_guest_rests_comes_seldom_and_at_once_after_that() {
        let now = Instant::now();
        let mut migration = Migration::new(now);
        migration.asked(now);
        assert_eq!(migration.next_look, now + CHECK);
        migration.set_at_rest(true, now);
        assert_eq!(migration.next_look, now + CHECK);
        migration.asked(now);
        assert_eq!(migration.next_look, now + REST_CHECK);

        migration.set_at_rest(false, now + CHECK);

        assert_eq!(migration.next_look, now + CHECK);
        migration.asked(now + CHECK);
        assert_eq!(migration.next_look, now + 2 * CHECK);
    }

    #[test]
    fn migration_when_over_or_never_begun_is_not_under_way() {
        // `MigrationStatus` of QEMU 10.0.
        let cases = [
            ("none", false),
            ("setup", true),
            ("cancelling", true),
            ("cancelled", false),
            ("active", true),
            ("postcopy-active", true),
            ("postcopy-paused", true),
            ("postcopy-recover-setup", true),
            ("postcopy-recover", true),
            ("completed", false),
            ("failed", false),
            ("colo", true),
            ("pre-switchover", true),
            ("device", true),
            ("wait-unplug", true),
        ];
        for (status, expected) in cases {
            let status = MigrationStatus::from(status);
            assert_eq!(is_under_way(&status), expected, "{status}");
        }
    }
}
