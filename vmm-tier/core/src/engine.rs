//! The engine: all state of one VM, changed by one function.
//!
//! [`VmEngine::step`] takes what happened (a new map, samples, the kernel's answers, the operator's
//! wishes) and returns what is to be done. It never waits, reads no clock and talks to nobody, so the
//! same events always give the same actions. Orders that can be refused (pins, the policy) are methods with
//! errors; what they set going comes out of the next step. So does a drain's first move.
//!
//! ```text
//!   Starting ──all pages looked up, source warm──► Running ◄──► Paused | GuestStopped | Blind | Detached
//! ```

mod evidence;
mod exchange;
mod guest_pages;
mod journal;
mod mover;
mod orders;
mod pins;
mod views;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use evidence::{bias::TierBias, sources::SourceStats};
pub use guest_pages::scan::{Leftovers, ScanReport, ScanRequest};
pub use journal::Notice;
pub use orders::{
    drain::{DrainProgress, DrainStall},
    policy::{
        MAX_HORIZON, MAX_RATE, MIN_HORIZON, MIN_RATE, PolicyChange, PolicyError, PolicySnapshot,
    },
};
pub use pins::pin::{MAX_PINS, Pin, PinError, PinReport, PinStatus, PinsSnapshot, WhenFull};
pub use views::{
    explain::{ExplainError, Explanation, PageCondition, PastMoveNote},
    heatmap::{HeatCell, Heatmap, HeatmapError, MAX_CELLS},
    snapshot::{Planned, Snapshot, TierSnapshot, VmState},
};

use self::{
    evidence::{
        access_stats::{MoveTotals, PlacedBytes, SampleTally},
        bias::Bias,
        expected_heat::Census,
        half_life::Forgetting,
        sources::Sources,
    },
    guest_pages::scan::Scanner,
    journal::{Notices, history::History},
    mover::{in_flight::Flights, plan::Stall, throttle::Throttle},
    orders::drain::Drain,
    pins::Pins,
};
use crate::{
    addr::{NodeId, NodeSet},
    heat_store::{HeatStore, HeatStoreError},
    map::GuestMemoryMap,
    moves::{MoveBatch, MoveReport},
    pages::{PageIndex, PageIndexError, Span},
    quota::Headroom,
    sample::{SampleBatch, SourceKind},
    settings::EngineSettings,
    tiers::Tiers,
    time::Time,
};

/// Memory of one node, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// The node.
    pub node: NodeId,
    /// Free bytes.
    pub free_bytes: u64,
    /// The high watermark in bytes, summed over the node's zones: below it the kernel reclaims.
    pub high_watermark_bytes: u64,
}

impl NodeMemory {
    /// Bytes free above the high watermark and `margin_bytes`; negative where they lack.
    #[must_use]
    pub fn room_bytes(&self, margin_bytes: u64) -> i64 {
        let headroom = Headroom {
            free_bytes: self.free_bytes,
            watermark_bytes: self.high_watermark_bytes,
            margin_bytes,
        };
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        signed(headroom.promotable_bytes()) - signed(headroom.deficit_bytes())
    }
}

