//! The engine beside a guest on hugetlb pages, and a model of the pools that they come from.

use std::{sync::Arc, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId},
    engine::{Action, Event, NodeMemory, Order, PoolMemory, ScanReport, ScanRequest, VmEngine},
    map::{BlockIndex, GuestMemoryMap, MapRange, RamBlock},
    moves::{MoveBatch, MoveReport, Outcome, Page, PageResult, PairedBatch},
    sample::SourceKind,
    settings::EngineSettings,
    time::Time,
};

use crate::{
    common::{BASE, FAST, SLOW, settings, tiers},
    lab::aggregation,
};

const MIB: u64 = 1 << 20;
const GIANT_PAGE: u64 = 1 << 30;
/// Where the guest has its huge pages.
const GPA: u64 = 4 << 30;
/// Where the guest's small pages begin: those of a display adapter.
const SMALL: u64 = BASE + (64 << 30);
const SMALL_PAGES: usize = 700;

/// The pool on one node, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pool {
    total: u64,
    free: u64,
}

/// A host with one guest, and an engine that moves its pages.
struct Host {
    engine: VmEngine,
    now: Time,
    /// Bytes of a page of the pools.
    page_bytes: u64,
    /// Node of each huge page.
    huge: Vec<NodeId>,
    /// Node of each small page.
    small: Vec<NodeId>,
    /// Of the fast and the slow node.
    pools: [Pool; 2],
    promoted: usize,
    /// Free memory of each node.
    free_bytes: u64,
    /// Bytes that the pools let change places in pairs.
    pair_bytes: u64,
    /// Whether the fast pool may grow.
    grows: bool,
    /// Of the promotions in pairs each third finds no memory.
    pairs_fail: bool,
    /// Promotions in pairs so far.
    paired: usize,
    /// Largest batch of huge pages so far.
    largest: usize,
}

impl Host {
    /// The first `fast` of `pages` huge pages lie on the fast node, and all small pages.
    fn new(page_bytes: u64, (pages, fast): (usize, usize), spare: [u64; 2]) -> Self {
        let on = |n| if n < fast { FAST } else { SLOW };
        // A source that tests pages sees at most one access a look, which pays for the move of a giant page
        // only in a long time.
        let settings = EngineSettings {
            horizon: Duration::from_secs(page_bytes >> 15),
            ..settings()
        };
        let used = [fast as u64, (pages - fast) as u64];
        let mut host = Self {
            engine: VmEngine::new(settings, tiers(), Time(0)),
            now: Time(0),
            page_bytes,
            huge: (0..pages).map(on).collect(),
            small: vec![FAST; SMALL_PAGES],
            pools: [0, 1].map(|n| Pool {
                total: used[n] + spare[n],
                free: spare[n],
            }),
            promoted: 0,
            free_bytes: 16 * BASE_PAGE,
            pair_bytes: 0,
            grows: false,
            pairs_fail: false,
            paired: 0,
            largest: 0,
        };
        host.step(Event::Source(Some(SourceKind::Damon)));
        let nodes = host.nodes();
        host.engine.step(host.now, nodes);
        let map = host.map();
        let reply = host.engine.order(host.now, Order::Map(map)).unwrap();
        host.carry_out(reply.actions);
        host
    }

    fn map(&self) -> Arc<GuestMemoryMap> {
        let lengths = [self.huge.len() as u64 * self.page_bytes, 4096 * BASE_PAGE];
        let block = |(name, hva, n): (&str, u64, usize), page_size| RamBlock {
            name: name.to_owned(),
            hva: Hva(hva),
            used: lengths[n],
            total: lengths[n],
            page_size,
            backing: None,
        };
        let range = |n: usize, gpa, hva| MapRange {
            gpa: Gpa(gpa),
            len: lengths[n],
            block: BlockIndex(u32::try_from(n).unwrap()),
            offset: 0,
            hva: Hva(hva),
        };
        let blocks = vec![
            block(("ram0", BASE, 0), self.page_bytes),
            block(("vga.vram", SMALL, 1), BASE_PAGE),
        ];
        let ranges = vec![range(0, GPA, BASE), range(1, 1 << 40, SMALL)];
        Arc::new(GuestMemoryMap::new(1, blocks, ranges).unwrap())
    }

