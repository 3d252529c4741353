//! A comparison: policies place the pages of a recorded or generated guest again, at several sizes of
//! DRAM.
//!
//! ```text
//! Input ─► Facts ─► pass 1: Profile ─► pass 2: lockstep of Simulations ─► Report ─► text, JSON, SVG, Markdown
//! ```

pub(crate) mod args;
#[cfg(any(feature = "charts", test))]
mod chart;
pub(crate) mod charts;
mod curve;
mod error;
pub(crate) mod fast;
mod few_samples;
pub(crate) mod input;
mod lockstep;
mod markdown;
#[cfg(any(feature = "pictures", test))]
mod page;
pub(crate) mod passes;
pub(crate) mod progress;
mod ranges;
mod report;
mod results;
pub(crate) mod settings;
mod survey;
#[cfg(any(feature = "charts", test))]
pub(crate) mod svg;
mod text;

#[cfg(test)]
mod tests;

use std::path::Path;

#[cfg(any(feature = "pictures", test))]
pub use self::page::{PageArgs, make as page};
pub use self::{
    args::ReplayArgs,
    charts::PictureError,
    error::ComparisonError,
    input::{InputError, NotAFile},
    settings::SettingsError,
    survey::SurveyError,
};
use crate::sharing;

use self::{progress::Progress, report::Report, settings::Settings};

/// Replays what the arguments name. Writes the files that they ask for; returns what is to be printed.
///
/// # Errors
/// If a name is not known, an input can't be replayed, or a file can't be written.
pub fn compare(args: &ReplayArgs) -> Result<String, ComparisonError> {
    if let Some(vms) = args.vms {
        return sharing::report(vms.into(), args);
    }
    let settings = Settings::new(args)?;
    let progress = Progress::new(args.quiet);
    let mut report = Report::default();
    for input in &settings.inputs {
        let outcome = passes::replay(input, &settings, &progress, &mut ())
            .map_err(|error| ComparisonError::of(error, input.name()))?;
        curve::add_with_needs(&mut report, outcome.trace, outcome.runs, settings.target);
    }
    progress.end();
    if let Some(path) = &args.svg {
        write(path, &charts::picture(&report, settings.target)?)?;
    }
    if let Some(path) = &args.markdown {
        write(path, &markdown::tables(&report))?;
    }
    Ok(if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        text::report(&report, !args.no_chart)
    })
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), ComparisonError> {
    std::fs::write(path, text).map_err(|source| ComparisonError::Write {
        path: path.to_owned(),
        source,
    })
}
