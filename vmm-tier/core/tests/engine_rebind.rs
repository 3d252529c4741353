//! The engine binds shared memory to the tier on which its pages lie, while it moves pages.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    engine::{Action, Event, Order, VmEngine},
    rebind::{Binding, BlockState, RebindReport, Rebound},
    sample::SourceKind,
    settings::{EngineSettings, Tier},
    time::Time,
};

use crate::{
    common::{BASE, Kernel, settings, shared_map, tiers},
    lab::{gups, observation},
};

const FRAMES: u32 = 2048;

/// An engine beside a guest of which the first half is fast.
struct Host {
    kernel: Kernel,
    engine: VmEngine,
    now: Time,
    asked: Vec<Vec<Binding>>,
}

impl Host {
    fn new(settings: EngineSettings) -> Self {
        let now = Time(1_000_000_000);
        let mut host = Self {
            kernel: gups(FRAMES, FRAMES / 2),
            engine: VmEngine::new(settings, tiers(), now),
            now,
            asked: Vec::new(),
        };
        let reply = host
            .engine
            .order(now, Order::Map(shared_map(1, FRAMES)))
            .unwrap();
        host.carry_out(reply.actions);
        let nodes = host.kernel.nodes();
        host.step(nodes);
        host.step(Event::Source(Some(SourceKind::Damon)));
        host
    }

    fn step(&mut self, event: Event) {
        let actions = self.engine.step(self.now, event);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Scan(request) => {
                    let report = self.kernel.scan(request);
                    self.step(Event::Scanned(report));
                }
                Action::Move(batch) => {
                    let report = self.kernel.apply(&batch);
                    self.step(Event::Moved(report));
                }
                Action::MovePaired(_) => unreachable!("no page is of a pool"),
                Action::Rebind(bindings) => self.asked.push(bindings),
                Action::Reshape(_) | Action::RefreshMap => {}
            }
        }
    }

    /// The guest uses its fast pages for so many seconds; nothing needs to be moved.
    fn run(&mut self, seconds: u32) {
        for _ in 0..seconds * 5 / 2 {
            self.now = self.now + Duration::from_millis(400);
            let event = observation(
                self.now,
                FRAMES,
                |frame| {
                    if frame < FRAMES / 2 { 1.0 } else { 0.0 }
                },
            );
            self.step(event);
        }
    }

    fn answer(&mut self, rebound: Rebound) {
        let asked = self.asked.last().unwrap();
        let results = asked.iter().map(|&binding| (binding, rebound)).collect();
        self.step(Event::Rebound(RebindReport { results }));
    }
}

fn rebind() -> EngineSettings {
    EngineSettings {
        rebind: true,
        ..settings()
    }
}

#[test]
fn shared_memory_when_asked_for_is_bound_once_to_where_it_lies() {
    let mut host = Host::new(rebind());
    host.run(4);
    assert_eq!(host.asked.len(), 1, "no answer came yet");
    let half = u64::from(FRAMES) / 2 * BASE_PAGE;
    let told: Vec<_> = host.asked[0]
        .iter()
        .map(|binding| (binding.start, binding.bytes, binding.tier))
        .collect();
    let expected = [
        (Hva(BASE), half, Tier::Fast),
        (Hva(BASE + half), half, Tier::Slow),
    ];
    assert_eq!(told, expected);

    host.answer(Rebound::Bound);
    host.run(10);

    assert_eq!(host.asked.len(), 1, "nothing changed");
    let seen = host.engine.snapshot().rebind;
    assert_eq!((seen.fast_bytes, seen.slow_bytes), (half, half));
    assert_eq!(seen.blocks[0].rebind, BlockState::Bound);
    assert_eq!(host.engine.check(), Ok(()));
}

#[test]
fn memory_when_the_guest_gives_it_back_stays_bound() {
    let mut host = Host::new(rebind());
    host.run(4);
    host.answer(Rebound::Bound);

    // The first 2 MiB, which are fast.
    host.kernel.frames[..512].fill(None);
    host.run(60);

    assert_eq!(host.asked.len(), 1);
    assert!(host.engine.snapshot().rebind.fast_bytes >= HUGE_PAGE);
    assert_eq!(host.engine.check(), Ok(()));
}

#[test]
fn binding_when_it_failed_is_asked_for_again_after_a_minute() {
    let mut host = Host::new(rebind());
    host.run(4);
    host.answer(Rebound::Failed);
    host.run(50);
    assert_eq!(host.asked.len(), 1);
    host.run(15);
    assert_eq!(host.asked.len(), 2);
}

#[test]
fn shared_memory_when_nobody_asks_or_nothing_may_move_is_not_bound() {
    for settings in [
        settings(),
        EngineSettings {
            dry_run: true,
            ..rebind()
        },
    ] {
        let mut host = Host::new(settings);
        host.run(10);
        assert!(host.asked.is_empty());
    }
    let mut host = Host::new(rebind());
    host.engine.order(host.now, Order::Pause(true)).unwrap();
    host.run(10);
    assert!(host.asked.is_empty(), "moves are paused");
}
