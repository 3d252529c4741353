//! Every memory layout that QEMU can give a guest, on live QEMU, against the map that `vmm-tier map` makes.
//!
//! For each layout and each QEMU version a paused guest without a system is started. Then three
//! things that know nothing of the code under test are compared with the map:
//!
//! - a random pattern is written at guest-physical addresses through qtest, and read at the mapped
//!   host address from `/proc/PID/mem`;
//! - QEMU is asked where single addresses inside and outside the map lie (`gpa2hva`);
//! - QEMU's whole flat view of memory is compared range by range (`info mtree -f`; it pins memory that
//!   is unplugged later, so it comes last and the guest is thrown away).

mod check;
mod emulator;
mod flat_view;
mod layout;
mod list;
mod pools;
mod qtest;
mod random;
mod report;
mod steps;
mod virtio_mem;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};

use self::{check::Checker, emulator::Qemu, pools::Folders};
pub use self::{
    check::Findings,
    emulator::Version,
    layout::{Layout, Need},
    list::{all, short},
    random::Random,
    report::{Outcome, Report, Row},
};

/// What a run of the layouts needs to know.
#[derive(Debug)]
pub struct Options {
    /// The program under test, `vmm-tier`.
    pub program: PathBuf,
    /// How many addresses are written and read in each layout, and as many are looked at outside.
    pub addresses: usize,
    /// How often the map is made in each layout, for its time; at least once.
    pub maps: usize,
    /// Where the random addresses and patterns begin.
    pub seed: u64,
    /// A place for what could not be tidied up otherwise: when true, the run ends after the guest at hand.
    pub stop: &'static AtomicBool,
}

/// Checks each layout on each version; `say` gets a line for each.
///
/// A layout that fails is a row of the report; the run goes on.
///
/// # Errors
/// When the folders can't be made, or the run was told to stop.
pub fn run(
    options: &Options,
    versions: &[Version],
    layouts: &[Layout],
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Report> {
    let mut random = Random::new(options.seed);
    let folders = Folders::make().context("making folders for the guests' files")?;
    let mut report = Report::new(options, versions);
    let total = layouts.len() * versions.len();
    for layout in layouts {
        for version in versions {
            if options.stop.load(Ordering::Relaxed) {
                bail!("stopped after {} of {total} guests", report.rows.len());
            }
            let outcome = one(options, version, layout, &folders, &mut random);
            let row = Row::new(layout, version, outcome);
            let number = report.rows.len() + 1;
            say(&format!("[{number}/{total}] {}", row.line()));
            report.rows.push(row);
        }
    }
    Ok(report)
}

/// One layout on one version.
fn one(
    options: &Options,
    version: &Version,
    layout: &Layout,
    folders: &Folders,
    random: &mut Random,
) -> Outcome {
    if let Some(why) = layout.lacking(version) {
        return Outcome::Skipped(why);
    }
    let pool = match layout.need {
        Need::Nothing => None,
        Need::Pool { page, count } => match folders.pool(page, count) {
            Ok(pool) => Some(pool),
            Err(why) => return Outcome::Skipped(why),
        },
    };
    let result = Qemu::start(version, &folders.fill_in(&layout.arguments), folders.path())
        .and_then(|mut qemu| {
            for step in &layout.steps {
                step.carry_out(&mut qemu)
                    .with_context(|| format!("step {step:?}"))?;
            }
            Checker::new(options, layout, random).check(&mut qemu)
        });
    folders.forget_files();
    drop(pool);
    match result {
        Ok(findings) => Outcome::Checked(findings),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}
