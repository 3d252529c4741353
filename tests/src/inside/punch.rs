//! Takes pages away from a guest, as a balloon does, and sees where they come back.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FallocateFlags, fallocate};
use tier_sys::maps::{self, Mapping};
use tier_sys::sysroot::SysRoot;

use super::scaled;
use crate::sys::pages_on_nodes;

const PAGE: u64 = 4096;
/// How long the guest may take to touch its hot pages again, on the reference machine.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// The share of the pages that is waited for: a guest that picks them at random takes long for the last.
const BACK: f64 = 0.99;

/// Where pages came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Back {
    /// Pages that came back.
    pub(super) pages: usize,
    /// Those of them that lie on node 0.
    pub(super) fast: usize,
}

impl Back {
    /// By what the kernel says of each page.
    fn of(nodes: &[i32]) -> Self {
        Self {
            pages: nodes.iter().filter(|&&node| node >= 0).count(),
            fast: nodes.iter().filter(|&&node| node == 0).count(),
        }
    }

    /// The share of the pages that lies on node 0; 0 without any page.
    pub(super) fn share(self) -> f64 {
        self.fast as f64 / self.pages.max(1) as f64
    }
}

/// Punches the pages of 4 KiB at these addresses of process `pid` out of the files that back them, and
/// waits until most of them are there again.
///
/// # Errors
/// When the memory is not shared, a hole can't be punched, or the pages stay away.
pub(super) fn punch(pid: u32, pages: &[usize]) -> anyhow::Result<Back> {
    if pages.is_empty() {
        bail!("where the hot pages are is not known yet");
    }
    let addresses: Vec<u64> = pages.iter().map(|&page| page as u64).collect();
    let holds = |mapping: &Mapping, page: u64| (mapping.start.0..mapping.end.0).contains(&page);
    let holds_one = |mapping: &Mapping| addresses.iter().any(|&page| holds(mapping, page));
    let mappings = maps::read(&SysRoot::real(), pid, holds_one).context("QEMU's mappings")?;
    for mapping in &mappings {
        let (start, end) = (mapping.start.0, mapping.end.0);
        if !mapping.permissions.ends_with('s') {
            bail!("the memory at {start:#x} is not shared");
        }
        let path = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("opening {path}"))?;
        for page in addresses.iter().filter(|&&page| holds(mapping, page)) {
            let offset = mapping.offset + (page - start);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, flags, offset, PAGE)
                .with_context(|| format!("punching {path} at {offset:#x}"))?;
        }
    }
    let patience = scaled(BACK_WITHIN);
    let began = Instant::now();
    loop {
        let back = Back::of(&pages_on_nodes(pid, pages)?);
        if back.pages as f64 >= BACK * pages.len() as f64 {
            return Ok(back);
        }
        if began.elapsed() > patience {
            let (back, all) = (back.pages, pages.len());
            bail!(
                "{back} of {all} hot pages came back in {:.0} s",
                patience.as_secs_f64()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_when_some_pages_are_away_counts_those_that_are_there() {
        let back = Back::of(&[0, 1, -libc::ENOENT, 0]);
        assert_eq!((back.pages, back.fast), (3, 2));
        assert!((back.share() - 2.0 / 3.0).abs() < 1e-9);
        assert!(Back::of(&[]).share() < f64::EPSILON);
    }
}
