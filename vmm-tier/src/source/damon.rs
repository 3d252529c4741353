//! DAMON as a source: at the pace that the guest needs, in turns while it is at rest, and page by page
//! where regions can't tell hot from cold.

mod grids;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tier_core::{
    addr::Hva,
    damon_pace::{Pace, PaceKeeper},
    map::GuestMemoryMap,
    sample::{Sight, SourceKind},
};
use tier_sys::{
    damon::{
        DamonSettings, Pieces,
        source::{DamonSource, DamonSourceError},
    },
    wait::Wait,
};

use self::grids::Grids;
use super::{Polled, Setup, Source, turn::Turn};

/// How late a report may be noticed.
const NOTICED_WITHIN: Duration = Duration::from_millis(100);

/// A kdamond on QEMU's address space, and the pace that it keeps.
struct Damon {
    setup: Setup,
    map: Arc<GuestMemoryMap>,
    pace: PaceKeeper,
    /// `None` while it rests.
    watching: Option<DamonSource>,
    /// What the kdamond has not taken yet, since DAMON was busy with those of other agents.
    owed: Owed,
    turn: Turn,
    /// Before this no report is to come.
    next_report: Instant,
    grids: Grids,
}

/// How long a kdamond goes on as it was when DAMON was busy, before it is asked again. Each commit keeps
/// DAMON busy until the end of an aggregation, so agents that all ask at each report keep each other
/// waiting.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

/// What a kdamond is still to take.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    ranges: bool,
    intervals: bool,
    /// DAMON was busy: not before this time.
    from: Option<Instant>,
}

impl Owed {
    fn is_due(self) -> bool {
        let may = self.from.is_none_or(|from| from <= Instant::now());
        may && (self.ranges || self.intervals)
    }
}

/// Watches the ranges of `map`.
///
/// # Errors
/// Why DAMON can't watch them; the text says what to do.
pub(crate) fn open(setup: &Setup, map: &Arc<GuestMemoryMap>) -> anyhow::Result<Box<dyn Source>> {
    let mut damon = Damon {
        setup: setup.clone(),
        map: Arc::clone(map),
        pace: setup.pace_keeper(),
        watching: None,
        owed: Owed::default(),
        turn: Turn::watch(),
        next_report: Instant::now(),
        grids: Grids::new(map),
    };
    damon.watch()?;
    Ok(Box::new(damon))
}

impl Damon {
    fn watch(&mut self) -> anyhow::Result<()> {
        let Setup {
            root, run_dir, pid, ..
        } = &self.setup;
        let ranges = ranges(&self.map);
        let (settings, generation) = (self.settings(), self.map.generation());
        let source = DamonSource::start(root, run_dir, *pid, &ranges, settings, generation)?;
        self.watching = Some(source);
        self.owed = Owed::default();
        self.next_report = Instant::now();
        self.turn = Turn::watch();
        Ok(())
    }

    /// DAMON's settings for now.
    fn settings(&self) -> DamonSettings {
        let Pace {
            sampling,
            aggregation,
            max_regions,
            ..
        } = self.pace.pace();
        let bytes = self.map.total_bytes();
        let fit = DamonSettings::fit_huge_pages(bytes, max_regions);
        DamonSettings {
            sampling,
            aggregation,
            pieces: match fit && self.pace.is_quickened() {
                true => Pieces::HugePages,
                false => Pieces::Even,
            },
            ..self.setup.damon.with_regions(bytes, max_regions)
        }
    }

    fn set_intervals(&mut self) -> anyhow::Result<()> {
        self.owed.intervals = true;
        self.pay()
    }

