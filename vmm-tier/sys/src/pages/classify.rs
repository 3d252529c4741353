//! From what the kernel wrote and where the page lies to one outcome. Pure.

use tier_core::{
    addr::{BASE_PAGE, NodeId},
    moves::Outcome,
};

use super::PageStatus;

/// What is known of one page after a move.
pub(super) struct Answers<'a> {
    /// The page's size.
    pub(super) bytes: u64,
    /// The status that the move wrote; `None` if it wrote none.
    pub(super) status: Option<i32>,
    /// Whether a call ended for lack of memory on the target.
    pub(super) no_memory: bool,
    /// Whether the target's free memory is not above its low watermark.
    pub(super) is_below_watermark: bool,
    /// Where the page lay before the move, asked as `nodes`.
    pub(super) before: &'a [PageStatus],
    /// Where the page lies now: its head first, then, for a huge page, some of its other parts.
    pub(super) nodes: &'a [PageStatus],
}

impl Answers<'_> {
    /// The one class that the page ends in. Where it lies counts for more than what was reported.
    pub(super) fn outcome(&self, target: NodeId) -> Outcome {
        let head = self.nodes.first().copied().unwrap_or(PageStatus::Fault);
        // The head may be absent in our victim's page table while the rest is there: a file's pages are
        // mapped one by one after a split.
        match parts(self.nodes, target) {
            (1.., 0) if head.node().is_some() => {
                return match parts(self.before, target) {
                    (1.., 0) => Outcome::AlreadyThere,
                    _ => Outcome::Moved,
                };
            }
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

    /// The page is present and lies elsewhere: why? The numbers are those of move_pages(2).
    fn failure(&self, target: NodeId) -> Outcome {
        match self.status {
            Some(status) if status == i32::from(target.0) => Outcome::WrongNode,
            Some(status) => match status.checked_neg() {
                Some(libc::EACCES) => Outcome::Shared,
                Some(libc::ENOMEM) => self.shortage(),
                // The page's filesystem has no way to move it.
                Some(libc::EINVAL) => Outcome::Pinned,
                // EBUSY, EAGAIN, EIO (write-back); and ENOENT or EFAULT of a page that has come back
                // since.
                _ => Outcome::Busy,
            },
            None if self.no_memory => self.shortage(),
            None => Outcome::Busy,
        }
    }

    /// What the target lacks.
    fn shortage(&self) -> Outcome {
        if self.bytes > BASE_PAGE {
            Outcome::NoHugePage
        } else if self.is_below_watermark {
            Outcome::BelowWatermark
        } else {
            Outcome::NoMemory
        }
    }
}

/// How many of a page's parts lie on the target, and how many elsewhere.
fn parts(nodes: &[PageStatus], target: NodeId) -> (usize, usize) {
    let present = || nodes.iter().filter_map(|status| status.node());
    let there = present().filter(|&node| node == target).count();
    (there, present().count() - there)
}
