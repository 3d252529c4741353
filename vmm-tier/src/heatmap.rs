//! `vmm-tier heatmap`: a guest's heat and tiers over guest-physical space, in the terminal and as a
//! picture.

#[cfg(feature = "screens")]
mod drawing;
mod map;
mod terminal;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args};
use qmp::{Client, ErrorClass, client::ExecuteError};
use serde_json::json;

use self::{map::HeatMap, terminal::Screen};
use crate::{explain, map_cmd::print};

/// The command that an agent, or its proxy of QEMU's monitor, knows.
const COMMAND: &str = "query-tier-heatmap";
/// Columns and rows where there is no terminal.
const NO_TERMINAL: (u16, u16) = (80, 24);
/// The narrowest and the widest drawing.
const COLUMNS: std::ops::RangeInclusive<u16> = 32..=400;

/// Arguments of `heatmap`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("agent").args(["qmp", "control"]).required(true)))]
pub(crate) struct HeatmapArgs {
    /// A QMP socket of the guest's QEMU; the agent beside it is asked
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// The agent's control socket
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Draw a picture here too, as PNG
    #[cfg(feature = "screens")]
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Columns of the drawing [default: those of the terminal, 80 into a pipe]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(32..=400))]
    columns: Option<u16>,
}

/// Draws the heat map of a guest.
///
/// # Errors
/// If no agent can be asked, it knows no heat, or a drawing can't be written.
pub(crate) fn run(args: &HeatmapArgs) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "screens")]
    let picture = args
        .png
        .as_deref()
        .map(crate::output_file::OutputFile::create)
        .transpose()?;
    let agent = explain::agent(args.qmp.as_deref(), args.control.as_deref())?;
    let screen = screen(args.columns);
    let ask = |rows: u32, columns: u32| ask(&agent, rows, columns);
    print(&terminal::draw(screen, ask)?)?;
    #[cfg(feature = "screens")]
    if let Some(picture) = picture {
        let map = ask(drawing::ROWS, drawing::COLUMNS)?;
        picture.finish(&drawing::draw(&map)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is drawn on.
fn screen(columns: Option<u16>) -> Screen {
    let out = std::io::stdout();
    let is_terminal = out.is_terminal();
    let size = rustix::termios::tcgetwinsize(&out).ok();
    let size = size.filter(|size| is_terminal && size.ws_col > 0 && size.ws_row > 0);
    let (wide, high) = size.map_or(NO_TERMINAL, |size| (size.ws_col, size.ws_row));
    let columns = columns.unwrap_or(wide);
    Screen {
        columns: columns.clamp(*COLUMNS.start(), *COLUMNS.end()),
        rows: high,
        // See https://no-color.org.
        is_coloured: is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
    }
}

/// Asks for a heat map of so many cells.
fn ask(agent: &Client, rows: u32, columns: u32) -> anyhow::Result<HeatMap> {
    let size = json!({"rows": rows, "columns": columns});
    let reply = match agent.execute_raw(COMMAND, Some(size)) {
        Err(ExecuteError::Refused { error, .. }) if error.class == ErrorClass::CommandNotFound => {
            bail!("QEMU answers itself: no agent runs beside this guest, so its heat is not known")
        }
        reply => reply?,
    };
    HeatMap::read(reply, rows, columns).context("the agent's heat map can't be drawn")
}
