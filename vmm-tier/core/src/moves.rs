//! Moving pages: what is asked for, and what became of each page.

use std::time::Duration;

use crate::addr::{BASE_PAGE, Hva, NodeId};

/// What a page's own work is taken to cost before it is measured (isolation, unmapping, TLB, the page
/// tables of KVM), in nanoseconds: the kernel's migration path takes 2 to 5 µs a page on current servers.
const ASSUMED_PAGE_NS: f64 = 5_000.0;
/// What copying 4 KiB is taken to cost before it is measured, in nanoseconds: 8 GB/s.
const ASSUMED_FRAME_NS: f64 = 500.0;

/// What moving a page of `page_bytes` bytes is taken to cost before it is measured, in nanoseconds; of
/// no bytes: what remapping a page costs.
#[must_use]
pub fn assumed_cost_ns(page_bytes: u64) -> f64 {
    ASSUMED_PAGE_NS + ASSUMED_FRAME_NS * (page_bytes / BASE_PAGE) as f64
}

crate::words! {
    /// Which way a page goes.
    pub enum Direction {
        /// From the slow tier to the fast tier.
        Promote = "promote",
        /// From the fast tier to the slow tier.
        Demote = "demote",
    }
}

/// One page (a folio: 4 KiB, a transparent huge page, or a hugetlb page), named by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// The address of the page's first byte in QEMU.
    pub hva: Hva,
    /// The page's size in bytes.
    pub bytes: u64,
}

/// Pages that are to go to one node in one kernel call or few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveBatch {
    /// Names the batch in its report.
    pub id: u64,
    /// Promotion or demotion.
    pub direction: Direction,
    /// Where the pages shall go.
    pub target: NodeId,
    /// Bytes of the frames of all pages: those of a hugetlb pool, or small frames.
    pub frame_bytes: u64,
    /// The pages, each folio once.
    pub pages: Vec<Page>,
}

/// Pages of a hugetlb pool that change places.
///
/// Where the pool has a free page, that page serves. Where it has none, the kernel takes pages from free memory for
/// as long as it copies: the pools are as they were only when as many were promoted as were demoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairedBatch {
    /// Goes first.
    pub demote: MoveBatch,
    /// As many pages of the same size. Of them go as many as were demoted.
    pub promote: MoveBatch,
}

crate::words! {
    /// What became of one page. Every page of a batch ends in exactly one of these.
    pub enum Outcome {
        /// The page lies on the target node.
        Moved = "moved",
        /// The kernel could not isolate or unmap it just now. Retry later.
        Busy = "busy",
        /// The page is pinned for the long term (VFIO, RDMA). Do not retry for a long time.
        Pinned = "pinned",
        /// Other processes map the page and the agent lacks `CAP_SYS_NICE`. Do not retry.
        Shared = "shared",
        /// No page is present. Forget its placement; never touch it.
        Absent = "absent",
        /// The target node had no free page. Retry when it has headroom.
        NoMemory = "no-memory",
        /// A huge page was split on the way and only a part of it arrived. Look at it again.
        Split = "split",
        /// The kernel reported success but the page lies elsewhere. Look at it again.
        WrongNode = "wrong-node",
        /// The mapping or the process is gone. Rebuild the map.
        Gone = "gone",
    }
}

impl Outcome {
    /// The time after which the page may be tried again; `None` if trying again is of no use until
    /// something else (a new map, a new placement) says otherwise.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Moved | Self::Split | Self::WrongNode => Some(Duration::ZERO),
            Self::Busy => Some(Duration::from_secs(1)),
            Self::NoMemory => Some(Duration::from_secs(2)),
            Self::Pinned => Some(Duration::from_secs(60)),
            Self::Shared | Self::Absent | Self::Gone => None,
        }
    }
}

/// The result for one page of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResult {
    /// The page.
    pub page: Page,
    /// What became of it.
    pub outcome: Outcome,
    /// Where the kernel says the page lies now; `None` if it is not present or could not be asked.
    pub node: Option<NodeId>,
}

/// What became of a batch. Holds one result for each page of the batch, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveReport {
    /// The batch's id.
    pub id: u64,
    /// The batch's direction.
    pub direction: Direction,
    /// The batch's target.
    pub target: NodeId,
    /// One result a page.
    pub results: Vec<PageResult>,
    /// CPU time that the kernel calls took together.
    pub cpu_time: Duration,
}
