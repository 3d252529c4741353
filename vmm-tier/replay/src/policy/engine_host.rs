//! The agent's engine on a simulated machine.
//!
//! Nothing of it is modelled: [`VmEngine`] gets the events it gets beside a guest, and its actions
//! (moves, look-ups of placement) are carried out on the [`Host`] at once.

use std::{ops::Range, sync::Arc, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, Hva, NodeId, NodeSet},
    engine::{Action, Event, NodeMemory, Order, PoolMemory, ScanReport, ScanRequest, VmEngine},
    map::{BlockIndex, GuestMemoryMap, LOWEST_GPA, MapRange, RamBlock},
    moves::{self, Direction, MoveBatch, MoveReport, Outcome, Page, PageResult},
    settings::{EngineSettings, Tier},
    tiers::Tiers,
    time::Time,
};

use crate::machine::{Guest, Host};

const FAST: NodeId = NodeId(0);
const SLOW: NodeId = NodeId(1);
/// What the slow node is said to have free: it is never short.
const PLENTY: u64 = 1 << 60;
/// Where the guest's memory begins in the address space that the engine is told of.
const BASE: u64 = 0x7f00_0000_0000;

/// See the [module](self).
pub struct EngineHost {
    engine: VmEngine,
    /// What the map asks for: carried out with the first event.
    waiting: Vec<Action>,
    places: Places,
}

impl EngineHost {
    /// The engine beside the guest of `host`, with its default settings, but for the half-life. A guest
    /// whose pages can't be numbered has no map, and nothing of it moves.
    #[must_use]
    pub fn new(host: &Host, half_life: Duration) -> Self {
        let settings = EngineSettings {
            half_life,
            // The machine's DRAM is this guest's alone: nobody else needs some kept free.
            headroom_bytes: 0,
            ..EngineSettings::default()
        };
        let (fast_latency_ns, slow_latency_ns) = host.latencies();
        let tiers = Tiers {
            fast: NodeSet::from_iter([FAST]),
            slow: NodeSet::from_iter([SLOW]),
            fast_latency_ns,
            slow_latency_ns,
        };
        let mut engine = VmEngine::new(settings, tiers, Time(0));
        let places = Places::of(host.guest());
        let waiting = places.map().map_or_else(Vec::new, |map| {
            // Refused only above 4 TiB, which no trace has.
            let reply = engine.order(Time(0), Order::Map(Arc::new(map)));
            reply.map_or_else(|_| Vec::new(), |reply| reply.actions)
        });
        Self {
            engine,
            waiting,
            places,
        }
    }

    /// The engine.
    #[must_use]
    pub const fn engine(&self) -> &VmEngine {
        &self.engine
    }

    /// The generation of the engine's map, for batches; 0 without a map.
    #[must_use]
    pub fn map_generation(&self) -> u64 {
        self.engine.map().map_or(0, GuestMemoryMap::generation)
    }

    /// Where a page stands in the engine's address space. Pages of one size that follow each other in
    /// the guest do so there too.
    #[must_use]
    pub fn hva(&self, page: u32) -> Option<Hva> {
        self.places.hva(page)
    }

    /// The pages that stand in a range of the engine's address space, up to where their size or their place
    /// in the guest changes.
    #[must_use]
    pub fn pages(&self, hva: Hva, bytes: u64) -> Range<u32> {
        let (Some((first, page_bytes)), Some(last)) = (
            self.places.page(hva),
            self.places.page(Hva(hva.0 + bytes - 1)),
        ) else {
            return 0..0;
        };
        first..last.0.max(first) + u32::from(page_bytes == last.1)
    }

    /// Gives the engine an event and carries out what it asks for, until it asks for no more.
    pub fn give(&mut self, now: Time, event: Event, host: &mut Host) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            // Where it plans it must know what is free.
            let mut actions = std::mem::take(&mut self.waiting);
            actions.extend(self.engine.step(now, self.places.nodes(host)));
            actions.extend(self.engine.step(now, event));
            for action in actions {
                match action {
                    Action::Scan(request) => {
                        events.push(Event::Scanned(self.places.scan(request, host)));
                    }
                    Action::Move(batch) => {
                        events.push(Event::Moved(self.places.carry_out(&batch, host)));
                    }
                    Action::MovePaired(pair) => {
                        for batch in [pair.demote, pair.promote] {
                            events.push(Event::Moved(self.places.carry_out(&batch, host)));
                        }
                    }
                    // Not asked for by default; the machine has neither policies nor such pages.
                    Action::Rebind(_) | Action::Reshape(_) | Action::RefreshMap => {}
                }
            }
        }
    }
}

