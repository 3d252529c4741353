//! Grids: small parts of the guest that a second kdamond looks at page by page
//! ([`tier_core::damon_grid`]).
//!
//! A grid lives for one report. Then its kdamond ends: to give a running one other pages, DAMON would be
//! busy for all agents until the end of an aggregation.

use std::time::{Duration, Instant};

use tier_core::{
    damon_grid::{CHECK_EVERY, Grid, GridPicker},
    damon_pace::Pace,
    map::GuestMemoryMap,
    sample::SampleBatch,
};
use tier_sys::damon::{
    DamonSettings,
    source::{DamonSource, DamonSourceError},
};

use super::{BUSY_PAUSE, Setup};

/// No grid begins for so long when a kdamond for it could not be had.
const FAILED_PAUSE: Duration = Duration::from_secs(60);
/// After a grid without scattered pages none begins for so long, doubled each time up to the second: in
/// most guests nothing lies scattered, and looks cost.
const EVEN_PAUSE: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(8));
/// How often a report that is late is looked for.
const LATE: Duration = Duration::from_millis(20);
/// A report is given up when it is so many aggregations late.
const MOST_LATE: u32 = 10;

/// A grid that is looked at.
struct Watching {
    grid: Grid,
    source: DamonSource,
    /// When its report is to come.
    due: Instant,
    /// When it is given up.
    until: Instant,
}

/// See the [module](self).
pub(super) struct Grids {
    picker: GridPicker,
    generation: u64,
    watching: Option<Watching>,
    quiet: bool,
    /// Whether there are regions that were not looked at for a grid.
    is_new: bool,
    /// No grid begins before.
    from: Instant,
    /// The pause after the next grid without scattered pages.
    pause: Duration,
}

impl Grids {
    pub(super) fn new(map: &GuestMemoryMap) -> Self {
        let mut grids = Self {
            picker: GridPicker::default(),
            generation: 0,
            watching: None,
            quiet: false,
            is_new: false,
            from: Instant::now(),
            pause: EVEN_PAUSE.0,
        };
        grids.set_map(map);
        grids
    }

    pub(super) fn set_map(&mut self, map: &GuestMemoryMap) {
        self.picker.set_map(map);
        self.generation = map.generation();
        self.watching = None;
    }

    /// The guest is at rest, or may have changed.
    pub(super) fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
        self.watching = None;
        match quiet {
            true => self.from = Instant::now() + CHECK_EVERY,
            false => {
                self.picker.forget();
                self.from = Instant::now();
                self.pause = EVEN_PAUSE.0;
            }
        }
    }

    /// Takes note of what a report of regions found.
    pub(super) fn observe(&mut self, batch: &SampleBatch) {
        self.picker.observe(batch);
        self.is_new = true;
    }

    /// How long until a report is due. A grid begins when the source is awake for something else.
    pub(super) fn due_in(&self) -> Duration {
        let left = |watching: &Watching| watching.due.saturating_duration_since(Instant::now());
        let watching = self.watching.as_ref();
        watching.map_or(Duration::MAX, |watching| left(watching).max(LATE))
    }

    /// Takes the report of the grid that is looked at, and goes on to the next. Where grids are of no use
    /// now, none is looked at.
    pub(super) fn advance(&mut self, setup: &Setup, may_watch: bool) -> Option<SampleBatch> {
        if !may_watch {
            self.watching = None;
            return None;
        }
        let now = Instant::now();
        let report = self.take_report(now);
        let is_asked = self.quiet || self.is_new || report.is_some();
        if self.watching.is_none() && now >= self.from && is_asked {
            self.is_new = false;
            if self.quiet {
                self.from = now + CHECK_EVERY;
            }
            self.begin(setup, now);
        }
        report
    }

    fn take_report(&mut self, now: Instant) -> Option<SampleBatch> {
        let Watching {
            grid,
            mut source,
            until,
            due,
        } = self.watching.take_if(|watching| now >= watching.due)?;
        let polled = source.poll(Duration::ZERO);
        let (batch, is_over) = match polled {
            Ok(polled) => (polled.batches.into_iter().next(), polled.ended),
            Err(error) => {
                tracing::debug!("a grid failed: {error}");
                (None, true)
            }
        };
        match batch {
            Some(batch) => {
                if !self.quiet {
                    if self.picker.learn(grid, &batch) {
                        self.pause = EVEN_PAUSE.0;
                    } else {
                        self.from = now + self.pause;
                        self.pause = (2 * self.pause).min(EVEN_PAUSE.1);
                    }
                }
                self.end(source);
                Some(batch)
            }
            None if is_over || now >= until => {
                self.from = now + BUSY_PAUSE;
                self.end(source);
                None
            }
            None => {
                self.watching = Some(Watching {
                    grid,
                    source,
                    due,
                    until,
                });
                None
            }
        }
    }

    fn begin(&mut self, setup: &Setup, now: Instant) {
        let base = setup.base_pace();
        let Some((grid, pace)) = self.picker.pick(&base, self.quiet) else {
            return;
        };
        let Pace {
            sampling,
            aggregation,
            ..
        } = pace;
        let settings = DamonSettings {
            sampling,
            aggregation,
            ..setup.damon
        }
        .grid(grid.pages());
        let ranges = [(grid.start, grid.bytes)];
        match DamonSource::start(
            &setup.root,
            &setup.run_dir,
            setup.pid,
            &ranges,
            settings,
            self.generation,
        ) {
            Ok(source) => {
                let begun = Instant::now();
                self.watching = Some(Watching {
                    grid,
                    source,
                    due: begun + aggregation,
                    until: begun + aggregation * MOST_LATE,
                });
            }
            Err(error) => {
                let pause = match error.is_busy() {
                    true => BUSY_PAUSE,
                    false => FAILED_PAUSE,
                };
                tracing::debug!(pid = setup.pid, "no grid for {pause:?}: {error}");
                self.from = now + pause;
            }
        }
    }

    fn end(&mut self, source: DamonSource) {
        if let Err(error) = source.stop() {
            tracing::debug!("a grid's kdamond did not end cleanly: {error}");
        }
    }

    /// Ends it and leaves nothing behind.
    pub(super) fn stop(self) -> Result<(), DamonSourceError> {
        self.watching
            .map_or(Ok(()), |watching| watching.source.stop())
    }
}
