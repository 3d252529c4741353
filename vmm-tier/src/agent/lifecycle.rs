//! What QEMU tells of its guest's life: stops, resets, hot-plug, migration, and monitors lost and back.
//!
//! ```text
//!  outgoing  running ─► setup, active, device … (moves paused) ─► postmigrate (guest stopped)
//!                 ▲                 └─ failed, cancelled ─┐
//!                 └───────────────────────────────────────┘
//!  incoming  inmigrate (guest stopped) ─► running
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use qmp::{
    commands::{MigrationStatus, QueryMigrate, QueryStatus, RunState},
    event::EventKind,
};
use tier_core::engine::{Event, Order};

use super::{Agent, MAP_CHECK, control::Control, start};
use crate::{
    causes::with_causes,
    discover::{self, Discovered},
};

/// How long the agent waits between attempts to reach a lost monitor.
const RECONNECT: Duration = Duration::from_secs(1);
/// How often QEMU is asked about a migration: it tells of one unasked only if its manager has switched
/// the migration capability `events` on.
const MIGRATION_CHECK: Duration = Duration::from_secs(1);
/// The same after QEMU could not say: a monitor that hangs must not keep the agent from everything else.
const MIGRATION_RETRY: Duration = Duration::from_secs(10);

/// What is known of a migration of the guest.
pub(super) struct Migration {
    status: Option<MigrationStatus>,
    next_look: Instant,
}

impl Migration {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            status: None,
            next_look: now,
        }
    }

    /// The status, while one is under way.
    pub(super) fn under_way(&self) -> Option<&MigrationStatus> {
        self.status.as_ref().filter(|status| is_under_way(status))
    }
}

/// Whether pages had better stay where they are: QEMU reads or writes all of them anyway, and each move
/// would make it wait. A status that this program doesn't know is taken for one on the way.
const fn is_under_way(status: &MigrationStatus) -> bool {
    !matches!(
        status,
        MigrationStatus::None
            | MigrationStatus::Completed
            | MigrationStatus::Failed
            | MigrationStatus::Cancelled
    )
}

impl Agent {
    pub(super) fn on_qemu_event(&mut self, event: &qmp::Event) {
        tracing::debug!(vm = self.name, event = event.name, data = %event.data, "from QEMU");
        match event.kind() {
            EventKind::Stop => {
                // A migration stops the guest at its end.
                self.migration.next_look = Instant::now();
                self.tap_note("guest stopped");
                self.step(Event::Guest { stopped: true });
            }
            EventKind::Resume => {
                // A guest that arrived by migration has its devices' memory only now.
                self.migration.next_look = Instant::now();
                self.next_map_check = Instant::now();
                self.tap_note("guest runs");
                self.step(Event::Guest { stopped: false });
            }
            EventKind::Shutdown { guest, reason } => {
                tracing::info!(vm = self.name, guest, reason, "the guest shuts down");
            }
            EventKind::Migration { status } => {
                self.migration.next_look = Instant::now() + MIGRATION_CHECK;
                self.on_migration(Some(MigrationStatus::from(status.as_str())));
            }
            // Firmware and virtio-mem lay memory out anew.
            EventKind::Reset { .. }
            | EventKind::DeviceDeleted { .. }
            | EventKind::MemoryDeviceSizeChange { .. } => self.next_map_check = Instant::now(),
            _ => {}
        }
    }

    pub(super) fn on_monitor_lost(&mut self) {
        self.end_proxy();
        self.monitor = None;
        self.next_reconnect = Instant::now();
        if !self.guest_has_ended() {
            tracing::warn!(
                vm = self.name,
                "QEMU's monitor was lost; nothing is moved until it is back"
            );
            self.tap_note("monitor lost");
        }
        self.step(Event::Monitor { attached: false });
    }

    /// Does what is due about QEMU, one thing at a time: each may wait for a monitor that hangs.
    pub(super) fn look_at_qemu(&mut self, now: Instant) {
        let Some(monitor) = &mut self.monitor else {
            if now >= self.next_reconnect {
                self.reconnect();
            }
            return;
        };
        let events_lost = monitor.client.events_lost();
        if std::mem::replace(&mut monitor.events_lost, events_lost) != events_lost {
            tracing::debug!(vm = self.name, events_lost, "events were missed");
            self.ask_qemu();
        } else if self.next_status_look.is_some_and(|at| now >= at) {
            self.ask_status();
        } else if now >= self.migration.next_look {
            self.look_at_migration();
        } else if now >= self.next_map_check {
            self.refresh_map();
        }
    }

    fn reconnect(&mut self) {
        let connected = (self.connect)();
        // Counted from the end: an attempt may take longer than the pause between two.
        self.next_reconnect = Instant::now() + RECONNECT;
        match connected {
            Ok(monitor) if monitor.client.peer().pid == self.pid => {
                tracing::info!(vm = self.name, "QEMU's monitor is back");
                self.tap_note("monitor back");
                self.monitor = Some(monitor);
                // Before anything moves: meanwhile the guest may have stopped, or begun to migrate.
                self.ask_qemu();
                self.look_at_migration();
                self.step(Event::Monitor { attached: true });
                if let Err(error) = self.serve_proxy() {
                    self.on_proxy_trouble(&error);
                }
            }
            // The old guest ends, and this agent with it.
            Ok(monitor) => {
                let pid = monitor.client.peer().pid;
                tracing::debug!(vm = self.name, pid, "another QEMU serves the socket now");
            }
            Err(error) => tracing::debug!(vm = self.name, "not yet: {error:#}"),
        }
    }

