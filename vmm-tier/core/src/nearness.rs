//! Which node a page goes to where a tier has several: the nearest with room. Pure.
//!
//! A page that is demoted goes to the slow node that is nearest to the node where the page lies. A page
//! that is promoted goes to the fast node that is nearest to the CPUs that run the guest. Of nodes at
//! one distance the node with the most room comes first, so pages spread where no distance is known. No
//! page goes from one node of a tier to another of the same tier.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use crate::{
    addr::{NodeId, NodeSet},
    moves::{Direction, Page},
};

/// How far two nodes are from each other: the smaller, the nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance {
    /// The firmware's distance (ACPI SLIT): 10 is local.
    pub slit: u32,
    /// Whether the first is none of the nodes that reach the memory of the second fastest (HMAT). It
    /// tells apart what has one distance: firmware often gives all expanders the same.
    pub is_foreign: bool,
}

/// What is not known is farther than all that is.
const UNKNOWN: Distance = Distance {
    slit: u32::MAX,
    is_foreign: true,
};

/// How far nodes are from each other, and where the guest's CPUs run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nearness {
    /// The distances between nodes, from the first to the memory of the second.
    pub distances: BTreeMap<(NodeId, NodeId), Distance>,
    /// The nodes whose CPUs run the guest's; none if that is not known.
    pub cpus: NodeSet,
}

impl Nearness {
    fn between(&self, from: NodeId, to: NodeId) -> Distance {
        let known = self.distances.get(&(from, to)).copied();
        known.unwrap_or(UNKNOWN)
    }

    /// How far memory of a node is from the nearest of the guest's CPUs.
    fn distance_of(&self, to: NodeId) -> Distance {
        let all = self.cpus.iter().map(|node| self.between(node, to));
        all.min().unwrap_or(UNKNOWN)
    }
}

/// The nodes to which the pages of a batch may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    direction: Direction,
    /// All nodes of the tier, those without room too.
    tier: NodeSet,
    /// The bytes that fit on each node of the tier that has room.
    rooms: Vec<(NodeId, u64)>,
    nearness: Arc<Nearness>,
}

/// Where a page of a batch is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It lies on a node of the tier already.
    There(NodeId),
    /// It is to go to this node.
    To(NodeId),
    /// No node of the tier has room for it.
    NoRoom,
}

impl Targets {
    /// The nodes of `tier` for a batch that goes in this direction, with the bytes that fit on each.
    #[must_use]
    pub fn new(
        direction: Direction,
        tier: NodeSet,
        rooms: Vec<(NodeId, u64)>,
        nearness: Arc<Nearness>,
    ) -> Self {
        let rooms = rooms.into_iter();
        let rooms = rooms.filter(|&(node, bytes)| bytes > 0 && tier.contains(node));
        Self {
            direction,
            rooms: rooms.collect(),
            tier,
            nearness,
        }
    }

    /// The nodes with room, nearest first, for pages that lie on `from`, if that is known.
    fn in_order(&self, from: Option<NodeId>) -> Vec<usize> {
        let distance = |to: NodeId| match (self.direction, from) {
            (Direction::Promote, _) => self.nearness.distance_of(to),
            (Direction::Demote, Some(from)) => self.nearness.between(from, to),
            (Direction::Demote, None) => UNKNOWN,
        };
        let mut order: Vec<usize> = (0..self.rooms.len()).collect();
        order.sort_by_key(|&index| {
            let (node, bytes) = self.rooms[index];
            (distance(node), Reverse(bytes), node)
        });
        order
    }

    /// The nearest node that has room for `bytes` bytes of pages that lie on `from`, if that is known.
    #[must_use]
    pub fn for_all(&self, from: Option<NodeId>, bytes: u64) -> Option<NodeId> {
        let mut order = self.in_order(from).into_iter();
        let (node, _) = self.rooms[order.find(|&index| self.rooms[index].1 >= bytes)?];
        Some(node)
    }

