//! A model of the kernel for tests of the engine: nodes with room for so many pages, pages on nodes,
//! moves that fail where the real kernel fails.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId, NodeSet},
    engine::{Event, NodeMemory, ReshapeOutcome, ReshapeReport, ReshapeRequest, ScanReport, Shape},
    map::{Backing, BlockIndex, GuestMemoryMap, MapRange, RamBlock},
    moves::{MoveBatch, MoveReport, Outcome, Page, PageResult},
    settings::EngineSettings,
    tiers::Tiers,
};

pub(crate) const FAST: NodeId = NodeId(0);
pub(crate) const SLOW: NodeId = NodeId(1);
pub(crate) const BASE: u64 = 0x7f00_0000_0000;
pub(crate) const GPA_BASE: u64 = 1 << 20;

/// A host with one guest.
pub(crate) struct Kernel {
    /// Node of each 4 KiB frame; `None` is absent.
    pub(crate) frames: Vec<Option<NodeId>>,
    /// Frames whose first belongs to a huge page of 512.
    pub(crate) huge: Vec<u32>,
    /// First frames of folios of 64 KiB, multiples of 16, outside of huge pages.
    pub(crate) small_folios: Vec<u32>,
    /// How many frames the guest's map has.
    pub(crate) tracked: usize,
    pub(crate) fast_capacity: u64,
    /// Free bytes of the slow node.
    pub(crate) slow_free: u64,
    /// What a move of the page at this address ends with, instead of success.
    pub(crate) fails: BTreeMap<u64, Outcome>,
    pub(crate) moved_bytes: BTreeMap<NodeId, u64>,
    /// What was asked to be split or collapsed.
    pub(crate) reshaped: Vec<ReshapeRequest>,
    /// What splits and collapses end with, instead of success.
    pub(crate) reshapes_end: Option<ReshapeOutcome>,
}

impl Kernel {
    pub(crate) fn new(
        frames: u32,
        fast_capacity: u64,
        node_of: impl Fn(u32) -> Option<NodeId>,
    ) -> Self {
        Self {
            frames: (0..frames).map(node_of).collect(),
            huge: Vec::new(),
            small_folios: Vec::new(),
            tracked: frames as usize,
            fast_capacity,
            slow_free: 1 << 40,
            fails: BTreeMap::new(),
            moved_bytes: BTreeMap::new(),
            reshaped: Vec::new(),
            reshapes_end: None,
        }
    }

    pub(crate) fn free(&self) -> u64 {
        self.fast_capacity
            - self
                .frames
                .iter()
                .filter(|&&node| node == Some(FAST))
                .count() as u64
                * BASE_PAGE
    }

    pub(crate) fn nodes(&self) -> Event {
        let node = NodeMemory::with_free;
        Event::Nodes(vec![node(FAST, self.free()), node(SLOW, self.slow_free)])
    }

    fn frame(page: Page) -> usize {
        usize::try_from((page.hva.0 - BASE) / BASE_PAGE).unwrap()
    }

