//! Room: how many bytes fit on a tier. The one answer for plans, pins, limits and explanations.
//!
//! Three bounds, of which the lowest holds:
//! - The free bytes of a node above its high watermark. On the fast tier the headroom stays free beyond the
//!   watermark, for allocations of the guest. Pages on the lists of single CPUs count: the kernel gives them
//!   out first. It does not count them itself, so without them a node must keep its low watermark: an
//!   allocation below it wakes the kernel's reclaim, which goes on up to the high one (`get_page_from_freelist`
//!   and `balance_pgdat`, mm/page_alloc.c and mm/vmscan.c). Between the two nothing is reclaimed; to stop at the high
//!   one would leave what the CPUs hold, an eighth of each zone, unused for good.
//! - The operator's limit on what the guest holds of the fast tier, with promotions under way counted as
//!   there.
//! - The room of a tier is that of its node with the most: a huge page must fit on one node. Pages that
//!   fit there all find room, also if nearer nodes are filled first ([`crate::nearness`]).
//!
//! Room is asked for frames of a size. Small frames, to which transparent huge pages fold, come from the
//! node's free memory, as above. A frame of a hugetlb pool comes from the node's pool: only a free page
//! that is promised to nobody counts. Where the pool has none the kernel takes a page from the free
//! memory instead, and gives it the page that was left: the pools are no longer as the administrator
//! left them, unless a page comes the other way at once. Such pairs need free memory on both nodes while
//! they are made. Where the operator lets the pool of the fast node grow, its free memory is room as
//! well.
//!
//! A node that a cpuset closes to QEMU or to the agent has no room of any kind: no page is moved onto
//! it.
//!
//! Room is signed. Where it is negative, headroom is owed: that many bytes must be demoted before any is
//! promoted.

use std::collections::BTreeMap;

use crate::{
    addr::{BASE_PAGE, NodeId, NodeSet},
    constraints::ClosedNode,
    settings::{EngineSettings, Tier},
    tiers::Tiers,
};

/// What a hugetlb pool has on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolMemory {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes of free pages that are promised to nobody, and whose use leaves the pools as they are.
    pub free_bytes: u64,
    /// Bytes of pages that may change places with the other tier at once while the pools stay as they
    /// are, as far as the pool is concerned; 0 where the kernel would use up free pages, or can't make
    /// such pages.
    pub pair_bytes: u64,
    /// Whether promotions may make the pool larger by pages from the node's free memory, as the operator
    /// allows and the pool can.
    pub grows: bool,
}

/// Memory of one node, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// The node.
    pub node: NodeId,
    /// Free bytes.
    pub free_bytes: u64,
    /// Bytes on the lists of single CPUs: free, but not counted as free.
    pub cached_bytes: u64,
    /// The low watermark in bytes, summed over the node's zones: an allocation below it wakes reclaim.
    pub low_watermark_bytes: u64,
    /// The high watermark in bytes, summed over the node's zones: up to it the kernel reclaims.
    pub high_watermark_bytes: u64,
    /// The hugetlb pools.
    pub pools: Vec<PoolMemory>,
}

impl NodeMemory {
    /// A node of which only the free memory counts: without watermarks, lists of CPUs and pools.
    #[must_use]
    pub const fn with_free(node: NodeId, free_bytes: u64) -> Self {
        Self {
            node,
            free_bytes,
            cached_bytes: 0,
            low_watermark_bytes: 0,
            high_watermark_bytes: 0,
            pools: Vec::new(),
        }
    }

    /// Free bytes that may be promoted into: above the watermark and the headroom.
    #[must_use]
    pub fn promotable_bytes(&self, headroom_bytes: u64) -> u64 {
        self.room(BASE_PAGE, headroom_bytes).bytes()
    }

    /// Bytes that must stay free.
    const fn reserve_bytes(&self, headroom_bytes: u64) -> u64 {
        self.high_watermark_bytes.saturating_add(headroom_bytes)
    }

    /// Free bytes, those on the lists of single CPUs included.
    pub(crate) const fn all_free_bytes(&self) -> u64 {
        self.free_bytes.saturating_add(self.cached_bytes)
    }

