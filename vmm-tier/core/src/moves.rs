//! Moving pages: what is asked for, and what became of each page.

use std::{fmt, time::Duration};

use crate::{
    addr::{BASE_PAGE, Hva, NodeId},
    nearness::Targets,
};

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

/// Pages that are to go to a tier in one kernel call a node, or few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveBatch {
    /// Names the batch in its report.
    pub id: u64,
    /// Promotion or demotion.
    pub direction: Direction,
    /// Where the pages shall go: the nearest node of the tier that has room for all of them, or that
    /// with the most room.
    pub target: NodeId,
    /// Where each page shall go if the tier has several nodes.
    pub nearest: Option<Targets>,
    /// Bytes of the frames of all pages: those of a hugetlb pool, or small frames.
    pub frame_bytes: u64,
    /// The pages, each folio once.
    pub pages: Vec<Page>,
}

/// Pages of a hugetlb pool that change places.
///
/// Where the pool has a free page, that page serves. Where it has none, the kernel takes pages from free
/// memory for as long as it copies: the pools are as they were only when as many were promoted as were
/// demoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairedBatch {
    /// Goes first.
    pub demote: MoveBatch,
    /// As many pages of the same size. Of them go as many as were demoted.
    pub promote: MoveBatch,
}

crate::words! {
    /// What became of one page that was to move. Every page of a batch ends in exactly one of these
    /// classes; [`Outcome::cause`], [`Outcome::retry`] and [`Outcome::remedy`] tell what is to be known
    /// of a class.
    pub enum Outcome {
        /// The page went to the target node, and was found there.
        Moved = "moved",
        /// The page lay on the target node before.
        AlreadyThere = "already-there",
        /// The kernel could not take the page just now, or did not get to it.
        Busy = "busy",
        /// The page is pinned for the long term, or its memory can't be migrated.
        Pinned = "pinned",
        /// Other processes map the page, and the agent lacks `CAP_SYS_NICE`.
        Shared = "shared",
        /// No page is present; it is never touched.
        Absent = "absent",
        /// The target node had no free page, though its free memory is above the low watermark.
        NoMemory = "no-memory",
        /// The target node had no free page of that size.
        NoHugePage = "no-huge-page",
        /// The target node's free memory is not above its low watermark.
        BelowWatermark = "below-watermark",
        /// A huge page was split on the way, and only a part of it arrived.
        Split = "split",
        /// The kernel has collapsed or split the page since it was looked up; it was not moved.
        Resized = "resized",
        /// The kernel reported success, but the page lies elsewhere.
        WrongNode = "wrong-node",
        /// The process may not have memory on the target node.
        Cpuset = "cpuset",
        /// The kernel refused the whole call.
        Refused = "refused",
        /// The mapping or the process is gone.
        Gone = "gone",
    }
}

/// When a page may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The page lies where it was to go.
    Done,
    /// After this time.
    After(Duration),
    /// When a look-up finds a page there again.
    WhenPresent,
    /// When the page's place has changed.
    WhenElsewhere,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("nothing: the page is in its place"),
            Self::After(Duration::ZERO) => f.write_str("looks at once where the page lies"),
            Self::After(time) => write!(f, "tries again after {} s", time.as_secs()),
            Self::WhenPresent => f.write_str("tries again when a look-up finds a page there"),
            Self::WhenElsewhere => f.write_str("leaves the page where it is"),
        }
    }
}

/// What is to be known of an outcome.
struct Class {
    cause: &'static str,
    retry: Retry,
    remedy: &'static str,
}

