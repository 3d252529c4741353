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
    client::ExecuteError,
    commands::{MigrationInfo, MigrationStatus, RunState, StatusInfo},
    event::EventKind,
};
use tier_core::engine::{Event, Order};

use super::{
    Agent, TICK,
    control::Control,
    qemu::asker::{Answer, Connected, Job, Kind, Layout},
};
use crate::{
    discover::{DiscoverError, Discovered},
    log::with_causes,
};

/// How long the agent waits between attempts to reach a lost monitor.
const RECONNECT: Duration = Duration::from_secs(1);
/// How often QEMU is asked about a migration: it tells of one unasked only if its manager has switched
/// the migration capability `events` on.
const MIGRATION_CHECK: Duration = Duration::from_secs(1);
/// The same after QEMU could not say: each question to a monitor that hangs waits there until it goes
/// on.
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
                self.asker.overtake(Kind::Status);
                // A migration stops the guest at its end.
                self.migration.next_look = Instant::now();
                self.tap_note("guest stopped");
                self.step(Event::Guest { stopped: true });
            }
            EventKind::Resume => {
                self.asker.overtake(Kind::Status);
                // A guest that arrived by migration has its devices' memory only now; what follows at once is
                // seen, too.
                self.migration.next_look = Instant::now() + TICK;
                self.discovery.want();
                self.tap_note("guest runs");
                self.step(Event::Guest { stopped: false });
            }
            EventKind::Shutdown { guest, reason } => {
                tracing::info!(vm = self.name, guest, reason, "the guest shuts down");
            }
            EventKind::Migration { status } => {
                self.asker.overtake(Kind::Migration);
                self.migration.next_look = Instant::now() + MIGRATION_CHECK;
                self.on_migration(Some(MigrationStatus::from(status.as_str())));
            }
            // Firmware and virtio-mem lay memory out anew.
            EventKind::Reset { .. }
            | EventKind::DeviceDeleted { .. }
            | EventKind::MemoryDeviceSizeChange { .. } => self.discovery.want(),
            _ => {}
        }
        self.look_at_qemu(Instant::now());
    }

    /// Takes what QEMU answered, and asks what has become due meanwhile.
    pub(super) fn on_answer(&mut self, answer: Answer) {
        let kind = answer.kind();
        let is_true = self.asker.take(&answer);
        match answer {
            // It is asked for before the agent runs.
            Answer::Begun(_) => {}
            Answer::Connected(connected) => self.on_connected(connected),
            Answer::Layout(layout) => self.on_layout(layout),
            // What the lost monitor said, or that it said nothing, counts no more.
            Answer::Status(_) | Answer::Migration(_) if self.monitor.is_none() => {}
            Answer::Status(_) | Answer::Migration(_) if !is_true => self.ask_again(kind),
            Answer::Status(status) => self.on_status(status),
            Answer::Migration(migration) => self.on_migration_answer(migration),
        }
        self.look_at_qemu(Instant::now());
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

    /// When QEMU is to be asked about migrations, unless it is being asked or can't be.
    pub(super) fn asks_of_migration_at(&self) -> Option<Instant> {
        let may_ask = self.monitor.is_some() && !self.asker.is_asked(Kind::Migration);
        may_ask.then_some(self.migration.next_look)
    }

    /// Asks QEMU what is due, unless it is being asked already.
    pub(super) fn look_at_qemu(&mut self, now: Instant) {
        let Some(monitor) = &mut self.monitor else {
            if now >= self.next_reconnect {
                self.asker.ask(Job::Connect);
            }
            return;
        };
        let client = Arc::clone(&monitor.client);
        let events_lost = client.events_lost();
        if std::mem::replace(&mut monitor.events_lost, events_lost) != events_lost {
            tracing::debug!(vm = self.name, events_lost, "events were missed");
            self.ask_again(Kind::Status);
            self.ask_again(Kind::Migration);
            self.discovery.want();
        }
        if self.next_status_look.is_some_and(|at| now >= at)
            && self.asker.ask(Job::Status(Arc::clone(&client)))
        {
            self.next_status_look = None;
        }
        if now >= self.migration.next_look && self.asker.ask(Job::Migration(Arc::clone(&client))) {
            self.migration.next_look = now + MIGRATION_CHECK;
        }
        if self.discovery.is_due(now) && self.asker.ask(Job::Layout(client)) {
            self.discovery.begin();
            self.take_over();
            self.saved.try_again(&self.overrides);
        }
    }

    /// Asks anew what may have changed, also if the question is under way.
    fn ask_again(&mut self, kind: Kind) {
        let now = Instant::now();
        self.asker.overtake(kind);
        match kind {
            Kind::Status => self.next_status_look = Some(now),
            Kind::Migration => self.migration.next_look = now,
            Kind::Layout => self.discovery.want(),
            Kind::Connect => {}
        }
    }

    fn on_connected(&mut self, connected: anyhow::Result<Connected>) {
        self.next_reconnect = Instant::now() + RECONNECT;
        match connected {
            Ok(connected) if connected.monitor.client.peer().pid == self.pid => {
                tracing::info!(vm = self.name, "QEMU's monitor is back");
                self.tap_note("monitor back");
                self.monitor = Some(connected.monitor);
                // Before anything moves: meanwhile the guest may have stopped, or begun to migrate.
                self.on_status(connected.status);
                self.on_migration_answer(connected.migration);
                self.discovery.want();
                self.step(Event::Monitor { attached: true });
                if let Err(error) = self.serve_proxy() {
                    self.on_proxy_trouble(&error);
                }
            }
            // The old guest ends, and this agent with it.
            Ok(connected) => {
                let pid = connected.monitor.client.peer().pid;
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
            // The socket is gone already. To see off clients that don't read takes a second, in which
            // the agent has other things to do.
            let end = move || drop(proxy);
            let ending = std::thread::Builder::new().name("proxy-end".to_owned());
            // Without a thread it is done here.
            let _ = ending.spawn(end);
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
        self.publisher.tell(sockets.map(Control::events).collect());
    }

    /// Takes note of whether the guest runs; asks again later, if QEMU does not say.
    pub(super) fn on_status(&mut self, answer: Result<StatusInfo, ExecuteError>) {
        match answer {
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
                self.next_status_look = Some(Instant::now() + MIGRATION_RETRY);
                let error = with_causes(&error);
                tracing::debug!(vm = self.name, "no word on whether the guest runs: {error}");
            }
        }
    }

    pub(super) fn on_migration_answer(&mut self, answer: Result<MigrationInfo, ExecuteError>) {
        match answer {
            Ok(info) => self.on_migration(info.status),
            Err(error) => {
                self.migration.next_look = Instant::now() + MIGRATION_RETRY;
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
                self.ask_again(Kind::Status);
                self.discovery.want();
                self.apply_pause();
            }
            _ => {}
        }
    }

    /// Tells the engine whether anything wants moves to pause.
    pub(super) fn apply_pause(&mut self) {
        let paused = self.overrides.paused || self.migration.under_way().is_some();
        // Never refused.
        let _ = self.order(Order::Pause(paused));
    }

    /// Lets the tap know what happened to the guest.
    fn tap_note(&mut self, text: &str) {
        if let Some(tap) = &mut self.tap {
            tap.note(text);
        }
    }

    fn on_layout(&mut self, layout: Layout) {
        let Layout { found, vcpus, took } = layout;
        self.discovery.end(Instant::now(), took, found.is_ok());
        if let Some(tids) = vcpus {
            self.sources.set_vcpus(tids);
        }
        let Some(old) = self.engine.map() else { return };
        let map = match found {
            Ok(Discovered { map, .. }) => old.succeeded_by(map),
            // The receiver of events tells of the loss, too.
            Err(DiscoverError::Qmp(ExecuteError::Closed { .. })) => return,
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
                self.scans.start_over();
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
