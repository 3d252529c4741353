//! An agent beside a simulated guest: DAMON at the pace that the guest needs, the engine, and rest.
//!
//! The engine and the pace of DAMON (`PaceKeeper`) are the agent's own. The rule of rest and the turns
//! are those of the program's `agent/pace.rs` and `source/turn.rs`, with ticks in place of the host's
//! clock.

use std::{sync::Arc, time::Duration};

use tier_core::{
    damon_grid::{CHECK_EVERY, Grid, GridPicker},
    damon_pace::{Pace, PaceKeeper},
    engine::{Event, VmState},
    random::Random,
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    time::Time,
};
use tier_replay::{
    machine::{Conditions, Guest, Host, Slice},
    policy::engine_host::EngineHost,
};

use crate::{
    clock::{self, Ticks, ticks},
    damon::{Damon, GridLooks, Report},
    rules::{Rival, Rule},
};

/// The agent's default half-life.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// The program's defaults: `src/config/source.rs`, `src/source.rs`.
const BASE: Pace = Pace {
    sampling: Duration::from_millis(20),
    aggregation: Duration::from_millis(400),
    max_regions: 2000,
    turns: None,
};
const LEAST_SAMPLING: Duration = Duration::from_millis(1);
const QUIET_FACTOR: u32 = 10;
/// `src/agent/pace.rs`.
const AGENT_TICK: Ticks = ticks(Duration::from_millis(100));
const REST: Ticks = ticks(Duration::from_secs(5));
const STIRRING_BYTES: u64 = 1 << 20;

/// An alarm of the agent's rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alarm {
    pub(crate) at: Ticks,
    pub(crate) from_rest: bool,
}

/// What an agent did, by time.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) alarms: Vec<Alarm>,
    /// Bytes moved so far, at each agent's tick at which they had grown.
    pub(crate) moved: Vec<(Ticks, u64)>,
    /// When rest began and when it ended.
    pub(crate) rests: Vec<(Ticks, Ticks)>,
    /// When all ended.
    pub(crate) end: Ticks,
    /// Accesses that were looked at, and those that hit DRAM.
    pub(crate) accesses: u64,
    pub(crate) hits: u64,
}

impl Log {
    /// Bytes moved before `at`.
    pub(crate) fn moved_until(&self, at: Ticks) -> u64 {
        let moved = self.moved.partition_point(|(when, _)| *when < at);
        moved.checked_sub(1).map_or(0, |last| self.moved[last].1)
    }

    /// Bytes moved from `at` on.
    pub(crate) fn moved_since(&self, at: Ticks) -> u64 {
        self.moved.last().map_or(0, |last| last.1) - self.moved_until(at)
    }
}

/// See the [module](self).
pub(crate) struct Agent {
    rule: Rule,
    /// When it ends, though the guest goes on.
    until: Ticks,
    host: Host,
    engine: EngineHost,
    keeper: PaceKeeper,
    is_late: bool,
    /// `Err` while it rests in its turns, with what the next start goes on with.
    damon: Result<Damon, Random>,
    /// When the turn began, and whether a report came in it.
    turn: (Ticks, bool),
    picker: GridPicker,
    grid: Option<(Grid, GridLooks)>,
    /// No grid begins before.
    next_grid: Ticks,
    rival: Rival,
    changes: u64,
    /// Moved bytes and changes when something stirred last, and when that was.
    stirred: (u64, u64, Ticks),
    rests_since: Option<Ticks>,
    next_tick: Ticks,
    entered: Time,
    pub(crate) log: Log,
}

