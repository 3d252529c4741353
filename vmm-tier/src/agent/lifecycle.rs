//! The guest's life as QEMU reports it: stops, resets, hot-plug, migration, and monitors lost and back.
//!
//! ```text
//!  outgoing  running ─► setup, active, device … (moves paused) ─► postmigrate (guest stopped)
//!                 ▲                 └─ failed, cancelled ─┐
//!                 └───────────────────────────────────────┘
//!  incoming  inmigrate (guest stopped) ─► running
//! ```

use std::{sync::Arc, time::Instant};

use qmp::{
    client::ExecuteError,
    commands::{MigrationInfo, MigrationStatus, RunState, StatusInfo},
    event::EventKind,
};
use tier_core::{
    constraints::Constraints,
    engine::{Event, Order},
    holds::{Holds, PRIVATE_MEMORY},
    nearness::Nearness,
};

use super::{
    Agent,
    pace::TICK,
    qemu::{Answer, Connected, Kind, Layout},
};
use crate::{
    discover::{DiscoverError, Discovered},
    log::with_causes,
};

impl Agent {
    pub(super) fn on_qemu_event(&mut self, event: &qmp::Event) {
        tracing::debug!(vm = self.vm.name, event = event.name, data = %event.data, "from QEMU");
        match event.kind() {
            EventKind::Stop => {
                self.qemu.overtake(Kind::Status);
                // A migration stops the guest at its end.
                self.qemu.migration.look_at(Instant::now());
                self.tap_note("guest stopped");
                self.step(Event::Guest { stopped: true });
            }
            EventKind::Resume => {
                self.qemu.overtake(Kind::Status);
                // A guest that arrived by migration has its devices' memory only now; what follows at once is
                // seen, too.
                self.qemu.migration.look_at(Instant::now() + TICK);
                self.qemu.discovery.want();
                self.tap_note("guest runs");
                self.step(Event::Guest { stopped: false });
            }
            EventKind::Shutdown { guest, reason } => {
                tracing::info!(vm = self.vm.name, guest, reason, "the guest shuts down");
            }
            EventKind::Migration { status } => {
                self.qemu.overtake(Kind::Migration);
                self.qemu.migration.asked(Instant::now());
                self.on_migration(Some(MigrationStatus::from(status.as_str())));
            }
            // Firmware (after a reset or a sleep) and virtio-mem change the layout of memory.
            EventKind::Reset { .. }
            | EventKind::Wakeup
            | EventKind::DeviceDeleted { .. }
            | EventKind::MemoryDeviceSizeChange { .. } => self.qemu.discovery.want(),
            _ => {}
        }
        self.look_at_qemu(Instant::now());
    }

    /// Takes what QEMU answered, and asks what has become due meanwhile.
    pub(super) fn on_answer(&mut self, answer: Answer) {
        let kind = answer.kind();
        let is_true = self.qemu.take(&answer);
        match answer {
            // It is asked for before the agent runs.
            Answer::Begun(_) => {}
            Answer::Connected(connected) => self.on_connected(connected),
            Answer::Layout(layout) => self.on_layout(*layout),
            // What the lost monitor said, or that it said nothing, counts no more.
            Answer::Status(_) | Answer::Migration(_) if self.qemu.client().is_none() => {}
            Answer::Status(_) | Answer::Migration(_) if !is_true => self.qemu.ask_again(kind),
            Answer::Status(status) => self.on_status(status),
            Answer::Migration(migration) => self.on_migration_answer(migration),
        }
        self.look_at_qemu(Instant::now());
    }

    pub(super) fn on_monitor_lost(&mut self) {
        self.clients.end_proxy();
        self.qemu.lost();
        if !self.vm.has_ended() {
            tracing::warn!(
                vm = self.vm.name,
                "QEMU's monitor was lost; no page is moved until it is back"
            );
            self.tap_note("monitor lost");
        }
        self.step(Event::Monitor { attached: false });
    }

