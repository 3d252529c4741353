//! The answer of what-if for a host. The JSON is a contract: names and units stay.

use tier_core::arbiter::Mode;

tier_core::words! {
    /// How a guest would do.
    pub enum Verdict {
        /// It loses no more than the limit.
        Fits = "fits",
        /// It loses more.
        Suffers = "suffers",
        /// It would not be admitted: guarantees could not be kept.
        Refused = "refused",
    }
}

tier_core::report! {
    /// What hosts with so much DRAM would be with these guests.
    #[derive(Clone, Debug, PartialEq)]
    pub struct WhatIf = "WhatIf" {
        /// What decides who has how much.
        pub mode: Mode,
        /// For the mode `utility`: which part of its fair share a guest can lose to others.
        pub band: f64,
        /// A guest fits if it takes at most this part longer than with all of its memory in DRAM.
        pub loss_limit: f64,
        /// The share of accesses that `target-bytes` serve.
        pub target_ratio: f64,
        /// How long the guests were played beside each other.
        pub seconds: u32,
        /// Latency of DRAM.
        pub fast_ns: u64,
        /// Latency of the slow tier.
        pub slow_ns: u64,
        /// The recordings.
        pub recordings: Vec<WhatIfRecording>,
        /// Each amount of DRAM, rising.
        pub hosts: Vec<WhatIfHost>,
        /// What readers should know.
        pub notes: Vec<String>,
    }
}

tier_core::report! {
    /// A recorded guest, and how much DRAM it needs if it has that for itself.
    #[derive(Clone, Debug, PartialEq)]
    pub struct WhatIfRecording = "WhatIfRecording" {
        /// Its name.
        pub name: String,
        /// The file.
        pub file: String,
        /// Guests that do what it tells.
        pub guests: u64,
        /// The guest's memory.
        pub memory_bytes: u64,
        /// What of the memory one guest uses, on average: the hottest bytes that take 99 % of a second's
        /// accesses.
        pub used_bytes: u64,
        /// DRAM that serves `target-ratio` of the accesses of one guest.
        pub target_bytes: u64,
        /// DRAM with which one guest loses no more than `loss-limit`.
        pub fits_bytes: u64,
        /// Accesses a second, as far as the recording tells.
        pub accesses_per_s: f64,
        /// How long its virtual CPUs run in a second, all together; absent if that is not known.
        pub vcpu_s_per_s: Option<f64>,
    }
}

tier_core::report! {
    /// A host with the guests.
    #[derive(Clone, Debug, PartialEq)]
    pub struct WhatIfHost = "WhatIfHost" {
        /// DRAM that the guests share.
        pub dram_bytes: u64,
        /// Guests that lose no more than the limit.
        pub fits: u64,
        /// Guests that lose more.
        pub suffers: u64,
        /// Guests that would not be admitted.
        pub refused: u64,
        /// The share of all accesses that DRAM serves.
        pub hit_ratio: f64,
        /// How many times longer the guests take than with all memory in DRAM, on average.
        pub slowdown: f64,
        /// Jain's index over what guests have of what weight and demand entitle them to, on average.
        pub jain: f64,
        /// Bytes a second that guests move as their shares change.
        pub moved_bytes_per_s: f64,
        /// The guests.
        pub guests: Vec<WhatIfGuest>,
        /// How many guests of each recording alone fit.
        pub density: Vec<WhatIfDensity>,
        /// How many times all the guests together fit; absent if that was not asked for.
        pub all_fit_times: Option<u64>,
    }
}

tier_core::report! {
    /// A guest of the host.
    #[derive(Clone, Debug, PartialEq)]
    pub struct WhatIfGuest = "WhatIfGuest" {
        /// Its name.
        pub name: String,
        /// How it would do.
        pub verdict: Verdict,
        /// Why it would not be admitted; absent if it would.
        pub refused_because: Option<String>,
        /// DRAM that it has, on average.
        pub share_bytes: u64,
        /// The least DRAM that it has.
        pub least_share_bytes: u64,
        /// The share of its accesses that DRAM serves; 0 if it would not be admitted.
        pub hit_ratio: f64,
        /// How many times longer it takes than with all of its memory in DRAM; 0 if it would not be
        /// admitted.
        pub slowdown: f64,
    }
}

tier_core::report! {
    /// How many guests of a recording fit.
    #[derive(Clone, Debug, PartialEq)]
    pub struct WhatIfDensity = "WhatIfDensity" {
        /// The recording.
        pub name: String,
        /// The most guests of which each loses no more than the limit. A host has 1000 at most.
        pub guests: u64,
    }
}

tier_core::report! {
    /// What a host would be with another guest.
    #[derive(Clone, Debug, PartialEq)]
    pub struct AddedGuest = "AddedGuest" {
        /// The guest.
        pub recording: WhatIfRecording,
        /// The host without it, by the same model.
        pub now: WhatIfHost,
        /// The host with it.
        pub then: WhatIfHost,
        /// What readers should know.
        pub notes: Vec<String>,
    }
}