impl Agent {
    pub(crate) fn new(
        guest: &Arc<Guest>,
        fast_bytes: u64,
        rule: Rule,
        until: Ticks,
        seed: u64,
        is_late: bool,
    ) -> Self {
        let mut host = Host::new(Arc::clone(guest), fast_bytes, Conditions::default());
        let mut engine = EngineHost::new(&host, HALF_LIFE);
        engine.give(Time(0), Event::Source(Some(SourceKind::Damon)), &mut host);
        let keeper = PaceKeeper::new(BASE, LEAST_SAMPLING, QUIET_FACTOR);
        let mut picker = GridPicker::default();
        if let Some(map) = engine.engine().map() {
            picker.set_map(map);
        }
        let mut agent = Self {
            rule,
            until,
            host,
            engine,
            keeper,
            is_late,
            damon: Err(Random::new(seed)),
            turn: (0, false),
            picker,
            grid: None,
            next_grid: 0,
            rival: Rival::new(rule),
            changes: 0,
            stirred: (0, 0, 0),
            rests_since: None,
            next_tick: AGENT_TICK,
            entered: Time(0),
            log: Log::default(),
        };
        agent.watch(0);
        agent
    }

    /// When it has something to do next.
    pub(crate) fn due(&self) -> Ticks {
        let damon = self.damon.as_ref().map_or(Ticks::MAX, Damon::due);
        let grid = self
            .grid
            .as_ref()
            .map_or(Ticks::MAX, |(_, looks)| looks.due());
        let due = self.next_tick.min(damon).min(grid);
        if due < self.until { due } else { Ticks::MAX }
    }

    /// Does what is due; `used` has for each page the tick in which it was used last.
    pub(crate) fn advance(&mut self, now: Ticks, used: &[Ticks]) {
        if let Ok(damon) = &mut self.damon
            && now >= damon.due()
            && let Some(report) = damon.look(now, used)
        {
            self.take(now, &report);
        }
        if let Some((grid, looks)) = &mut self.grid
            && now >= looks.due()
            && let Some(report) = looks.look(now, used)
        {
            let grid = *grid;
            self.grid = None;
            self.take_grid(now, grid, &report);
        }
        if now >= self.next_tick {
            self.next_tick = now + AGENT_TICK;
            self.give(now, Event::Tick);
            self.look_for_rest(now);
            self.begin_grid(now);
            self.take_turns(now);
        }
    }

    /// The guest accesses a page.
    pub(crate) fn see(&mut self, page: u32) {
        self.log.accesses += 1;
        self.log.hits += u64::from(self.host.is_fast(page));
    }

    /// The guest ended, if it did not end before.
    pub(crate) fn end(mut self, now: Ticks) -> Log {
        let now = now.min(self.until);
        self.log
            .rests
            .extend(self.rests_since.map(|since| (since, now)));
        self.log.end = now;
        self.log
    }

    fn give(&mut self, now: Ticks, event: Event) {
        let end = clock::time(now);
        self.host.enter(&Slice {
            start: std::mem::replace(&mut self.entered, end),
            end,
            ..Slice::default()
        });
        self.engine.give(end, event, &mut self.host);
    }

    fn batch(&self, now: Ticks, report: &Report) -> SampleBatch {
        let page_bytes = self.host.guest().page_bytes(0);
        let samples = report.regions.iter().filter_map(|region| {
            Some(AccessSample {
                address: SampleAddress::Host(self.engine.hva(region.first)?),
                len: u64::from(region.pages()) * page_bytes,
                weight: region.accesses as f32,
                kind: AccessKind::Any,
            })
        });
        SampleBatch {
            source: SourceKind::Damon,
            end: clock::time(now),
            span: report.span,
            tests: report.tests,
            period: 1,
            settled: true,
            map_generation: self.engine.map_generation(),
            samples: samples.collect(),
            account: SampleAccount::default(),
        }
    }

    fn take(&mut self, now: Ticks, report: &Report) {
        let mut batch = self.batch(now, report);
        self.picker.observe(&batch);
        batch.settled = self.keeper.is_settled(&batch);
        if self.keeper.observe(&batch).is_some() {
            self.set_pace();
        }
        self.turn.1 = true;
        let alarm = match self.rule {
            Rule::InUse => {
                self.give(now, Event::Samples(batch));
                self.engine.engine().changes() > self.changes
            }
            _ => {
                let alarm = self.rival.observe(&batch, &report.regions, &self.host);
                // A detector that is told of a source learns from the beginning, and gives no alarm.
                self.give(now, Event::Source(Some(SourceKind::Damon)));
                self.give(now, Event::Samples(batch));
                alarm
            }
        };
        if alarm {
            self.alarm(now);
        }
        self.take_turns(now);
        self.begin_grid(now);
    }

