//! An engine and a model of the kernel that carries out at once what the engine asks for.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, Hva},
    engine::{Action, Event, Order, Refusal, Reply, VmEngine},
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    settings::EngineSettings,
    time::Time,
};

use crate::common::{BASE, FAST, Kernel, SLOW, map, tiers};

/// An engine, its kernel and a clock.
pub(crate) struct Lab {
    pub(crate) kernel: Kernel,
    pub(crate) engine: VmEngine,
    pub(crate) now: Time,
}

impl Lab {
    pub(crate) fn new(kernel: Kernel, settings: EngineSettings) -> Self {
        let frames = u32::try_from(kernel.frames.len()).unwrap();
        let mut lab = Self {
            kernel,
            engine: VmEngine::new(settings, tiers(), Time(0)),
            now: Time(0),
        };
        lab.step(Event::Source(Some(SourceKind::Damon)));
        lab.order(Order::Map(map(1, frames))).unwrap();
        lab
    }

    /// Gives an event to the engine and carries out what it asks for, until it asks for nothing.
    pub(crate) fn step(&mut self, event: Event) {
        let nodes = self.kernel.nodes();
        let mut todo = self.engine.step(self.now, nodes);
        todo.extend(self.engine.step(self.now, event));
        self.carry_out(todo);
    }

    /// Gives an order to the engine and carries out what it asks for, until it asks for nothing.
    pub(crate) fn order(&mut self, order: Order) -> Result<Reply, Refusal> {
        let nodes = self.kernel.nodes();
        let mut todo = self.engine.step(self.now, nodes);
        let reply = self.engine.order(self.now, order);
        todo.extend(reply.iter().flat_map(|reply| reply.actions.clone()));
        self.carry_out(todo);
        reply
    }

    /// Carries out what the engine asks for, until it asks for nothing.
    pub(crate) fn carry_out(&mut self, mut todo: Vec<Action>) {
        let mut rounds = 0;
        while let Some(action) = (!todo.is_empty()).then(|| todo.remove(0)) {
            rounds += 1;
            assert!(rounds < 100_000, "the engine never comes to rest");
            let answer = match action {
                Action::Scan(request) => Event::Scanned(self.kernel.scan(request)),
                Action::Move(batch) => {
                    let report = self.kernel.apply(&batch);
                    todo.extend(self.engine.step(self.now, self.kernel.nodes()));
                    Event::Moved(report)
                }
                Action::MovePaired(_) => unreachable!("no page is of a pool"),
                Action::Rebind(_) => unreachable!("nobody asks for it"),
                Action::Reshape(request) => Event::Reshaped(self.kernel.reshape(request)),
                Action::RefreshMap => continue,
            };
            todo.extend(self.engine.step(self.now, answer));
        }
    }

    /// One aggregation: 20 sampling intervals in 400 ms, hit in each with the page's probability.
    pub(crate) fn observe(&mut self, weight: impl Fn(u32) -> f32) {
        self.now = self.now + Duration::from_millis(400);
        let frames = u32::try_from(self.kernel.frames.len()).unwrap();
        self.step(observation(self.now, frames, weight));
    }

    pub(crate) fn moved(&self) -> u64 {
        self.kernel.moved_bytes.values().sum()
    }
}

/// One aggregation as the source tells it.
pub(crate) fn observation(now: Time, frames: u32, weight: impl Fn(u32) -> f32) -> Event {
    let page = |frame| Hva(BASE + u64::from(frame) * BASE_PAGE);
    aggregation(
        now,
        BASE_PAGE,
        (0..frames).map(|frame| (page(frame), weight(frame))),
    )
}

/// The same of pages of `len` bytes with their weights.
pub(crate) fn aggregation(now: Time, len: u64, pages: impl Iterator<Item = (Hva, f32)>) -> Event {
    let samples = pages.map(|(hva, weight)| AccessSample {
        address: SampleAddress::Host(hva),
        len,
        weight,
        kind: AccessKind::Any,
    });
    let samples = samples.collect();
    Event::Samples(SampleBatch {
        source: SourceKind::Damon,
        end: now,
        span: Duration::from_millis(400),
        tests: 20,
        period: 1,
        settled: true,
        map_generation: 1,
        samples,
        account: SampleAccount::default(),
    })
}

/// A kernel whose fast node is full of the first frames, and a guest hot at its end.
pub(crate) fn gups(frames: u32, fast: u32) -> Kernel {
    Kernel::new(frames, u64::from(fast) * BASE_PAGE, move |frame| {
        Some(if frame < fast { FAST } else { SLOW })
    })
}