    pub(crate) fn apply(&mut self, batch: &MoveBatch) -> MoveReport {
        let mut results = Vec::new();
        for &page in &batch.pages {
            let first = Self::frame(page);
            // The kernel moves the folio that it finds, whatever we take it for.
            let (head, count) = self.folio(first);
            let bytes = count as u64 * BASE_PAGE;
            let free = if batch.target == FAST {
                self.free()
            } else {
                self.slow_free
            };
            let no_room = free < bytes;
            // The worker looks which pages are mapped as huge pages before it moves any. What reaches
            // past the guest's memory is taken for frames.
            let is_stale = page.bytes != bytes
                && page.bytes.max(bytes) == HUGE_PAGE
                && head + count <= self.tracked;
            let outcome = match (self.fails.get(&page.hva.0), self.frames[first]) {
                (Some(&outcome), _) => outcome,
                (None, None) => Outcome::Absent,
                (None, Some(node)) if node == batch.target => Outcome::AlreadyThere,
                (None, Some(_)) if is_stale => Outcome::Resized,
                (None, Some(_)) if no_room => Outcome::NoMemory,
                (None, Some(_)) => Outcome::Moved,
            };
            let mut outcome = outcome;
            if outcome == Outcome::Moved && self.frames[first] != Some(batch.target) {
                if batch.target == SLOW {
                    self.slow_free -= bytes;
                } else {
                    self.slow_free += bytes;
                }
                self.frames[head..head + count].fill(Some(batch.target));
                *self.moved_bytes.entry(batch.target).or_default() += bytes;
                if page.bytes > bytes {
                    outcome = Outcome::Split;
                }
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

    /// The folio of a frame: its first frame, and how many it has.
    fn folio(&self, frame: usize) -> (usize, usize) {
        let begins = |heads: &[u32], size: usize| {
            let head = frame - frame % size;
            let found = heads.contains(&u32::try_from(head).unwrap());
            found.then_some((head, size))
        };
        let huge = begins(&self.huge, 512);
        huge.or_else(|| begins(&self.small_folios, 16))
            .unwrap_or((frame, 1))
    }

    /// Splits a huge page, or collapses small pages that lie on one node.
    pub(crate) fn reshape(&mut self, request: ReshapeRequest) -> ReshapeReport {
        self.reshaped.push(request);
        if let Some(outcome) = self.reshapes_end {
            return ReshapeReport { request, outcome };
        }
        let head = Self::frame(request.page);
        let number = u32::try_from(head).unwrap();
        let frames = &self.frames[head..head + 512];
        let is_huge = self.huge.contains(&number);
        let outcome = match request.shape {
            Shape::Split if !is_huge => ReshapeOutcome::Busy,
            Shape::Split => {
                self.huge.retain(|&own| own != number);
                ReshapeOutcome::Done
            }
            Shape::Collapse if is_huge => ReshapeOutcome::Busy,
            Shape::Collapse if frames[0].is_none() || frames.iter().any(|&f| f != frames[0]) => {
                ReshapeOutcome::Absent
            }
            Shape::Collapse => {
                self.small_folios.retain(|&own| own / 512 != number / 512);
                self.huge.push(number);
                ReshapeOutcome::Done
            }
        };
        ReshapeReport { request, outcome }
    }

    pub(crate) fn scan(&self, request: tier_core::engine::ScanRequest) -> ScanReport {
        let span = request.span;
        let first = (span.hva.0 - BASE) / BASE_PAGE;
        let mut pages = Vec::new();
        let mut folios = Vec::new();
        let mut at = first;
        while at < first + span.bytes / BASE_PAGE {
            let hva = Hva(BASE + at * BASE_PAGE);
            let frame = usize::try_from(at).unwrap();
            // One that reaches past the span is looked at frame by frame.
            let (head, count) = self.folio(frame);
            let is_whole = head == frame && at + count as u64 <= first + span.bytes / BASE_PAGE;
            let bytes = if is_whole { count as u64 } else { 1 } * BASE_PAGE;
            if bytes > BASE_PAGE {
                folios.push(Page { hva, bytes });
            }
            pages.push((Page { hva, bytes }, self.frames[frame]));
            at += bytes / BASE_PAGE;
        }
        ScanReport {
            request,
            folios,
            pages,
            cpu_time: Duration::from_micros(10),
        }
    }
}

/// The map of a guest of so many frames from [`BASE`] on.
pub(crate) fn map(generation: u64, frames: u32) -> Arc<GuestMemoryMap> {
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
    Arc::new(GuestMemoryMap::new(generation, vec![block], vec![range]).unwrap())
}

/// The same map of memory that QEMU shares.
pub(crate) fn shared_map(generation: u64, frames: u32) -> Arc<GuestMemoryMap> {
    let map = map(generation, frames);
    let blocks = map.blocks().iter().map(|block| RamBlock {
        backing: Some(Backing::Shmem),
        ..block.clone()
    });
    let map = GuestMemoryMap::new(generation, blocks.collect(), map.ranges().to_vec());
    Arc::new(map.unwrap())
}

pub(crate) fn settings() -> EngineSettings {
    EngineSettings {
        headroom_bytes: 16 * BASE_PAGE,
        batch_bytes: HUGE_PAGE,
        ..EngineSettings::default()
    }
}

pub(crate) fn tiers() -> Tiers {
    Tiers {
        fast: NodeSet::from_iter([FAST]),
        slow: NodeSet::from_iter([SLOW]),
        fast_latency_ns: 80.0,
        slow_latency_ns: 250.0,
    }
}