    /// `source/damon/grids.rs`.
    fn begin_grid(&mut self, now: Ticks) {
        if self.grid.is_some() || self.keeper.is_quickened() || now < self.next_grid {
            return;
        }
        let is_at_rest = self.rests_since.is_some();
        if is_at_rest {
            self.next_grid = now + ticks(CHECK_EVERY);
        }
        if let Some((grid, pace)) = self.picker.pick(&BASE, is_at_rest) {
            let pages = self.engine.pages(grid.start, grid.bytes);
            self.grid = Some((grid, GridLooks::start(pages, &pace, now)));
        }
    }

    fn take_grid(&mut self, now: Ticks, grid: Grid, report: &Report) {
        let batch = self.batch(now, report);
        let is_at_rest = self.rests_since.is_some();
        if !is_at_rest {
            self.picker.learn(grid, &batch);
        }
        self.give(now, Event::Grid(batch));
        if self.rule == Rule::InUse && self.engine.engine().changes() > self.changes {
            self.alarm(now);
        }
        self.begin_grid(now);
    }

    fn alarm(&mut self, at: Ticks) {
        self.changes += 1;
        let from_rest = self.rests_since.is_some();
        self.log.alarms.push(Alarm { at, from_rest });
    }

    /// `Idle::look`.
    fn look_for_rest(&mut self, now: Ticks) {
        let moved = self.engine.engine().moved_bytes();
        if self.log.moved.last().map_or(0, |&(_, bytes)| bytes) != moved {
            self.log.moved.push((now, moved));
        }
        let at_work = self.engine.engine().state() != VmState::Running;
        let (before, changes, since) = &mut self.stirred;
        if at_work || moved - *before >= STIRRING_BYTES || self.changes != *changes {
            (*before, *changes, *since) = (moved, self.changes, now);
        }
        let quiet = now - *since >= REST;
        if quiet != self.rests_since.is_some() {
            match self.rests_since.take() {
                Some(since) => self.log.rests.push((since, now)),
                None => self.rests_since = Some(now),
            }
            self.give(now, Event::Rest(quiet));
            self.keeper.set_quiet(quiet);
            self.grid = None;
            self.next_grid = match quiet {
                true => now + ticks(CHECK_EVERY),
                false => now,
            };
            if !quiet {
                self.picker.forget();
            }
            self.set_pace();
        }
    }

    fn set_pace(&mut self) {
        let (pace, is_quickened) = (self.keeper.pace(), self.keeper.is_quickened());
        if let Ok(damon) = &mut self.damon {
            damon.set_pace(&pace, is_quickened);
        }
    }

    fn watch(&mut self, now: Ticks) {
        let guest = self.host.guest();
        let (pages, page_bytes) = (guest.pages(), guest.page_bytes(0));
        if let Err(random) = &self.damon {
            let (pace, is_quickened) = (self.keeper.pace(), self.keeper.is_quickened());
            let random = random.clone();
            self.damon = Ok(Damon::start(
                pages,
                page_bytes,
                &pace,
                is_quickened,
                now,
                random,
                self.is_late,
            ));
        }
        self.turn = (now, false);
    }

    /// `Turn::advance`.
    fn take_turns(&mut self, now: Ticks) {
        let elapsed = clock::duration(now - self.turn.0);
        let is_resting = self.damon.is_err();
        let rests = match self.keeper.pace().turns {
            None => {
                self.turn = (now, false);
                false
            }
            Some(turns) if is_resting => elapsed < turns.rest,
            Some(turns) => self.turn.1 || elapsed >= turns.watch,
        };
        match &self.damon {
            Ok(damon) if rests => {
                self.damon = Err(damon.random());
                self.turn = (now, false);
            }
            Err(_) if !rests => self.watch(now),
            Ok(_) | Err(_) => {}
        }
    }
}
