//! The engine: all state of one VM, entered by two doors.
//!
//! [`VmEngine::step`] takes what happened (samples, the kernel's answers, the guest's life) and
//! [`VmEngine::order`] what is wanted (a map, pins, a policy, a limit), which may be refused. Both
//! return what is to be done. The engine never waits, reads no clock and talks to nobody, so the same
//! events and orders always give the same actions.
//!
//! ```text
//!   samples ─► evidence ─► guest pages ◄─ look-ups         orders ─► plan
//!                 │             │                            │
//!                 └─► exchange ◄┘──────────► mover ◄─────────┘──► actions
//!                                              └─► journal ─────► notices
//!
//!   Starting ──all pages looked up, source warm──► Running
//!   Running ◄──► Paused | GuestStopped | Blind | Detached
//! ```

mod evidence;
mod exchange;
mod guest_pages;
mod journal;
mod move_costs;
mod mover;
mod orders;
mod pins;
mod rebinder;
mod reshape;
mod significance;
mod state;
mod views;

use std::sync::Arc;

pub use evidence::{bias::TierBias, sources::SourceStats};
pub use guest_pages::{
    SetMapError,
    scan::{Leftovers, ScanReport, ScanRequest},
};
pub use journal::Notice;
pub use mover::{
    brake::{Brake, BrakeReason},
    room::{NodeMemory, PoolMemory},
    strain::Strain,
    totals::Planned,
};
pub use orders::{
    HostGrant, Order, Refusal, Reply,
    drain::{DrainProgress, DrainStall},
    policy::{PolicyChange, PolicyError, PolicySnapshot},
};
pub use pins::pin::{MAX_PINS, Pin, PinError, PinReport, PinStatus, PinsSnapshot, WhenFull};
pub use reshape::{ReshapeOutcome, ReshapeReport, ReshapeRequest, Shape};
pub use state::VmState;
pub use views::{
    demand::{Demand, DemandBasis, DemandPoint, DemandReport},
    explain::{ExplainError, Explanation, PageCondition, PastMoveNote},
    heatmap::{HeatCell, Heatmap, HeatmapError, MAX_CELLS},
    last_moves::{LastMoves, MAX_MOVES, PageMove},
    sentences,
    snapshot::{Snapshot, TierSnapshot},
    wait::Wait,
};

use self::{
    evidence::Evidence,
    exchange::Judge,
    guest_pages::{GuestPages, pieces::Pieces},
    journal::Journal,
    mover::Mover,
    orders::{Orders, drain::DrainFacts},
    rebinder::Rebinder,
};
use crate::{
    addr::Gpa,
    constraints::ClosedNode,
    map::GuestMemoryMap,
    moves::{MoveBatch, MoveReport, Outcome, PageResult, PairedBatch},
    nearness::Nearness,
    rebind::{Binding, RebindReport},
    sample::{DropReason, SampleAccount, SampleBatch, SourceKind},
    settings::{EngineSettings, Tier},
    tiers::Tiers,
    time::Time,
};

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// What a source observed.
    Samples(SampleBatch),
    /// What the source found page by page in a small part of the guest, beside its batches of ranges.
    Grid(SampleBatch),
    /// The kernel's answer to [`Action::Scan`].
    Scanned(ScanReport),
    /// The kernel's answer to [`Action::Move`], or to a half of [`Action::MovePaired`].
    Moved(MoveReport),
    /// The answer to [`Action::Rebind`].
    Rebound(RebindReport),
    /// The kernel's answer to [`Action::Reshape`].
    Reshaped(ReshapeReport),
    /// Free memory of the tiers' nodes.
    ///
    /// Where the fast tier has several nodes, it must come before an [`Event::Moved`]: the promotions of
    /// an exchange go where memory is free then.
    Nodes(Vec<NodeMemory>),
    /// How far nodes are from each other and from the guest's CPUs, where a tier has several.
    Nearness(Nearness),
    /// How the host and the guest do, about once a second.
    Strain(Strain),
    /// The nodes onto which no page can be moved from now on.
    Closed(Vec<ClosedNode>),
    /// This source is believed from now on; others only beside it. `None`: no source sees the guest.
    Source(Option<SourceKind>),
    /// The guest's CPUs were stopped or run again.
    Guest {
        /// Whether they are stopped.
        stopped: bool,
    },
    /// QEMU's monitor was lost or reached again.
    Monitor {
        /// Whether it can be reached.
        attached: bool,
    },
    /// The guest is watched less closely from now on, or as closely as set.
    Rest(bool),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Look up where pages lie.
    Scan(ScanRequest),
    /// Move pages. Batches must be carried out in the order in which they come.
    Move(MoveBatch),
    /// Let pages change places, as one piece of work. The answer is an [`Event::Moved`] for each batch.
    MovePaired(PairedBatch),
    /// Let the next pages of pieces of memory come from a tier. Asked for only with
    /// [`EngineSettings::rebind`].
    Rebind(Vec<Binding>),
    /// Split a huge page, or make one.
    Reshape(ReshapeRequest),
    /// The map is out of date, as pages are gone that it names, or the cpusets are other than known.
    RefreshMap,
}

