//! The engine against a model of the kernel: nodes with room for so many pages, pages on nodes, moves
//! that fail where the real kernel fails.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId, NodeSet},
    engine::{Action, Event, NodeMemory, ScanReport, VmEngine, VmState},
    map::{BlockIndex, GuestMemoryMap, MapRange, RamBlock},
    moves::{MoveBatch, MoveReport, Outcome, Page, PageResult},
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch},
    settings::EngineSettings,
    tiers::Tiers,
    time::Time,
};

const FAST: NodeId = NodeId(0);
const SLOW: NodeId = NodeId(1);
const BASE: u64 = 0x7f00_0000_0000;
const GPA_BASE: u64 = 1 << 20;

/// A host with one guest.
struct Kernel {
    /// Node of each 4 KiB frame; `None` is absent.
    frames: Vec<Option<NodeId>>,
    /// Frames whose first belongs to a huge page of 512.
    huge: Vec<u32>,
    fast_capacity: u64,
    /// What a move of the page at this address ends with, instead of success.
    fails: BTreeMap<u64, Outcome>,
    moved_bytes: BTreeMap<NodeId, u64>,
}

impl Kernel {
    fn new(frames: u32, fast_capacity: u64, node_of: impl Fn(u32) -> Option<NodeId>) -> Self {
        Self {
            frames: (0..frames).map(node_of).collect(),
            huge: Vec::new(),
            fast_capacity,
            fails: BTreeMap::new(),
            moved_bytes: BTreeMap::new(),
        }
    }

    fn free(&self) -> u64 {
        self.fast_capacity
            - self
                .frames
                .iter()
                .filter(|&&node| node == Some(FAST))
                .count() as u64
                * BASE_PAGE
    }

    fn nodes(&self) -> Event {
        let node = |node, free_bytes| NodeMemory {
            node,
            free_bytes,
            high_watermark_bytes: 0,
        };
        Event::Nodes(vec![node(FAST, self.free()), node(SLOW, 1 << 40)])
    }

    fn frame(page: Page) -> usize {
        usize::try_from((page.hva.0 - BASE) / BASE_PAGE).unwrap()
    }

    fn apply(&mut self, batch: &MoveBatch) -> MoveReport {
        let mut results = Vec::new();
        for &page in &batch.pages {
            let first = Self::frame(page);
            let count = usize::try_from(page.bytes / BASE_PAGE).unwrap();
            let no_room = batch.target == FAST && self.free() < page.bytes;
            let outcome = match (self.fails.get(&page.hva.0), self.frames[first]) {
                (Some(&outcome), _) => outcome,
                (None, None) => Outcome::Absent,
                (None, Some(_)) if no_room => Outcome::NoMemory,
                (None, Some(_)) => Outcome::Moved,
            };
            if outcome == Outcome::Moved {
                self.frames[first..first + count].fill(Some(batch.target));
                *self.moved_bytes.entry(batch.target).or_default() += page.bytes;
            }
            results.push(PageResult {
                page,
                outcome,
                node: self.frames[first],
            });
        }
        let cpu_time = Duration::from_micros(5 * results.len() as u64);
        MoveReport {
            id: batch.id,
            direction: batch.direction,
            target: batch.target,
            results,
            cpu_time,
        }
    }

    fn scan(&self, request: tier_core::engine::ScanRequest) -> ScanReport {
        let span = request.span;
        let first = (span.hva.0 - BASE) / BASE_PAGE;
        let mut pages = Vec::new();
        let mut huge = Vec::new();
        let mut at = first;
        while at < first + span.bytes / BASE_PAGE {
            let hva = Hva(BASE + at * BASE_PAGE);
            let frame = usize::try_from(at).unwrap();
            let is_huge = self.huge.contains(&u32::try_from(at).unwrap());
            let bytes = if is_huge { HUGE_PAGE } else { BASE_PAGE };
            if is_huge {
                huge.push(hva);
            }
            pages.push((Page { hva, bytes }, self.frames[frame]));
            at += bytes / BASE_PAGE;
        }
        ScanReport {
            request,
            huge,
            pages,
            cpu_time: Duration::from_micros(10),
        }
    }
}

fn map(frames: u32) -> Arc<GuestMemoryMap> {
    let len = u64::from(frames) * BASE_PAGE;
    let block = RamBlock {
        name: "ram0".to_owned(),
        hva: Hva(BASE),
        used: len,
        total: len,
        page_size: BASE_PAGE,
        backing: None,
    };
    let range = MapRange {
        gpa: Gpa(GPA_BASE),
        len,
        block: BlockIndex(0),
        offset: 0,
        hva: Hva(BASE),
    };
    Arc::new(GuestMemoryMap::new(1, vec![block], vec![range]).unwrap())
}