    /// Of the bounds that which leaves least.
    fn bound(&self, frame_bytes: u64, headroom_bytes: u64) -> NodeBound {
        let of = |free_bytes, kept_bytes| NodeBound {
            node: self.node,
            frame_bytes,
            free_bytes,
            kept_bytes,
        };
        if frame_bytes != BASE_PAGE {
            let pool = self.pools.iter().find(|p| p.page_bytes == frame_bytes);
            let free_bytes = pool.map_or(0, |pool| pool.free_bytes);
            let grown_bytes = match pool.is_some_and(|pool| pool.grows) {
                true => self.promotable_bytes(headroom_bytes),
                false => 0,
            };
            return of(free_bytes.saturating_add(grown_bytes), 0);
        }
        let all = of(self.all_free_bytes(), self.reserve_bytes(headroom_bytes));
        let uncached = of(self.free_bytes, self.low_watermark_bytes);
        if uncached.room() < all.room() {
            uncached
        } else {
            all
        }
    }

    fn room(&self, frame_bytes: u64, headroom_bytes: u64) -> Room {
        self.bound(frame_bytes, headroom_bytes).room()
    }
}

/// What bounds the room of a node: of `free_bytes`, `kept_bytes` must stay free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeBound {
    pub(crate) node: NodeId,
    pub(crate) frame_bytes: u64,
    pub(crate) free_bytes: u64,
    pub(crate) kept_bytes: u64,
}

impl NodeBound {
    pub(crate) fn room(self) -> Room {
        Room::between(self.free_bytes, self.kept_bytes)
    }
}

/// Bytes that fit; negative where bytes must be freed first. A plan takes from it what it promotes or
/// demotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Room(i64);

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Room {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const UNLIMITED: Self = Self(i64::MAX);

    /// What `have` leaves above `reserve`.
    fn between(have: u64, reserve: u64) -> Self {
        Self(signed(have.saturating_sub(reserve)) - signed(reserve.saturating_sub(have)))
    }

    /// Bytes that fit now, without any being freed.
    pub(crate) fn bytes(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0)
    }

    /// Bytes that must be freed before anything fits at all: the headroom that is owed.
    pub(crate) const fn lacking(self) -> u64 {
        if self.0 < 0 { self.0.unsigned_abs() } else { 0 }
    }

    /// Whether a page or a batch of `bytes` bytes fits.
    pub(crate) fn fits(self, bytes: u64) -> bool {
        self.0 >= signed(bytes)
    }

    /// Bytes that must be freed before `bytes` bytes fit.
    pub(crate) fn must_free(self, bytes: u64) -> u64 {
        u64::try_from(signed(bytes).saturating_sub(self.0)).unwrap_or(0)
    }

    /// `bytes` bytes are used.
    pub(crate) fn take(&mut self, bytes: u64) {
        self.0 = self.0.saturating_sub(signed(bytes));
    }

    /// `bytes` bytes are freed.
    pub(crate) fn give(&mut self, bytes: u64) {
        self.0 = self.0.saturating_add(signed(bytes));
    }
}

/// What an operator grants of the fast tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FastBounds {
    /// Free bytes to keep above the high watermark.
    pub(crate) headroom_bytes: u64,
    /// Most bytes that the guest may hold; `None` for no limit.
    pub(crate) limit_bytes: Option<u64>,
}

impl FastBounds {
    pub(crate) const fn of(settings: &EngineSettings) -> Self {
        Self {
            headroom_bytes: settings.headroom_bytes,
            limit_bytes: settings.fast_limit_bytes,
        }
    }

    /// Bytes by which a guest that holds `held` bytes is above the limit: they must be demoted.
    pub(crate) fn beyond_limit(self, held: u64) -> u64 {
        self.limit_bytes
            .map_or(0, |limit| held.saturating_sub(limit))
    }

    /// What the limit leaves a guest that holds `held` bytes, promotions under way included.
    pub(crate) fn below_limit(self, held: u64) -> Room {
        self.limit_bytes
            .map_or(Room::UNLIMITED, |limit| Room::between(limit, held))
    }
}

/// The memory of the tiers' nodes.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    nodes: BTreeMap<NodeId, NodeMemory>,
    /// Nodes onto which no page can be moved.
    closed: Vec<ClosedNode>,
}

