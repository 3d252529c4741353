//! The engine under random events: whatever comes in whatever order, its books agree with the model of
//! the kernel.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use proptest::prelude::*;
use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId},
    dual_heap::Placement,
    engine::{
        Action, Event, HostGrant, NodeMemory, Order, PageCondition, Pin, PinError, PinStatus,
        PolicyChange, Refusal, Reply, ScanReport, VmEngine, VmState, WhenFull,
    },
    moves::{Direction, MoveBatch, MoveReport, Outcome, Page},
    rebind::{RebindReport, Rebound},
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    settings::{EngineSettings, Tier},
    time::Time,
};

use crate::common::{BASE, FAST, GPA_BASE, Kernel, SLOW, settings, shared_map, tiers};

/// Four huge pages and a piece of a fifth.
const FRAMES: u32 = 4 * 512 + 100;

#[derive(Clone, Copy, Debug)]
enum Mangle {
    Nothing,
    Fewer,
    Reversed,
    Twice,
    Others,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    /// The worker finishes the next thing that it was asked for.
    Answer(Mangle),
    /// The worker could not look.
    Unanswered,
    Samples {
        hot: u32,
        weight: f32,
        stale: bool,
    },
    Source(bool),
    Stopped(bool),
    Rest(bool),
    Attached(bool),
    Pause(bool),
    Limit(Option<u32>),
    Grant(Option<u32>, Option<u64>),
    Drain(u32),
    Policy {
        half_life_s: u64,
        rate: u64,
    },
    Pin {
        first: u32,
        count: u32,
        tier: Tier,
        when_full: WhenFull,
    },
    Unpin {
        first: u32,
        count: u32,
    },
    Grid {
        first: u32,
        weight: f32,
        is_believed: bool,
    },
    Split(u32),
    Collapse(u32),
    /// Sixteen frames become a folio of 64 KiB.
    SmallFolio(u32),
    /// Somebody else moves frames, or frees and allocates them.
    Elsewhere {
        first: u32,
        count: u32,
        node: Option<u16>,
    },
    Fail {
        frame: u32,
        outcome: Outcome,
    },
    Heal,
    Map {
        frames: u32,
    },
    Nodes {
        fast: bool,
        slow: bool,
    },
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let mangle = prop_oneof![
        8 => Just(Mangle::Nothing),
        1 => Just(Mangle::Fewer),
        1 => Just(Mangle::Reversed),
        1 => Just(Mangle::Twice),
        1 => Just(Mangle::Others),
    ];
    let weight = prop_oneof![
        8 => Just(20.0_f32),
        1 => Just(f32::NAN),
        1 => Just(f32::INFINITY),
        1 => Just(-1.0),
        1 => Just(0.0),
    ];
    let grid_weight = weight.clone();
    // Often at the borders of huge pages, so that pins meet, are cut and hold parts of them.
    let place = prop_oneof![
        2 => prop::sample::select(vec![0, 100, 512, 1000, 1536]),
        1 => 0..FRAMES,
    ];
    let length = prop_oneof![2 => prop::sample::select(vec![0, 12, 412, 512]), 1 => 0..FRAMES];
    let tier = prop_oneof![Just(Tier::Fast), Just(Tier::Slow)];
    let when_full = prop_oneof![
        1 => Just(WhenFull::Refuse),
        1 => Just(WhenFull::Demote),
        2 => Just(WhenFull::Fill),
    ];
    prop_oneof![
        20 => mangle.prop_map(Op::Answer),
        1 => Just(Op::Unanswered),
        12 => (0..FRAMES, weight, prop::bool::weighted(0.1))
            .prop_map(|(hot, weight, stale)| Op::Samples { hot, weight, stale }),
        4 => (0..FRAMES, grid_weight, prop::bool::weighted(0.9))
            .prop_map(|(first, weight, is_believed)| Op::Grid { first, weight, is_believed }),
        1 => prop::bool::weighted(0.7).prop_map(Op::Source),
        1 => prop::bool::weighted(0.3).prop_map(Op::Stopped),
        1 => any::<bool>().prop_map(Op::Rest),
        1 => prop::bool::weighted(0.7).prop_map(Op::Attached),
        1 => prop::bool::weighted(0.3).prop_map(Op::Pause),
        1 => prop::option::of(0..FRAMES).prop_map(Op::Limit),
        1 => (prop::option::of(0..FRAMES), prop::option::of(0..1_u64 << 30))
            .prop_map(|(share, rate)| Op::Grant(share, rate)),
        1 => (0..FRAMES).prop_map(Op::Drain),
        1 => (0..100_u64, 0..1_u64 << 30)
            .prop_map(|(half_life_s, rate)| Op::Policy { half_life_s, rate }),
        3 => (place.clone(), length.clone(), tier, when_full)
            .prop_map(|(first, count, tier, when_full)| Op::Pin { first, count, tier, when_full }),
        2 => (place, length).prop_map(|(first, count)| Op::Unpin { first, count }),
        2 => (0..4_u32).prop_map(Op::Split),
        2 => (0..4_u32).prop_map(Op::Collapse),
        2 => (0..4 * 32_u32).prop_map(Op::SmallFolio),
        2 => (0..FRAMES, 1..600_u32, prop::option::of(0..3_u16))
            .prop_map(|(first, count, node)| Op::Elsewhere { first, count, node }),
        2 => (0..FRAMES, 2..Outcome::ALL.len())
            .prop_map(|(frame, i)| Op::Fail { frame, outcome: Outcome::ALL[i] }),
        1 => Just(Op::Heal),
        1 => prop_oneof![Just(FRAMES), Just(1500), Just(512), Just(3)]
            .prop_map(|frames| Op::Map { frames }),
        1 => (prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(fast, slow)| Op::Nodes { fast, slow }),
        8 => (1..5000_u64).prop_map(Op::Wait),
    ]
}

