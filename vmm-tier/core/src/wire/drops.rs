//! What the guest's agent lost or left out: four sums that batches and statuses carry.

use super::{
    WireError,
    varint::{Reader, put},
};

/// What the guest's agent lost or left out, summed over the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Records without a usable address.
    pub no_address: u64,
    /// Observations for which there was no credit.
    pub no_credit: u64,
    /// Records that the guest's kernel had no room for.
    pub lost: u64,
    /// Times the guest's kernel throttled the source.
    pub throttled: u64,
}

impl Drops {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for value in [self.no_address, self.no_credit, self.lost, self.throttled] {
            put(out, value);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            no_address: reader.number()?,
            no_credit: reader.number()?,
            lost: reader.number()?,
            throttled: reader.number()?,
        })
    }

    /// All that was left out.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let dropped = self.no_address.saturating_add(self.no_credit);
        dropped.saturating_add(self.lost)
    }
}
