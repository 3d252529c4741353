//! The engine on a host whose tiers have several nodes, and a model of their memory.

use std::{collections::BTreeMap, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Hva, NodeId, NodeSet},
    constraints::{ClosedNode, CpusetOwner},
    engine::{Action, Event, NodeMemory, Order, ScanReport, ScanRequest, VmEngine},
    moves::{Direction, MoveBatch, MoveReport, Outcome, Page, PageResult},
    nearness::{Distance, Nearness, Place},
    sample::SourceKind,
    settings::EngineSettings,
    tiers::Tiers,
    time::Time,
};

use crate::{
    common::{BASE, map, settings},
    lab::observation,
};

/// Two sockets, 0 and 2, each with an expander: 5 and 7.
const NEAR: [(u16, u16); 2] = [(0, 5), (2, 7)];
const HEADROOM: u64 = 16;

fn set(text: &str) -> NodeSet {
    text.parse().unwrap()
}

/// A host with one guest, and an engine that moves its pages.
struct Host {
    engine: VmEngine,
    now: Time,
    /// Node of each page.
    pages: Vec<NodeId>,
    /// Pages that fit on each node.
    capacity: BTreeMap<NodeId, u64>,
    /// Moves so far: from and to.
    moves: BTreeMap<(u16, u16), u64>,
}

impl Host {
    /// A guest whose pages lie on `pages`, and which runs on the nodes `cpus`. The capacities are of the
    /// nodes 0, 2, 5 and 7.
    fn new(pages: Vec<u16>, capacity: [u64; 4], cpus: &str) -> Self {
        let tiers = Tiers {
            fast: set("0,2"),
            slow: set("5,7"),
            fast_latency_ns: 80.0,
            slow_latency_ns: 250.0,
        };
        let settings = EngineSettings {
            headroom_bytes: HEADROOM * BASE_PAGE,
            ..settings()
        };
        let frames = u32::try_from(pages.len()).unwrap();
        let mut host = Self {
            engine: VmEngine::new(settings, tiers, Time(0)),
            now: Time(0),
            pages: pages.into_iter().map(NodeId).collect(),
            capacity: [0, 2, 5, 7].map(NodeId).into_iter().zip(capacity).collect(),
            moves: BTreeMap::new(),
        };
        host.step(Event::Source(Some(SourceKind::Damon)));
        host.step(Event::Nearness(nearness(cpus)));
        let reply = host.engine.order(host.now, Order::Map(map(1, frames)));
        host.carry_out(reply.unwrap().actions);
        host
    }

    fn free(&self, node: NodeId) -> u64 {
        let used = self.pages.iter().filter(|&&lies| lies == node).count();
        self.capacity[&node] - used as u64
    }

    fn nodes(&self) -> Event {
        let nodes = self.capacity.keys();
        let memory = nodes.map(|&node| NodeMemory::with_free(node, self.free(node) * BASE_PAGE));
        Event::Nodes(memory.collect())
    }

    fn step(&mut self, event: Event) {
        let mut todo = self.engine.step(self.now, self.nodes());
        todo.extend(self.engine.step(self.now, event));
        self.carry_out(todo);
    }

    fn carry_out(&mut self, mut todo: Vec<Action>) {
        while !todo.is_empty() {
            let answer = match todo.remove(0) {
                Action::Scan(request) => Event::Scanned(self.scan(request)),
                Action::Move(batch) => {
                    let report = self.apply(&batch);
                    todo.extend(self.engine.step(self.now, self.nodes()));
                    Event::Moved(report)
                }
                action => panic!("{action:?}"),
            };
            todo.extend(self.engine.step(self.now, answer));
            self.engine.check().unwrap();
        }
    }

    fn scan(&self, request: ScanRequest) -> ScanReport {
        let first = (request.span.hva.0 - BASE) / BASE_PAGE;
        let frames = first..first + request.span.bytes / BASE_PAGE;
        let page = |frame| Page {
            hva: Hva(BASE + frame * BASE_PAGE),
            bytes: BASE_PAGE,
        };
        ScanReport {
            request,
            folios: Vec::new(),
            pages: frames
                .map(|frame| (page(frame), Some(self.pages[frame as usize])))
                .collect(),
            cpu_time: Duration::ZERO,
        }
    }

    /// Moves as the worker does.
    fn apply(&mut self, batch: &MoveBatch) -> MoveReport {
        let targets = batch.nearest.as_ref().expect("a tier has two nodes");
        let frame = |page: &Page| ((page.hva.0 - BASE) / BASE_PAGE) as usize;
        let pages = batch.pages.iter();
        let places = targets.places(pages.map(|page| (*page, Some(self.pages[frame(page)]))));
        let mut results = Vec::new();
        for (&page, place) in batch.pages.iter().zip(places) {
            let Place::To(node) = place else {
                panic!("{page:?}: {place:?} though the tier had room");
            };
            let from = std::mem::replace(&mut self.pages[frame(&page)], NodeId(99));
            let kept = match batch.direction {
                Direction::Promote => HEADROOM,
                Direction::Demote => 0,
            };
            assert!(self.free(node) > kept, "no room on node {node}");
            self.pages[frame(&page)] = node;
            *self.moves.entry((from.0, node.0)).or_default() += 1;
            results.push(PageResult {
                page,
                outcome: Outcome::Moved,
                node: Some(node),
            });
        }
        MoveReport {
            id: batch.id,
            direction: batch.direction,
            target: batch.target,
            results,
            cpu_time: Duration::from_micros(100),
        }
    }