fn gpa(frame: u32) -> Gpa {
    Gpa(GPA_BASE + u64::from(frame) * BASE_PAGE)
}

fn hva(gpa: Gpa) -> u64 {
    gpa.0 - GPA_BASE + BASE
}

/// An engine, a kernel, and a worker that has not yet done what it was asked for.
struct World {
    kernel: Kernel,
    engine: VmEngine,
    now: Time,
    generation: u64,
    /// Frames that the map in force has; the kernel keeps those of the largest.
    frames: u32,
    jobs: VecDeque<(u64, Action)>,
}

impl World {
    fn new(settings: EngineSettings) -> Self {
        let kernel = Kernel::new(FRAMES, 800 * BASE_PAGE, |frame| {
            Some(if frame < 700 { FAST } else { SLOW })
        });
        let mut world = Self {
            kernel,
            engine: VmEngine::new(settings, tiers(), Time(0)),
            now: Time(0),
            generation: 1,
            frames: FRAMES,
            jobs: VecDeque::new(),
        };
        world.order(Order::Map(shared_map(1, FRAMES))).unwrap();
        world.step(world.kernel.nodes());
        world.step(Event::Source(Some(SourceKind::Damon)));
        world
    }

    /// Gives an event to the engine and judges what it asks for.
    fn step(&mut self, event: Event) {
        let actions = self.engine.step(self.now, event);
        self.ask_for(actions);
    }

    /// Gives an order to the engine and judges what it asks for.
    fn order(&mut self, order: Order) -> Result<Reply, Refusal> {
        let reply = self.engine.order(self.now, order);
        let actions = reply.iter().flat_map(|reply| reply.actions.clone());
        self.ask_for(actions.collect());
        reply
    }