/// Pages of one size that stand one after the other both in the guest and in the engine's address space.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    first: u32,
    pages: u32,
    hva: u64,
    page_bytes: u64,
}

/// Where the guest's pages stand in the engine's address space: packed, so that a trace with pages all
/// over has a map too.
#[derive(Debug)]
struct Places {
    /// By rising page.
    by_page: Vec<Stretch>,
    /// By rising address.
    by_hva: Vec<Stretch>,
}

impl Places {
    fn of(guest: &Guest) -> Self {
        let mut by_page = Vec::new();
        let mut first = 0;
        for range in guest.ranges() {
            let pages = (range.len / range.page_bytes) as u32;
            by_page.push(Stretch {
                first,
                pages,
                hva: 0,
                page_bytes: range.page_bytes,
            });
            first += pages;
        }
        // Sizes apart, the largest first: then all are aligned and there are few ranges.
        let mut order: Vec<usize> = (0..by_page.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(by_page[i].page_bytes));
        let mut hva = BASE;
        for i in order {
            by_page[i].hva = hva;
            hva += u64::from(by_page[i].pages) * by_page[i].page_bytes;
        }
        let mut by_hva = by_page.clone();
        by_hva.sort_by_key(|stretch| stretch.hva);
        Self { by_page, by_hva }
    }

    /// One block for each page size.
    fn map(&self) -> Option<GuestMemoryMap> {
        let mut blocks: Vec<RamBlock> = Vec::new();
        for stretch in &self.by_hva {
            let bytes = u64::from(stretch.pages) * stretch.page_bytes;
            match blocks.last_mut() {
                Some(last) if last.page_size == stretch.page_bytes => {
                    last.used += bytes;
                    last.total += bytes;
                }
                _ => blocks.push(RamBlock {
                    name: format!("ram{}", blocks.len()),
                    hva: Hva(stretch.hva),
                    used: bytes,
                    total: bytes,
                    page_size: stretch.page_bytes,
                    backing: None,
                }),
            }
        }
        let gpa = |hva: Hva| Gpa((1 << 30) + hva.0 - BASE + LOWEST_GPA);
        let ranges = (0..)
            .zip(&blocks)
            .map(|(number, block)| MapRange {
                gpa: gpa(block.hva),
                len: block.total,
                block: BlockIndex(number),
                offset: 0,
                hva: block.hva,
            })
            .collect();
        GuestMemoryMap::new(1, blocks, ranges).ok()
    }

    /// What is free. Pages larger than 4 KiB are moved like those of a pool; any free memory can become
    /// such a page.
    fn nodes(&self, host: &Host) -> Event {
        let node = |node, free_bytes| {
            let mut sizes: Vec<u64> = self.by_page.iter().map(|s| s.page_bytes).collect();
            sizes.retain(|&bytes| bytes > BASE_PAGE);
            sizes.sort_unstable();
            sizes.dedup();
            let pool = |page_bytes| PoolMemory {
                grows: false,
                page_bytes,
                free_bytes,
                pair_bytes: 0,
            };
            NodeMemory {
                pools: sizes.into_iter().map(pool).collect(),
                ..NodeMemory::with_free(node, free_bytes)
            }
        };
        Event::Nodes(vec![node(FAST, host.fast_free()), node(SLOW, PLENTY)])
    }

    fn hva(&self, page: u32) -> Option<Hva> {
        let after = self.by_page.partition_point(|s| s.first <= page);
        let stretch = self.by_page.get(after.checked_sub(1)?)?;
        let number = page - stretch.first;
        (number < stretch.pages).then(|| Hva(stretch.hva + u64::from(number) * stretch.page_bytes))
    }

    fn page(&self, hva: Hva) -> Option<(u32, u64)> {
        let after = self.by_hva.partition_point(|s| s.hva <= hva.0);
        let stretch = self.by_hva.get(after.checked_sub(1)?)?;
        let number = (hva.0 - stretch.hva) / stretch.page_bytes;
        (number < u64::from(stretch.pages))
            .then(|| (stretch.first + number as u32, stretch.page_bytes))
    }

