//! The pin as an operator orders it, its status, and why a range can't be pinned.

use serde::Deserialize;

use crate::{
    addr::{Gpa, gpa_number},
    settings::Tier,
};

/// The most pins a VM may have.
pub const MAX_PINS: usize = 1024;

crate::words! {
    /// What to do when the tier has no room for a pinned range.
    pub enum WhenFull {
        /// Refuse the pin.
        Refuse = "refuse",
        /// Make room by demoting the coldest pages that are not pinned, whatever their heat.
        Demote = "demote",
        /// Move as much as fits; the rest stays where it is until there is room.
        Fill = "fill",
    }
}

crate::report! {
    /// A pin as it was set: a range of guest memory that is to stay on a tier.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
    pub struct Pin = "TierPin" {
        /// The first guest-physical address, a multiple of 4096.
        #[serde(with = "gpa_number")]
        pub start: Gpa,
        /// The length, a multiple of 4096.
        pub bytes: u64,
        /// Where the range is to be.
        pub tier: Tier,
        /// What is done when the range does not fit there.
        pub when_full: WhenFull,
    }
}

crate::report! {
    /// What was pinned, or taken back. Bytes are those of whole pages, also where a page lies only
    /// partly in a pin.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PinReport = "TierPinReport" {
        /// Pins made or taken back.
        pub pins: u64,
        /// The length of their ranges.
        pub bytes: u64,
        /// Present pages that lie on the pin's tier.
        pub placed_bytes: u64,
        /// Present pages that lie on the other tier; after `tier-pin`, what is going to be moved.
        pub elsewhere_bytes: u64,
    }
}

crate::report! {
    /// A pin, and how many of its pages are in place.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PinStatus = "TierPinStatus" {
        /// The first guest-physical address.
        #[serde(with = "gpa_number")]
        pub start: Gpa,
        /// The length.
        pub bytes: u64,
        /// Where the range is to be.
        pub tier: Tier,
        /// What is done when the range does not fit there.
        pub when_full: WhenFull,
        /// Present pages on that tier, in bytes of whole pages.
        pub placed_bytes: u64,
        /// Present pages on the other tier.
        pub elsewhere_bytes: u64,
    }
}

crate::report! {
    /// All pins together.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PinsSnapshot = "TierPinsTotal" {
        /// Pins in force.
        #[metric(gauge = "pins")]
        pub count: u64,
        /// Length of the ranges pinned to the fast tier.
        #[metric(gauge = "pinned_fast_bytes")]
        pub fast_bytes: u64,
        /// Length of the ranges pinned to the slow tier.
        #[metric(gauge = "pinned_slow_bytes")]
        pub slow_bytes: u64,
        /// Present pinned pages that lie on the tier that they are pinned to.
        #[metric(gauge = "pinned_placed_bytes")]
        pub placed_bytes: u64,
        /// Present pinned pages that lie on the other tier.
        #[metric(gauge = "pinned_elsewhere_bytes")]
        pub elsewhere_bytes: u64,
    }
}

/// Why a range can't be pinned or unpinned. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// No map yet.
    #[error("the guest's memory map is not known yet; try again when the state is running")]
    NoMap,
    /// Start or length are not whole pages, or the range is empty or ends past the address space.
    #[error("{bytes} bytes at {start:#x} are not one or more whole pages of 4096 bytes")]
    Unaligned {
        /// The first guest-physical address.
        start: u64,
        /// The length.
        bytes: u64,
    },
    /// Part of the range is not guest RAM.
    #[error("guest address {0:#x} is not guest RAM")]
    NotRam(u64),
    /// Another pin has a part of the range, or of the same memory at another address.
    #[error("the range overlaps the pin of {bytes} bytes at {start:#x}; unpin that one first")]
    Overlaps {
        /// Where the other begins.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// There are as many pins as there may be.
    #[error("there are {MAX_PINS} pins already, which is the most; unpin a range first")]
    TooMany,
    /// The tier can't take the range now.
    #[error(
        "the {tier} tier can't take the range: {need_bytes} bytes are needed, {room_bytes} are to be \
         had; demote, unpin or raise the limit first, or pin with fill"
    )]
    NoRoom {
        /// The tier.
        tier: Tier,
        /// Bytes that are not there yet.
        need_bytes: u64,
        /// Bytes that the free memory, the limit and other pins leave.
        room_bytes: u64,
    },
    /// Unpinning would cut a pin in two.
    #[error("the range would cut the pin of {bytes} bytes at {start:#x}; unpin it whole")]
    Cut {
        /// Where that pin begins.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// There is no pin in the range.
    #[error("no pin lies in the {bytes} bytes at {start:#x}")]
    NoPin {
        /// The first guest-physical address.
        start: u64,
        /// The length.
        bytes: u64,
    },
}

impl Pin {
    /// The guest-physical address after the last; checked when the pin was made.
    pub(crate) const fn end(&self) -> u64 {
        self.start.0.saturating_add(self.bytes)
    }

    pub(crate) const fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start.0 < end && start < self.end()
    }
}