impl Outcome {
    /// Whether the page lies where it was to go.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Moved | Self::AlreadyThere)
    }

    /// Why a page ends so, in one line: a part of a sentence.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        self.class().cause
    }

    /// When the page may be tried again.
    #[must_use]
    pub const fn retry(self) -> Retry {
        self.class().retry
    }

    /// What an operator can do: a part of a sentence.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        self.class().remedy
    }

    /// The time after which the page may be tried again; `None` if trying again is of no use until
    /// something else (a new map, a new placement) says otherwise.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self.retry() {
            Retry::Done => Some(Duration::ZERO),
            Retry::After(time) => Some(time),
            Retry::WhenPresent | Retry::WhenElsewhere => None,
        }
    }

    const fn class(self) -> Class {
        const fn after(seconds: u64) -> Retry {
            Retry::After(Duration::from_secs(seconds))
        }
        const NOTHING: &str = "nothing";
        let (cause, retry, remedy) = match self {
            Self::Moved => (
                "the page went to its node, and was found there",
                Retry::Done,
                NOTHING,
            ),
            Self::AlreadyThere => (
                "the page lay on its node before: another had moved it, or the guest had freed it and got it anew",
                Retry::Done,
                "nothing; if it is often so, `vmm-tier explain --host` names who else moves pages",
            ),
            Self::Busy => (
                "the kernel could not take the page just now, or did not get to it: the page is in use by a device, \
                 on a list of a CPU, or behind a page that failed",
                after(1),
                "nothing; a page that is always busy may be pinned",
            ),
            Self::Pinned => (
                "a device has the page pinned for the long term (VFIO, vDPA, io_uring, RDMA), or the page's \
                 filesystem can't move pages",
                after(60),
                "unplug the device, or leave the guest out of tiering",
            ),
            Self::Shared => (
                "other processes map the page (vhost-user, a second mapping of the memfd), and the agent lacks \
                 `CAP_SYS_NICE`",
                Retry::WhenElsewhere,
                "give the agent `CAP_SYS_NICE`, and start it again",
            ),
            Self::Absent => (
                "no page is present: the guest never touched it, or gave it back (balloon, free-page reporting, \
                 virtio-mem)",
                Retry::WhenPresent,
                NOTHING,
            ),
            Self::NoMemory => (
                "the target node had no free page for the guest, though its free memory is above the low watermark",
                after(2),
                "look into `/proc/zoneinfo`: the zones that may hold guest memory are full; free memory on the node",
            ),
            Self::NoHugePage => (
                "the target node had no free page of that size: none in its hugetlb pool, or no free memory in one \
                 piece",
                after(2),
                "for a hugetlb guest raise `nr_hugepages` of the node; else write 1 to `/proc/sys/vm/compact_memory`",
            ),
            Self::BelowWatermark => (
                "the target node's free memory is not above its low watermark: the kernel keeps the rest",
                after(2),
                "free memory on the node, or raise `tiers.headroom` of the configuration",
            ),
            Self::Split => (
                "a huge page was split on the way, and only a part of it arrived",
                after(0),
                "free memory on the target node: a huge page is split where none is free there",
            ),
            Self::Resized => (
                "the kernel has made the page part of a huge page, or has split it, since it was looked up: it was \
                 not moved as something else",
                after(0),
                "nothing; if it is often so, `vmm-tier explain --host` shows what collapses or splits pages",
            ),
            Self::WrongNode => (
                "the kernel reported success, but the page lies elsewhere: another has moved it since",
                after(0),
                "`vmm-tier explain --host` names who else moves pages",
            ),
            Self::Cpuset => (
                "the cpuset of QEMU's process does not allow memory on the target node",
                after(10),
                "widen `cpuset.mems` of its control group (libvirt: `numatune`), or leave the node out of `--fast` \
                 and `--slow`",
            ),
            Self::Refused => (
                "the kernel refused the whole call: the permission is missing, or the node is offline",
                after(10),
                "`refused` of `query-tier` says why; run the agent as root",
            ),
            Self::Gone => (
                "the mapping or the process is gone: memory was unplugged, or the guest has ended",
                Retry::WhenPresent,
                "nothing: the agent reads the memory map again",
            ),
        };
        Class {
            cause,
            retry,
            remedy,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_when_told_have_a_cause_and_a_remedy_in_one_line() {
        for outcome in Outcome::ALL {
            for text in [
                outcome.cause(),
                outcome.remedy(),
                &outcome.retry().to_string(),
            ] {
                assert!(
                    !text.is_empty() && !text.contains('\n'),
                    "{outcome}: {text}"
                );
                assert!(
                    !text.contains("  ") && !text.ends_with('.'),
                    "{outcome}: {text}"
                );
            }
            let done = outcome.retry() == Retry::Done;
            assert_eq!(outcome.is_success(), done, "{outcome}");
        }
    }
}
