//! Shows findings, as JSON and as text.

use std::fmt::Write as _;

use serde::Serialize;
use tier_core::{
    addr::{NodeId, NodeSet},
    tiers::{Division, NodeFacts},
};

use super::{
    Area, Finding, Level,
    source_report::{SourceReport, Works, sight},
};

/// What the doctor says. The JSON is a contract: names and units stay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// Whether nothing stands in the way of tiering.
    pub(super) can_tier: bool,
    pub(super) findings: Vec<Finding>,
    /// The tiers, fastest first; none if nodes can't be told apart.
    tiers: Vec<Tier>,
    /// The sources of accesses, the best first.
    sources: Vec<SourceReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Tier {
    rank: u32,
    nodes: NodeSet,
    bytes: u64,
    /// Nanoseconds; `null` if not known.
    read_latency_ns: Option<f64>,
}

impl Report {
    pub(super) fn new(
        findings: Vec<Finding>,
        division: Option<&Division>,
        nodes: &[NodeFacts],
        sources: Vec<SourceReport>,
    ) -> Self {
        let tiers = division.iter().flat_map(|division| {
            let tiers = &division.tiers;
            let known = |ns: f64| (!division.latencies_assumed).then_some(ns);
            [
                (0, &tiers.fast, known(tiers.fast_latency_ns)),
                (1, &tiers.slow, known(tiers.slow_latency_ns)),
            ]
        });
        let bytes = |set: &NodeSet| {
            nodes
                .iter()
                .filter(|node| set.contains(NodeId(node.id)))
                .map(|node| node.bytes)
                .sum()
        };
        let tier = |(rank, set, read_latency_ns): (u32, &NodeSet, Option<f64>)| Tier {
            rank,
            nodes: set.clone(),
            bytes: bytes(set),
            read_latency_ns,
        };
        Self {
            can_tier: findings.iter().all(|finding| finding.level < Level::Fail),
            tiers: tiers.map(tier).collect(),
            findings,
            sources,
        }
    }

    /// Grouped by area, one line a finding, the command that mends it below; then the sources.
    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        let mut area = None;
        for finding in &self.findings {
            if area.replace(finding.area) != Some(finding.area) {
                let gap = if out.is_empty() { "" } else { "\n" };
                let _ = writeln!(out, "{gap}{}", heading(finding.area));
            }
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Note => "note",
                Level::Warn => "WARN",
                Level::Fail => "FAIL",
            };
            let _ = writeln!(out, "  {level:<4}  {} - {}", finding.what, finding.meaning);
            if let Some(remedy) = &finding.remedy {
                let _ = writeln!(out, "        $ {remedy}");
            }
        }
        self.write_sources(&mut out);
        let count = |level| {
            self.findings
                .iter()
                .filter(|finding| finding.level == level)
                .count()
        };
        let verdict = if self.can_tier {
            "Tiering can run here"
        } else {
            "Tiering can't run here"
        };
        let _ = writeln!(
            out,
            "\n{verdict}: {} to mend first, {} to consider.",
            count(Level::Fail),
            count(Level::Warn)
        );
        out
    }
}

impl Report {
    #[cfg(test)]
    pub(super) fn sources(&self) -> &[SourceReport] {
        &self.sources
    }

    fn write_sources(&self, out: &mut String) {
        let _ = writeln!(out, "\nSources of accesses, the best first");
        let _ = writeln!(
            out,
            "  {:<12} {:<8} {:<15} address",
            "source", "works", "sees"
        );
        for row in &self.sources {
            let works = match row.works {
                Works::Yes => "yes",
                Works::Perhaps => "perhaps",
                Works::No => "no",
            };
            let _ = writeln!(
                out,
                "  {:<12} {works:<8} {:<15} {}",
                row.source.name(),
                sight(row.sees),
                row.precision
            );
            let _ = writeln!(out, "        found: {}", row.found);
            for enable in &row.enable {
                let _ = writeln!(out, "        needs: {enable}");
            }
        }
    }
}

const fn heading(area: Area) -> &'static str {
    match area {
        Area::Tiers => "Nodes and tiers",
        Area::Permissions => "Permissions",
        Area::Sampling => "Sampling",
        Area::Virtualisation => "Virtualisation",
        Area::HugePages => "Huge pages",
        Area::Rivals => "Who else moves pages",
        Area::Guest => "The guest",
    }
}