    /// Asks QEMU what is due. With a discovery goes what else may have changed unnoticed.
    pub(super) fn look_at_qemu(&mut self, now: Instant) {
        if self.qemu.ask_what_is_due(now, &self.vm.name) {
            self.take_over();
            self.settings.try_again();
        }
    }

    fn on_connected(&mut self, connected: anyhow::Result<Connected>) {
        self.qemu.attempted();
        match connected {
            Ok(connected) if connected.monitor.client.peer().pid == self.vm.pid => {
                tracing::info!(vm = self.vm.name, "QEMU's monitor is back");
                self.tap_note("monitor back");
                let client = Arc::clone(&connected.monitor.client);
                self.qemu.back(connected.monitor);
                // Before anything moves: meanwhile the guest may have stopped, or begun to migrate.
                self.on_status(connected.status);
                self.on_migration_answer(connected.migration);
                self.qemu.discovery.want();
                self.step(Event::Monitor { attached: true });
                self.clients.serve_proxy_again(&client, &self.vm.name);
            }
            // The old guest ends, and this agent with it.
            Ok(connected) => {
                let pid = connected.monitor.client.peer().pid;
                tracing::debug!(vm = self.vm.name, pid, "another QEMU serves the socket now");
            }
            Err(error) => tracing::debug!(
                vm = self.vm.name,
                "QEMU's monitor can't be reached yet: {error:#}"
            ),
        }
    }

    /// Takes note of whether the guest runs; asks again later if QEMU does not say.
    pub(super) fn on_status(&mut self, answer: Result<StatusInfo, ExecuteError>) {
        match answer {
            Ok(status) => {
                if status.status == RunState::Inmigrate {
                    tracing::info!(
                        vm = self.vm.name,
                        "the guest has not arrived by migration yet; tiering starts when it runs"
                    );
                }
                let stopped = !status.running;
                self.step(Event::Guest { stopped });
            }
            Err(error) => {
                self.qemu.ask_later(Kind::Status);
                let error = with_causes(&error);
                tracing::debug!(
                    vm = self.vm.name,
                    "QEMU did not say whether the guest runs: {error}"
                );
            }
        }
    }

    pub(super) fn on_migration_answer(&mut self, answer: Result<MigrationInfo, ExecuteError>) {
        match answer {
            Ok(info) => self.on_migration(info.status),
            Err(error) => {
                self.qemu.ask_later(Kind::Migration);
                let error = with_causes(&error);
                tracing::debug!(
                    vm = self.vm.name,
                    "QEMU did not say whether the guest migrates: {error}"
                );
            }
        }
    }

    fn on_migration(&mut self, status: Option<MigrationStatus>) {
        let migration = &mut self.qemu.migration;
        let was_under_way = migration.under_way().is_some();
        migration.set(status);
        match (was_under_way, migration.under_way()) {
            (false, Some(status)) => {
                tracing::info!(
                    vm = self.vm.name,
                    %status,
                    "the guest migrates; no page is moved until the migration has ended"
                );
                self.apply_pause();
            }
            (true, None) => {
                let has_left = migration.status() == Some(&MigrationStatus::Completed);
                let status = migration.status().map(ToString::to_string);
                tracing::info!(vm = self.vm.name, status, "the migration has ended");
                // The guest was stopped at the end if it left; STOP may wait behind this answer. What it has
                // may differ. If QEMU can't say now, one that has left is taken for stopped until it can.
                if has_left {
                    self.step(Event::Guest { stopped: true });
                }
                self.qemu.ask_again(Kind::Status);
                self.qemu.discovery.want();
                self.apply_pause();
            }
            _ => {}
        }
    }

    /// Tells the engine whether anything wants moves to pause.
    pub(super) fn apply_pause(&mut self) {
        let paused = !self.paused_by().is_empty();
        // Never refused.
        let _ = self.order(Order::Pause(paused));
    }

    /// Takes how far nodes are from each other and from the guest's CPUs, if the kernel told.
    pub(super) fn on_nearness(&mut self, nearness: Option<Nearness>) {
        if let Some(nearness) = nearness {
            tracing::debug!(vm = self.vm.name, cpus = %nearness.cpus, "the guest's CPUs run on these nodes");
            self.step(Event::Nearness(nearness));
        }
    }