    fn nodes(&self) -> Event {
        let node = |n: usize, node| NodeMemory {
            node,
            free_bytes: self.free_bytes,
            cached_bytes: 0,
            low_watermark_bytes: 0,
            high_watermark_bytes: 0,
            pools: vec![PoolMemory {
                page_bytes: self.page_bytes,
                free_bytes: self.pools[n].free * self.page_bytes,
                pair_bytes: self.pair_bytes,
                grows: n == 0 && self.grows,
            }],
        };
        Event::Nodes(vec![node(0, FAST), node(1, SLOW)])
    }

    fn step(&mut self, event: Event) {
        let nodes = self.nodes();
        let mut todo = self.engine.step(self.now, nodes);
        todo.extend(self.engine.step(self.now, event));
        self.carry_out(todo);
    }

    fn carry_out(&mut self, mut todo: Vec<Action>) {
        while !todo.is_empty() {
            let answer = match todo.remove(0) {
                Action::Scan(request) => Event::Scanned(self.scan(request)),
                Action::Move(batch) => {
                    let report = self.apply(&batch);
                    let nodes = self.nodes();
                    todo.extend(self.engine.step(self.now, nodes));
                    Event::Moved(report)
                }
                Action::MovePaired(pair) => {
                    let (demoted, promoted) = self.apply_pair(&pair);
                    todo.extend(self.engine.step(self.now, Event::Moved(demoted)));
                    Event::Moved(promoted)
                }
                Action::Rebind(_) => unreachable!("nobody asks for it"),
                Action::Reshape(_) | Action::RefreshMap => continue,
            };
            todo.extend(self.engine.step(self.now, answer));
        }
    }

    fn node_of(&mut self, page: Page) -> &mut NodeId {
        match page.hva.0.checked_sub(SMALL) {
            Some(offset) => self.small.get_mut((offset / BASE_PAGE) as usize).unwrap(),
            None => &mut self.huge[((page.hva.0 - BASE) / self.page_bytes) as usize],
        }
    }

    /// Moves as the kernel does: where the pool has no free page it takes other memory, and that page
    /// becomes the pool's.
    fn apply(&mut self, batch: &MoveBatch) -> MoveReport {
        let huge = batch
            .pages
            .iter()
            .filter(|page| page.bytes == self.page_bytes);
        let huge = huge.count();
        assert!(
            huge == 0 || huge == batch.pages.len(),
            "of one size: {batch:?}"
        );
        self.largest = self.largest.max(huge);
        let mut results = Vec::new();
        for &page in &batch.pages {
            let from = std::mem::replace(self.node_of(page), batch.target);
            assert_ne!(from, batch.target, "never within a node");
            if page.bytes == self.page_bytes {
                let (from, to) = (from.0 as usize, batch.target.0 as usize);
                if self.pools[to].free > 0 {
                    self.pools[to].free -= 1;
                    self.pools[from].free += 1;
                } else {
                    self.pools[to].total += 1;
                    self.pools[from].total -= 1;
                    if self.grows && batch.target == FAST {
                        self.free_bytes -= page.bytes;
                    }
                }
                self.promoted += usize::from(batch.target == FAST);
            }
            results.push(PageResult {
                page,
                outcome: Outcome::Moved,
                node: Some(batch.target),
            });
        }
        MoveReport {
            id: batch.id,
            direction: batch.direction,
            target: batch.target,
            results,
            cpu_time: Duration::from_micros(100),
        }
    }

