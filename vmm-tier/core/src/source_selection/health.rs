//! How a source does, and why.

use crate::sample::DropReason;

crate::words! {
    /// How a source does, in one word.
    pub enum HealthWord {
        /// Others serve better.
        Resting = "resting",
        /// It is being opened.
        Opening = "opening",
        /// It is open, and has not been tried long enough.
        OnTrial = "on-trial",
        /// It delivers.
        Good = "good",
        /// Nothing comes, though the guest runs.
        Silent = "silent",
        /// Records come, and none can be used.
        Broken = "broken",
        /// It can't be opened, or ended.
        Down = "down",
    }
}

/// How a source does, and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// Others serve better.
    Resting,
    /// It is being opened.
    Opening,
    /// It is open, and has not been tried long enough.
    OnTrial,
    /// It delivers.
    Good,
    /// Nothing comes, though the guest runs.
    Silent {
        /// What may be wrong.
        reason: String,
    },
    /// Records come, and none can be used.
    Broken {
        /// The likeliest cause.
        reason: String,
    },
    /// It can't be opened, or ended.
    Down {
        /// Why.
        reason: String,
    },
}

impl Health {
    /// The word that users read.
    #[must_use]
    pub const fn word(&self) -> HealthWord {
        match self {
            Self::Resting => HealthWord::Resting,
            Self::Opening => HealthWord::Opening,
            Self::OnTrial => HealthWord::OnTrial,
            Self::Good => HealthWord::Good,
            Self::Silent { .. } => HealthWord::Silent,
            Self::Broken { .. } => HealthWord::Broken,
            Self::Down { .. } => HealthWord::Down,
        }
    }

    /// What is wrong, if something is.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Silent { reason } | Self::Broken { reason } | Self::Down { reason } => {
                Some(reason)
            }
            _ => None,
        }
    }

    pub(super) const fn delivers(&self) -> bool {
        matches!(self, Self::OnTrial | Self::Good)
    }
}

/// Why records are dropped for one reason and no other, in a source whose records are all dropped.
#[must_use]
pub const fn likely_cause(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Malformed => {
            "they are not what this kernel version writes; report it with the kernel's version"
        }
        DropReason::ForeignTarget => "they are of another process",
        DropReason::NotGuestRam => {
            "their addresses are not in the guest's memory: only the host's own accesses are seen, or \
             addresses are of the guest's page tables"
        }
        DropReason::StaleMap => "the memory map changes faster than they come",
        DropReason::QueueFull => "the agent can't keep up: the host's CPUs are overloaded",
        DropReason::Paused => "tiering is paused",
        DropReason::NoAddress => {
            "they carry no address: the hardware, or what the hypervisor above shows of it, can't give one"
        }
        DropReason::WrongMode => "all were made by the host's kernel, none by the guest",
        DropReason::Unmapped => {
            "their host-physical addresses are none of the guest's pages: the inverse map is out of date, \
             or the guest does not run"
        }
        DropReason::Hostile => "the guest's agent breaks the protocol: update it",
        DropReason::RateLimited => "the guest's agent sends more than it may",
        DropReason::OutOfSequence => "the guest's agent repeats itself: restart it",
    }
}