    /// Takes what keeps the guest's memory in place, if the kernel told: pinned memory is left in peace.
    pub(super) fn on_holds(&mut self, holds: Option<Holds>) {
        let Some(holds) = holds else { return };
        let before = std::mem::replace(&mut self.qemu.holds, holds);
        let now = &self.qemu.holds;
        if now.private && !before.private {
            tracing::warn!(vm = self.vm.name, "{PRIVATE_MEMORY}");
        }
        if before.reason.is_some() == now.reason.is_some() {
            return;
        }
        match &now.reason {
            Some(reason) => tracing::warn!(vm = self.vm.name, "no page is moved: {reason}"),
            None => tracing::info!(vm = self.vm.name, "the guest's memory is no longer pinned"),
        }
        self.apply_pause();
    }

    /// Takes what the host's administrator lets QEMU and the agent have. Nodes that a cpuset leaves out
    /// are closed to moves.
    pub(super) fn on_constraints(&mut self, mut constraints: Constraints) {
        let before = std::mem::take(&mut self.qemu.constraints.cpusets);
        constraints.cpusets = constraints.cpusets.or(before);
        let closed = constraints.cpusets.closed(self.engine.tiers(), self.vm.pid);
        self.qemu.constraints = constraints;
        if self.qemu.closed == closed {
            return;
        }
        if closed.is_empty() {
            tracing::info!(
                vm = self.vm.name,
                "cpusets allow all nodes of the tiers again"
            );
        }
        for node in &closed {
            tracing::warn!(vm = self.vm.name, "{}", node.reason);
        }
        self.qemu.closed.clone_from(&closed);
        self.step(Event::Closed(closed));
    }

    /// Lets the tap know what happened to the guest.
    fn tap_note(&mut self, text: &str) {
        if let Some(tap) = &mut self.tap {
            tap.note(text);
        }
    }

    fn on_layout(&mut self, layout: Layout) {
        let Layout {
            found,
            vcpus,
            nearness,
            holds,
            constraints,
            took,
        } = layout;
        self.qemu.discovery.end(Instant::now(), took, found.is_ok());
        if let Some(tids) = vcpus {
            self.sources.set_vcpus(tids);
        }
        self.on_nearness(nearness);
        self.on_holds(holds);
        self.on_constraints(constraints);
        let Some(old) = self.engine.map() else { return };
        let map = match found {
            Ok(Discovered { map, .. }) => old.succeeded_by(map),
            // The receiver of events tells of the loss, too.
            Err(DiscoverError::Qmp(ExecuteError::Closed { .. })) => return,
            // The monitor of a QEMU that ends says anything.
            Err(error) => {
                let error = with_causes(&error);
                if self.qemu.map_trouble.is_news(&error) && !self.vm.has_ended() {
                    tracing::warn!(
                        vm = self.vm.name,
                        "the memory map can't be read again; the known map stays in force: {error}"
                    );
                }
                return;
            }
        };
        if self.qemu.map_trouble.end() {
            tracing::info!(vm = self.vm.name, "the memory map can be read again");
        }
        if old.generation() == map.generation() {
            self.pin_again();
            return;
        }
        let map = Arc::new(map);
        match self.order(Order::Map(Arc::clone(&map))) {
            Ok(_) => {
                let mib = map.total_bytes() >> 20;
                tracing::info!(
                    vm = self.vm.name,
                    generation = map.generation(),
                    mib,
                    "the guest's layout changed"
                );
                self.page_work.start_over();
                self.sources.set_map(&map);
                self.tap_note("memory map changed");
                self.pin_again();
            }
            Err(error) => {
                let error = error.to_string();
                if self.qemu.map_trouble.is_news(&error) {
                    tracing::error!(
                        vm = self.vm.name,
                        "the guest's new layout can't be tracked; the old layout stays in force: {error}"
                    );
                }
            }
        }
    }
}