    /// Moves a pair as the worker does: what has no partner goes back.
    fn apply_pair(&mut self, pair: &PairedBatch) -> (MoveReport, MoveReport) {
        assert_eq!(pair.demote.pages.len(), pair.promote.pages.len());
        let pages = pair.demote.pages.len() as u64;
        let may_use = self.pair_bytes.max(self.pools[1].free * self.page_bytes);
        assert!(pages * self.page_bytes <= may_use);
        let before = self.pools;
        let failed = |result: &mut PageResult, node| {
            result.outcome = Outcome::NoMemory;
            result.node = Some(node);
        };
        let mut demoted = self.apply(&pair.demote);
        let mut promoted = self.apply(&pair.promote);
        for n in 0..pair.promote.pages.len() {
            self.paired += 1;
            if self.pairs_fail && self.paired.is_multiple_of(3) {
                *self.node_of(pair.promote.pages[n]) = SLOW;
                *self.node_of(pair.demote.pages[n]) = FAST;
                failed(&mut promoted.results[n], SLOW);
                failed(&mut demoted.results[n], FAST);
                self.promoted -= 1;
            }
        }
        assert_eq!(self.pools, before);
        (demoted, promoted)
    }

    fn scan(&self, request: ScanRequest) -> ScanReport {
        let span = request.span;
        let pages = (span.hva.0..span.hva.0 + span.bytes).step_by(span.frame_bytes as usize);
        let pages = pages.map(|hva| {
            let node = match hva.checked_sub(SMALL) {
                Some(offset) => self.small.get((offset / BASE_PAGE) as usize).copied(),
                None => Some(self.huge[((hva - BASE) / self.page_bytes) as usize]),
            };
            let bytes = span.frame_bytes;
            let hva = Hva(hva);
            (Page { hva, bytes }, node)
        });
        ScanReport {
            request,
            folios: vec![],
            pages: pages.collect(),
            cpu_time: Duration::from_micros(10),
        }
    }

    /// So many aggregations in which the last `hot` huge pages are always found used.
    fn observe(&mut self, times: u32, hot: usize) {
        for _ in 0..times {
            self.now = self.now + Duration::from_millis(400);
            let first = self.huge.len() - hot;
            let bytes = self.page_bytes;
            let page = |n| Hva(BASE + n as u64 * bytes);
            let weight = |n| if n >= first { 20.0 } else { 0.0 };
            let pages = (0..self.huge.len()).map(|n| (page(n), weight(n)));
            self.step(aggregation(self.now, bytes, pages));
        }
    }

    /// How many of the last `hot` huge pages lie on the fast node.
    fn hot_on_fast(&self, hot: usize) -> usize {
        let hot = self.huge.iter().rev().take(hot);
        hot.filter(|node| **node == FAST).count()
    }
}

#[test]
fn hot_huge_pages_when_the_slow_pool_has_spare_pages_go_up_and_pools_stay() {
    for spare in [1, 3, 19] {
        let mut host = Host::new(HUGE_PAGE, (200, 44), [0, spare]);
        let before = host.pools;
        host.observe(200, 32);
        assert_eq!(host.hot_on_fast(32), 32, "{spare} spare pages");
        assert_eq!(host.pools, before);
        assert_eq!(host.promoted, 32);
        assert!(host.largest as u64 <= spare);
    }
}

#[test]
fn hot_huge_pages_when_the_fast_pool_has_free_pages_fill_them_first() {
    let mut host = Host::new(HUGE_PAGE, (200, 40), [40, 0]);
    host.observe(200, 32);
    assert_eq!(host.hot_on_fast(32), 32);
    let totals = host.pools.map(|pool| pool.total);
    assert_eq!(totals, [80, 160], "as they were");
}

#[test]
fn hot_giant_pages_when_the_slow_pool_has_a_spare_page_go_up_one_by_one() {
    let mut host = Host::new(GIANT_PAGE, (12, 4), [0, 1]);
    let before = host.pools;
    host.observe(600, 3);
    assert_eq!((host.hot_on_fast(3), host.largest), (3, 1));
    assert_eq!((host.promoted, host.pools), (3, before));
}