    fn ask_for(&mut self, actions: Vec<Action>) {
        let state = self.engine.state();
        for action in actions {
            if let Action::Move(batch) = &action {
                self.judge(batch, state);
            }
            self.jobs.push_back((self.generation, action));
        }
        let jobs = |wanted: fn(&Action) -> bool| {
            let now = self
                .jobs
                .iter()
                .filter(|(made, _)| *made == self.generation);
            now.filter(|(_, action)| wanted(action)).count()
        };
        assert!(jobs(|action| matches!(action, Action::Scan(_))) <= 1);
        assert!(jobs(|action| matches!(action, Action::Move(_))) <= 2);
        assert!(jobs(|action| matches!(action, Action::Rebind(_))) <= 1);
        assert!(jobs(|action| matches!(action, Action::Reshape(_))) <= 1);
        self.engine.check().unwrap();
    }

    fn judge(&self, batch: &MoveBatch, state: VmState) {
        let is_order = batch.direction == Direction::Demote
            && self.engine.settings().fast_limit_bytes.is_some();
        assert!(
            state == VmState::Running || (is_order && state == VmState::Blind),
            "a move while {state:?}"
        );
        assert!(!self.engine.settings().dry_run, "a move in a dry run");
        assert!(!batch.pages.is_empty());
        // A pinned page moves to its pin's tier or not at all.
        for pin in self.engine.pins() {
            let (start, end) = (hva(pin.start), hva(pin.start) + pin.bytes);
            let mut pages = batch.pages.iter();
            let touched = pages.find(|p| p.hva.0 < end && start < p.hva.0 + p.bytes);
            let is_shared = |page: &&Page| {
                let others = self.engine.pins().into_iter().filter(|other| {
                    let start = hva(other.start);
                    page.hva.0 < start + other.bytes && start < page.hva.0 + page.bytes
                });
                others.count() > 1
            };
            if let Some(page) = touched.filter(|page| !is_shared(page)) {
                let wanted = match pin.tier {
                    Tier::Fast => Direction::Promote,
                    Tier::Slow => Direction::Demote,
                };
                assert_eq!(batch.direction, wanted, "{page:?} is pinned by {pin:?}");
            }
        }
        let tier = match batch.direction {
            Direction::Promote => &self.engine.tiers().fast,
            Direction::Demote => &self.engine.tiers().slow,
        };
        assert!(tier.contains(batch.target));
        let mut taken: BTreeSet<u64> = BTreeSet::new();
        let others = self
            .jobs
            .iter()
            .filter(|(made, _)| *made == self.generation);
        for (_, other) in others {
            if let Action::Move(other) = other {
                taken.extend(other.pages.iter().map(|page| page.hva.0));
            }
        }
        let end = BASE + u64::from(self.frames) * BASE_PAGE;
        for page in &batch.pages {
            assert!(taken.insert(page.hva.0), "{page:?} is in two batches");
            assert!(
                page.hva.0 >= BASE && page.hva.0 + page.bytes <= end,
                "{page:?} is not tracked"
            );
        }
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Answer(mangle) => self.answer(mangle),
            Op::Unanswered => {
                if let Some((_, Action::Scan(request))) = self.jobs.front() {
                    let report = ScanReport {
                        request: *request,
                        folios: Vec::new(),
                        pages: Vec::new(),
                        cpu_time: Duration::ZERO,
                    };
                    self.jobs.pop_front();
                    self.step(Event::Scanned(report));
                }
            }
            Op::Samples { hot, weight, stale } => self.sample(hot, weight, stale),
            Op::Grid {
                first,
                weight,
                is_believed,
            } => self.grid(first, weight, is_believed),
            Op::Source(up) => self.step(Event::Source(up.then_some(SourceKind::Damon))),
            Op::Stopped(stopped) => self.step(Event::Guest { stopped }),
            Op::Rest(at_rest) => self.step(Event::Rest(at_rest)),
            Op::Attached(attached) => self.step(Event::Monitor { attached }),
            Op::Pause(paused) => {
                self.order(Order::Pause(paused)).unwrap();
            }
            Op::Limit(frames) => {
                let bytes = frames.map(|frames| u64::from(frames) * BASE_PAGE);
                self.order(Order::Limit(bytes)).unwrap();
            }
            Op::Grant(share, rate_bytes_per_s) => {
                let limit = self.engine.operator_limit();
                let grant = HostGrant {
                    share_bytes: share.map(|frames| u64::from(frames) * BASE_PAGE),
                    rate_bytes_per_s,
                };
                self.order(Order::Grant(grant)).unwrap();
                let in_force = self.engine.settings().fast_limit_bytes;
                let least = limit.into_iter().chain(grant.share_bytes).min();
                assert_eq!((self.engine.operator_limit(), in_force), (limit, least));
            }
            Op::Drain(frames) => {
                let bytes = u64::from(frames) * BASE_PAGE;
                self.order(Order::Drain(bytes)).unwrap();
                assert!(self.engine.drain_progress().is_some());
            }
            Op::Policy { half_life_s, rate } => self.policy(half_life_s, rate),
            Op::Pin {
                first,
                count,
                tier,
                when_full,
            } => self.pin(Pin {
                start: gpa(first),
                bytes: u64::from(count) * BASE_PAGE,
                tier,
                when_full,
            }),
            Op::Unpin { first, count } => self.unpin(first, count),
            Op::Split(i) => {
                self.kernel.huge.retain(|&head| head != i * 512);
                self.kernel.small_folios.retain(|&head| head / 512 != i);
            }
            Op::SmallFolio(i) => self.make_small_folio(i * 16),
            Op::Collapse(i) => self.collapse(i * 512),
            Op::Elsewhere { first, count, node } => self.elsewhere(first, count, node),
            Op::Fail { frame, outcome } => {
                let hva = BASE + u64::from(frame) * BASE_PAGE;
                self.kernel.fails.insert(hva, outcome);
            }
            Op::Heal => self.kernel.fails.clear(),
            Op::Map { frames } => {
                self.generation += u64::from(frames != self.frames);
                self.frames = frames;
                self.kernel.tracked = frames as usize;
                let map = shared_map(self.generation, frames);
                self.order(Order::Map(map)).unwrap();
            }
            Op::Nodes { fast, slow } => self.nodes(fast, slow),
            Op::Wait(ms) => {
                self.now = self.now + Duration::from_millis(ms);
                self.step(Event::Tick);
            }
        }
    }

    fn answer(&mut self, mangle: Mangle) {
        let Some((_, action)) = self.jobs.pop_front() else {
            return;
        };
        match action {
            Action::Scan(request) => {
                let report = self.kernel.scan(request);
                self.step(Event::Scanned(report));
            }
            Action::Move(batch) => {
                let mut report = self.kernel.apply(&batch);
                mangle.apply(&mut report);
                let nodes = self.kernel.nodes();
                self.step(nodes);
                self.step(Event::Moved(report));
            }
            Action::MovePaired(_) => unreachable!("no page is of a pool"),
            Action::Rebind(bindings) => {
                let results = bindings.into_iter().map(|own| (own, Rebound::Bound));
                let results = results.collect();
                self.step(Event::Rebound(RebindReport { results }));
            }
            Action::Reshape(request) => {
                let report = self.kernel.reshape(request);
                self.step(Event::Reshaped(report));
            }
            Action::RefreshMap => {}
        }
    }

    fn sample(&mut self, hot: u32, weight: f32, stale: bool) {
        self.now = self.now + Duration::from_millis(400);
        let samples = (0..FRAMES)
            .map(|frame| AccessSample {
                address: SampleAddress::Host(Hva(BASE + u64::from(frame) * BASE_PAGE)),
                len: BASE_PAGE,
                weight: if frame.abs_diff(hot) < 100 {
                    weight
                } else {
                    1.0
                },
                kind: AccessKind::Any,
            })
            .collect();
        self.step(Event::Samples(SampleBatch {
            source: SourceKind::Damon,
            end: self.now,
            span: Duration::from_millis(400),
            tests: 20,
            period: 1,
            settled: true,
            map_generation: self.generation - u64::from(stale),
            samples,
            account: SampleAccount::default(),
        }));
    }

    /// Looks at pages one by one, of which every seventh is used.
    fn grid(&mut self, first: u32, weight: f32, is_believed: bool) {
        let samples = (first..first + 512)
            .map(|frame| AccessSample {
                address: SampleAddress::Host(Hva(BASE + u64::from(frame) * BASE_PAGE)),
                len: BASE_PAGE,
                weight: if frame % 7 == 0 { weight } else { 0.0 },
                kind: AccessKind::Any,
            })
            .collect();
        self.step(Event::Grid(SampleBatch {
            source: match is_believed {
                true => SourceKind::Damon,
                false => SourceKind::Ibs,
            },
            end: self.now,
            span: Duration::from_millis(400),
            tests: 20,
            period: 1,
            settled: true,
            map_generation: self.generation,
            samples,
            account: SampleAccount::default(),
        }));
    }

    fn policy(&mut self, half_life_s: u64, rate: u64) {
        let change = PolicyChange {
            half_life: Some(Duration::from_secs(half_life_s)),
            rate_bytes_per_s: Some(rate),
            ..PolicyChange::default()
        };
        let before = self.engine.policy();
        let is_allowed = half_life_s > 0 && rate >= BASE_PAGE;
        let set = self.order(Order::Policy(change));
        assert_eq!(set.is_ok(), is_allowed);
        if set.is_err() {
            assert_eq!(self.engine.policy(), before);
        }
    }

    fn pin(&mut self, pin: Pin) {
        let before = self.engine.pins();
        let overlaps = before.iter().any(|other| {
            other.start < Gpa(pin.start.0 + pin.bytes) && pin.start.0 < other.start.0 + other.bytes
        });
        let end = gpa(self.frames).0;
        match self.order(Order::Pin(pin)) {
            Ok(Reply { pins: report, .. }) => {
                assert!(!overlaps && pin.start.0 + pin.bytes <= end && pin.bytes > 0);
                let pins = self.engine.pins();
                assert_eq!(pins.len(), before.len() + 1);
                let made = pins.iter().find(|made| made.start == pin.start).unwrap();
                assert_eq!(
                    (report.placed_bytes, report.elsewhere_bytes),
                    (made.placed_bytes, made.elsewhere_bytes)
                );
            }
            Err(error) => {
                assert_eq!(self.engine.pins(), before, "{error}");
                match error {
                    Refusal::Pin(error) => self.assert_refused(error, pin, overlaps, end),
                    other => panic!("{other}"),
                }
            }
        }
    }

    fn assert_refused(&self, error: PinError, pin: Pin, overlaps: bool, end: u64) {
        match error {
            PinError::Overlaps { .. } => assert!(overlaps),
            PinError::NotRam(at) => assert_eq!(at, end.max(pin.start.0)),
            PinError::Unaligned { .. } => assert_eq!(pin.bytes, 0),
            PinError::NoRoom {
                need_bytes,
                room_bytes,
                ..
            } => assert!(pin.when_full != WhenFull::Fill && need_bytes > room_bytes),
            other => panic!("{other}"),
        }
    }

    fn unpin(&mut self, first: u32, count: u32) {
        let (start, bytes) = (gpa(first), u64::from(count) * BASE_PAGE);
        let before = self.engine.pins();
        let is_inside =
            |pin: &&PinStatus| pin.start >= start && pin.start.0 + pin.bytes <= start.0 + bytes;
        let inside = before.iter().filter(is_inside).count();
        let unpinned = self.order(Order::Unpin { start, bytes });
        let left = self.engine.pins().len();
        match unpinned {
            Ok(reply) => assert_eq!(
                (reply.pins.pins as usize, left),
                (inside, before.len() - inside)
            ),
            Err(error) => {
                assert_eq!(left, before.len());
                let is_cut = matches!(error, Refusal::Pin(PinError::Cut { .. }));
                assert!(is_cut || inside == 0, "{error}");
            }
        }
    }

    /// What can be asked at any time holds together.
    fn ask(&self) {
        let map = self.engine.heatmap(self.now, 3, 5).unwrap();
        assert_eq!(map.cells.len(), 15);
        assert!(map.cells.iter().all(|cell| cell.rate >= 0.0));
        for frame in (0..self.frames).step_by(97) {
            let told = self.engine.explain(self.now, gpa(frame)).unwrap();
            assert!(!told.would_move_if.is_empty());
            assert_eq!(told.rank.is_some(), told.heap_pages.is_some());
        }
    }

    fn collapse(&mut self, head: u32) {
        let frames = &mut self.kernel.frames[head as usize..head as usize + 512];
        if self.kernel.huge.contains(&head) || frames.contains(&None) {
            return;
        }
        // Where it may: the fast node must not be overfull.
        frames.fill(Some(SLOW));
        self.kernel
            .small_folios
            .retain(|&own| own / 512 != head / 512);
        self.kernel.huge.push(head);
    }

    fn make_small_folio(&mut self, head: u32) {
        let kernel = &mut self.kernel;
        let frames = &mut kernel.frames[head as usize..head as usize + 16];
        let is_folio =
            kernel.huge.contains(&(head / 512 * 512)) || kernel.small_folios.contains(&head);
        if is_folio || frames.contains(&None) {
            return;
        }
        frames.fill(Some(SLOW));
        kernel.small_folios.push(head);
    }

    fn elsewhere(&mut self, first: u32, count: u32, node: Option<u16>) {
        for frame in first..(first + count).min(FRAMES) {
            let kernel = &self.kernel;
            let is_folio = kernel.huge.contains(&(frame / 512 * 512))
                || kernel.small_folios.contains(&(frame / 16 * 16));
            let overfull = node == Some(FAST.0)
                && self.kernel.frames[frame as usize] != Some(FAST)
                && self.kernel.free() < BASE_PAGE;
            if !is_folio && !overfull {
                self.kernel.frames[frame as usize] = node.map(NodeId);
            }
        }
    }

    fn nodes(&mut self, fast: bool, slow: bool) {
        let node = NodeMemory::with_free;
        let mut nodes = Vec::new();
        nodes.extend(fast.then(|| node(FAST, self.kernel.free())));
        nodes.extend(slow.then(|| node(SLOW, self.kernel.slow_free)));
        self.step(Event::Nodes(nodes));
    }

    /// Lets everything come to rest, nothing be moved any more and all be looked up twice.
    fn settle(&mut self) {
        self.order(Order::Pause(true)).unwrap();
        // Each look-up is followed by a rest of at most 60 s; there are at most 3 to a round, and as
        // many urgent ones between, of which at most 5 wait.
        for _ in 0..40 {
            while !self.jobs.is_empty() {
                self.answer(Mangle::Nothing);
            }
            self.now = self.now + Duration::from_secs(61);
            self.step(Event::Tick);
        }
        while !self.jobs.is_empty() {
            self.answer(Mangle::Nothing);
        }
    }
}