    /// Serves QEMU's monitor to other clients, if that is asked for.
    pub(super) fn serve_proxy(&mut self) -> anyhow::Result<()> {
        if let (Some(path), Some(monitor)) = (&self.proxy_path, &self.monitor) {
            self.proxy = Some(Control::proxy(path, Arc::clone(&monitor.client))?);
            self.tell_all();
        }
        Ok(())
    }

    pub(super) fn end_proxy(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            self.tell_all();
            drop(proxy);
        }
    }

    fn on_proxy_trouble(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        if self.proxy_trouble.is_news(&error) {
            tracing::error!(
                vm = self.name,
                "{error}; it is tried again when QEMU's monitor was lost and is back"
            );
        }
    }

    /// Events go to the clients of all sockets that there are.
    fn tell_all(&mut self) {
        let sockets = self.control.iter().chain(&self.proxy);
        self.herald.tell(sockets.map(Control::events).collect());
    }

    /// Asks for everything that events would have told.
    pub(super) fn ask_qemu(&mut self) {
        self.ask_status();
        self.migration.next_look = Instant::now();
        self.next_map_check = self.next_map_check.min(Instant::now());
    }

    /// Asks whether the guest runs; again later, if QEMU does not say.
    fn ask_status(&mut self) {
        self.next_status_look = None;
        let Some(monitor) = &self.monitor else { return };
        match monitor.client.execute(&QueryStatus {}) {
            Ok(status) => {
                if status.status == RunState::Inmigrate {
                    tracing::info!(
                        vm = self.name,
                        "the guest is yet to arrive by migration; tiering starts when it runs"
                    );
                }
                let stopped = !status.running;
                self.step(Event::Guest { stopped });
            }
            Err(error) => {
                // Counted from the end, as for the map.
                self.next_status_look = Some(Instant::now() + MIGRATION_RETRY);
                let error = with_causes(&error);
                tracing::debug!(vm = self.name, "no word on whether the guest runs: {error}");
            }
        }
    }

    fn look_at_migration(&mut self) {
        let Some(monitor) = &self.monitor else { return };
        let found = monitor.client.execute(&QueryMigrate {});
        // Counted from the end, as for the map.
        let now = Instant::now();
        match found {
            Ok(info) => {
                self.migration.next_look = now + MIGRATION_CHECK;
                self.on_migration(info.status);
            }
            Err(error) => {
                self.migration.next_look = now + MIGRATION_RETRY;
                let error = with_causes(&error);
                tracing::debug!(vm = self.name, "no word on migrations: {error}");
            }
        }
    }

    fn on_migration(&mut self, status: Option<MigrationStatus>) {
        let was_under_way = self.migration.under_way().is_some();
        self.migration.status = status;
        match (was_under_way, self.migration.under_way()) {
            (false, Some(status)) => {
                tracing::info!(
                    vm = self.name,
                    %status,
                    "the guest migrates; nothing is moved until that has ended"
                );
                self.apply_pause();
            }
            (true, None) => {
                let status = self.migration.status.as_ref();
                let status = status.map(ToString::to_string);
                tracing::info!(vm = self.name, status, "the migration has ended");
                // The guest was stopped at the end if it left; STOP may wait behind this answer. What it has
                // may differ. If QEMU can't say now, one that has left is taken for stopped until it can.
                if self.migration.status == Some(MigrationStatus::Completed) {
                    self.step(Event::Guest { stopped: true });
                }
                self.ask_status();
                self.next_map_check = Instant::now();
                self.apply_pause();
            }
            _ => {}
        }
    }

    /// Tells the engine whether anything wants moves to pause.
    pub(super) fn apply_pause(&mut self) {
        let paused = self.wishes.paused || self.migration.under_way().is_some();
        // Never refused.
        let _ = self.order(Order::Pause(paused));
    }

    /// Lets the tap know what happened to the guest.
    fn tap_note(&mut self, text: &str) {
        if let Some(tap) = &mut self.tap {
            tap.note(text);
        }
    }

    fn refresh_map(&mut self) {
        self.take_over();
        self.saved.try_again(&self.wishes);
        self.next_map_check = Instant::now() + MAP_CHECK;
        let Some(monitor) = &self.monitor else { return };
        let Some(old) = self.engine.map() else { return };
        // CPUs come and go without an event too.
        if let Some(tids) = start::vcpus(&monitor.client) {
            self.sources.set_vcpus(tids);
        }
        let found = discover::rediscover(&monitor.client, &self.root, old);
        // Counted from the end: a monitor that hangs must not keep the agent from everything else.
        self.next_map_check = Instant::now() + MAP_CHECK;
        let map = match found {
            Ok(Discovered { map, .. }) => map,
            // The monitor of a QEMU that ends says anything.
            Err(error) => {
                let error = with_causes(&error);
                if self.map_trouble.is_news(&error) && !self.guest_has_ended() {
                    tracing::warn!(
                        vm = self.name,
                        "the memory map can't be read anew, the one known stays in force: {error}"
                    );
                }
                return;
            }
        };
        if self.map_trouble.end() {
            tracing::info!(vm = self.name, "the memory map can be read again");
        }
        if old.generation() == map.generation() {
            self.pin_anew();
            return;
        }
        let map = Arc::new(map);
        match self.order(Order::Map(Arc::clone(&map))) {
            Ok(_) => {
                let mib = map.total_bytes() >> 20;
                tracing::info!(
                    vm = self.name,
                    generation = map.generation(),
                    mib,
                    "the guest's layout changed"
                );
                self.sources.set_map(&map);
                self.tap_note("memory map changed");
                self.pin_anew();
            }
            Err(error) => {
                let error = error.to_string();
                if self.map_trouble.is_news(&error) {
                    tracing::error!(
                        vm = self.name,
                        "the guest's new layout can't be tracked, the old one stays in force: {error}"
                    );
                }
            }
        }
    }
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