#[test]
fn hot_huge_pages_when_no_page_is_to_spare_change_places_in_pairs() {
    for (pair_bytes, pairs_fail) in [(u64::MAX, false), (2 * HUGE_PAGE, false), (u64::MAX, true)] {
        let mut host = Host::new(HUGE_PAGE, (200, 44), [0, 0]);
        host.pair_bytes = pair_bytes.min(400 * HUGE_PAGE);
        host.free_bytes = 64 * MIB;
        host.pairs_fail = pairs_fail;
        host.observe(200, 32);
        assert_eq!(host.hot_on_fast(32), 32, "{pair_bytes} {pairs_fail}");
        assert_eq!(host.promoted, 32);
        assert!(host.paired >= 32);
        let failed = host.engine.snapshot().failed;
        assert_eq!(failed.contains_key(&Outcome::NoMemory), pairs_fail);
    }
}

#[test]
fn hot_huge_pages_when_the_limit_can_not_be_obeyed_change_places_one_for_one() {
    let mut host = Host::new(HUGE_PAGE, (200, 44), [0, 0]);
    host.pair_bytes = u64::MAX;
    host.free_bytes = 64 * MIB;
    let before = host.pools;
    let limit = Order::Limit(Some(20 * HUGE_PAGE));
    let reply = host.engine.order(host.now, limit).unwrap();
    host.carry_out(reply.actions);
    host.observe(200, 16);
    assert_eq!((host.hot_on_fast(16), host.promoted), (16, 16));
    assert_eq!(host.pools, before, "nothing goes down alone");
}

#[test]
fn hot_huge_pages_when_the_fast_pool_may_grow_take_free_memory_down_to_the_headroom() {
    let mut host = Host::new(HUGE_PAGE, (200, 44), [0, 0]);
    host.grows = true;
    // Room for ten pages above the headroom of 16 small pages.
    host.free_bytes = 10 * HUGE_PAGE + 16 * BASE_PAGE;
    host.observe(200, 32);
    assert_eq!(host.hot_on_fast(32), 10);
    assert_eq!(host.pools.map(|pool| pool.total), [54, 146]);
    assert_eq!(host.free_bytes, 16 * BASE_PAGE);

    let mut limited = Host::new(HUGE_PAGE, (200, 44), [0, 0]);
    limited.grows = true;
    limited.free_bytes = 64 * HUGE_PAGE;
    // The 700 small pages take more than a huge page of the limit.
    let limit = Order::Limit(Some(50 * HUGE_PAGE));
    let reply = limited.engine.order(limited.now, limit).unwrap();
    limited.carry_out(reply.actions);
    limited.observe(200, 32);
    assert_eq!(
        limited.pools.map(|pool| pool.total),
        [48, 152],
        "the limit holds"
    );
}

#[test]
fn hot_huge_pages_when_free_memory_is_short_make_no_pairs() {
    let mut host = Host::new(HUGE_PAGE, (200, 44), [0, 0]);
    host.pair_bytes = u64::MAX;
    host.free_bytes = HUGE_PAGE - 1;
    host.observe(100, 32);
    assert_eq!((host.promoted, host.paired), (0, 0));
}

#[test]
fn hot_huge_pages_when_no_page_is_to_spare_stay_and_the_explanation_names_the_pool() {
    let mut host = Host::new(HUGE_PAGE, (200, 44), [0, 0]);
    let before = host.pools;
    host.observe(100, 32);
    assert_eq!((host.promoted, host.pools), (0, before));
    let gpa = Gpa(GPA + 199 * HUGE_PAGE);
    let hot = host.engine.explain(host.now, gpa).unwrap();
    assert_eq!(
        hot.would_move_if,
        "a slow node's pool of 2097152 byte pages has a free page that is promised to nobody, and no pool of the \
         tiers has surplus pages: an exchange needs one"
    );
}
