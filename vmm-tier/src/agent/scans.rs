//! Look-ups of pages that wait, because the guest rests.
//!
//! The engine has one look-up under way at a time, and asks for the next when it has the answer. So the look-up that
//! is put aside while nothing can be moved holds up all that would follow it.

use tier_core::engine::{ScanReport, ScanRequest};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Scans {
    /// Bytes looked up since the guest's layout is as it is.
    seen_bytes: u64,
    aside: Option<ScanRequest>,
}

impl Scans {
    /// The layout changed: everything must be looked up once.
    pub(super) const fn start_over(&mut self) {
        self.seen_bytes = 0;
    }

    /// Takes note of a look-up that was carried out.
    pub(super) fn done(&mut self, report: &ScanReport) {
        self.seen_bytes = self.seen_bytes.saturating_add(report.request.span.bytes);
    }

    /// Whether as much was looked up as a guest of so many bytes has.
    pub(super) const fn has_seen(&self, guest_bytes: u64) -> bool {
        self.seen_bytes >= guest_bytes
    }

    /// Takes a look-up for later; the engine has given up one that waits already.
    pub(super) const fn put_aside(&mut self, request: ScanRequest) {
        self.aside = Some(request);
    }

    /// The look-up that waits.
    pub(super) const fn take(&mut self) -> Option<ScanRequest> {
        self.aside.take()
    }
}