fn settings() -> EngineSettings {
    EngineSettings {
        headroom_bytes: 16 * BASE_PAGE,
        batch_bytes: HUGE_PAGE,
        ..EngineSettings::default()
    }
}

fn tiers() -> Tiers {
    Tiers {
        fast: NodeSet::from_iter([FAST]),
        slow: NodeSet::from_iter([SLOW]),
        fast_latency_ns: 80.0,
        slow_latency_ns: 250.0,
    }
}

struct Lab {
    kernel: Kernel,
    engine: VmEngine,
    now: Time,
}

impl Lab {
    fn new(kernel: Kernel, settings: EngineSettings) -> Self {
        let mut engine = VmEngine::new(settings, tiers(), Time(0));
        engine
            .set_map(Time(0), map(u32::try_from(kernel.frames.len()).unwrap()))
            .unwrap();
        let mut lab = Self {
            kernel,
            engine,
            now: Time(0),
        };
        lab.step(Event::Source { up: true });
        lab
    }

    /// Gives an event to the engine and carries out what it asks for, until it asks for nothing.
    fn step(&mut self, event: Event) {
        let nodes = self.kernel.nodes();
        let mut todo = self.engine.step(self.now, nodes);
        todo.extend(self.engine.step(self.now, event));
        let mut rounds = 0;
        while let Some(action) = (!todo.is_empty()).then(|| todo.remove(0)) {
            rounds += 1;
            assert!(rounds < 100_000, "the engine never comes to rest");
            let answer = match action {
                Action::Scan(request) => Event::Scanned(self.kernel.scan(request)),
                Action::Move(batch) => {
                    let report = self.kernel.apply(&batch);
                    todo.extend(self.engine.step(self.now, self.kernel.nodes()));
                    Event::Moved(report)
                }
                Action::RefreshMap => continue,
            };
            todo.extend(self.engine.step(self.now, answer));
        }
    }

    /// One aggregation: 20 sampling intervals in 400 ms, hit in each with the page's probability.
    fn observe(&mut self, weight: impl Fn(u32) -> f32) {
        self.now = self.now + Duration::from_millis(400);
        let samples = (0..u32::try_from(self.kernel.frames.len()).unwrap())
            .map(|frame| AccessSample {
                address: SampleAddress::Host(Hva(BASE + u64::from(frame) * BASE_PAGE)),
                len: BASE_PAGE,
                weight: weight(frame),
                kind: AccessKind::Any,
            })
            .collect();
        let batch = SampleBatch {
            end: self.now,
            span: Duration::from_millis(400),
            tests: 20,
            map_generation: 1,
            samples,
            account: SampleAccount::default(),
        };
        self.step(Event::Samples(batch));
    }

    fn moved(&self) -> u64 {
        self.kernel.moved_bytes.values().sum()
    }
}

/// A kernel whose fast node is full of the first frames, and a guest hot at its end.
fn gups(frames: u32, fast: u32) -> Kernel {
    Kernel::new(frames, u64::from(fast) * BASE_PAGE, move |frame| {
        Some(if frame < fast { FAST } else { SLOW })
    })
}

#[test]
fn hot_set_when_it_starts_on_the_slow_node_is_exchanged_once() {
    let mut lab = Lab::new(gups(4096, 800), settings());
    let hot = 3776..4096;
    // 20 of 20 intervals for hot pages, 1 for cold ones, as in a 9:1 workload.
    for _ in 0..50 {
        lab.observe(|frame| if hot.contains(&frame) { 20.0 } else { 1.0 });
    }
    let on_fast = hot
        .clone()
        .filter(|&f| lab.kernel.frames[f as usize] == Some(FAST))
        .count();
    assert_eq!(on_fast, 320);
    // The least possible is the hot set up and as much down, and the headroom once.
    let least = 2 * 320 * BASE_PAGE + 16 * BASE_PAGE;
    assert!(
        lab.moved() <= least + 8 * BASE_PAGE,
        "{} moved, {least} needed",
        lab.moved()
    );
    assert!(lab.kernel.free() >= 16 * BASE_PAGE, "the headroom is kept");
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.state, VmState::Running);
    assert!(snapshot.samples.is_valid());
    assert_eq!(
        snapshot.tiers[0].bytes + snapshot.tiers[1].bytes,
        4096 * BASE_PAGE
    );
    assert!(snapshot.hit_ratio.unwrap() > 0.5);
}