impl Rooms {
    /// Takes the nodes' memory as the kernel has it now. A node that is not among them has no room.
    pub(crate) fn set(&mut self, nodes: Vec<NodeMemory>) {
        self.nodes = nodes.into_iter().map(|node| (node.node, node)).collect();
    }

    /// Takes the nodes onto which no page can be moved from now on.
    pub(crate) fn close(&mut self, closed: Vec<ClosedNode>) {
        self.closed = closed;
    }

    /// The nodes among these onto which no page can be moved.
    pub(crate) fn closed<'a>(&'a self, nodes: &'a NodeSet) -> impl Iterator<Item = &'a ClosedNode> {
        self.closed
            .iter()
            .filter(|closed| nodes.contains(closed.node))
    }

    /// Why no page can be moved onto any of these nodes, if it is so.
    pub(crate) fn all_closed(&self, nodes: &NodeSet) -> Option<&str> {
        let is_one = |closed: &&ClosedNode| nodes.contains(closed.node);
        let first = self.closed.iter().find(is_one)?;
        let has_open = nodes.iter().any(|node| self.is_open(node));
        (!has_open).then_some(first.reason.as_str())
    }

    fn is_open(&self, node: NodeId) -> bool {
        self.closed.iter().all(|closed| closed.node != node)
    }

    fn of<'a>(&'a self, nodes: &'a NodeSet) -> impl Iterator<Item = &'a NodeMemory> {
        nodes.iter().filter_map(|node| self.nodes.get(&node))
    }

    /// The nodes among these onto which pages can be moved.
    fn open<'a>(&'a self, nodes: &'a NodeSet) -> impl Iterator<Item = &'a NodeMemory> {
        self.of(nodes).filter(|node| self.is_open(node.node))
    }

    /// Free bytes of the nodes, watermarks and headroom included.
    pub(crate) fn free_bytes(&self, nodes: &NodeSet) -> u64 {
        let free = self.of(nodes).map(NodeMemory::all_free_bytes);
        free.fold(0, u64::saturating_add)
    }

    /// What the nodes' hugetlb pools have for moves, by the size of their pages.
    pub(crate) fn spare_bytes(&self, nodes: &NodeSet) -> BTreeMap<u64, u64> {
        let mut spare = BTreeMap::new();
        for pool in self.open(nodes).flat_map(|node| &node.pools) {
            let bytes: &mut u64 = spare.entry(pool.page_bytes).or_default();
            *bytes = bytes.saturating_add(pool.free_bytes);
        }
        spare
    }

    /// Bytes that may be promoted now into such frames by a guest that holds `held` bytes of the fast tier.
    pub(crate) fn fast(
        &self,
        tiers: &Tiers,
        bounds: FastBounds,
        held: u64,
        frame_bytes: u64,
    ) -> Room {
        self.fast_bound(tiers, bounds, frame_bytes)
            .map_or(Room::NONE, NodeBound::room)
            .min(bounds.below_limit(held))
    }

    /// What bounds the room of the fast node that has the most, whatever the limit.
    pub(crate) fn fast_bound(
        &self,
        tiers: &Tiers,
        bounds: FastBounds,
        frame_bytes: u64,
    ) -> Option<NodeBound> {
        let nodes = self.open(&tiers.fast);
        let all = nodes.map(|node| node.bound(frame_bytes, bounds.headroom_bytes));
        all.max_by_key(|bound| bound.room())
    }

    /// Bytes that may be demoted now into such frames. Beyond them the kernel would reclaim memory of the
    /// slow node, which may be the guest's own, or pools would change.
    pub(crate) fn slow(&self, tiers: &Tiers, frame_bytes: u64) -> Room {
        let rooms = self.open(&tiers.slow).map(|node| node.room(frame_bytes, 0));
        rooms.max().unwrap_or(Room::NONE).max(Room::NONE)
    }

    /// Bytes that may change places now between pages with frames of a pool, without a free page of it.
    /// Each tier must have one node: else the pools of its nodes would change among themselves.
    pub(crate) fn pairs(&self, tiers: &Tiers, bounds: FastBounds, frame_bytes: u64) -> Room {
        let pairs = |nodes: &NodeSet, headroom_bytes| {
            let mut nodes = self.of(nodes);
            let (Some(node), None) = (nodes.next(), nodes.next()) else {
                return Room::NONE;
            };
            if !self.is_open(node.node) {
                return Room::NONE;
            }
            let pool = node.pools.iter().find(|p| p.page_bytes == frame_bytes);
            let of_pool = Room(pool.map_or(0, |pool| signed(pool.pair_bytes)));
            node.room(BASE_PAGE, headroom_bytes).min(of_pool)
        };
        let fast = pairs(&tiers.fast, bounds.headroom_bytes);
        fast.min(pairs(&tiers.slow, 0)).max(Room::NONE)
    }