    /// Where each page is to go, in the order of the pages, which come with the nodes where they lie.
    /// The first pages get the nearest nodes.
    ///
    /// Pages that together fit on one of the nodes all find room.
    #[must_use]
    pub fn places(&self, pages: impl IntoIterator<Item = (Page, Option<NodeId>)>) -> Vec<Place> {
        let mut left: Vec<u64> = self.rooms.iter().map(|&(_, bytes)| bytes).collect();
        let mut orders: BTreeMap<Option<NodeId>, Vec<usize>> = BTreeMap::new();
        let place = |(page, from): (Page, Option<NodeId>)| {
            if let Some(node) = from.filter(|&node| self.tier.contains(node)) {
                return Place::There(node);
            }
            let order = orders.entry(from).or_insert_with(|| self.in_order(from));
            match order.iter().find(|&&index| left[index] >= page.bytes) {
                Some(&index) => {
                    left[index] -= page.bytes;
                    Place::To(self.rooms[index].0)
                }
                None => Place::NoRoom,
            }
        };
        pages.into_iter().map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::{BASE_PAGE, HUGE_PAGE, Hva};

    fn set(text: &str) -> NodeSet {
        text.parse().unwrap()
    }

    fn page(number: u64) -> Page {
        Page {
            hva: Hva(number * HUGE_PAGE),
            bytes: BASE_PAGE,
        }
    }

    /// Two sockets, 0 and 2, each with an expander: 5 and 7.
    fn two_sockets(cpus: &str) -> Arc<Nearness> {
        let near = [
            (0, 0, 10),
            (0, 2, 21),
            (0, 5, 14),
            (0, 7, 24),
            (2, 0, 21),
            (2, 2, 10),
            (2, 5, 24),
            (2, 7, 14),
        ];
        let distance = |(from, to, slit)| {
            let is_foreign = false;
            ((NodeId(from), NodeId(to)), Distance { slit, is_foreign })
        };
        Arc::new(Nearness {
            distances: near.into_iter().map(distance).collect(),
            cpus: set(cpus),
        })
    }

    fn targets(direction: Direction, cpus: &str, pages: [u64; 2]) -> Targets {
        let tier = match direction {
            Direction::Promote => set("0,2"),
            Direction::Demote => set("5,7"),
        };
        let rooms = tier.iter().zip(pages.map(|pages| pages * BASE_PAGE));
        let rooms = rooms.collect();
        Targets::new(direction, tier, rooms, two_sockets(cpus))
    }

    fn places(targets: &Targets, from: &[u16]) -> Vec<Place> {
        let pages = (0..).zip(from);
        targets.places(pages.map(|(number, &from)| (page(number), Some(NodeId(from)))))
    }

    fn to(nodes: &[u16]) -> Vec<Place> {
        nodes.iter().map(|&node| Place::To(NodeId(node))).collect()
    }

    #[test]
    fn demotions_when_each_socket_has_an_expander_go_to_that_of_their_own_socket() {
        let targets = targets(Direction::Demote, "0", [9, 9]);
        assert_eq!(places(&targets, &[0, 2, 2, 0]), to(&[5, 7, 7, 5]));
        let all = |from, pages| targets.for_all(Some(NodeId(from)), pages * BASE_PAGE);
        assert_eq!((all(0, 9), all(2, 9)), (Some(NodeId(5)), Some(NodeId(7))));
        assert_eq!(all(0, 10), None);
    }

    #[test]
    fn demotions_when_the_near_node_is_full_go_to_the_next() {
        assert_eq!(
            places(&targets(Direction::Demote, "0", [2, 9]), &[0, 0, 0, 2]),
            to(&[5, 5, 7, 7])
        );
        assert_eq!(
            places(&targets(Direction::Demote, "0", [0, 1]), &[0, 0]),
            [Place::To(NodeId(7)), Place::NoRoom]
        );
    }

    #[test]
    fn promotions_when_the_guest_runs_on_one_socket_fill_its_memory_first() {
        for (cpus, expected) in [("0", [0, 0, 2, 2]), ("2", [2, 2, 2, 0])] {
            // Room for 2 pages on node 0 and for 3 on node 2, wherever the pages lie.
            let targets = targets(Direction::Promote, cpus, [2, 3]);
            assert_eq!(places(&targets, &[5, 7, 5, 7]), to(&expected), "{cpus}");
        }
    }

    #[test]
    fn nodes_when_no_distance_is_known_come_by_their_room() {
        let demote = |nearness| {
            let rooms = vec![(NodeId(5), BASE_PAGE), (NodeId(7), 2 * BASE_PAGE)];
            let targets = Targets::new(Direction::Demote, set("5,7"), rooms, nearness);
            places(&targets, &[1, 1, 1])
        };
        assert_eq!(demote(Arc::default()), to(&[7, 7, 5]));
        let promote = targets(Direction::Promote, "", [1, 2]);
        assert_eq!(places(&promote, &[5, 5, 5]), to(&[2, 2, 0]));
    }

    #[test]
    fn nodes_when_at_one_distance_are_told_apart_by_who_reaches_them_fastest() {
        let distance = |to, is_foreign| {
            let distance = Distance {
                slit: 20,
                is_foreign,
            };
            ((NodeId(0), NodeId(to)), distance)
        };
        let nearness = Nearness {
            distances: BTreeMap::from([distance(5, true), distance(7, false)]),
            cpus: set(""),
        };
        let rooms = vec![(NodeId(5), 9 * BASE_PAGE), (NodeId(7), BASE_PAGE)];
        let targets = Targets::new(Direction::Demote, set("5,7"), rooms, Arc::new(nearness));
        assert_eq!(places(&targets, &[0, 0]), to(&[7, 5]));
    }

    #[test]
    fn pages_when_they_lie_in_the_tier_stay() {
        let targets = targets(Direction::Demote, "0", [9, 9]);
        assert_eq!(
            places(&targets, &[7, 0]),
            [Place::There(NodeId(7)), Place::To(NodeId(5))]
        );
    }

    /// Node numbers with holes.
    const NODES: [u16; 6] = [0, 2, 5, 6, 9, 40];

    proptest! {
        #[test]
        fn pages_when_divided_go_to_the_nearest_node_with_room_or_nowhere(
            is_promotion: bool,
            in_tier in prop::array::uniform6(any::<bool>()),
            room_pages in prop::array::uniform6(prop_oneof![Just(0_u64), 0..1200_u64]),
            distances in prop::collection::btree_map(
                (prop::sample::select(&NODES[..]), prop::sample::select(&NODES[..])), (10..14_u32, any::<bool>()), 0..36),
            cpus in prop::collection::vec(prop::sample::select(&NODES[..]), 0..3),
            pages in prop::collection::vec((any::<bool>(), prop::option::of(prop::sample::select(&NODES[..]))), 0..40),
        ) {
            let tier: NodeSet = (NODES.iter().zip(in_tier)).filter(|(_, is_in)| *is_in).map(|(&node, _)| NodeId(node)).collect();
            // Rooms of nodes that are not of the tier must be ignored.
            let rooms: Vec<_> = NODES.iter().zip(room_pages).map(|(&node, pages)| (NodeId(node), pages * BASE_PAGE)).collect();
            let distance = |((from, to), (slit, is_foreign))| ((NodeId(from), NodeId(to)), Distance { slit, is_foreign });
            let nearness = Nearness {
                distances: distances.into_iter().map(distance).collect(),
                cpus: cpus.into_iter().map(NodeId).collect(),
            };
            let pages: Vec<(Page, Option<NodeId>)> = (0..).zip(pages).map(|(number, (is_huge, from))| {
                let bytes = if is_huge { HUGE_PAGE } else { BASE_PAGE };
                (Page { bytes, ..page(number) }, from.map(NodeId))
            }).collect();
            let direction = if is_promotion { Direction::Promote } else { Direction::Demote };
            let targets = Targets::new(direction, tier.clone(), rooms.clone(), Arc::new(nearness.clone()));

            let places = targets.places(pages.iter().copied());

            // A simple model: of all nodes with room left none is nearer.
            let mut left: BTreeMap<NodeId, u64> = rooms.iter().copied().filter(|(node, _)| tier.contains(*node)).collect();
            let full = left.clone();
            let wanted: u64 = pages.iter().map(|(page, _)| page.bytes).sum();
            let fits_on_one = full.values().any(|&bytes| bytes >= wanted);
            prop_assert_eq!(places.len(), pages.len());
            for ((page, from), place) in pages.iter().zip(&places) {
                let key = |node: NodeId| {
                    let distance = match (direction, from) {
                        (Direction::Promote, _) => nearness.distance_of(node),
                        (Direction::Demote, Some(from)) => nearness.between(*from, node),
                        (Direction::Demote, None) => UNKNOWN,
                    };
                    (distance, Reverse(full[&node]), node)
                };
                let lies_there = from.filter(|node| tier.contains(*node));
                match *place {
                    Place::There(node) => prop_assert_eq!(Some(node), lies_there),
                    Place::To(node) => {
                        prop_assert_eq!(lies_there, None);
                        prop_assert!(tier.contains(node));
                        prop_assert!(left[&node] >= page.bytes, "no room on {}", node);
                        let nearer = left.iter().filter(|(_, bytes)| **bytes >= page.bytes).map(|(&node, _)| key(node)).min();
                        prop_assert_eq!(nearer, Some(key(node)));
                        *left.get_mut(&node).unwrap() -= page.bytes;
                    }
                    Place::NoRoom => {
                        prop_assert_eq!(lies_there, None);
                        prop_assert!(left.values().all(|&bytes| bytes < page.bytes));
                        prop_assert!(!fits_on_one);
                    }
                }
            }
        }
    }
}
