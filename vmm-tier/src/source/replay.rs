//! A recording as a source: its batches come again, as far apart as they came when they were recorded.
//!
//! Addresses of a recording are guest-physical, so it can be played to another process of the same guest, or to
//! another guest of that size. What lies outside this guest's memory is counted as such. After the end
//! the source is silent.

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tier_core::{
    map::GuestMemoryMap,
    sample::{
        AccessSample, DropReason, SampleAccount, SampleAddress, SampleBatch, Sight, SourceKind,
    },
    time::Time,
};
use tier_replay::trace::{self, Format, Opened, Options, TraceFile};
use tier_replay::{
    format::{BatchEnd, Event, Origin},
    machine::Access,
};
use tier_sys::{process, wait::Wait};

use super::{Opener, Polled, Setup, Source};

/// Most samples of a batch: no source of this program's delivers as many.
const MOST_SAMPLES: usize = 1 << 20;
/// Most batches that one poll brings.
const MOST_BATCHES: usize = 8;

/// Opens the recording `path`, each time from its beginning; not again after it could not be read on.
pub(crate) fn opener(path: PathBuf) -> Opener {
    let broken = Arc::new(Mutex::new(None));
    Box::new(move |_: &Setup, map| {
        let known: Option<String> = broken.lock().ok().and_then(|broken| broken.clone());
        if let Some(why) = known {
            anyhow::bail!(why);
        }
        let broken = Arc::clone(&broken);
        Ok(Box::new(Replay::open(&path, map, broken)?))
    })
}

struct Replay {
    path: PathBuf,
    map: Arc<GuestMemoryMap>,
    file: TraceFile,
    /// The source that was recorded.
    recorded: SourceKind,
    /// Blocks of the file that were looked at: accesses and events of the last one handed on.
    given: (usize, usize),
    /// Accesses of the batch that is being read.
    pending: Vec<Access>,
    /// The next batch, and when on the recording's clock it ended.
    next: Option<(SampleBatch, Time)>,
    /// When the recording was begun here, and the time on its clock then.
    started: Option<(Instant, Time)>,
    ended: bool,
    broken: Arc<Mutex<Option<String>>>,
}

impl Replay {
    fn open(
        path: &Path,
        map: &Arc<GuestMemoryMap>,
        broken: Arc<Mutex<Option<String>>>,
    ) -> anyhow::Result<Self> {
        let Opened { accesses, info } = trace::open(path, Format::Auto, Options::default())?;
        let Origin::Source(recorded) = info.header.origin else {
            anyhow::bail!(
                "{} is a trace of a program ({}), not a recording of a guest by 'vmm-tier record': use it with \
                 'vmm-tier replay'",
                path.display(),
                info.header.origin.name()
            );
        };
        Ok(Self {
            path: path.to_owned(),
            map: Arc::clone(map),
            file: accesses,
            recorded,
            given: (0, 0),
            pending: Vec::new(),
            next: None,
            started: None,
            ended: false,
            broken,
        })
    }

    /// The next batch of the file; `None` at its end.
    fn read(&mut self) -> anyhow::Result<Option<(SampleBatch, Time)>> {
        let native = self.file.native().context("only recordings have batches")?;
        loop {
            let block = native.block();
            let (accesses, events) = &mut self.given;
            for (at, event) in &block.events[*events..] {
                self.pending
                    .extend_from_slice(&block.accesses[*accesses..*at]);
                (*accesses, *events) = (*at, *events + 1);
                if let Event::Batch(end) = event {
                    let end = end.clone();
                    let taken = std::mem::take(&mut self.pending);
                    let batch = sample_batch(&taken, &end, &self.map);
                    return Ok(Some((batch, end.end)));
                }
            }
            self.pending.extend_from_slice(&block.accesses[*accesses..]);
            anyhow::ensure!(
                self.pending.len() <= MOST_SAMPLES,
                "{}: a batch has more than {MOST_SAMPLES} samples, which no recording has",
                self.path.display()
            );
            self.given = (0, 0);
            if !native.next_block()? {
                return Ok(None);
            }
        }
    }

    fn read_on(&mut self) -> anyhow::Result<()> {
        if self.next.is_none() && !self.ended {
            let read = self.read();
            if let (Err(error), Ok(mut broken)) = (&read, self.broken.lock()) {
                *broken = Some(format!("{error:#}"));
            }
            self.next = read?;
            self.ended = self.next.is_none();
            if self.ended {
                tracing::info!("the recording {} has ended", self.path.display());
            }
        }
        Ok(())
    }

    /// How long it takes until the next batch is due; `None` at the end.
    fn due_in(&mut self) -> Option<Duration> {
        let (batch, end) = self.next.as_ref()?;
        let (end, span) = (*end, batch.span);
        let began = Time(
            end.0
                .saturating_sub(span.as_nanos().try_into().unwrap_or(u64::MAX)),
        );
        let (started, at) = *self.started.get_or_insert_with(|| (Instant::now(), began));
        Some(end.since(at).saturating_sub(started.elapsed()))
    }
}

impl Source for Replay {
    fn kind(&self) -> SourceKind {
        SourceKind::Replay
    }

    fn sight(&self) -> Sight {
        Sight::Guest
    }

    fn label(&self) -> String {
        let end = if self.ended { ", which has ended" } else { "" };
        format!(
            "a recording of {} from {}{end}",
            self.recorded,
            self.path.display()
        )
    }

    fn poll(&mut self, wait: Wait<'_>) -> anyhow::Result<Polled> {
        let mut polled = Polled::default();
        self.read_on()?;
        let due_in = self.due_in().unwrap_or(wait.timeout);
        if !due_in.is_zero() {
            wait.at_most(due_in).pass()?;
        }
        while polled.batches.len() < MOST_BATCHES && self.due_in() == Some(Duration::ZERO) {
            if let Some((mut batch, _)) = self.next.take() {
                batch.end = process::now();
                batch.map_generation = self.map.generation();
                polled.batches.push(batch);
            }
            self.read_on()?;
        }
        Ok(polled)
    }

    fn set_map(&mut self, map: &Arc<GuestMemoryMap>) -> anyhow::Result<()> {
        self.map = Arc::clone(map);
        Ok(())
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A batch as the source would deliver it that was recorded.
fn sample_batch(accesses: &[Access], end: &BatchEnd, map: &GuestMemoryMap) -> SampleBatch {
    let mut account = SampleAccount {
        lost: end.account.lost,
        throttled: end.account.throttled,
        ..SampleAccount::default()
    };
    for (&reason, &n) in &end.account.dropped {
        account.drop_records(reason, n);
    }
    let mut samples = Vec::with_capacity(accesses.len());
    for access in accesses {
        let before = samples.len();
        let most = if end.tests > 0 { end.tests } else { u32::MAX };
        let end = access.address.saturating_add(access.len);
        samples.extend(map.pieces(access.address, end).map(|piece| AccessSample {
            address: SampleAddress::Guest(piece.gpa),
            len: piece.len,
            weight: access.weight.min(most) as f32,
            kind: access.kind,
        }));
        if samples.len() == before {
            account.drop_records(DropReason::NotGuestRam, 1);
        }
    }
    SampleBatch {
        source: SourceKind::Replay,
        end: end.end,
        span: end.span,
        tests: end.tests,
        period: end.period,
        settled: end.settled,
        map_generation: map.generation(),
        samples,
        account,
    }
}