    /// The room of all nodes of a tier together, whatever the limit: for ranges that go there in many
    /// batches.
    pub(crate) fn all_nodes_bytes(
        &self,
        tiers: &Tiers,
        tier: Tier,
        bounds: FastBounds,
        frame_bytes: u64,
    ) -> u64 {
        let (nodes, headroom_bytes) = match tier {
            Tier::Fast => (&tiers.fast, bounds.headroom_bytes),
            Tier::Slow => (&tiers.slow, 0),
        };
        self.open(nodes)
            .map(|node| node.room(frame_bytes, headroom_bytes).bytes())
            .fold(0, u64::saturating_add)
    }

    /// The bytes of such frames that fit on each of the nodes onto which pages can be moved.
    pub(crate) fn each(
        &self,
        nodes: &NodeSet,
        frame_bytes: u64,
        headroom_bytes: u64,
    ) -> Vec<(NodeId, u64)> {
        let room = |node: &NodeMemory| (node.node, node.room(frame_bytes, headroom_bytes).bytes());
        self.open(nodes).map(room).collect()
    }

    /// The node with the most room for pages with such frames.
    pub(crate) fn target(&self, nodes: &NodeSet, frame_bytes: u64) -> Option<NodeId> {
        let room = |node: &NodeId| {
            let memory = self.nodes.get(node)?;
            Some(memory.room(frame_bytes, 0))
        };
        let open = nodes.iter().filter(|&node| self.is_open(node));
        open.max_by_key(room)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn tiers() -> Tiers {
        Tiers {
            fast: NodeSet::from_iter([NodeId(0), NodeId(1)]),
            slow: NodeSet::from_iter([NodeId(2)]),
            fast_latency_ns: 80.0,
            slow_latency_ns: 250.0,
        }
    }

    fn rooms(free_mib: [u64; 3]) -> Rooms {
        let mut rooms = Rooms::default();
        let node = |(node, free)| NodeMemory {
            node: NodeId(node),
            free_bytes: free * MIB,
            cached_bytes: 0,
            low_watermark_bytes: 8 * MIB,
            high_watermark_bytes: 10 * MIB,
            pools: vec![],
        };
        rooms.set((0..).zip(free_mib).map(node).collect());
        rooms
    }

    fn bounds(limit_mib: Option<u64>) -> FastBounds {
        FastBounds {
            headroom_bytes: 4 * MIB,
            limit_bytes: limit_mib.map(|mib| mib * MIB),
        }
    }

    #[test]
    fn room_when_cpus_hold_free_pages_counts_them_and_keeps_the_low_watermark_without_them() {
        // 10 MiB of the high watermark and 4 of the headroom stay, 8 of them uncached.
        let room = |free, cached| {
            let node = NodeMemory {
                node: NodeId(0),
                free_bytes: free * MIB,
                cached_bytes: cached * MIB,
                low_watermark_bytes: 8 * MIB,
                high_watermark_bytes: 10 * MIB,
                pools: vec![],
            };
            node.room(BASE_PAGE, 4 * MIB).0 / MIB as i64
        };
        assert_eq!(room(14, 0), 0);
        assert_eq!(room(14, 3), 3);
        assert_eq!(room(14, 100), 6);
        assert_eq!(room(9, 100), 1, "below the high watermark");
        assert_eq!(room(9, 2), -3);
        assert_eq!(room(7, 100), -1);
    }

    #[test]
    fn fast_room_when_nodes_differ_is_that_of_the_one_with_the_most() {
        // 20 and 34 MiB free, of which 10 of the watermark and 4 of the headroom stay.
        let rooms = rooms([20, 34, 0]);
        let room = rooms.fast(&tiers(), bounds(None), 0, BASE_PAGE);
        assert_eq!(room.bytes(), 20 * MIB);
        assert!(room.fits(20 * MIB) && !room.fits(20 * MIB + 1));
        assert_eq!(room.must_free(22 * MIB), 2 * MIB);
        assert_eq!(
            rooms.all_nodes_bytes(&tiers(), Tier::Fast, bounds(None), BASE_PAGE),
            26 * MIB
        );
        assert_eq!(rooms.target(&tiers().fast, BASE_PAGE), Some(NodeId(1)));
        assert_eq!(rooms.free_bytes(&tiers().fast), 54 * MIB);
    }

    #[test]
    fn fast_room_when_headroom_lacks_is_owed_first() {
        // 9 MiB free of the 14 that must be.
        let rooms = rooms([9, 3, 0]);
        let room = rooms.fast(&tiers(), bounds(None), 0, BASE_PAGE);
        assert_eq!((room.bytes(), room.lacking()), (0, 5 * MIB));
        assert!(!room.fits(1) && !room.fits(0));
        assert_eq!(room.must_free(2 * MIB), 7 * MIB);
        let expected = NodeBound {
            node: NodeId(0),
            frame_bytes: BASE_PAGE,
            free_bytes: 9 * MIB,
            kept_bytes: 14 * MIB,
        };
        assert_eq!(
            rooms.fast_bound(&tiers(), bounds(None), BASE_PAGE),
            Some(expected)
        );
    }

    #[test]
    fn fast_room_when_a_limit_binds_is_what_the_limit_leaves() {
        let rooms = rooms([100, 0, 0]);
        let room = |held: u64| rooms.fast(&tiers(), bounds(Some(64)), held * MIB, BASE_PAGE);
        assert_eq!(room(60).bytes(), 4 * MIB);
        assert_eq!(room(70).lacking(), 6 * MIB);
        let bounds = bounds(Some(64));
        assert_eq!(bounds.beyond_limit(70 * MIB), 6 * MIB);
        assert_eq!(bounds.beyond_limit(64 * MIB), 0);
        assert_eq!(bounds.below_limit(63 * MIB).bytes(), MIB);
        assert_eq!(room(0).bytes(), 64 * MIB, "of 86 that are free");
    }

    #[test]
    fn slow_room_when_below_the_watermark_is_none_and_owes_nothing() {
        for (free, expected) in [(5, 0), (10, 0), (12, 2)] {
            let room = rooms([0, 0, free]).slow(&tiers(), BASE_PAGE);
            assert_eq!((room.bytes(), room.lacking()), (expected * MIB, 0));
        }
    }

    #[test]
    fn room_when_nothing_is_known_of_the_nodes_is_none() {
        let rooms = Rooms::default();
        assert_eq!(rooms.fast(&tiers(), bounds(None), 0, BASE_PAGE), Room::NONE);
        assert_eq!(rooms.slow(&tiers(), BASE_PAGE), Room::NONE);
        assert_eq!(
            rooms.all_nodes_bytes(&tiers(), Tier::Slow, bounds(None), BASE_PAGE),
            0
        );
        assert_eq!(rooms.fast_bound(&tiers(), bounds(None), BASE_PAGE), None);
    }

    #[test]
    fn room_when_a_plan_takes_and_frees_is_counted_along() {
        let mut room = rooms([15, 0, 0]).fast(&tiers(), bounds(None), 0, BASE_PAGE);
        room.take(3 * MIB);
        assert_eq!((room.bytes(), room.lacking()), (0, 2 * MIB));
        room.give(6 * MIB);
        assert!(room.fits(4 * MIB) && !room.fits(5 * MIB));
        let mut endless = Room::UNLIMITED;
        endless.give(u64::MAX);
        assert!(endless.fits(u64::MAX));
    }

    #[test]
    fn room_when_frames_are_of_a_pool_is_what_the_pool_has_whatever_else_is_free() {
        let mut rooms = Rooms::default();
        let node = |node, free_pages: &[(u64, u64)]| NodeMemory {
            node: NodeId(node),
            free_bytes: 100 * MIB,
            cached_bytes: 0,
            low_watermark_bytes: 8 * MIB,
            high_watermark_bytes: 10 * MIB,
            pools: free_pages
                .iter()
                .map(|&(page_bytes, pages)| PoolMemory {
                    page_bytes,
                    free_bytes: pages * page_bytes,
                    pair_bytes: 0,
                    grows: false,
                })
                .collect(),
        };
        let (huge, giant) = (2 * MIB, 1024 * MIB);
        rooms.set(vec![
            node(0, &[(huge, 1), (giant, 2)]),
            node(1, &[(huge, 3)]),
            node(2, &[(giant, 1)]),
        ]);
        let fast = |frame_bytes| rooms.fast(&tiers(), bounds(None), 0, frame_bytes).bytes();
        assert_eq!(fast(huge), 3 * huge, "of the node with the most");
        assert_eq!(fast(giant), 2 * giant);
        assert_eq!(fast(BASE_PAGE), 86 * MIB);
        assert_eq!(rooms.slow(&tiers(), huge), Room::NONE, "no such pool");
        assert_eq!(rooms.slow(&tiers(), giant).bytes(), giant);
        assert_eq!(rooms.target(&tiers().fast, giant), Some(NodeId(0)));
        assert_eq!(rooms.target(&tiers().fast, huge), Some(NodeId(1)));
        let limited = rooms.fast(&tiers(), bounds(Some(64)), 63 * MIB, huge);
        assert_eq!(limited.bytes(), MIB, "the limit holds for all frames");
    }

    #[test]
    fn room_when_a_cpuset_closes_a_node_is_that_of_the_others() {
        let closed = |nodes: &[u16]| {
            let closed = |&node: &u16| ClosedNode {
                node: NodeId(node),
                by: vec![],
                reason: format!("node {node} is closed"),
            };
            nodes.iter().map(closed).collect::<Vec<_>>()
        };
        // 20 and 34 MiB free, of which 14 stay.
        let mut rooms = rooms([20, 34, 50]);
        let fast = |rooms: &Rooms| rooms.fast(&tiers(), bounds(None), 0, BASE_PAGE);
        rooms.close(closed(&[1]));
        assert_eq!(fast(&rooms).bytes(), 6 * MIB);
        assert_eq!(rooms.target(&tiers().fast, BASE_PAGE), Some(NodeId(0)));
        assert_eq!(rooms.all_closed(&tiers().fast), None);
        let all =
            |rooms: &Rooms, tier| rooms.all_nodes_bytes(&tiers(), tier, bounds(None), BASE_PAGE);
        assert_eq!(all(&rooms, Tier::Fast), 6 * MIB);
        rooms.close(closed(&[0, 1, 2]));
        assert_eq!((fast(&rooms), all(&rooms, Tier::Fast)), (Room::NONE, 0));
        assert_eq!(rooms.target(&tiers().fast, BASE_PAGE), None);
        assert_eq!(rooms.slow(&tiers(), BASE_PAGE), Room::NONE);
        assert_eq!(all(&rooms, Tier::Slow), 0);
        assert_eq!(rooms.all_closed(&tiers().fast), Some("node 0 is closed"));
        assert_eq!(
            rooms.free_bytes(&tiers().fast),
            54 * MIB,
            "free all the same"
        );
        rooms.close(vec![]);
        assert_eq!(fast(&rooms).bytes(), 20 * MIB);
    }

    #[test]
    fn room_when_a_pool_may_grow_is_the_free_memory_above_the_headroom_too() {
        let room = |grows, free_mib| {
            let mut rooms = Rooms::default();
            let node = NodeMemory {
                high_watermark_bytes: 10 * MIB,
                pools: vec![PoolMemory {
                    page_bytes: 2 * MIB,
                    free_bytes: 6 * MIB,
                    pair_bytes: 0,
                    grows,
                }],
                ..NodeMemory::with_free(NodeId(0), free_mib * MIB)
            };
            rooms.set(vec![node]);
            let fast = |limit| rooms.fast(&tiers(), bounds(limit), 0, 2 * MIB).bytes() / MIB;
            let spare = rooms.spare_bytes(&tiers().fast)[&(2 * MIB)] / MIB;
            (fast(None), fast(Some(8)), spare)
        };
        assert_eq!(room(false, 44), (6, 6, 6));
        // 10 MiB of the watermark and 4 of the headroom stay free.
        assert_eq!(room(true, 44), (36, 8, 6), "within the limit");
        assert_eq!(
            room(true, 13),
            (6, 6, 6),
            "below the headroom nothing grows"
        );
    }

    #[test]
    fn pairs_when_free_memory_or_the_pool_of_a_node_is_short_are_bounded_by_it() {
        let pairs = |free_mib: [u64; 2], pair_pages: [u64; 2], slow_nodes| {
            let mut rooms = Rooms::default();
            let node = |n: u16| NodeMemory {
                high_watermark_bytes: 10 * MIB,
                pools: vec![PoolMemory {
                    page_bytes: 2 * MIB,
                    free_bytes: 0,
                    pair_bytes: pair_pages[usize::from(n.min(1))].saturating_mul(2 * MIB),
                    grows: false,
                }],
                ..NodeMemory::with_free(NodeId(n), free_mib[usize::from(n.min(1))] * MIB)
            };
            rooms.set((0..=slow_nodes).map(node).collect());
            let tiers = Tiers {
                fast: NodeSet::from_iter([NodeId(0)]),
                slow: (1..=slow_nodes).map(NodeId).collect(),
                ..tiers()
            };
            rooms.pairs(&tiers, bounds(None), 2 * MIB).bytes() / MIB
        };
        const ALL: u64 = u64::MAX;
        assert_eq!(pairs([44, 100], [ALL, ALL], 1), 30, "headroom is kept");
        assert_eq!(pairs([44, 16], [ALL, ALL], 1), 6);
        assert_eq!(pairs([44, 100], [ALL, 3], 1), 6);
        assert_eq!(pairs([44, 100], [0, ALL], 1), 0);
        assert_eq!(pairs([5, 100], [ALL, ALL], 1), 0);
        assert_eq!(pairs([44, 100], [ALL, ALL], 2), 0, "two slow nodes");
    }

    #[test]
    fn rooms_when_the_kernel_tells_absurd_numbers_do_not_overflow() {
        let node = |node| NodeMemory {
            pools: vec![PoolMemory {
                page_bytes: 2 * MIB,
                free_bytes: u64::MAX,
                pair_bytes: u64::MAX,
                grows: true,
            }],
            ..NodeMemory::with_free(NodeId(node), u64::MAX)
        };
        let mut rooms = Rooms::default();
        rooms.set(vec![node(0), node(1), node(2)]);
        let fast = &tiers().fast;
        assert_eq!(rooms.free_bytes(fast), u64::MAX);
        assert_eq!(rooms.spare_bytes(fast)[&(2 * MIB)], u64::MAX);
    }

    proptest! {
        #[test]
        fn room_when_what_it_asks_is_freed_leaves_the_reserve_free(
            free_bytes in 0..1u64 << 40, high_watermark_bytes in 0..1u64 << 36,
            cached_bytes in 0..1u64 << 30, low_percent in 0..=100_u64,
            headroom_bytes in 0..1u64 << 36, bytes in 0..1u64 << 36,
        ) {
            let low_watermark_bytes = high_watermark_bytes / 100 * low_percent;
            let node = NodeMemory {
                node: NodeId(0), free_bytes, cached_bytes, low_watermark_bytes, high_watermark_bytes,
                pools: vec![],
            };
            let (room, reserve) = (node.room(BASE_PAGE, headroom_bytes), node.reserve_bytes(headroom_bytes));
            let all_free = free_bytes + cached_bytes;
            let lacking = reserve.saturating_sub(all_free).max(low_watermark_bytes.saturating_sub(free_bytes));
            prop_assert_eq!(room.lacking(), lacking);
            prop_assert!(room.bytes() == 0 || lacking == 0);
            prop_assert!(room.bytes() == 0 || all_free - room.bytes() >= reserve);
            prop_assert!(room.bytes() == 0 || free_bytes - room.bytes() >= low_watermark_bytes);
            // What is freed stands on either list: both bounds hold, and one of them exactly.
            let freed = room.must_free(bytes);
            let spare = (all_free + freed).checked_sub(reserve + bytes)
                .zip((free_bytes + freed).checked_sub(low_watermark_bytes + bytes));
            prop_assert!(spare.is_some());
            prop_assert!(freed == 0 || spare.is_some_and(|(all, uncached)| all == 0 || uncached == 0));
            prop_assert_eq!(room.fits(bytes), freed == 0);
        }
    }
}
