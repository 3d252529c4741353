//! `vmm-tier record`: accesses into a trace.

mod import;
mod output;
mod progress;

use std::process::ExitCode;

use crate::cli::RecordArgs;

/// Runs the command.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) fn run(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    import::run(args, &args.import)
}
