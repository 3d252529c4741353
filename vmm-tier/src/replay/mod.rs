//! `vmm-tier replay`: policies place the pages of a recorded or generated guest again, and are compared.
//!
//! ```text
//! Input ─► Facts ─► pass 1: Profile ─► pass 2: lockstep of Simulations ─► Report ─► text, JSON, SVG
//! ```

mod args;
#[cfg(any(feature = "charts", test))]
mod chart;
mod charts;
mod curve;
mod fast;
mod input;
mod lockstep;
mod markdown;
mod passes;
mod progress;
mod ranges;
mod report;
mod results;
mod settings;
mod survey;
#[cfg(any(feature = "charts", test))]
mod svg;
mod text;
mod thin;

#[cfg(test)]
mod tests;

use std::{path::Path, process::ExitCode};

use anyhow::Context as _;

pub(crate) use self::args::ReplayArgs;
use self::{progress::Progress, report::Report, settings::Settings};
use crate::{map_cmd::print, trace::TraceError};

/// Replays what the arguments name and prints what comes of it.
///
/// # Errors
/// If a name is not known, an input can't be replayed, or a file not be written.
pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::new(args)?;
    let progress = Progress::new(args.quiet);
    let mut report = Report::default();
    for input in &settings.inputs {
        let outcome = passes::replay(input, &settings, &progress)
            .map_err(|error| named(error, &input.name()))?;
        report.add(outcome.trace, outcome.runs, settings.target);
    }
    progress.end();
    if let Some(path) = &args.svg {
        write(path, &charts::picture(&report, settings.target)?)?;
    }
    if let Some(path) = &args.markdown {
        write(path, &markdown::tables(&report))?;
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        text::report(&report, !args.no_chart)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// An error that says of which trace it is. Those of reading say it themselves.
fn named(error: anyhow::Error, name: &str) -> anyhow::Error {
    match error.is::<TraceError>() {
        true => error,
        false => error.context(format!("{name} can't be replayed")),
    }
}
