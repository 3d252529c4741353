//! `vmm-tier record`: accesses into a trace, from a guest or from what another program wrote.

mod args;
mod import;
mod live;
mod progress;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

pub(crate) use self::args::RecordArgs;
use self::live::Recorder;
use crate::{
    agent::{self, Tap},
    config::{Config, RunArgs, Settings},
};

/// Runs the command.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) fn run(args: RecordArgs) -> anyhow::Result<ExitCode> {
    if let Some(file) = &args.import {
        return import::run(&args, file);
    }
    let config = args.config.as_deref().map(Config::read).transpose()?;
    let run_args = RunArgs {
        qmp: args.qmp,
        name: args.name,
        source: args.source,
        dry_run: true,
        ..RunArgs::default()
    };
    let settings = Settings {
        // Nobody is served beside the recording.
        control: None,
        proxy: None,
        ..Settings::new(run_args, config.unwrap_or_default())?
    };
    agent::record(&settings, |name| {
        let recorder = Recorder::new(&args.output, args.time, name)?;
        Ok(Box::new(recorder) as Box<dyn Tap>)
    })
}

/// Says what is in a trace, on the standard output.
fn say(words: &str) {
    // The trace is whole, whether or not anybody reads this.
    let _ = writeln!(io::stdout(), "{words}");
}
