//! QEMU as the agent sees it: the connection to its monitor, and what is asked there at what time.

mod asker;
mod discovery_pace;
mod migration;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use qmp::Client;
use tier_core::{
    constraints::{ClosedNode, Constraints},
    holds::Holds,
};

pub(super) use self::asker::{Answer, Asker, Begun, Connected, Job, Kind, Layout, Monitor, Socket};
use self::{discovery_pace::DiscoveryPace, migration::Migration};
use super::log_once::LogOnce;

/// How long the agent waits between attempts to reach a lost monitor.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long the agent waits before it asks again what QEMU could not say: each question to a monitor
/// that hangs waits there until it goes on.
const RETRY: Duration = Duration::from_secs(10);

/// See the [module](self).
pub(super) struct Qemu {
    monitor: Option<Monitor>,
    asker: Asker,
    pub(super) discovery: DiscoveryPace,
    pub(super) migration: Migration,
    /// When to ask whether the guest runs, if events don't say.
    next_status_look: Option<Instant>,
    next_reconnect: Instant,
    /// What keeps the guest's memory in place.
    pub(super) holds: Holds,
    /// What the host's administrator lets QEMU and the agent have.
    pub(super) constraints: Constraints,
    /// The nodes that are closed to moves by that.
    pub(super) closed: Vec<ClosedNode>,
    /// Why the guest's memory map can't be read or tracked.
    pub(super) map_trouble: LogOnce,
}

impl Qemu {
    /// QEMU behind a connected `monitor`. The guest's layout was found at `mapped`, which took `took`.
    pub(super) fn new(asker: Asker, monitor: Monitor, mapped: Instant, took: Duration) -> Self {
        let now = Instant::now();
        Self {
            monitor: Some(monitor),
            asker,
            discovery: DiscoveryPace::new(mapped, took),
            migration: Migration::new(now),
            next_status_look: None,
            next_reconnect: now,
            holds: Holds::default(),
            constraints: Constraints::default(),
            closed: Vec::new(),
            map_trouble: LogOnce::default(),
        }
    }

    /// The monitor's client, while the monitor is connected.
    pub(super) fn client(&self) -> Option<&Arc<Client>> {
        self.monitor.as_ref().map(|monitor| &monitor.client)
    }

    /// QEMU's events, while the monitor is connected.
    pub(super) fn events(&self) -> Option<&Receiver<qmp::Event>> {
        self.monitor.as_ref().map(|monitor| &monitor.events)
    }

    /// Where answers arrive; each must be given to [`Self::take`].
    pub(super) const fn answers(&self) -> &Receiver<Answer> {
        self.asker.answers()
    }

    /// Takes note of an answer; returns whether no event has come since that is newer.
    pub(super) fn take(&mut self, answer: &Answer) -> bool {
        self.asker.take(answer)
    }

    /// Takes note that an event is newer than an answer under way.
    pub(super) fn overtake(&mut self, kind: Kind) {
        self.asker.overtake(kind);
    }

    /// The monitor was lost.
    pub(super) fn lost(&mut self) {
        self.monitor = None;
        self.next_reconnect = Instant::now();
    }

    /// An attempt to connect has ended: the next comes after a rest.
    pub(super) fn attempted(&mut self) {
        self.next_reconnect = Instant::now() + RECONNECT;
    }

    /// The monitor is back.
    pub(super) fn back(&mut self, monitor: Monitor) {
        self.monitor = Some(monitor);
    }

    /// When to ask about migrations, unless the question is under way or can't be asked.
    pub(super) fn asks_of_migration_at(&self) -> Option<Instant> {
        let may_ask = self.monitor.is_some() && !self.asker.is_asked(Kind::Migration);
        may_ask.then_some(self.migration.next_look)
    }

    /// Asks what is due, except what is under way. Returns whether a discovery begins.
    pub(super) fn ask_what_is_due(&mut self, now: Instant, vm: &str) -> bool {
        let Some(monitor) = &mut self.monitor else {
            if now >= self.next_reconnect {
                self.asker.ask(Job::Connect);
            }
            return false;
        };
        let client = Arc::clone(&monitor.client);
        let events_lost = client.events_lost();
        if std::mem::replace(&mut monitor.events_lost, events_lost) != events_lost {
            tracing::debug!(vm, events_lost, "events were missed");
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
            self.migration.asked(now);
        }
        if !self.discovery.is_due(now) || self.asker.is_asked(Kind::Layout) {
            return false;
        }
        let is_thorough = self.discovery.begin(now);
        self.asker.ask(Job::Layout(client, is_thorough))
    }

    /// Asks at once what may have changed, also if the question is under way.
    pub(super) fn ask_again(&mut self, kind: Kind) {
        let now = Instant::now();
        self.asker.overtake(kind);
        match kind {
            Kind::Status => self.next_status_look = Some(now),
            Kind::Migration => self.migration.next_look = now,
            Kind::Layout => self.discovery.want(),
            Kind::Connect => {}
        }
    }

    /// Asks later what QEMU could not say now.
    pub(super) fn ask_later(&mut self, kind: Kind) {
        let at = Instant::now() + RETRY;
        match kind {
            Kind::Status => self.next_status_look = Some(at),
            Kind::Migration => self.migration.next_look = at,
            Kind::Layout | Kind::Connect => {}
        }
    }
}
