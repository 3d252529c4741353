//! Traces of other programs, and recordings that were cut, made whole traces of this program's.

use std::{path::Path, process::ExitCode};

use tier_core::text::size::human;
use tier_replay::{
    format::End,
    machine::{Access, Accesses as _},
    trace::{self, Native, Opened, Options, Output, TraceError, TraceFile},
};

use super::{RecordArgs, progress::Progress, say};

/// `vmm-tier record --import FILE`.
pub(super) fn run(args: &RecordArgs, file: &Path) -> anyhow::Result<ExitCode> {
    let options = Options {
        step: args.step,
        partial: args.partial,
    };
    let Opened { accesses, info } = trace::open(file, args.format, options)?;
    let mut header = info.header;
    if let Some(name) = &args.name {
        header.name.clone_from(name);
    }
    let output = Output::reserve(&args.output)?.begin(&header)?;
    let mut progress = Progress::start();
    let import = Import {
        output,
        progress: &mut progress,
        bytes: info.bytes,
    };
    let copied = import.copy(accesses);
    progress.clear();
    let (end, bytes, notes) = copied?;
    let seconds = progress.elapsed().as_secs_f64();
    let accesses = end.accesses;
    say(&format!(
        "{}: {accesses} accesses of a trace in format {}, in {} ({:.2} bytes each), {seconds:.1} s{notes}",
        args.output.display(),
        info.format,
        human(bytes),
        bytes as f64 / accesses.max(1) as f64,
    ));
    Ok(ExitCode::SUCCESS)
}

struct Import<'a> {
    output: Output,
    progress: &'a mut Progress,
    /// Length of what is read; 0 if that is not known.
    bytes: u64,
}

impl Import<'_> {
    fn copy(mut self, mut file: TraceFile) -> Result<(End, u64, String), TraceError> {
        match file.native() {
            Some(native) => self.copy_blocks(native)?,
            None => self.copy_accesses(&mut file)?,
        }
        let (end, bytes) = self.output.finish()?;
        let counts = file.counts();
        let mut notes = String::new();
        for (count, what) in [
            (counts.fetches, "instruction fetches"),
            (counts.other_lines, "other lines"),
        ] {
            if count > 0 {
                notes += &format!("; {count} {what} passed over");
            }
        }
        let account = &end.account;
        for (count, what) in [
            (account.lost, "samples lost"),
            (account.samples, "dropped"),
            (
                counts.outside.max(end.outside),
                "outside the guest's memory",
            ),
        ] {
            if count > 0 {
                notes += &format!("; {count} {what} when it was recorded");
            }
        }
        if let Some(doubt) = file.doubt() {
            notes += &format!("; {doubt}");
        }
        Ok((end, bytes, notes))
    }

    fn copy_accesses(&mut self, file: &mut TraceFile) -> Result<(), TraceError> {
        let mut block: Vec<Access> = Vec::new();
        let mut more = true;
        while more {
            block.clear();
            more = file.fill(&mut block)?;
            self.output.accesses(&block)?;
            self.show(file.position());
        }
        Ok(())
    }

    /// Copies blocks with all that is in them: also the ends of batches.
    fn copy_blocks(&mut self, file: &mut Native) -> Result<(), TraceError> {
        while file.next_block()? {
            let mut from = 0;
            for (at, event) in &file.block().events {
                self.output.accesses(&file.block().accesses[from..*at])?;
                self.output.event(event.clone())?;
                from = *at;
            }
            self.output.accesses(&file.block().accesses[from..])?;
            self.show(file.position());
        }
        self.output.outside(file.outside());
        Ok(())
    }

    fn show(&mut self, position: u64) {
        let (end, bytes) = self.output.so_far();
        let accesses = end.accesses;
        let share = match self.bytes {
            0 => String::new(),
            all => format!(", {} % read", position.saturating_mul(100) / all),
        };
        self.progress.show(accesses, bytes, &share);
    }
}
