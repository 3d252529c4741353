//! From what the kernel wrote and where the page lies now to one outcome. Pure.

use tier_core::{addr::NodeId, moves::Outcome};

use super::PageStatus;

/// What is known of one page after a move.
pub(super) struct Answers<'a> {
    /// The status that the move wrote; `None` if it wrote none.
    pub(super) status: Option<i32>,
    /// Whether a call ended for lack of memory on the target.
    pub(super) no_memory: bool,
    /// Where the page lies now: its head first, then, for a huge page, some of its other parts.
    pub(super) nodes: &'a [PageStatus],
}

impl Answers<'_> {
    /// The one class that the page ends in. Where it lies counts for more than what was reported.
    pub(super) fn outcome(&self, target: NodeId) -> Outcome {
        let head = self.nodes.first().copied().unwrap_or(PageStatus::Fault);
        let there = self
            .nodes
            .iter()
            .filter(|status| status.node() == Some(target))
            .count();
        let elsewhere = self
            .nodes
            .iter()
            .filter(|status| status.node().is_some_and(|node| node != target))
            .count();
        match (there, elsewhere) {
            // The head may be absent in our victim's page table while the rest is there: a file's
            // pages are mapped one by one after a split.
            (1.., 0) if head.node().is_some() => return Outcome::Moved,
            (1.., 1..) => return Outcome::Split,
            _ => {}
        }
        match head {
            PageStatus::Absent => Outcome::Absent,
            PageStatus::Fault => Outcome::Gone,
            PageStatus::Error(_) => Outcome::Busy,
            PageStatus::Node(_) => self.failure(target),
        }
    }

    /// The page is present and lies elsewhere: why?
    fn failure(&self, target: NodeId) -> Outcome {
        match self.status {
            Some(status) if status == i32::from(target.0) => Outcome::WrongNode,
            Some(status) => match -status {
                libc::EACCES => Outcome::Shared,
                libc::ENOMEM => Outcome::NoMemory,
                // EBUSY, EAGAIN, EIO (write-back); and ENOENT or EFAULT of a page that has come back
                // since.
                _ => Outcome::Busy,
            },
            None if self.no_memory => Outcome::NoMemory,
            None => Outcome::Busy,
        }
    }
}