#[test]
fn pages_when_equally_hot_are_left_where_they_are() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for round in 0..50_u32 {
        // The same rate everywhere, with noise: 4 to 6 of 20.
        lab.observe(|frame| {
            4.0 + ((frame.wrapping_mul(2_654_435_761) >> 7).wrapping_add(round) % 3) as f32
        });
    }
    assert!(
        lab.moved() <= 32 * BASE_PAGE,
        "{} bytes for nothing",
        lab.moved()
    );
}

#[test]
fn hot_set_when_it_shifts_is_followed() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for hot in [1500..1756, 1000..1256] {
        for _ in 0..75 {
            lab.observe(|frame| if hot.contains(&frame) { 20.0 } else { 0.0 });
        }
        let on_fast = hot
            .clone()
            .filter(|&f| lab.kernel.frames[f as usize] == Some(FAST))
            .count();
        assert_eq!(on_fast, 256);
    }
}

#[test]
fn huge_pages_when_hot_move_whole() {
    let mut kernel = gups(8 * 512, 2 * 512);
    kernel.huge = (0..8).map(|i| i * 512).collect();
    let mut lab = Lab::new(
        kernel,
        EngineSettings {
            headroom_bytes: 0,
            ..settings()
        },
    );
    for _ in 0..50 {
        lab.observe(|frame| if frame / 512 == 6 { 20.0 } else { 0.0 });
    }
    assert!(
        lab.kernel.frames[6 * 512..7 * 512]
            .iter()
            .all(|&node| node == Some(FAST))
    );
    assert_eq!(lab.moved(), 2 * HUGE_PAGE);
    assert_eq!(
        lab.engine.snapshot().page_sizes,
        BTreeMap::from([(HUGE_PAGE, 8 * HUGE_PAGE)])
    );
}

#[test]
fn huge_page_when_it_is_split_or_collapsed_keeps_its_heat() {
    let mut kernel = gups(8 * 512, 2 * 512);
    kernel.huge = (0..8).map(|i| i * 512).collect();
    let mut lab = Lab::new(
        kernel,
        EngineSettings {
            headroom_bytes: 0,
            ..settings()
        },
    );
    for _ in 0..3 {
        lab.observe(|_| 5.0);
    }
    for huge in [vec![], (0..8).map(|i| i * 512).collect::<Vec<u32>>()] {
        lab.kernel.huge = huge;
        for _ in 0..20 {
            lab.now = lab.now + Duration::from_secs(1);
            lab.step(Event::Tick);
        }
        let snapshot = lab.engine.snapshot();
        let size = if lab.kernel.huge.is_empty() {
            BASE_PAGE
        } else {
            HUGE_PAGE
        };
        assert_eq!(snapshot.page_sizes, BTreeMap::from([(size, 8 * HUGE_PAGE)]));
        assert_eq!(snapshot.tiers[0].bytes, 2 * HUGE_PAGE);
    }
}

#[test]
fn pages_when_they_fail_are_counted_and_the_others_take_their_place() {
    let mut kernel = gups(2048, 512);
    // A quarter of the hot pages can't be moved, each quarter of those for another reason.
    let reasons = [
        Outcome::Busy,
        Outcome::Pinned,
        Outcome::Shared,
        Outcome::Absent,
    ];
    for (i, reason) in (1536..1600_u64).zip(reasons.iter().cycle()) {
        kernel.fails.insert(BASE + i * BASE_PAGE, *reason);
    }
    let mut lab = Lab::new(kernel, settings());
    for _ in 0..75 {
        lab.observe(|frame| {
            if (1536..1792).contains(&frame) {
                20.0
            } else {
                0.0
            }
        });
    }
    let snapshot = lab.engine.snapshot();
    let on_fast = (1600..1792)
        .filter(|&f| lab.kernel.frames[f] == Some(FAST))
        .count();
    assert_eq!(on_fast, 192);
    assert_eq!(snapshot.failed[&Outcome::Shared], 16, "never tried again");
    assert_eq!(
        snapshot.failed[&Outcome::Pinned],
        16,
        "not tried again within a minute"
    );
    assert!(snapshot.failed[&Outcome::Busy] > 16, "tried again");
}

