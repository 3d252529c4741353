//! What a live source delivers, into a trace.

mod translate;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tier_core::text::size::human;
use tier_core::{map::GuestMemoryMap, sample::SampleBatch, time::Time};
use tier_replay::format::{Event, Header, Mark, Origin, TraceRange};
use tier_replay::trace::{Output, Reserved, TraceError};
use tier_sys::process;

use self::translate::Translator;
use super::{progress::Progress, say};
use crate::agent::Tap;

/// How long what was heard waits before it is written: what a recording that is killed loses.
const FLUSH: Duration = Duration::from_secs(1);

/// Writes down what it hears.
pub(super) struct Recorder {
    path: PathBuf,
    name: String,
    /// The generation of the map that the trace tells of.
    generation: Option<u64>,
    /// When the recording ends, if that was said.
    until: Option<Instant>,
    /// The file before the first batch has come: its header tells of that.
    reserved: Option<Reserved>,
    output: Option<Output>,
    translator: Translator,
    source: String,
    flushed: Instant,
    progress: Progress,
    trouble: Option<anyhow::Error>,
}

impl Recorder {
    /// Prepares a recording of the guest `name` into the file `path`.
    ///
    /// # Errors
    /// If the file can't be made.
    pub(super) fn new(path: &Path, time: Option<Duration>, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            name: name.to_owned(),
            translator: Translator::new(),
            generation: None,
            until: time.and_then(|time| Instant::now().checked_add(time)),
            reserved: Some(Output::reserve(path)?),
            output: None,
            source: String::new(),
            flushed: Instant::now(),
            progress: Progress::start(),
            trouble: None,
        })
    }

    fn take(&mut self, batch: &SampleBatch, map: &GuestMemoryMap) -> Result<(), TraceError> {
        if let Some(reserved) = self.reserved.take() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let header = Header {
                origin: Origin::Source(batch.source),
                name: self.name.clone(),
                started: now.unwrap_or_default().as_secs(),
                period: batch.period,
                tests: batch.tests,
                ranges: memory(map),
            };
            self.output = Some(reserved.begin(&header)?);
        }
        let Some(output) = &mut self.output else {
            return Ok(());
        };
        if self.generation.replace(map.generation()) != Some(map.generation()) {
            self.translator.set_memory(output.memory(&memory(map))?);
        }
        let translated = self.translator.batch(batch, map);
        output.accesses(&translated.accesses)?;
        output.outside(translated.outside);
        output.event(Event::Batch(translated.end))
    }

    fn mark(&mut self, text: &str) -> Result<(), TraceError> {
        let at = self.translator.at(process::now());
        match &mut self.output {
            Some(output) => output.event(Event::Mark(Mark {
                at,
                text: text.to_owned(),
            })),
            // Nothing has come yet that it could lie between.
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), TraceError> {
        if self.flushed.elapsed() < FLUSH {
            return Ok(());
        }
        self.flushed = Instant::now();
        self.output.as_mut().map_or(Ok(()), Output::flush)
    }

    /// Keeps the first trouble; the recording ends with it.
    fn note_trouble(&mut self, done: Result<(), TraceError>) {
        if let (Err(error), None) = (done, &self.trouble) {
            self.trouble = Some(error.into());
            self.until = Some(Instant::now());
        }
    }

    fn show(&mut self) {
        let (accesses, bytes) = match &self.output {
            Some(output) => {
                let (end, bytes) = output.so_far();
                (end.accesses, bytes)
            }
            None => (0, 0),
        };
        self.progress.show(accesses, bytes, &self.source);
    }
}

/// The guest's memory as a trace names it.
fn memory(map: &GuestMemoryMap) -> Vec<TraceRange> {
    let ranges = map.ranges().iter().map(|range| TraceRange {
        gpa: range.gpa.0,
        len: range.len,
        page_size: map.block(range.block).page_size,
    });
    ranges.collect()
}

impl Tap for Recorder {
    fn batch(&mut self, batch: &SampleBatch, map: &GuestMemoryMap) {
        if self.trouble.is_none() {
            self.source = format!(", from {}", batch.source);
            let done = self.take(batch, map);
            self.note_trouble(done);
        }
    }

    fn note(&mut self, text: &str) {
        let done = self.mark(text);
        self.note_trouble(done);
    }

    fn tick(&mut self) -> bool {
        let done = self.flush();
        self.note_trouble(done);
        self.show();
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    fn finish(mut self: Box<Self>, why: Option<String>) -> anyhow::Result<()> {
        self.progress.clear();
        let Some(mut output) = self.output.take() else {
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            let trouble = self.trouble.take();
            return Err(trouble.unwrap_or_else(|| {
                anyhow::anyhow!(
                    "nothing was recorded: no source delivered anything{why}; see 'vmm-tier doctor'"
                )
            }));
        };
        if let Some(trouble) = self.trouble.take() {
            output.keep();
            return Err(trouble).context("the recording ended early, and what was written is kept");
        }
        let (end, bytes) = output.finish()?;
        let (accesses, batches) = (end.accesses, end.batches);
        let mut notes = String::new();
        for (n, what) in [(end.account.lost, "lost"), (end.account.samples, "dropped")] {
            if n > 0 {
                notes += &format!(", {n} {what}");
            }
        }
        say(&format!(
            "{}: {accesses} accesses in {batches} batches of {} s, {}{notes}",
            self.path.display(),
            Time(end.last).as_secs_f64().round(),
            human(bytes),
        ));
        Ok(())
    }
}
