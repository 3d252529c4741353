//! A whole engine and the machine under it: what a record costs from its arrival to its place in the
//! heaps, with the look-up of its address, the accounts, the plans and the moves.

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId, NodeSet},
    dual_heap::PageId,
    engine::{Action, Event, NodeMemory, Order, ScanReport, ScanRequest, VmEngine},
    map::{BlockIndex, GuestMemoryMap, MapRange, RamBlock},
    moves::{Direction, MoveBatch, MoveReport, Outcome, Page, PageResult},
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    settings::EngineSettings,
    tiers::Tiers,
    time::Time,
};

use crate::{BATCH, Cost, Effort, STEP, loads::Load, seconds, size};

const FAST: NodeId = NodeId(0);
const SLOW: NodeId = NodeId(1);
const BASE: u64 = 0x7f00_0000_0000;
/// Above what a guest has below 4 GiB, so that its memory is one range.
const FIRST_GPA: u64 = 4 << 30;
/// Promotions and demotions, as many as the heaps alone are given: the bench is of records, not of
/// moves.
const MOVES_PER_S: u64 = 800;
/// What the kernel takes to say where a page lies.
const LOOK_UP: Duration = Duration::from_nanos(100);
/// What the engine keeps free.
const HEADROOM: u64 = 4 << 20;

/// A guest.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// log2 of its 4 KiB frames.
    pub(crate) shift: u32,
    /// Whether they are in transparent huge pages.
    pub(crate) huge: bool,
    /// Whether its demand is measured, as beside a host daemon.
    pub(crate) demand: bool,
}

impl Kind {
    pub(crate) fn name(self) -> String {
        let pages = if self.huge { "2 MiB" } else { "4 KiB" };
        let demand = if self.demand { ", demand" } else { "" };
        format!("engine, {} in {pages} pages{demand}", size(1 << self.shift))
    }
}

/// A guest of one range, its engine, and where its pages lie: a fifth of them on the fast node at first.
struct Machine {
    engine: VmEngine,
    is_fast: Vec<bool>,
    page_bytes: u64,
    now: Time,
}

impl Machine {
    /// All pages are placed.
    fn new(kind: Kind) -> Self {
        let Kind {
            shift,
            huge,
            demand,
        } = kind;
        let frames = 1_u32 << shift;
        let page_bytes = if huge { HUGE_PAGE } else { BASE_PAGE };
        let bytes = u64::from(frames) * BASE_PAGE;
        let pages = (bytes / page_bytes) as usize;
        let tiers = Tiers {
            fast: NodeSet::from_iter([FAST]),
            slow: NodeSet::from_iter([SLOW]),
            fast_latency_ns: 90.0,
            slow_latency_ns: 250.0,
        };
        let settings = EngineSettings {
            headroom_bytes: HEADROOM,
            rate_bytes_per_s: MOVES_PER_S * page_bytes,
            measures_demand: demand,
            ..EngineSettings::default()
        };
        let block = RamBlock {
            name: "ram".to_owned(),
            hva: Hva(BASE),
            used: bytes,
            total: bytes,
            page_size: BASE_PAGE,
            backing: None,
        };
        let range = MapRange {
            gpa: Gpa(FIRST_GPA),
            len: bytes,
            block: BlockIndex(0),
            offset: 0,
            hva: Hva(BASE),
        };
        let map = GuestMemoryMap::new(1, vec![block], vec![range]).expect("a map of one range");
        let mut machine = Self {
            engine: VmEngine::new(settings, tiers, Time(0)),
            is_fast: (0..pages).map(|page| page < pages / 5).collect(),
            page_bytes,
            now: Time(0),
        };
        let map = Order::Map(Arc::new(map));
        let reply = machine.engine.order(Time(0), map);
        let actions = reply.expect("pages that can be numbered").actions;
        let events = machine.carry_out(actions);
        machine.give_all(events);
        machine.give(Event::Source(Some(SourceKind::Pebs)));
        while machine.placed_bytes() < bytes {
            machine.now = machine.now + Duration::from_secs(1);
            machine.give(Event::Tick);
        }
        machine
    }

    fn placed_bytes(&self) -> u64 {
        self.engine.snapshot().page_sizes.values().sum()
    }

    /// Records of single accesses to these frames, as a source delivers them.
    fn records(frames: &[PageId]) -> Vec<AccessSample> {
        let record = |&PageId(frame): &PageId| AccessSample {
            address: SampleAddress::Host(Hva(BASE + u64::from(frame) * BASE_PAGE + 64)),
            len: 1,
            weight: 1.0,
            kind: AccessKind::Load,
        };
        frames.iter().map(record).collect()
    }

    /// Gives the engine records, one batch after the other, and carries out what it asks for. Returns
    /// the CPU seconds that the engine took.
    fn run(&mut self, records: &[AccessSample]) -> f64 {
        let mut spent = 0.0;
        for samples in records.chunks(BATCH) {
            self.now = self.now + STEP;
            let batch = SampleBatch {
                source: SourceKind::Pebs,
                end: self.now,
                span: STEP,
                tests: 0,
                period: 1,
                settled: true,
                map_generation: 1,
                samples: samples.to_vec(),
                account: SampleAccount::default(),
            };
            spent += self.give(Event::Samples(batch));
        }
        spent
    }

    /// Records that reached the heaps.
    fn accepted(&self) -> u64 {
        let accounts = self.engine.sources().map(|(_, stats)| &stats.account);
        accounts.map(|account| account.accepted).sum()
    }

    /// Bytes that heats take.
    fn memory_bytes(&self) -> usize {
        self.engine.memory_bytes()
    }

    /// Pages that were moved.
    fn moved_pages(&self) -> u64 {
        self.engine.moved_bytes() / self.page_bytes
    }