#[test]
fn limit_when_lowered_is_obeyed_at_once_and_kept() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..10 {
        lab.observe(|frame| if frame < 256 { 20.0 } else { 0.0 });
    }
    lab.step(Event::Limit(Some(128 * BASE_PAGE)));
    for _ in 0..10 {
        lab.observe(|frame| if frame < 256 { 20.0 } else { 0.0 });
    }
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.tiers[0].bytes, 128 * BASE_PAGE);
    let hot_on_fast = (0..256)
        .filter(|&f| lab.kernel.frames[f] == Some(FAST))
        .count();
    assert_eq!(hot_on_fast, 128, "what stays is the hottest");
}

#[test]
fn engine_when_it_may_not_move_moves_nothing() {
    let conditions: [(Event, VmState); 5] = [
        (Event::Pause(true), VmState::Paused),
        (Event::Guest { stopped: true }, VmState::GuestStopped),
        (Event::Monitor { attached: false }, VmState::Detached),
        (Event::Source { up: false }, VmState::Blind),
        (Event::Tick, VmState::Running),
    ];
    for (event, state) in conditions {
        let mut lab = Lab::new(gups(2048, 512), settings());
        lab.step(event);
        for _ in 0..20 {
            lab.observe(|frame| if frame > 1792 { 20.0 } else { 0.0 });
        }
        assert_eq!(lab.engine.state(), state);
        assert_eq!(lab.moved() > 0, state == VmState::Running, "{state:?}");
        assert!(lab.engine.snapshot().samples.is_valid());
    }
}

#[test]
fn dry_run_when_asked_plans_and_moves_nothing() {
    let mut lab = Lab::new(
        gups(2048, 512),
        EngineSettings {
            dry_run: true,
            ..settings()
        },
    );
    for _ in 0..20 {
        lab.observe(|frame| if frame >= 1792 { 20.0 } else { 0.0 });
    }
    let planned = lab.engine.snapshot().dry_run.unwrap();
    assert_eq!(lab.moved(), 0);
    assert_eq!(planned.promote_bytes, 256 * BASE_PAGE);
    assert!(planned.demote_bytes >= planned.promote_bytes);
}

#[test]
fn source_when_it_watches_little_does_not_make_the_unsampled_cold() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..20 {
        lab.now = lab.now + Duration::from_millis(400);
        let hot = AccessSample {
            address: SampleAddress::Guest(Gpa(GPA_BASE + 2000 * BASE_PAGE)),
            len: 1,
            weight: 20.0,
            kind: AccessKind::Load,
        };
        // One access of a hundred is seen: nothing is known of pages without a sample.
        let outside = AccessSample {
            address: SampleAddress::Guest(Gpa(0x10)),
            ..hot
        };
        let batch = SampleBatch {
            end: lab.now,
            span: Duration::from_millis(400),
            tests: 20,
            map_generation: 1,
            samples: vec![hot, outside],
            account: SampleAccount::default(),
        };
        lab.step(Event::Samples(batch));
    }
    let account = lab.engine.snapshot().samples;
    assert_eq!((account.arrived, account.accepted), (40, 20));
    assert_eq!(lab.moved(), 0);
}

#[test]
fn samples_when_made_under_an_older_map_are_dropped_and_counted() {
    let mut lab = Lab::new(gups(1024, 512), settings());
    let mut batch = SampleBatch {
        end: lab.now,
        span: Duration::from_millis(400),
        tests: 20,
        map_generation: 0,
        samples: vec![],
        account: SampleAccount::default(),
    };
    batch.samples.push(AccessSample {
        address: SampleAddress::Host(Hva(BASE)),
        len: 4096,
        weight: 1.0,
        kind: AccessKind::Any,
    });
    lab.step(Event::Samples(batch));
    let account = lab.engine.snapshot().samples;
    assert_eq!((account.arrived, account.accepted), (1, 0));
    assert!(account.is_valid());
}

#[test]
fn map_when_it_grows_keeps_what_was_known() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..20 {
        lab.observe(|frame| if frame >= 1792 { 20.0 } else { 0.0 });
    }
    let moved = lab.moved();
    lab.kernel.frames.resize(4096, None);
    lab.engine.set_map(lab.now, map(4096)).unwrap();
    for _ in 0..20 {
        lab.observe(|frame| {
            if (1792..2048).contains(&frame) {
                20.0
            } else {
                0.0
            }
        });
    }
    assert_eq!(lab.moved(), moved, "the hot set stays where it is");
    let snapshot = lab.engine.snapshot();
    assert_eq!(
        snapshot.tiers[0].bytes + snapshot.tiers[1].bytes,
        2048 * BASE_PAGE
    );
    assert_eq!(snapshot.absent_bytes, 2048 * BASE_PAGE);
}
