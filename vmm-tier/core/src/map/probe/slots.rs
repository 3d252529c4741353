//! Memory devices of which only parts are mapped: virtio-mem with dynamic memslots.
//!
//! QEMU cuts such a device into at most [`MAX_SLOTS`] equal slots of at least [`MIN_SLOT`]; only the last
//! may be shorter. A slot is mapped while something is plugged in it. So no hole and no mapped run is
//! shorter than a slot, except at the device's end, and probes one slot apart miss none.

use crate::addr::{BASE_PAGE, Hva};

use super::{DiscoverError, GpaProbe, MemoryDevice, Probe, Search};

/// `VIRTIO_MEM_MIN_MEMSLOT_SIZE` in QEMU's hw/virtio/virtio-mem.c.
const MIN_SLOT: u64 = 1 << 30;
/// `MEMORY_DEVICES_SOFT_MEMSLOT_LIMIT` in QEMU's hw/mem/memory-device.c.
const MAX_SLOTS: u64 = 256;

/// How far apart the probes in a device of `len` bytes may be.
pub(super) fn stride(len: u64) -> u64 {
    (len / MAX_SLOTS).max(MIN_SLOT) & !(BASE_PAGE - 1)
}

impl<P: GpaProbe> Search<'_, P> {
    /// Finds the ranges of a device that may have holes, as far as they are not found yet.
    pub(super) fn scan(&mut self, device: MemoryDevice) -> Result<(), DiscoverError<P::Error>> {
        let end = device.gpa.saturating_add(device.len);
        let last = end.saturating_sub(BASE_PAGE);
        let mut unmapped = None;
        let mut gpa = device.gpa;
        while gpa < end && !self.is_complete() {
            if let Some(range) = self.range_of(gpa) {
                gpa = range.gpa_end();
                unmapped = None;
                continue;
            }
            if let Probe::Mapped { hva, region_name } = self.ask(gpa)? {
                let start = match unmapped {
                    Some(unmapped) => self.beginning(unmapped, gpa, hva, &region_name)?,
                    None => gpa,
                };
                if let Some(next) = self.try_range(start)? {
                    gpa = next;
                    unmapped = None;
                    continue;
                }
            }
            if gpa >= last {
                break;
            }
            unmapped = Some(gpa);
            gpa = gpa.saturating_add(stride(device.len)).min(last);
        }
        Ok(())
    }

    /// Where the run begins that holds `inside`, at `hva`; `outside`, below it, is not mapped.
    fn beginning(
        &mut self,
        mut outside: u64,
        inside: u64,
        hva: Hva,
        region: &str,
    ) -> Result<u64, DiscoverError<P::Error>> {
        let mut begin = inside;
        while begin - outside > BASE_PAGE {
            let middle = outside + (((begin - outside) / 2) & !(BASE_PAGE - 1)).max(BASE_PAGE);
            let answer = self.ask(middle)?;
            let belongs = matches!(answer, Probe::Mapped { hva: there, region_name }
                if there.checked_add(inside - middle) == Some(hva) && region_name == region);
            if belongs {
                begin = middle;
            } else {
                outside = middle;
            }
        }
        Ok(begin)
    }
}