/// Why a map can't be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetMapError {
    /// Its pages can't be numbered.
    #[error(transparent)]
    Pages(#[from] PageIndexError),
    /// Their heat can't be kept.
    #[error(transparent)]
    Heat(#[from] HeatStoreError),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// What a source observed.
    Samples(SampleBatch),
    /// The kernel's answer to [`Action::Scan`].
    Scanned(ScanReport),
    /// The kernel's answer to [`Action::Move`].
    Moved(MoveReport),
    /// Free memory of the tiers' nodes.
    Nodes(Vec<NodeMemory>),
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
    /// The operator pauses or resumes tiering.
    Pause(bool),
    /// The operator sets the most bytes of the fast tier that the VM may hold.
    Limit(Option<u64>),
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
    /// The map is out of date: pages are gone that it names.
    RefreshMap,
}

/// What must hold for pages to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Conditions {
    operator_paused: bool,
    guest_stopped: bool,
    attached: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct VmEngine {
    settings: EngineSettings,
    tiers: Tiers,
    map: Option<Arc<GuestMemoryMap>>,
    index: PageIndex,
    heap: HeatStore,
    throttle: Throttle,
    nodes: BTreeMap<NodeId, NodeMemory>,
    scanner: Scanner,
    flights: Flights,
    bytes: PlacedBytes,
    tally: SampleTally,
    bias: Bias,
    census: Census,
    forgetting: Forgetting,
    totals: MoveTotals,
    sources: Sources,
    conditions: Conditions,
    observed: Duration,
    /// Whether the last batch told hot from warm.
    settled: bool,
    pins: Pins,
    drain: Option<Drain>,
    /// Why the limit could not be obeyed when that was tried last.
    shrink_stall: Option<Stall>,
    history: History,
    notices: Notices,
}

impl VmEngine {
    /// An engine without a map; nothing happens before [`Self::set_map`].
    #[must_use]
    pub fn new(settings: EngineSettings, tiers: Tiers, now: Time) -> Self {
        Self {
            heap: HeatStore::empty(settings.half_life),
            tally: SampleTally::new(settings.half_life, now),
            bias: Bias::default(),
            census: Census::default(),
            forgetting: Forgetting::new(settings.half_life),
            conditions: Conditions {
                operator_paused: false,
                guest_stopped: false,
                attached: true,
            },
            throttle: Throttle::new(&settings, now),
            settings,
            tiers,
            map: None,
            index: PageIndex::default(),
            nodes: BTreeMap::new(),
            scanner: Scanner::default(),
            flights: Flights::default(),
            bytes: PlacedBytes::default(),
            totals: MoveTotals::default(),
            sources: Sources::default(),
            observed: Duration::ZERO,
            settled: false,
            pins: Pins::default(),
            drain: None,
            shrink_stall: None,
            history: History::default(),
            notices: Notices::new(VmState::Starting),
        }
    }

    /// The settings in force.
    #[must_use]
    pub const fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// The tiers.
    #[must_use]
    pub const fn tiers(&self) -> &Tiers {
        &self.tiers
    }

    /// Bytes promoted and demoted since the start, verified.
    #[must_use]
    pub const fn moved_bytes(&self) -> u64 {
        self.totals.promoted_bytes + self.totals.demoted_bytes
    }

    /// Bytes that the heaps take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.heap.memory_bytes()
    }

    /// When to give the next [`Event::Tick`] at the latest because moves wait for their rate; `None`
    /// if none do. While nothing is planned (moves pause, or a batch is under way) time alone changes
    /// nothing.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Time> {
        self.throttle.wakes_at().filter(|_| self.may_plan())
    }

    /// Where heat is kept.
    #[must_use]
    pub const fn heat(&self) -> &HeatStore {
        &self.heap
    }

    /// What the sources have delivered.
    pub fn sources(&self) -> impl Iterator<Item = (SourceKind, &SourceStats)> {
        self.sources.stats()
    }

    /// The memory map in force.
    #[must_use]
    pub fn map(&self) -> Option<&GuestMemoryMap> {
        self.map.as_deref()
    }

    /// Takes the guest's memory map, new or changed. Unless the layout is the same as before, all
    /// placements are looked up anew; heat of pages that stay is kept.
    ///
    /// # Errors
    /// If the map's pages can't be numbered, or their heat does not fit the memory granted; the engine then
    /// keeps the map it had.
    pub fn set_map(&mut self, now: Time, map: Arc<GuestMemoryMap>) -> Result<(), SetMapError> {
        if self.map.as_ref().is_some_and(|old| old.same_layout(&map)) {
            self.map = Some(map);
            return Ok(());
        }
        let ranges = map.unique_hva_ranges();
        let spans: Vec<Span> = ranges
            .iter()
            .map(|r| Span {
                hva: r.start,
                bytes: r.len,
                frame_bytes: r.page_size,
            })
            .collect();
        let index = PageIndex::new(spans.iter().copied())?;
        let half_life = self.forgetting.half_life();
        let heap = HeatStore::new(index.frames(), half_life, self.settings.heat)?;
        self.carry_over(now, index, heap);
        self.scanner.reset(spans, now);
        self.flights.clear();
        self.history.clear();
        self.census.clear();
        self.bias.forget_pages();
        self.forgetting.forget_pages();
        self.map = Some(map);
        self.apply_pins(now);
        self.look_for_changes();
        Ok(())
    }

    /// Takes one event and says what is to be done. `now` must not go back.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Samples(batch) => self.take_samples(now, &batch),
            Event::Scanned(report) => self.take_scan(now, &report),
            Event::Moved(report) => self.take_moves(now, &report, &mut actions),
            Event::Nodes(nodes) => {
                self.nodes = nodes.into_iter().map(|node| (node.node, node)).collect();
            }
            Event::Source(main) => self.sources.main = main,
            Event::Guest { stopped } => self.conditions.guest_stopped = stopped,
            Event::Monitor { attached } => self.conditions.attached = attached,
            Event::Pause(paused) => self.conditions.operator_paused = paused,
            Event::Limit(limit) => {
                self.settings.fast_limit_bytes = limit;
                self.drain = None;
            }
            Event::Tick => {}
        }
        self.heap.tick(now);
        self.adapt_half_life(now);
        self.take_census(now);
        actions.extend(self.scanner.next(now).map(Action::Scan));
        actions.extend(self.plan(now));
        self.look_for_changes();
        actions
    }

    fn nodes_of<'a>(&'a self, set: &'a NodeSet) -> impl Iterator<Item = &'a NodeMemory> {
        set.iter().filter_map(|node| self.nodes.get(&node))
    }
}
