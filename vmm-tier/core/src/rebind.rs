//! Rebinding: the tier from which the next page of a piece of guest memory comes.
//!
//! Where a page lies says nothing of the page that takes its place once the guest has given it back
//! (balloon, free-page reporting, virtio-mem): the kernel takes that from where the memory's NUMA policy
//! says. So pieces of shared memory whose pages lie on one tier get a policy that prefers this tier.

use crate::{addr::Hva, map::Backing, settings::Tier};

/// Memory of QEMU that is divided into pieces of one size; the last may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The first byte.
    pub start: Hva,
    /// The length in bytes.
    pub bytes: u64,
    /// The size of a piece in bytes: a power of two, at least 2 MiB.
    pub piece_bytes: u64,
}

/// Whole pieces of an area, one after the other, whose next pages are to come from one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The area.
    pub area: Area,
    /// The first byte of the first piece.
    pub start: Hva,
    /// The length in bytes.
    pub bytes: u64,
    /// The tier.
    pub tier: Tier,
}

/// What became of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebound {
    /// The next pages come from the tier, as far as it has room.
    Bound,
    /// Somebody else has set a policy there meanwhile, which stays.
    Foreign,
    /// The policy could not be set.
    Failed,
}

/// What became of bindings: each part of each of them once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebindReport {
    /// Parts of bindings: whole pieces, with what became of them.
    pub results: Vec<(Binding, Rebound)>,
}

crate::words! {
    /// Whether the next pages of a RAM block come from the tier on which its pages lie.
    pub enum BlockState {
        /// They do, as far as most pages of a piece lie on one tier.
        Bound = "bound",
        /// They could, but no piece of the block is bound yet.
        Waiting = "waiting",
        /// They could, but it is not asked for.
        Off = "off",
        /// They can't: `reason` says why. Pages are moved after they came back.
        Cannot = "cannot",
    }
}

crate::report! {
    /// Rebinding of a RAM block.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct BlockRebinding = "TierRebindBlock" {
        /// QEMU's name of the block.
        pub name: String,
        /// Its address in QEMU.
        pub address: Hva,
        /// Whether its next pages come from the tier on which its pages lie.
        pub rebind: BlockState,
        /// Why they can't, if they can't.
        pub reason: Option<&'static str>,
    }
}

crate::report! {
    /// Rebinding: memory whose next pages come from the tier on which its pages lie.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Rebinding = "TierRebind" {
        /// Memory whose next pages come from the fast tier.
        #[metric(gauge = "bound_fast_bytes")]
        pub fast_bytes: u64,
        /// Memory whose next pages come from the slow tier.
        #[metric(gauge = "bound_slow_bytes")]
        pub slow_bytes: u64,
        /// Memory for which somebody else has set a policy since; it stays.
        #[metric(gauge = "foreign_policy_bytes")]
        pub foreign_bytes: u64,
        /// Policies set.
        #[metric(counter = "policies_set", since = "the agent's start")]
        pub policies_set: u64,
        /// The RAM blocks.
        #[metric(exempt = "changes with the layout only; `bound_fast_bytes` and `bound_slow_bytes` are the sums")]
        pub blocks: Vec<BlockRebinding>,
    }
}

/// Why no policy can be set for memory with this backing, if none can.
#[must_use]
pub const fn why_not(backing: Option<Backing>) -> Option<&'static str> {
    match backing {
        Some(Backing::Shmem) => None,
        Some(Backing::Hugetlb) => Some(
            "hugetlbfs has no shared policy: the next page comes from where the memory backend's policy says, and is \
             moved then",
        ),
        Some(Backing::Anonymous) => Some(
            "only the owner of private memory can set its policy: the next page comes from where the memory backend's \
             policy says, and is moved then; a memfd backend (memory-backend-memfd) can be bound",
        ),
        Some(Backing::File) => Some("files on a disk have no shared policy"),
        None => Some("what backs the block is not known"),
    }
}
