//! `vmm-tier doctor`: what works on this host, what would fight, and what to do about it.
//!
//! Facts are read in one place ([`facts`]) and sources tried in another ([`probe`]), findings are pure functions of
//! facts ([`host`], [`memory`], [`guest`], [`sources`]), and showing them is a third thing ([`report`]).

mod agent;
mod facts;
mod guest;
mod host;
mod memory;
mod probe;
pub(crate) mod repair;
mod report;
mod source_report;
mod sources;
#[cfg(test)]
mod tests;
mod wiring;

use std::{path::Path, process::ExitCode};

use serde::Serialize;
use tier_core::tiers::Division;
use tier_sys::{sysroot::SysRoot, topology::Topology};

use self::{
    facts::{GuestFacts, HostFacts},
    probe::Probes,
    report::Report,
};
use crate::{config::RUN_DIR, map_cmd::print};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    /// Good.
    Ok,
    /// Worth knowing.
    Note,
    /// Tiering runs, but worse than it could.
    Warn,
    /// Tiering can't run.
    Fail,
}

/// What a finding is about; the groups of the text form, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Area {
    Tiers,
    Permissions,
    Sampling,
    Virtualisation,
    HugePages,
    Rivals,
    Guest,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// Names the check; stays the same from version to version.
    id: &'static str,
    area: Area,
    level: Level,
    /// What was found.
    what: String,
    /// What follows from it.
    meaning: String,
    /// The command that mends it.
    remedy: Option<String>,
}

impl Finding {
    fn new(
        area: Area,
        id: &'static str,
        level: Level,
        what: impl Into<String>,
        meaning: impl Into<String>,
    ) -> Self {
        Self {
            id,
            area,
            level,
            what: what.into(),
            meaning: meaning.into(),
            remedy: None,
        }
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.remedy = Some(command.into());
        self
    }
}

/// Looks at the host, and at the guest behind `qmp` if one is named, and prints what was found. The exit
/// code is 0 only if tiering can run.
///
/// # Errors
/// If the report can't be printed. A host that can't be looked at is a finding.
pub(crate) fn run(qmp: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let root = SysRoot::real();
    let host = HostFacts::read(&root, Path::new(RUN_DIR));
    let guest = qmp.map(|path| GuestFacts::read(path, &root));
    let probes = Probes::take(&root, Path::new(RUN_DIR));
    let report = examine(&host, &probes, guest.as_ref());
    let text = if json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    print(&text)?;
    Ok(if report.can_tier {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// From facts to a report.
fn examine(
    host: &HostFacts,
    probes: &Probes,
    guest: Option<&Result<GuestFacts, String>>,
) -> Report {
    let nodes = host
        .topology
        .as_ref()
        .map(Topology::facts)
        .map_err(Clone::clone);
    let division = nodes.as_ref().ok().map(|nodes| Division::of(nodes));
    let mut findings = host::findings(host, division.as_ref());
    let division = division.and_then(Result::ok);
    let known = guest.and_then(|guest| guest.as_ref().ok());
    let sources = sources::table(host, probes, known);
    findings.push(sources::finding(&sources));
    match guest {
        Some(Ok(guest)) => findings.extend(guest::findings(guest, division.as_ref())),
        Some(Err(error)) => findings.push(Finding::new(
            Area::Guest,
            "qmp",
            Level::Fail,
            error.clone(),
            "the guest can't be looked at",
        )),
        None => {}
    }
    // Stable: within an area findings keep their order.
    findings.sort_by_key(|finding| finding.area);
    Report::new(
        findings,
        division.as_ref(),
        nodes.as_deref().unwrap_or_default(),
        sources,
    )
}
