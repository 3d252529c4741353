//! A migration of the guest: how it stands, and when QEMU is asked about it.

use std::time::{Duration, Instant};

use qmp::commands::MigrationStatus;

/// How often QEMU is asked about a migration: it sends events about it only if its manager has switched
/// the migration capability `events` on.
const CHECK: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(in crate::agent) struct Migration {
    status: Option<MigrationStatus>,
    pub(super) next_look: Instant,
}

impl Migration {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            status: None,
            next_look: now,
        }
    }

    /// QEMU was asked at `now`, or has said by itself how a migration stands.
    pub(in crate::agent) fn asked(&mut self, now: Instant) {
        self.next_look = now + CHECK;
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