impl World {
    /// Clears all trouble away, makes room for everything, and lets the engine run.
    fn heal(&mut self) {
        self.act(Op::Heal);
        self.kernel.fast_capacity = u64::from(2 * FRAMES) * BASE_PAGE;
        self.step(self.kernel.nodes());
        let policy = PolicyChange {
            rate_bytes_per_s: Some(1 << 30),
            ..PolicyChange::default()
        };
        self.order(Order::Policy(policy)).unwrap();
        for op in [
            Op::Limit(None),
            Op::Grant(None, None),
            Op::Source(true),
            Op::Stopped(false),
            Op::Attached(true),
            Op::Pause(false),
        ] {
            self.act(op);
        }
        // Longer than the longest wait after a failure, 60 s.
        for _ in 0..15 {
            self.sample(0, 1.0, false);
            while !self.jobs.is_empty() {
                self.answer(Mangle::Nothing);
            }
            self.act(Op::Wait(5000));
        }
        while !self.jobs.is_empty() {
            self.answer(Mangle::Nothing);
        }
    }

    /// Every pinned page is where it is to be, apart from those that are known not to move.
    fn assert_pins_are_kept(&self) {
        let pins = self.engine.pins();
        let frames = pins.iter().flat_map(|pin| {
            let first = u32::try_from((pin.start.0 - GPA_BASE) / BASE_PAGE).unwrap();
            let count = u32::try_from(pin.bytes / BASE_PAGE).unwrap();
            first..(first + count).min(self.frames)
        });
        for frame in frames {
            let told = self.engine.explain(self.now, gpa(frame)).unwrap();
            let Some(pin) = told.pin else { continue };
            let wanted = match pin.tier {
                Tier::Fast => Placement::Fast,
                Tier::Slow => Placement::Slow,
            };
            let may_stay = matches!(
                told.state,
                PageCondition::Untracked | PageCondition::Excluded
            );
            assert!(told.placement == wanted || may_stay, "{told:#?}");
        }
    }
}

