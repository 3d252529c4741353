//! Splitting huge pages, and making them.

use std::io;

use tier_core::{
    addr::{BASE_PAGE, Hva},
    engine::{ReshapeOutcome, ReshapeReport, ReshapeRequest, Shape},
    moves::Page,
};
use tier_sys::{
    pages::{self, PageStatus},
    process::ProcessHandle,
    sysroot::SysRoot,
    thp::{self, CollapseError, SplitError},
};

use super::page_sizes::PageSizes;
use crate::log::with_causes;

/// What became of a request, and why, if an operator must know.
type Ended = (ReshapeOutcome, Option<String>);

/// See the [module](self).
pub(super) struct Reshape {
    root: SysRoot,
    pid: u32,
    process: io::Result<ProcessHandle>,
}

impl Reshape {
    pub(super) fn new(root: &SysRoot, pid: u32) -> Self {
        Self {
            root: root.clone(),
            pid,
            process: ProcessHandle::open(pid),
        }
    }

    /// Carries a request out, and says why the host can't, if it can't.
    pub(super) fn carry_out(
        &self,
        sizes: &PageSizes,
        request: ReshapeRequest,
    ) -> (ReshapeReport, Option<String>) {
        let (outcome, reason) = match request.shape {
            Shape::Split => self.split(sizes, request.page),
            Shape::Collapse => self.collapse(sizes, request.page),
        };
        (ReshapeReport { request, outcome }, reason)
    }

    fn split(&self, sizes: &PageSizes, page: Page) -> Ended {
        match thp::split(&self.root, self.pid, page) {
            Ok(()) if sizes.is_one(page) => (ReshapeOutcome::Busy, None),
            Ok(()) => (ReshapeOutcome::Done, None),
            Err(SplitError::Gone { .. }) => (ReshapeOutcome::Gone, None),
            Err(error @ SplitError::Unavailable(_)) => {
                (ReshapeOutcome::Unavailable, Some(with_causes(&error)))
            }
            Err(SplitError::Kernel { .. }) => (ReshapeOutcome::Busy, None),
        }
    }

    fn collapse(&self, sizes: &PageSizes, page: Page) -> Ended {
        // What is absent the kernel would fill with zeros.
        if !self.is_present_on_one_node(page) {
            return (ReshapeOutcome::Absent, None);
        }
        let Ok(process) = &self.process else {
            return (ReshapeOutcome::Gone, None);
        };
        match thp::collapse(process, page) {
            Ok(()) if sizes.is_one(page) => (ReshapeOutcome::Done, None),
            Ok(()) => (ReshapeOutcome::Busy, None),
            Err(error) => refused(&error),
        }
    }

    fn is_present_on_one_node(&self, page: Page) -> bool {
        let frames = (0..page.bytes).step_by(BASE_PAGE as usize);
        let frames: Vec<Hva> = frames.map(|at| Hva(page.hva.0 + at)).collect();
        let Ok(found) = pages::query_nodes(self.pid, &frames) else {
            return false;
        };
        let mut nodes = found.into_iter().map(PageStatus::node);
        let first = nodes.next().flatten();
        first.is_some() && nodes.all(|node| node == first)
    }
}

fn refused(error: &CollapseError) -> Ended {
    match error {
        CollapseError::Busy(_) => (ReshapeOutcome::Busy, None),
        CollapseError::NoMemory => (ReshapeOutcome::NoMemory, None),
        CollapseError::NotEligible => (ReshapeOutcome::NotEligible, None),
        CollapseError::Gone => (ReshapeOutcome::Gone, None),
        CollapseError::Unavailable(_) => (ReshapeOutcome::Unavailable, Some(with_causes(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_when_not_all_of_it_is_present_is_not_collapsed() {
        let root = SysRoot::real();
        let pid = std::process::id();
        // Nothing of a reserved mapping is present.
        let memory: Vec<u8> = Vec::with_capacity(8 << 20);
        let start = (memory.as_ptr() as u64).next_multiple_of(2 << 20);
        let request = ReshapeRequest {
            id: 1,
            shape: Shape::Collapse,
            page: Page {
                hva: Hva(start),
                bytes: 2 << 20,
            },
        };
        let sizes = PageSizes::open(&root, pid);
        let (report, reason) = Reshape::new(&root, pid).carry_out(&sizes, request);
        assert_eq!(report.outcome, ReshapeOutcome::Absent);
        assert_eq!((report.request, reason), (request, None));
    }

    #[test]
    fn split_when_the_host_has_no_debugfs_says_how_to_mount_it() {
        let folder = tempfile::tempdir().unwrap();
        let reshape = Reshape::new(&SysRoot::at(folder.path()), std::process::id());
        let sizes = PageSizes::open(&SysRoot::real(), std::process::id());
        let page = Page {
            hva: Hva(2 << 20),
            bytes: 2 << 20,
        };
        let (outcome, reason) = reshape.split(&sizes, page);
        assert_eq!(outcome, ReshapeOutcome::Unavailable);
        assert!(reason.unwrap().contains("mount -t debugfs"));
    }
}