    /// Lets the last `hot` pages be used, and the first be cold.
    fn observe(&mut self, times: u32, hot: usize) {
        let frames = u32::try_from(self.pages.len()).unwrap();
        let first = frames - u32::try_from(hot).unwrap();
        for _ in 0..times {
            self.now = self.now + Duration::from_millis(400);
            let event = observation(self.now, frames, |f| if f >= first { 20.0 } else { 0.0 });
            self.step(event);
        }
    }

    /// How many of the last `hot` pages lie on each of the fast nodes.
    fn hot_on(&self, hot: usize) -> [usize; 2] {
        let pages = &self.pages[self.pages.len() - hot..];
        [0, 2].map(|node| pages.iter().filter(|&&lies| lies == NodeId(node)).count())
    }
}

fn nearness(cpus: &str) -> Nearness {
    let nodes = [0, 2, 5, 7];
    let pairs = nodes
        .into_iter()
        .flat_map(|from| nodes.map(|to| (from, to)));
    let distance = |(from, to): (u16, u16)| {
        let slit = match from == to {
            true => 10,
            false if NEAR.contains(&(from, to)) => 14,
            false => 24,
        };
        let is_foreign = false;
        ((NodeId(from), NodeId(to)), Distance { slit, is_foreign })
    };
    Nearness {
        distances: pairs.map(distance).collect(),
        cpus: set(cpus),
    }
}

/// Pages in runs: node and length.
fn runs(runs: &[(u16, usize)]) -> Vec<u16> {
    let pages = runs.iter();
    pages
        .flat_map(|&(node, pages)| std::iter::repeat_n(node, pages))
        .collect()
}

#[test]
fn hot_pages_when_both_fast_nodes_have_room_go_to_that_of_the_guests_cpus() {
    for (cpus, expected) in [("0", [64, 0]), ("2", [0, 64])] {
        let pages = runs(&[(0, 64), (2, 64), (5, 64), (7, 64)]);
        let mut host = Host::new(pages, [512; 4], cpus);
        host.observe(20, 64);
        assert_eq!(host.hot_on(64), expected, "CPUs on {cpus}");
    }
}

#[test]
fn hot_pages_when_the_near_fast_node_is_almost_full_spill_to_the_other() {
    // Beside the headroom node 0 has room for 20 pages.
    let pages = runs(&[(0, 64), (2, 64), (5, 64), (7, 64)]);
    let mut host = Host::new(pages, [64 + HEADROOM + 20, 512, 512, 512], "0");
    host.observe(20, 64);
    assert_eq!(host.hot_on(64), [20, 44]);
}

#[test]
fn cold_pages_when_each_socket_has_an_expander_go_to_that_of_their_socket() {
    let pages = runs(&[(0, 256), (2, 256), (5, 64), (7, 64)]);
    let full = 256 + HEADROOM;
    let mut host = Host::new(pages, [full, full, 512, 512], "0");
    host.observe(30, 128);
    assert_eq!(host.hot_on(128).iter().sum::<usize>(), 128);
    let demoted = |from, to| host.moves.get(&(from, to)).copied().unwrap_or(0);
    assert_eq!(demoted(0, 5) + demoted(2, 7), 128);
    assert_eq!(
        demoted(0, 7) + demoted(2, 5),
        0,
        "both had room: {:?}",
        host.moves
    );
}

#[test]
fn cold_pages_when_the_near_expander_is_full_go_to_the_other() {
    let pages = runs(&[(0, 256), (5, 64), (7, 64)]);
    // Node 5 has no room, node 7 has.
    let mut host = Host::new(pages, [256 + HEADROOM, 0, 64, 512], "0");
    host.observe(30, 128);
    assert_eq!(host.hot_on(128), [128, 0]);
    assert!(host.moves[&(0, 7)] >= 64, "{:?}", host.moves);
    assert!(
        host.moves.keys().all(|&(from, to)| (from < 5) != (to < 5)),
        "within a tier"
    );
}

#[test]
fn cold_pages_when_the_cpuset_leaves_out_the_near_expander_go_to_the_other() {
    let pages = runs(&[(0, 256), (5, 64), (7, 64)]);
    let mut host = Host::new(pages, [256 + HEADROOM, 0, 512, 512], "0");
    host.step(Event::Closed(vec![ClosedNode {
        node: NodeId(5),
        by: vec![CpusetOwner::Qemu],
        reason: "QEMU's cpuset leaves out node 5".to_owned(),
    }]));
    host.observe(30, 128);
    assert_eq!(host.hot_on(128), [128, 0]);
    assert!(!host.moves.contains_key(&(0, 5)), "{:?}", host.moves);
    assert_eq!(host.moves[&(0, 7)], 128);
}
