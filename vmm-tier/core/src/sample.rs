//! What a source of accesses delivers: samples, and an account of everything that arrived.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    addr::{Gpa, Hva},
    time::Time,
};

crate::words! {
    /// A kind of source.
    pub enum SourceKind {
        /// DAMON on QEMU's address space.
        Damon = "damon",
        /// AMD's instruction-based sampling of the vCPU threads.
        Ibs = "ibs",
        /// Intel's PEBS on the vCPU threads.
        Pebs = "pebs",
        /// An agent inside the guest.
        Guest = "guest",
        /// A recording of another source.
        Replay = "replay",
    }
}

crate::words! {
    /// Which accesses a source can see at all.
    pub enum Sight {
        /// The guest's own.
        Guest = "guest",
        /// Only those of QEMU and the host's kernel: device emulation, say.
        HostMode = "host-mode",
    }
}

/// Where an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleAddress {
    /// A virtual address in the QEMU process.
    Host(Hva),
    /// A guest-physical address.
    Guest(Gpa),
}

/// What kind of access was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessKind {
    /// A read.
    Load,
    /// A write.
    Store,
    /// The source does not tell reads from writes (accessed bits).
    Any,
}

/// One observation: `weight` accesses were seen at each page of `address .. address + len`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccessSample {
    /// Where the observation begins.
    pub address: SampleAddress,
    /// Bytes the observation speaks for: 1 for a sampled access, a region's length for DAMON.
    pub len: u64,
    /// The number of observed events for each page in the range. This is a *count* (the significance
    /// test treats it as Poisson): 1 for a sampled access, the number of sampling intervals in which
    /// the region was found accessed for DAMON. Zero says "watched and found idle".
    pub weight: f32,
    /// The kind of access.
    pub kind: AccessKind,
}

crate::words! {
    /// Why a record of a source did not become a sample.
    pub enum DropReason {
        /// The record is shorter than its own fields or its numbers contradict each other.
        Malformed = "malformed",
        /// The record belongs to another target than this guest.
        ForeignTarget = "foreign-target",
        /// The address is in none of the guest's RAM ranges.
        NotGuestRam = "not-guest-ram",
        /// The record was made under an older memory map.
        StaleMap = "stale-map",
        /// A bounded queue on the way was full.
        QueueFull = "queue-full",
        /// The agent was paused when the record arrived.
        Paused = "paused",
        /// The record carries no usable address.
        NoAddress = "no-address",
        /// The access was made in a mode that says nothing of the guest.
        WrongMode = "wrong-mode",
        /// The host-physical address is none of the guest's pages.
        Unmapped = "unmapped",
        /// A guest's agent broke the protocol.
        Hostile = "hostile",
        /// A guest's agent sent more than it may.
        RateLimited = "rate-limited",
        /// A guest's agent sent it again, or too late.
        OutOfSequence = "out-of-sequence",
    }
}

crate::report! {
    /// What became of a source's records: `samples` is `accepted` plus all `dropped`.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct SampleAccount = "TierSampleAccount" {
        /// Records that came out of the source.
        #[metric(exempt = "the sum of accepted and dropped records")]
        pub samples: u64,
        /// Records that could be used.
        #[metric(counter = "source_accepted_records", since = "the agent's start")]
        pub accepted: u64,
        /// Records that could not be used, by reason; see the guide to sources.
        #[metric(counter = "source_dropped_records", by = "reason", since = "the agent's start")]
        pub dropped: BTreeMap<DropReason, u64>,
        /// Records lost because there was no room for them.
        #[metric(counter = "source_lost_records", since = "the agent's start")]
        pub lost: u64,
        /// Times the kernel throttled the source.
        #[metric(counter = "source_throttles", since = "the agent's start")]
        pub throttled: u64,
    }
}

impl SampleAccount {
    /// Counts `n` arrived records as dropped for `reason`.
    pub fn drop_records(&mut self, reason: DropReason, n: u64) {
        if n == 0 {
            return;
        }
        self.samples += n;
        *self.dropped.entry(reason).or_default() += n;
    }

    /// Counts `n` arrived records as accepted.
    pub fn accept(&mut self, n: u64) {
        self.samples += n;
        self.accepted += n;
    }

    /// Adds another account to this one.
    pub fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.accepted += other.accepted;
        self.lost += other.lost;
        self.throttled += other.throttled;
        for (&reason, &n) in &other.dropped {
            *self.dropped.entry(reason).or_default() += n;
        }
    }

    /// Whether every arrived record is accounted for.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.samples == self.accepted + self.dropped.values().sum::<u64>()
    }
}

/// What a source delivers at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleBatch {
    /// Who observed.
    pub source: SourceKind,
    /// When the observation ended.
    pub end: Time,
    /// How long was observed.
    pub span: Duration,
    /// How often each page was tested in `span`, for a source that tests pages (DAMON's sampling
    /// intervals): no weight is larger. 0 for a source that counts accesses.
    pub tests: u32,
    /// The accesses that one count stands for: the period of a source that samples one access in so
    /// many. 1 for a source that tests pages.
    pub period: u64,
    /// Whether the source tells hot from warm as well as it ever will. While it still looks for its pace
    /// its samples are no ground to move pages.
    pub settled: bool,
    /// The generation of the memory map under which the source was set up.
    pub map_generation: u64,
    /// The observations.
    pub samples: Vec<AccessSample>,
    /// What the source itself lost or dropped since its last batch. `samples` and `accepted` of the
    /// records in `samples` are counted by whoever takes the batch.
    pub account: SampleAccount,
}

impl SampleBatch {
    /// The tests that could find a page used, for a source that tests pages: those in which the guest
    /// ran. A guest whose CPUs wait leaves no page used, which says nothing of any page; the most used
    /// page shows how often it ran. At least half of the tests: where nothing is used often, the most
    /// used page rather shows that the guest is idle.
    #[must_use]
    pub fn looks(&self) -> f64 {
        let tests = f64::from(self.tests);
        let most = self.samples.iter().map(|sample| f64::from(sample.weight));
        most.fold(tests / 2.0, f64::max).min(tests)
    }
}
