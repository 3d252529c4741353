//! The host-physical addresses of the guest's pages: QEMU's page table read backwards, and kept up to
//! date.

use std::time::{Duration, Instant};

use tier_core::{addr::Hva, map::GuestMemoryMap};
use tier_sys::{
    inverse::{InverseMap, RereadBudget},
    pagemap::Pagemap,
    process,
    sysroot::SysRoot,
};

/// Reading pages again for less is not worth the calls.
const LEAST_READING: Duration = Duration::from_millis(1);

/// See the [module](self).
pub(super) struct Frames {
    pid: u32,
    pagemap: Pagemap,
    inverse: InverseMap,
    budget: RereadBudget,
    /// Addresses that were found, and those that were not, that the budget has not seen yet.
    hits: u64,
    misses: u64,
}

impl Frames {
    /// Reads where the pages of `map` lie in process `pid`.
    pub(super) fn read(root: &SysRoot, pid: u32, map: &GuestMemoryMap) -> anyhow::Result<Self> {
        let pagemap = Pagemap::open(root, pid)?;
        Ok(Self {
            pid,
            inverse: inverse_of(&pagemap, map)?,
            pagemap,
            budget: RereadBudget::default(),
            hits: 0,
            misses: 0,
        })
    }

    /// Where QEMU has the byte at this physical address; `None` if it is none of the guest's.
    #[inline]
    pub(super) fn locate(&mut self, physical: u64) -> Option<Hva> {
        let found = self.inverse.locate(physical);
        match found {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        found
    }

    /// Reads the pages of another map.
    pub(super) fn set_map(&mut self, map: &GuestMemoryMap) -> anyhow::Result<()> {
        self.inverse = inverse_of(&self.pagemap, map)?;
        self.budget.start_over();
        Ok(())
    }

    /// The guest is at rest, or no longer.
    pub(super) const fn set_at_rest(&mut self, at_rest: bool) {
        self.budget.set_at_rest(at_rest);
    }

    /// Reads these pages (host-virtual start, bytes) again.
    pub(super) fn moved(&mut self, pages: &[(Hva, u64)]) {
        if let Err(error) = self.inverse.refresh(&self.pagemap, pages) {
            // The next poll meets the same, and ends the source.
            tracing::debug!(pid = self.pid, "moved pages can't be read again: {error}");
        }
    }

    /// Reads a part of the page table again, for as long as that may take. Returns the CPU time it took.
    pub(super) fn reread(&mut self, wall: Duration) -> anyhow::Result<Duration> {
        let (hits, misses) = (&mut self.hits, &mut self.misses);
        self.budget
            .observe(std::mem::take(hits), std::mem::take(misses));
        let allowed = self.budget.allowance(wall);
        if allowed < LEAST_READING {
            return Ok(Duration::ZERO);
        }
        let began = process::thread_cpu_time();
        let spent = || process::thread_cpu_time().saturating_sub(began);
        let done = self.inverse.roll(&self.pagemap, || spent() < allowed)?;
        let spent = spent();
        self.budget.took(done, spent);
        if done.changed > 0 {
            let (changed, urgent) = (done.changed, self.budget.is_urgent());
            tracing::trace!(pid = self.pid, changed, urgent, "pages read again");
        }
        Ok(spent)
    }
}

/// The whole inverse map of a guest.
fn inverse_of(pagemap: &Pagemap, map: &GuestMemoryMap) -> anyhow::Result<InverseMap> {
    let began = Instant::now();
    let mut inverse = InverseMap::new(&map.unique_hva_ranges())?;
    let done = inverse.roll(pagemap, || true)?;
    tracing::debug!(
        entries = done.read,
        found_mib = inverse.bound_bytes() >> 20,
        map_kib = inverse.memory_bytes() >> 10,
        left_out = inverse.left_out(),
        took = ?began.elapsed(),
        "inverse page map"
    );
    Ok(inverse)
}