    /// Has the kdamond take what is owed. Where DAMON is busy the kdamond goes on as it was, and takes
    /// it after a later report.
    fn pay(&mut self) -> anyhow::Result<()> {
        let settings = self.settings();
        self.next_report = Instant::now();
        let Some(source) = &mut self.watching else {
            self.owed = Owed::default();
            return Ok(());
        };
        let mut pay = || {
            if self.owed.ranges {
                source.update_ranges(&ranges(&self.map), self.map.generation())?;
                self.owed.ranges = false;
            }
            if self.owed.intervals {
                source.set_intervals(&settings)?;
                self.owed.intervals = false;
            }
            Ok(())
        };
        match pay() {
            Err(error) if DamonSourceError::is_busy(&error) => {
                tracing::debug!(pid = self.setup.pid, "DAMON is busy: settings change later");
                self.owed.from = Some(Instant::now() + BUSY_PAUSE);
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Begins and ends turns. Returns how long to wait if there is nothing to watch.
    fn take_turns(&mut self) -> anyhow::Result<Option<Duration>> {
        let turns = self.pace.pace().turns;
        if self.turn.advance(turns) {
            match self.watching.take() {
                Some(source) => source.stop()?,
                None => self.watch()?,
            }
        }
        Ok(self.turn.rest_left(turns))
    }
}

impl Source for Damon {
    fn kind(&self) -> SourceKind {
        SourceKind::Damon
    }

    fn sight(&self) -> Sight {
        Sight::Guest
    }

    fn label(&self) -> String {
        let Pace {
            sampling,
            aggregation,
            max_regions,
            ..
        } = self.pace.pace();
        let bytes = self.map.total_bytes() / max_regions.max(1);
        format!(
            "DAMON on QEMU's address space, every {sampling:?}, reports every {aggregation:?}; sees ranges \
             of {} KiB on average, smaller where heat differs",
            (bytes >> 10).max(4)
        )
    }

    fn poll(&mut self, wait: Wait<'_>) -> anyhow::Result<Polled> {
        if let Some(left) = self.take_turns()? {
            // A grid that began with the last report ends with its own, not with the rest.
            wait.at_most(left.min(self.grids.due_in())).pass()?;
            return Ok(Polled {
                grid: self.grids.advance(&self.setup, !self.pace.is_quickened()),
                ..Polled::default()
            });
        }
        let left = (self.next_report).saturating_duration_since(Instant::now());
        let Some(source) = &mut self.watching else {
            return Ok(Polled::default());
        };
        let left = left.max(NOTICED_WITHIN).min(self.grids.due_in());
        let mut poll = source.poll(wait.at_most(left))?;
        let mut changed = None;
        for batch in &mut poll.batches {
            self.turn.report();
            batch.settled = self.pace.is_settled(batch);
            changed = self.pace.observe(batch).or(changed);
            self.grids.observe(batch);
            // The report may have waited; the kdamond is never early.
            let next = self.pace.pace().aggregation.saturating_sub(NOTICED_WITHIN);
            self.next_report = Instant::now() + next;
        }
        if let Some(pace) = changed {
            let (sampling, regions) = (pace.sampling, pace.max_regions);
            tracing::debug!(pid = self.setup.pid, ?sampling, regions, "pace");
            self.owed.intervals = true;
        }
        if !poll.batches.is_empty() && self.owed.is_due() {
            self.pay()?;
        }
        let ended = poll.ended.then(|| {
            "DAMON stopped watching: QEMU ended, or someone turned the kdamond off".to_owned()
        });
        // Where all is found used, the pace quickens: pages of a grid would be found used alike.
        let may_watch = ended.is_none() && !self.pace.is_quickened();
        let grid = self.grids.advance(&self.setup, may_watch);
        Ok(Polled {
            batches: poll.batches,
            grid,
            ended,
        })
    }

    fn set_map(&mut self, map: &Arc<GuestMemoryMap>) -> anyhow::Result<()> {
        self.map = Arc::clone(map);
        self.grids.set_map(map);
        self.owed.ranges = true;
        self.set_intervals()
    }

    fn set_quiet(&mut self, quiet: bool) -> anyhow::Result<()> {
        self.pace.set_quiet(quiet);
        self.grids.set_quiet(quiet);
        self.set_intervals()
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        let grids = self.grids.stop();
        self.watching.map_or(Ok(()), DamonSource::stop)?;
        Ok(grids?)
    }
}

fn ranges(map: &GuestMemoryMap) -> Vec<(Hva, u64)> {
    map.unique_hva_ranges()
        .iter()
        .map(|range| (range.start, range.len))
        .collect()
}
