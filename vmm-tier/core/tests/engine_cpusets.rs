//! The engine when cpusets close nodes to moves, also in the middle.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, Gpa, NodeId},
    constraints::{ClosedNode, CpusetOwner},
    engine::{Action, Event, Order, Pin, PinError, Refusal, VmEngine, WhenFull},
    moves::{Direction, MoveBatch, Outcome},
    settings::Tier,
};

use crate::{
    common::{BASE, FAST, GPA_BASE, SLOW, settings},
    lab::{Lab, gups, observation},
};

fn close(lab: &mut Lab, nodes: &[NodeId]) {
    let closed = |&node: &NodeId| ClosedNode {
        node,
        by: vec![CpusetOwner::Qemu],
        reason: format!("the cpuset leaves out node {node}"),
    };
    lab.step(Event::Closed(nodes.iter().map(closed).collect()));
}

fn hot(frame: u32) -> f32 {
    if frame >= 1792 { 20.0 } else { 0.0 }
}

fn observe(lab: &mut Lab, times: u32) {
    for _ in 0..times {
        lab.observe(hot);
    }
}

fn hot_on_fast(lab: &Lab) -> usize {
    let hot = lab.kernel.frames[1792..].iter();
    hot.filter(|&&node| node == Some(FAST)).count()
}

/// What a page waits for.
fn wait_of(engine: &VmEngine, lab: &Lab, frame: u64) -> String {
    let gpa = Gpa(GPA_BASE + frame * BASE_PAGE);
    engine.explain(lab.now, gpa).unwrap().would_move_if
}

#[test]
fn hot_set_when_the_fast_node_is_closed_stays_and_goes_up_when_it_opens() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    close(&mut lab, &[FAST]);
    observe(&mut lab, 20);
    assert_eq!(lab.moved(), 0, "nothing goes down in vain");
    assert_eq!(
        wait_of(&lab.engine, &lab, 2000),
        "the other tier is open to it: the cpuset leaves out node 0"
    );
    assert_eq!(
        lab.engine.closed_tier(),
        Some("the cpuset leaves out node 0")
    );
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.tiers[0].closed[0].by, [CpusetOwner::Qemu]);
    assert_eq!(snapshot.tiers[1].closed, []);

    close(&mut lab, &[]);
    observe(&mut lab, 40);
    assert_eq!(hot_on_fast(&lab), 256);
    assert_eq!(lab.engine.closed_tier(), None);
}

#[test]
fn hot_set_when_the_slow_node_is_closed_fills_free_memory_only() {
    let mut kernel = gups(2048, 512);
    kernel.fast_capacity += 100 * BASE_PAGE;
    let mut lab = Lab::new(kernel, settings());
    close(&mut lab, &[SLOW]);
    observe(&mut lab, 40);
    // The headroom of 16 pages stays free.
    assert_eq!(hot_on_fast(&lab), 84);
    assert_eq!(lab.kernel.moved_bytes.get(&SLOW), None);
    lab.order(Order::Limit(Some(0))).unwrap();
    observe(&mut lab, 5);
    assert_eq!(
        lab.kernel.moved_bytes.get(&SLOW),
        None,
        "not even for a limit"
    );
}

#[test]
fn pin_when_its_tier_is_closed_is_refused_for_lack_of_room() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 5);
    close(&mut lab, &[FAST]);
    let pin = Pin {
        start: Gpa(GPA_BASE + 1024 * BASE_PAGE),
        bytes: 16 * BASE_PAGE,
        tier: Tier::Fast,
        when_full: WhenFull::Demote,
    };
    let before = lab.moved();
    let refused = lab.order(Order::Pin(pin)).unwrap_err();
    assert!(
        matches!(
            refused,
            Refusal::Pin(PinError::NoRoom { room_bytes: 0, .. })
        ),
        "{refused}"
    );
    // A pin that takes what fits waits, and demotes nothing.
    let pin = Pin {
        when_full: WhenFull::Fill,
        ..pin
    };
    lab.order(Order::Pin(pin)).unwrap();
    observe(&mut lab, 10);
    assert_eq!(lab.moved(), before);
    lab.engine.check().unwrap();
}

/// So many observations; `before` sees each batch before it is carried out. Returns how often the engine
/// asked for a look at the layout.
fn observe_moves(
    lab: &mut Lab,
    observations: u32,
    mut before: impl FnMut(&mut Lab, &MoveBatch),
) -> u32 {
    let mut looks = 0;
    for _ in 0..observations {
        lab.now = lab.now + Duration::from_millis(400);
        let nodes = lab.kernel.nodes();
        let mut todo = lab.engine.step(lab.now, nodes);
        todo.extend(lab.engine.step(lab.now, observation(lab.now, 2048, hot)));
        while let Some(action) = todo.pop() {
            let answer = match action {
                Action::Scan(request) => Event::Scanned(lab.kernel.scan(request)),
                Action::Move(batch) => {
                    before(lab, &batch);
                    Event::Moved(lab.kernel.apply(&batch))
                }
                Action::MovePaired(_) => unreachable!("no page is of a pool"),
                Action::Rebind(_) | Action::Reshape(_) => continue,
                Action::RefreshMap => {
                    looks += 1;
                    continue;
                }
            };
            todo.extend(lab.engine.step(lab.now, answer));
        }
    }
    looks
}

#[test]
fn moves_when_the_cpuset_changes_in_the_middle_ask_for_a_look_and_end_with_it() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 3);
    // From here on the kernel refuses every call whose target is the fast node.
    let (mut tried, mut demoted) = (0, 0);
    let mut refuse = |lab: &mut Lab, batch: &MoveBatch, is_known: bool| {
        if batch.direction == Direction::Promote {
            for page in &batch.pages {
                lab.kernel.fails.insert(page.hva.0, Outcome::Cpuset);
            }
            tried += 1;
            assert!(!is_known, "tried on a node that is known to be closed");
        } else {
            demoted += 1;
        }
    };
    let looks = observe_moves(&mut lab, 50, |lab, batch| refuse(lab, batch, false));
    close(&mut lab, &[FAST]);
    observe_moves(&mut lab, 50, |lab, batch| refuse(lab, batch, true));
    assert!(tried > 0 && looks >= tried, "{looks} looks, {tried} tries");
    let failed = lab.engine.snapshot().failed;
    assert!(failed[&Outcome::Cpuset] > 0, "{failed:?}");
    assert!(
        demoted <= 2 * tried,
        "{demoted} batches went down, {tried} up"
    );
    let page = lab.kernel.fails.keys().next().copied().unwrap();
    let wait = wait_of(&lab.engine, &lab, (page - BASE) / BASE_PAGE);
    assert!(wait.contains("the cpuset leaves out node 0"), "{wait}");
    lab.engine.check().unwrap();
}

#[test]
fn exchange_when_the_fast_node_is_closed_in_its_middle_promotes_nothing_and_loses_no_page() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    let mut demoted = 0;
    for _ in 0..40 {
        observe_moves(&mut lab, 1, |lab, batch| {
            assert_eq!(batch.direction, Direction::Demote, "onto a closed node");
            demoted += 1;
            close(lab, &[FAST]);
        });
        lab.engine.check().unwrap();
    }
    assert_eq!(demoted, 1, "the exchange that was under way");
    assert_eq!(lab.engine.snapshot().in_flight_pages, 0);
    close(&mut lab, &[]);
    observe(&mut lab, 40);
    assert_eq!(hot_on_fast(&lab), 256);
}