    fn give(&mut self, event: Event) -> f64 {
        self.give_all(vec![event, self.nodes()])
    }

    /// Gives the engine events, the last first, and what comes of them.
    fn give_all(&mut self, mut events: Vec<Event>) -> f64 {
        let mut spent = 0.0;
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            spent += seconds(|| actions = self.engine.step(self.now, event));
            events.extend(self.carry_out(actions));
        }
        spent
    }

    /// Does what the engine asks for. Returns what is to be told of it.
    fn carry_out(&mut self, actions: Vec<Action>) -> Vec<Event> {
        let answer = |action| match action {
            Action::Scan(request) => Some(Event::Scanned(self.scan(request))),
            Action::Move(batch) => Some(Event::Moved(self.move_pages(&batch))),
            Action::MovePaired(_) => unreachable!("no page is of a pool"),
            Action::Rebind(_) => unreachable!("nobody asks for it"),
            Action::Reshape(_) | Action::RefreshMap => None,
        };
        actions.into_iter().filter_map(answer).collect()
    }

    fn nodes(&self) -> Event {
        let node = NodeMemory::with_free;
        // The fast node is full: whatever is promoted takes another page's place.
        Event::Nodes(vec![node(FAST, HEADROOM), node(SLOW, 1 << 60)])
    }

    fn number(&self, hva: Hva) -> usize {
        ((hva.0 - BASE) / self.page_bytes) as usize
    }

    fn node_of(&self, page: Page) -> NodeId {
        match self.is_fast[self.number(page.hva)] {
            true => FAST,
            false => SLOW,
        }
    }

    fn scan(&self, request: ScanRequest) -> ScanReport {
        let from = request.span.hva.0.next_multiple_of(self.page_bytes);
        let end = request.span.hva.0 + request.span.bytes;
        let heads = (from..end).step_by(self.page_bytes as usize).map(Hva);
        let pages = heads.clone().map(|hva| {
            let page = Page {
                hva,
                bytes: self.page_bytes,
            };
            (page, Some(self.node_of(page)))
        });
        ScanReport {
            request,
            pages: pages.collect(),
            folios: heads
                .filter(|_| self.page_bytes == HUGE_PAGE)
                .map(|hva| Page {
                    hva,
                    bytes: HUGE_PAGE,
                })
                .collect(),
            // So the engine asks as often as it does on a host.
            cpu_time: LOOK_UP * (request.span.bytes / self.page_bytes) as u32,
        }
    }

    fn move_pages(&mut self, batch: &MoveBatch) -> MoveReport {
        let is_promotion = batch.direction == Direction::Promote;
        let results = batch.pages.iter().map(|&page| {
            let number = self.number(page.hva);
            self.is_fast[number] = is_promotion;
            PageResult {
                page,
                outcome: Outcome::Moved,
                node: Some(if is_promotion { FAST } else { SLOW }),
            }
        });
        MoveReport {
            id: batch.id,
            direction: batch.direction,
            target: batch.target,
            results: results.collect(),
            cpu_time: Duration::ZERO,
        }
    }
}

/// A row of the table of engines.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct EngineRow {
    pub(crate) guest: String,
    pub(crate) load: &'static str,
    ns_per_record: f64,
    ns_spread: f64,
    million_records_per_s: f64,
    /// The guest that is run in turn with it.
    pub(crate) beside: Option<String>,
    /// How many times what it costs there.
    pub(crate) times_least: Option<f64>,
    moved_pages: u64,
    /// A 4 KiB frame.
    bytes_per_frame: f64,
}

impl fmt::Display for EngineRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<46} {:<10} {:>7.1} ± {:<4.1} {:>7.1} {:>7.2} {:>12}",
            self.guest,
            self.load,
            self.ns_per_record,
            self.ns_spread,
            self.million_records_per_s,
            self.bytes_per_frame,
            self.moved_pages
        )
    }
}

/// Records through a whole engine.
pub(crate) fn measure(
    kind: Kind,
    least: Option<Kind>,
    loads: &[Load],
    effort: &Effort,
) -> Vec<EngineRow> {
    let frames = 1 << kind.shift;
    let mut machine = Machine::new(kind);
    let beside = least.map(Kind::name);
    let mut least = least.map(|least| (least.shift, Machine::new(least)));
    let mut rows = Vec::new();
    for &(load, draw) in loads {
        let records = Machine::records(&draw(frames, effort.samples / 2));
        machine.run(&records);
        let mut of_least = Vec::new();
        if let Some((shift, least)) = &mut least {
            of_least = Machine::records(&draw(1 << *shift, effort.samples / 2));
            least.run(&of_least);
        }
        let (accepted, moved) = (machine.accepted(), machine.moved_pages());
        let [mut parts, mut parts_of_least] =
            [&records, &of_least].map(|records| records.chunks(effort.run).cycle());
        let ns = |machine: &mut Machine, part: Option<&[AccessSample]>| {
            let part = part.unwrap_or_default();
            machine.run(part) * 1e9 / part.len() as f64
        };
        let cost = Cost::of(
            effort.runs,
            || ns(&mut machine, parts.next()),
            least
                .as_mut()
                .map(|(_, least)| || ns(least, parts_of_least.next())),
        );
        assert_eq!(
            machine.accepted() - accepted,
            (effort.runs * effort.run) as u64,
            "records were dropped"
        );
        rows.push(EngineRow {
            guest: kind.name(),
            load,
            beside: beside.clone(),
            ns_per_record: cost.median(),
            ns_spread: cost.spread(),
            million_records_per_s: 1e3 / cost.median(),
            times_least: cost.times_least,
            moved_pages: machine.moved_pages() - moved,
            bytes_per_frame: machine.memory_bytes() as f64 / f64::from(frames),
        });
    }
    rows
}