impl Mangle {
    fn apply(self, report: &mut MoveReport) {
        let results = &mut report.results;
        match self {
            Self::Nothing => {}
            Self::Fewer => results.truncate(results.len() / 2),
            Self::Reversed => results.reverse(),
            Self::Twice => results.extend(results.clone()),
            Self::Others => results
                .iter_mut()
                .for_each(|result| result.page.hva.0 += 1 << 40),
        }
    }
}

fn run(ops: &[Op], settings: EngineSettings) {
    let mut world = World::new(settings);
    for &op in ops {
        world.act(op);
        assert!(world.engine.take_notices().len() <= 128);
    }
    world.ask();
    world.settle();

    let snapshot = world.engine.snapshot();
    assert_eq!(snapshot.in_flight_pages, 0);
    let frames = &world.kernel.frames[..world.frames as usize];
    let on = |node| frames.iter().filter(|&&n| n == Some(node)).count() as u64 * BASE_PAGE;
    assert_eq!(
        [snapshot.tiers[0].bytes, snapshot.tiers[1].bytes],
        [on(FAST), on(SLOW)]
    );
    let absent = frames.iter().filter(|node| node.is_none()).count() as u64 * BASE_PAGE;
    assert_eq!(
        (snapshot.absent_bytes, snapshot.elsewhere_bytes),
        (absent, on(NodeId(2)))
    );
    let whole = world
        .kernel
        .huge
        .iter()
        .filter(|&&head| head + 512 <= world.frames);
    let huge = whole.count() as u64 * HUGE_PAGE;
    let folios = &world.kernel.small_folios;
    let whole = folios.iter().filter(|&&head| head + 16 <= world.frames);
    let small = whole.count() as u64 * 16 * BASE_PAGE;
    let present = on(FAST) + on(SLOW);
    let size = |bytes| snapshot.page_sizes.get(&bytes).copied().unwrap_or(0);
    assert_eq!(
        (size(HUGE_PAGE), size(16 * BASE_PAGE), size(BASE_PAGE)),
        (huge, small, present - huge - small)
    );

    world.heal();
    assert_eq!(world.engine.state(), VmState::Running);
    if !world.engine.settings().dry_run {
        world.assert_pins_are_kept();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn books_when_anything_happens_agree_with_the_kernel(
        ops in prop::collection::vec(op(), 1..150),
        dry_run in prop::bool::weighted(0.1),
        split_huge in any::<bool>(),
        collapse_huge in any::<bool>(),
    ) {
        run(&ops, EngineSettings { dry_run, rebind: true, split_huge, collapse_huge, measures_demand: true, ..settings() });
    }
}