    fn scan(&self, request: ScanRequest, host: &Host) -> ScanReport {
        let (mut at, end) = (request.span.hva.0, request.span.hva.0 + request.span.bytes);
        let mut pages = Vec::new();
        while at < end
            && let Some((page, bytes)) = self.page(Hva(at))
        {
            let found = Page {
                hva: Hva(at),
                bytes,
            };
            pages.push((found, Some(node_of(host, page))));
            at += bytes;
        }
        ScanReport {
            request,
            folios: Vec::new(),
            pages,
            cpu_time: Duration::ZERO,
        }
    }

    fn carry_out(&self, batch: &MoveBatch, host: &mut Host) -> MoveReport {
        let mut cost_ns = 0.0;
        let mut one = |page: &Page| {
            let Some((number, bytes)) = self.page(page.hva) else {
                return (Outcome::Gone, None);
            };
            let outcome = match batch.direction {
                Direction::Promote => host.promote(number),
                Direction::Demote => host.demote(number),
            };
            if outcome == Outcome::Moved {
                cost_ns += moves::assumed_cost_ns(bytes);
            }
            (outcome, Some(node_of(host, number)))
        };
        let results = batch
            .pages
            .iter()
            .map(|page| {
                let (outcome, node) = one(page);
                PageResult {
                    page: *page,
                    outcome,
                    node,
                }
            })
            .collect();
        MoveReport {
            id: batch.id,
            direction: batch.direction,
            target: batch.target,
            results,
            cpu_time: Duration::from_nanos(cost_ns as u64),
        }
    }
}

fn node_of(host: &Host, page: u32) -> NodeId {
    match host.tier(page) {
        Tier::Fast => FAST,
        Tier::Slow => SLOW,
    }
}

#[cfg(test)]
mod tests {
    use tier_core::sample::{
        AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind,
    };

    use super::*;
    use crate::machine::{Conditions, Slice, guest::MemoryRange};

    #[test]
    fn places_when_page_sizes_are_mixed_have_one_block_for_each() {
        let range = |address, len, page_bytes| MemoryRange {
            address,
            len,
            page_bytes,
        };
        let guest = Guest::from_ranges(&[
            range(0, 8192, 4096),
            range(2 << 20, 4 << 20, 2 << 20),
            range(8 << 20, 4096, 4096),
        ]);
        let places = Places::of(&guest.unwrap());
        let map = places.map().unwrap();
        assert_eq!(map.blocks().len(), 2);
        for page in 0..5 {
            let hva = places.hva(page).unwrap();
            assert_eq!(places.page(hva).map(|(page, _)| page), Some(page));
        }
        assert_eq!(places.hva(5), None);
    }

    #[test]
    fn hot_huge_page_when_it_is_slow_changes_places_with_a_cold_page() {
        const HUGE: u64 = 2 << 20;
        let guest = Arc::new(Guest::uniform(0, 8, HUGE));
        let mut host = Host::new(Arc::clone(&guest), 2 * HUGE, Conditions::default());
        let mut engine = EngineHost::new(&host, Duration::from_secs(10));
        let source = SourceKind::Ibs;
        engine.give(Time(0), Event::Source(Some(source)), &mut host);
        assert!(!host.is_fast(7));
        for second in 1..=10 {
            let now = Time(second * 1_000_000_000);
            let samples = (0..100).map(|_| AccessSample {
                address: SampleAddress::Host(engine.hva(7).unwrap()),
                len: 8,
                weight: 1.0,
                kind: AccessKind::Load,
            });
            let batch = SampleBatch {
                source,
                end: now,
                span: Duration::from_secs(1),
                tests: 0,
                period: 4093,
                settled: true,
                map_generation: engine.map_generation(),
                samples: samples.collect(),
                account: SampleAccount::default(),
            };
            host.enter(&Slice {
                start: Time(now.0 - 1_000_000_000),
                end: now,
                ..Slice::default()
            });
            engine.give(now, Event::Samples(batch), &mut host);
            engine.give(now, Event::Tick, &mut host);
        }
        assert!(host.is_fast(7));
    }
}