/// See the [module](self).
#[derive(Debug)]
pub struct VmEngine {
    pages: GuestPages,
    evidence: Evidence,
    mover: Mover,
    orders: Orders,
    journal: Journal,
    rebinder: Rebinder,
}

impl VmEngine {
    /// An engine without a map; nothing happens before [`Order::Map`].
    #[must_use]
    pub fn new(settings: EngineSettings, tiers: Tiers, now: Time) -> Self {
        let mut evidence = Evidence::new(settings.half_life, now);
        evidence.demand.set_on(settings.measures_demand);
        Self {
            pages: match settings.rebind {
                true => GuestPages::in_pieces(settings.half_life),
                false => GuestPages::new(settings.half_life),
            },
            evidence,
            mover: Mover::new(&settings, tiers, now),
            orders: Orders::new(settings),
            journal: Journal::new(VmState::Starting),
            rebinder: Rebinder::default(),
        }
    }

    /// Takes one event and says what is to be done. `now` must not go back.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Samples(batch) => self.take_samples(now, &batch),
            Event::Grid(batch) => self.take_grid(now, &batch),
            Event::Scanned(report) => self.take_scan(now, &report),
            Event::Moved(report) => actions = self.take_moves(now, &report),
            Event::Rebound(report) => {
                if let Some(pieces) = &mut self.pages.pieces {
                    self.rebinder.take(now, &report, pieces);
                }
            }
            Event::Reshaped(report) => self.mover.reshaper.finish(&report, &mut self.pages),
            Event::Nodes(nodes) => self.mover.rooms.set(nodes),
            Event::Nearness(nearness) => self.mover.nearness = Arc::new(nearness),
            Event::Strain(strain) => {
                let settings = &self.orders.settings;
                self.mover.take_strain(now, strain, settings);
            }
            Event::Closed(nodes) => self.mover.rooms.close(nodes),
            Event::Source(main) => self.evidence.believe(main),
            Event::Rest(at_rest) => {
                self.evidence.at_rest = at_rest;
                self.pages.scanner.set_at_rest(at_rest, now);
                if at_rest {
                    // Strain is not told of any more, and next to nothing moves.
                    self.mover.strain.end();
                }
            }
            Event::Guest { stopped } => {
                let before = std::mem::replace(&mut self.orders.conditions.guest_stopped, stopped);
                if before != stopped {
                    self.mover.strain.interrupt();
                }
            }
            Event::Monitor { attached } => self.orders.conditions.attached = attached,
            Event::Tick => {}
        }
        actions.extend(self.go_on(now));
        actions
    }

    /// Carries out one order, and says what is to be done for it. `now` must not go back.
    ///
    /// # Errors
    /// If the order is refused; nothing has changed then.
    pub fn order(&mut self, now: Time, order: Order) -> Result<Reply, Refusal> {
        let mut reply = Reply::default();
        match order {
            Order::Map(map) => self.set_map(now, map)?,
            Order::Pause(paused) => self.orders.conditions.operator_paused = paused,
            Order::Limit(bytes) => self.orders.set_limit(bytes),
            Order::Grant(grant) => {
                let before = self.orders.settings.rate_bytes_per_s;
                self.orders.set_grant(grant);
                // Grants come each second.
                if self.orders.settings.rate_bytes_per_s != before {
                    self.mover.set_rate(now, &self.orders.settings);
                }
            }
            Order::Drain(bytes) => {
                let facts = self.drain_facts();
                let known = facts.has_seen_all.then_some(facts.fast_bytes);
                self.orders.begin_drain(bytes, known);
            }
            Order::Policy(change) => self.set_policy(now, &change)?,
            Order::Pin(pin) => {
                let (pages, mover) = (&mut self.pages, &self.mover);
                pages.check_range(&pin)?;
                mover.check_room(now, &pin, pages, &self.orders.settings)?;
                reply.pins = pages.pin(now, pin);
            }
            Order::PinAgain(pins) => reply.refused = self.pages.pin_again(now, &pins),
            Order::Unpin { start, bytes } => reply.pins = self.pages.unpin(now, start, bytes)?,
            Order::UnpinAll => reply.pins = self.pages.remove_pins(now, 0, u64::MAX),
        }
        reply.actions = self.go_on(now);
        Ok(reply)
    }

    /// What is due after whatever happened: cooling, look-ups, the plan of the next moves.
    fn go_on(&mut self, now: Time) -> Vec<Action> {
        self.pages.heap.tick(now);
        self.evidence.tick(now, &mut self.pages);
        let scan = self.pages.scanner.next(now).map(Action::Scan);
        let mut actions = Vec::from_iter(scan);
        if self.may_plan() {
            let settings = &self.orders.settings;
            let planned = self
                .mover
                .plan(now, &mut self.pages, &mut self.evidence, settings);
            actions.extend(planned);
        }
        actions.extend(self.rebind(now));
        if self.state() == VmState::Running {
            let request = self.mover.reshaper.next(now, &self.pages);
            actions.extend(request.map(Action::Reshape));
        }
        let news = self.drain_news();
        self.journal.note(self.state(), news);
        actions
    }

    /// Which pieces of memory are to be bound, while pages may be moved.
    fn rebind(&mut self, now: Time) -> Option<Action> {
        let may = self.state() == VmState::Running && !self.orders.settings.dry_run;
        let pieces = self.pages.pieces.as_ref().filter(|_| may)?;
        self.rebinder.due(now, pieces)
    }

    fn take_samples(&mut self, now: Time, batch: &SampleBatch) {
        match self.refusal(batch) {
            Some(reason) => self.evidence.refuse(batch, reason),
            None => {
                let half_life = self.orders.settings.half_life;
                self.evidence.take(now, batch, half_life, &mut self.pages);
            }
        }
    }

    /// Why samples can't be used now.
    fn refusal(&self, batch: &SampleBatch) -> Option<DropReason> {
        let generation = self.map().map(GuestMemoryMap::generation);
        if generation != Some(batch.map_generation) {
            return Some(DropReason::StaleMap);
        }
        let is_stopped = matches!(self.state(), VmState::Paused | VmState::GuestStopped);
        is_stopped.then_some(DropReason::Paused)
    }

    fn take_grid(&mut self, now: Time, batch: &SampleBatch) {
        match self.refusal(batch) {
            Some(reason) => self.evidence.refuse(batch, reason),
            None => self.evidence.take_grid(now, batch, &mut self.pages),
        }
    }

    fn take_scan(&mut self, now: Time, report: &ScanReport) {
        let cpu_share = self.orders.settings.scan_cpu_share;
        let Evidence {
            bias, skew, grids, ..
        } = &mut self.evidence;
        let tiers = &self.mover.tiers;
        self.pages
            .take_scan(now, report, tiers, cpu_share, skew, &mut |id| {
                bias.forget(id);
            });
        grids.forget_folded(&report.folios, &self.pages);
    }

    fn take_moves(&mut self, now: Time, report: &MoveReport) -> Vec<Action> {
        let runs = self.state() == VmState::Running;
        let is_moved = |page: &PageResult| page.outcome == Outcome::Moved;
        if report.results.iter().any(is_moved) {
            self.evidence.moved();
        }
        let (pages, evidence) = (&mut self.pages, &mut self.evidence);
        let settings = &self.orders.settings;
        let landed = self
            .mover
            .take_report(now, report, runs, pages, evidence, settings);
        let Some(landed) = landed else {
            return Vec::new();
        };
        let map = self.pages.map.as_deref();
        self.journal
            .note_moves(now, landed.direction, &landed.results, map);
        landed.actions
    }

    fn set_map(&mut self, now: Time, map: Arc<GuestMemoryMap>) -> Result<(), SetMapError> {
        let half_life = self.evidence.half_life();
        if self.pages.set_map(now, map, half_life)? {
            self.mover.in_flight.clear();
            self.mover.reshaper.forget_pages();
            self.mover.ping_pong.forget_pages();
            self.journal.history.clear();
            self.evidence.forget_pages();
        }
        Ok(())
    }

    fn set_policy(&mut self, now: Time, change: &PolicyChange) -> Result<(), PolicyError> {
        change.check()?;
        self.orders.change_policy(change);
        if let Some(half_life) = change.half_life {
            self.evidence.set_half_life(now, half_life, &mut self.pages);
        }
        if change.rate_bytes_per_s.is_some() {
            self.mover.set_rate(now, &self.orders.settings);
        }
        Ok(())
    }

    /// Whether moves may be planned: tiering runs, and nothing is under way.
    fn may_plan(&self) -> bool {
        self.mover.in_flight.is_empty() && self.state() == VmState::Running
    }

    /// When to give the next [`Event::Tick`] at the latest because moves, splits or collapses wait for
    /// their rate; `None` if none do. While nothing is planned (moves pause, or a batch is under way)
    /// time alone changes nothing.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Time> {
        let moves = self.mover.wakes_at();
        let reshape = self.mover.reshaper.wakes_at();
        let both = moves.into_iter().chain(reshape);
        both.min().filter(|_| self.may_plan())
    }

    /// The state in one word.
    #[must_use]
    pub fn state(&self) -> VmState {
        VmState::of(&self.orders, &self.pages, &self.evidence)
    }

    /// Takes what happened since the last call: changes of state and drain in their order, then moves
    /// that failed. Bounded; see [`Self::notices_dropped`].
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.journal.take()
    }

    /// Notices dropped since the start because nobody took them in time.
    #[must_use]
    pub const fn notices_dropped(&self) -> u64 {
        self.journal.dropped()
    }

    /// The operator's limit of the fast tier. [`EngineSettings::fast_limit_bytes`] of
    /// [`Self::settings`] is the limit in force.
    #[must_use]
    pub const fn operator_limit(&self) -> Option<u64> {
        self.orders.operator_limit()
    }

    /// The settings in force.
    #[must_use]
    pub const fn settings(&self) -> &EngineSettings {
        &self.orders.settings
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> PolicySnapshot {
        self.orders.policy()
    }

    /// The tiers.
    #[must_use]
    pub const fn tiers(&self) -> &Tiers {
        &self.mover.tiers
    }

    /// Why no page can be moved onto a tier, if it is so: cpusets close all its nodes.
    #[must_use]
    pub fn closed_tier(&self) -> Option<&str> {
        let Mover { tiers, rooms, .. } = &self.mover;
        let closed = rooms.all_closed(&tiers.fast);
        closed.or_else(|| rooms.all_closed(&tiers.slow))
    }

    /// The memory map in force.
    #[must_use]
    pub fn map(&self) -> Option<&GuestMemoryMap> {
        self.pages.map.as_deref()
    }

    /// What the sources have delivered.
    pub fn sources(&self) -> impl Iterator<Item = (SourceKind, &SourceStats)> {
        self.evidence.sources.stats()
    }

    /// All pins in rising order of address.
    #[must_use]
    pub fn pins(&self) -> Vec<PinStatus> {
        self.pages.pins().statuses()
    }

    /// Bytes promoted and demoted since the start, verified.
    #[must_use]
    pub const fn moved_bytes(&self) -> u64 {
        self.mover.totals.promoted_bytes + self.mover.totals.demoted_bytes
    }

    /// How often the guest's accesses turned to slow pages: each time it is worth a closer look.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.evidence.changes()
    }

    /// Bytes that heaps and pieces take, and what is kept of pages that were moved, of huge pages' accesses
    /// and of grids.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let pieces = self.pages.pieces.as_ref().map_or(0, Pieces::memory_bytes);
        pieces
            + self.evidence.grids.memory_bytes()
            + self.pages.heap.memory_bytes()
            + self.mover.ping_pong.memory_bytes()
            + self.evidence.skew.memory_bytes()
            + self.evidence.demand.memory_bytes()
    }

    /// How far the drain has come; `None` if none was asked for since the limit was set last.
    #[must_use]
    pub fn drain_progress(&self) -> Option<DrainProgress> {
        let drain = self.orders.drain()?;
        Some(drain.progress(&self.drain_facts()))
    }

    fn drain_news(&mut self) -> Option<DrainProgress> {
        self.orders.drain()?;
        let facts = self.drain_facts();
        self.orders.drain_mut()?.news(&facts)
    }

    fn drain_facts(&self) -> DrainFacts {
        DrainFacts {
            fast_bytes: self.pages.bytes().of(Tier::Fast),
            has_seen_all: self.pages.scanner.has_seen_all(),
            promoting_bytes: self.mover.in_flight.promoting_bytes(),
            pinned_bytes: self.pages.pins().fast_bytes(),
            runs: self.state() == VmState::Running,
            is_idle: self.mover.in_flight.is_empty(),
            stall: self.mover.stall,
            cooling: self.pages.heap.stats().pages.cooling,
        }
    }

    /// The picture now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        views::snapshot::of(self)
    }

    /// How much DRAM the guest asks for. It is measured only with [`EngineSettings::measures_demand`].
    #[must_use]
    pub fn demand(&self, now: Time) -> Demand {
        views::demand::of(self, now)
    }

    /// What moves wait for; `None` while pages move, or could move at once.
    #[must_use]
    pub fn waits_for(&self, now: Time) -> Option<Wait> {
        views::wait::of(self, now)
    }

    fn judge(&self, now: Time) -> Judge<'_> {
        Judge {
            now,
            pages: &self.pages,
            evidence: &self.evidence,
            tiers: &self.mover.tiers,
            costs: &self.mover.totals.costs,
            settings: &self.orders.settings,
        }
    }

    /// What became of every record of every source.
    #[must_use]
    pub fn samples(&self) -> SampleAccount {
        self.evidence.sources.total()
    }

    /// All pins together.
    #[must_use]
    pub fn pins_snapshot(&self) -> PinsSnapshot {
        self.pages.pins().snapshot()
    }

    /// Explains the page at a guest-physical address. Looks at every page.
    ///
    /// # Errors
    /// If the address is not guest RAM.
    pub fn explain(&self, now: Time, gpa: Gpa) -> Result<Explanation, ExplainError> {
        views::explain(self, now, gpa)
    }

    /// Heat and tier over the guest's RAM, in `rows` × `columns` cells. Looks at every page once.
    ///
    /// # Errors
    /// If there are no cells or more than [`MAX_CELLS`], or no map yet.
    pub fn heatmap(&self, now: Time, rows: u32, columns: u32) -> Result<Heatmap, HeatmapError> {
        views::heatmap::draw(self, now, rows, columns)
    }

    /// The last moves of `most` pages, the newest first; at most [`MAX_MOVES`].
    #[must_use]
    pub fn last_moves(&self, now: Time, most: u64) -> LastMoves {
        views::last_moves::of(self, now, most)
    }

    /// Whether every invariant holds. Looks at every page.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.check().is_ok()
    }

    /// Says which invariant is broken, if any is. Looks at every page.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        self.pages.check()?;
        self.evidence.check()?;
        self.mover.check(&self.pages)?;
        self.orders.check()?;
        self.journal.check()
    }
}
