//! `vmm-tier report`: a recording as one page of HTML.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use tier_replay::comparison::{self, PageArgs};

use crate::{map_cmd::print, output_file::OutputFile};

/// Arguments of `report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    page: PageArgs,
    /// The page's file [default: the recording's name with the ending .html, in the current folder]
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
}

/// Makes the page, and says where it is.
///
/// # Errors
/// If the recording can't be replayed, or the page not be written.
pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let path = match &args.output {
        Some(path) => path.clone(),
        None => beside(args.page.file()).context("name the page's file with --output")?,
    };
    let file = OutputFile::create(&path)?;
    let page = comparison::page(&args.page)?;
    file.finish(page.as_bytes())?;
    print(&format!("{}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The page's name where none was given.
fn beside(recording: &Path) -> Option<PathBuf> {
    let name = recording.file_name()?;
    Some(Path::new(name).with_extension("html"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_when_not_named_is_called_after_the_recording() {
        let name = |path: &str| beside(Path::new(path));
        assert_eq!(name("/var/vm1.vmt"), Some("vm1.html".into()));
        assert_eq!(name("vm1"), Some("vm1.html".into()));
        assert_eq!(name("/"), None);
    }
}
