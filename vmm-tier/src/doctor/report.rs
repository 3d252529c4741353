//! Shows findings, as JSON and as text.

use std::fmt::Write as _;

use serde::Serialize;
use tier_core::{
    addr::{NodeId, NodeSet},
    tiers::{Division, NodeFacts},
};

use super::{Area, Finding, Level};

/// What the doctor says. The JSON is a contract: names and units stay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// Whether nothing stands in the way of tiering.
    pub(super) can_tier: bool,
    pub(super) findings: Vec<Finding>,
    /// The tiers, fastest first; none if nodes can't be told apart.
    tiers: Vec<Tier>,
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
        }
    }

    /// Grouped by area, one line a finding, the command that mends it below.
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
