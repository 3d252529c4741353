//! Look-ups of pages that wait, because the guest rests.
//!
//! The engine has one look-up under way at a time, and asks for the next when it has the answer. So the
//! look-up that is put aside while nothing can be moved holds up all that would follow it.

use tier_core::engine::{ScanReport, ScanRequest};

/// See the [module](self).
#[derive(Debug, Default)]
pub(in crate::agent) struct Scans {
    /// Bytes looked up since the guest's layout changed.
    seen_bytes: u64,
    aside: Option<ScanRequest>,
}

impl Scans {
    /// The layout changed: everything must be looked up once.
    pub(in crate::agent) const fn start_over(&mut self) {
        self.seen_bytes = 0;
    }

    /// Takes note of a look-up that was carried out.
    pub(in crate::agent) fn done(&mut self, report: &ScanReport) {
        self.seen_bytes = self.seen_bytes.saturating_add(report.request.span.bytes);
    }

    /// Whether as much was looked up as a guest of `guest_bytes` has.
    pub(in crate::agent) const fn has_seen(&self, guest_bytes: u64) -> bool {
        self.seen_bytes >= guest_bytes
    }

    /// Takes a look-up for later; the engine has given up one that waits already.
    pub(in crate::agent) const fn put_aside(&mut self, request: ScanRequest) {
        self.aside = Some(request);
    }

    /// The look-up that waits.
    pub(in crate::agent) const fn take(&mut self) -> Option<ScanRequest> {
        self.aside.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tier_core::{
        addr::{BASE_PAGE, Hva},
        pages::Span,
    };

    use super::*;

    const MIB: u64 = 1 << 20;

    fn request(id: u64) -> ScanRequest {
        let span = Span {
            hva: Hva(16 * MIB),
            bytes: 16 * MIB,
            frame_bytes: BASE_PAGE,
        };
        ScanRequest { id, span }
    }

    fn report(id: u64) -> ScanReport {
        ScanReport {
            request: request(id),
            folios: Vec::new(),
            pages: Vec::new(),
            cpu_time: Duration::ZERO,
        }
    }

    #[test]
    fn guest_when_all_of_it_was_looked_up_is_seen_until_its_layout_changes() {
        let mut scans = Scans::default();
        scans.done(&report(1));
        assert!(!scans.has_seen(32 * MIB));
        scans.done(&report(2));
        assert!(scans.has_seen(32 * MIB));

        scans.start_over();

        assert!(!scans.has_seen(32 * MIB));
    }

    #[test]
    fn look_up_when_put_aside_gives_way_to_that_of_a_new_layout() {
        let mut scans = Scans::default();
        scans.put_aside(request(1));
        scans.put_aside(request(2));
        assert_eq!(scans.take(), Some(request(2)));
        assert_eq!(scans.take(), None);
    }
}
