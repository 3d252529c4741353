//! The kernel's counters over an interval, beside an agent's, and the known pathologies that show in
//! them.

mod contention;

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use qmp::Client;
use serde::Serialize;
use serde_json::Value;
use tier_core::{
    addr::NodeSet,
    moves::Outcome,
    pathology::{Interval, Named, NodeLevels, Reading, Rivals},
    pools::HugePool,
    text::{size::human, table::table},
    tiers::{Division, Tiers},
};
use tier_sys::{
    damon::users::DamonUsers,
    hugetlb,
    knobs::Knobs,
    sysroot::{SysRoot, SysRootError},
    thp_events::{ThpEvents, ThpWatch},
    topology::Topology,
    vmstat::VmStat,
    zoneinfo,
};

use self::contention::Contention;
use super::RUN_DIR;
use crate::{log::with_causes, pair_journal};

/// Counters of `/proc/vmstat` that tell what the kernel does to pages, in the order in which they are
/// shown.
const COUNTERS: [(&str, &str); 32] = [
    (
        "pgpromote_candidate",
        "pages due for promotion by hint faults",
    ),
    ("pgpromote_success", "pages promoted by the kernel"),
    ("pgdemote_kswapd", "pages demoted by kswapd"),
    (
        "pgdemote_direct",
        "pages demoted by tasks that wait for memory",
    ),
    ("pgdemote_khugepaged", "pages demoted by khugepaged"),
    ("pgdemote_proactive", "pages demoted by proactive reclaim"),
    (
        "numa_pte_updates",
        "page table entries prepared for hint faults",
    ),
    ("numa_hint_faults", "hint faults"),
    ("numa_pages_migrated", "pages migrated after hint faults"),
    (
        "pgmigrate_success",
        "pages migrated, the agents' among them",
    ),
    ("pgmigrate_fail", "pages that could not be migrated"),
    ("thp_migration_success", "huge pages migrated"),
    (
        "thp_migration_fail",
        "huge pages that could not be migrated",
    ),
    ("thp_migration_split", "huge pages split to be migrated"),
    ("thp_split_page", "huge pages split"),
    (
        "thp_split_page_failed",
        "huge pages that could not be split",
    ),
    (
        "thp_split_pmd",
        "huge pages mapped by small entries from then on",
    ),
    ("thp_collapse_alloc", "huge pages made of small pages"),
    (
        "thp_collapse_alloc_failed",
        "huge pages that were to be made, and for which there was no memory",
    ),
    ("thp_fault_alloc", "huge pages made at a first touch"),
    (
        "thp_fault_fallback",
        "first touches that got a small page for lack of a huge page",
    ),
    (
        "thp_deferred_split_page",
        "huge pages of which a part was given back",
    ),
    ("pgscan_kswapd", "pages scanned by kswapd"),
    (
        "pgscan_direct",
        "pages scanned by tasks that wait for memory",
    ),
    ("pgsteal_kswapd", "pages freed by kswapd"),
    (
        "pgsteal_direct",
        "pages freed by tasks that wait for memory",
    ),
    ("pgscan_anon", "anonymous pages scanned"),
    ("pgsteal_anon", "anonymous pages freed"),
    ("pgactivate", "pages that went to the active list"),
    ("pgdeactivate", "pages that went to the inactive list"),
    ("pgrefill", "pages of the active list scanned"),
    ("nr_tlb_remote_flush", "flushes of other CPUs' TLBs"),
];

/// How often events are taken out of their rings.
const COLLECT_EVERY: Duration = Duration::from_millis(200);
/// How long agents may move hugetlb pages before the pools are read in the middle of that.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// What `explain --host` shows. The JSON is a contract: names and units stay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// How long the interval was.
    seconds: f64,
    /// By how much each counter grew that this kernel has.
    counters: BTreeMap<String, u64>,
    nodes: Vec<NodeReport>,
    /// The hugetlb pools in use.
    pools: Vec<HugePool>,
    /// What became of huge pages, by the kernel's reasons; absent if it can't be followed.
    huge_pages: Option<HugePagesReport>,
    /// What the agent did meanwhile.
    agent: Option<AgentReport>,
    pathologies: Vec<PathologyReport>,
    /// What QEMU's threads met meanwhile, if its process is known.
    contention: Option<Contention>,
    /// What could not be read, and why.
    unread: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct NodeReport {
    node: u16,
    free_bytes: u64,
    low_watermark_bytes: u64,
    high_watermark_bytes: u64,
}

/// Counts of tracepoints, of the whole host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct HugePagesReport {
    /// How often 2 MiB were looked at for a collapse, by what was found.
    collapse_scans: BTreeMap<String, u64>,
    /// How often 2 MiB were to be collapsed, by how it ended.
    collapses: BTreeMap<String, u64>,
    /// Migrations by who asked for them.
    migrations: BTreeMap<String, MigrationReport>,
    /// Events that were lost.
    lost: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MigrationReport {
    moved_pages: u64,
    failed_pages: u64,
    moved_huge_pages: u64,
    failed_huge_pages: u64,
    split_huge_pages: u64,
}

impl From<ThpEvents> for HugePagesReport {
    fn from(events: ThpEvents) -> Self {
        let migrations = events.migrations.into_iter().map(|(reason, migrated)| {
            let report = MigrationReport {
                moved_pages: migrated.succeeded,
                failed_pages: migrated.failed,
                moved_huge_pages: migrated.thp_succeeded,
                failed_huge_pages: migrated.thp_failed,
                split_huge_pages: migrated.thp_split,
            };
            (reason, report)
        });
        Self {
            collapse_scans: events.scans,
            collapses: events.collapses,
            migrations: migrations.collect(),
            lost: events.lost,
        }
    }
}

/// Figures of `query-tier`, as they grew.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct AgentReport {
    name: String,
    tried_pages: u64,
    moved_pages: u64,
    promoted_bytes: u64,
    demoted_bytes: u64,
    failed: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PathologyReport {
    name: &'static str,
    evidence: String,
    meaning: &'static str,
    remedy: Option<String>,
}

impl From<Named> for PathologyReport {
    fn from(named: Named) -> Self {
        Self {
            name: named.pathology.name(),
            evidence: named.evidence,
            meaning: named.pathology.meaning(),
            remedy: named.remedy,
        }
    }
}

/// Reads the host and the agent twice, `time` apart. QEMU's process is `pid`, or the agent's.
pub(super) fn look(
    root: &SysRoot,
    agent: Option<&Client>,
    pid: Option<u32>,
    time: Duration,
) -> anyhow::Result<Report> {
    let ask = || {
        agent
            .map(|agent| agent.execute_raw("query-tier", None))
            .transpose()
    };
    let watch = ThpWatch::start(root).map_err(|error| with_causes(&error));
    let began = Instant::now();
    let (before, earlier) = (ask()?, read(root, Path::new(RUN_DIR)));
    let pid = pid.or_else(|| u32::try_from(before.as_ref()?["pid"].as_u64()?).ok());
    let own_root = root.clone();
    let contention = pid.map(|pid| thread::spawn(move || contention::look(&own_root, pid, time)));
    let events = follow(watch, time);
    let (after, mut later) = (ask()?, read(root, Path::new(RUN_DIR)));
    let events = part(events, &mut later.unread);
    let tiers = after.as_ref().and_then(tiers_of).or_else(|| {
        let facts = Topology::read(root).ok()?.facts();
        Some(Division::of(&facts).ok()?.tiers)
    });
    let agent = before.as_ref().zip(after.as_ref());
    let mut report = compare(
        &earlier,
        &later,
        events,
        agent,
        tiers.as_ref(),
        began.elapsed(),
    );
    report.contention = contention.and_then(|looking| looking.join().ok());
    if let Some(contention) = &mut report.contention {
        report.unread.append(&mut contention.unread);
    }
    Ok(report)
}

/// Waits, and follows the events meanwhile.
fn follow(watch: Result<ThpWatch, String>, time: Duration) -> Result<Option<ThpEvents>, String> {
    let mut watch = match watch {
        Ok(watch) => watch,
        Err(error) => {
            thread::sleep(time);
            return Err(format!("what became of huge pages: {error}"));
        }
    };
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        thread::sleep(left.min(COLLECT_EVERY));
        watch.collect();
        if left <= COLLECT_EVERY {
            return Ok(Some(watch.finish()));
        }
    }
}

/// A reading, and what could not be read.
#[derive(Debug, Default)]
struct Read {
    reading: Reading,
    unread: Vec<String>,
}

/// Reads what the kernel says now. What can't be read counts as nothing, and is told.
fn read(root: &SysRoot, run_dir: &Path) -> Read {
    let mut unread = Vec::new();
    let vmstat = part(VmStat::read(root), &mut unread);
    let marks = part(zoneinfo::read(root), &mut unread);
    let knobs = part(Knobs::read(root), &mut unread);
    let damon = DamonUsers::read(root);
    let runs = damon.kdamonds.iter().filter(|kdamond| kdamond.is_running);
    let schemes = runs.filter(|kdamond| !kdamond.acts().is_empty());
    let acts = |acts: Vec<&str>| acts.into_iter().map(str::to_owned).collect();
    let nodes = marks.iter().map(|(&node, marks)| {
        let levels = NodeLevels {
            free: marks.free.saturating_add(marks.cached),
            low: marks.low,
            high: marks.high,
        };
        (node, levels)
    });
    let reading = Reading {
        vmstat: vmstat.counters().clone(),
        nodes: nodes.collect(),
        pools: part(pools(root, run_dir), &mut unread),
        rivals: Rivals {
            numa_balancing: knobs.numa_balancing.unwrap_or(0),
            demotes: knobs.demotion_enabled == Some(true),
            ksm_merges: knobs.ksm_run == Some(1),
            damon_modules: damon.modules.iter().map(|&name| name.to_owned()).collect(),
            damon_schemes: schemes
                .map(|kdamond| (kdamond.number, acts(kdamond.acts())))
                .collect(),
        },
        agent_lacked_memory: 0,
    };
    Read { reading, unread }
}

/// The hugetlb pools while no agent has a pair of pages half moved, as far as the agents of `run_dir`
/// can be waited for: in the middle of a pair the pools differ from what they are before and after it.
fn pools(root: &SysRoot, run_dir: &Path) -> Result<Vec<HugePool>, SysRootError> {
    let _lock = pair_journal::lock_if_used(run_dir, LOCK_TIMEOUT);
    hugetlb::read(root)
}

fn part<T: Default, E: Display>(found: Result<T, E>, unread: &mut Vec<String>) -> T {
    found.unwrap_or_else(|error| {
        unread.push(error.to_string());
        T::default()
    })
}

/// The tiers as an agent has them.
fn tiers_of(state: &Value) -> Option<Tiers> {
    let nodes = |rank: usize| -> Option<NodeSet> {
        serde_json::from_value(state["tiers"][rank]["nodes"].clone()).ok()
    };
    Some(Tiers {
        fast: nodes(0)?,
        slow: nodes(1)?,
        fast_latency_ns: 0.0,
        slow_latency_ns: 0.0,
    })
}

/// A figure of an agent; 0 if it has none of that name.
fn figure(state: &Value, name: &str) -> u64 {
    state[name].as_u64().unwrap_or(0)
}

fn failed(state: &Value, class: Outcome) -> u64 {
    state["failed"][class.name()].as_u64().unwrap_or(0)
}

impl AgentReport {
    fn of(before: &Value, after: &Value) -> Self {
        let grown = |name| figure(after, name).saturating_sub(figure(before, name));
        let failed = Outcome::ALL.into_iter().filter_map(|class| {
            let grown = failed(after, class).saturating_sub(failed(before, class));
            (grown > 0).then(|| (class.name().to_owned(), grown))
        });
        Self {
            name: after["name"].as_str().unwrap_or_default().to_owned(),
            tried_pages: grown("tried-pages"),
            moved_pages: grown("moved-pages"),
            promoted_bytes: grown("promoted-bytes"),
            demoted_bytes: grown("demoted-bytes"),
            failed: failed.collect(),
        }
    }
}

/// From two readings to a report; `agent` is what an agent answered at each. Pure.
fn compare(
    earlier: &Read,
    later: &Read,
    events: Option<ThpEvents>,
    agent: Option<(&Value, &Value)>,
    tiers: Option<&Tiers>,
    time: Duration,
) -> Report {
    let lacked = |state: Option<&Value>| {
        let classes = [Outcome::BelowWatermark, Outcome::NoMemory];
        let counts = state.map(|state| classes.map(|class| failed(state, class)));
        counts.map_or(0, |[below, none]| below.saturating_add(none))
    };
    let with_agent = |read: &Read, state| Reading {
        agent_lacked_memory: lacked(state),
        ..read.reading.clone()
    };
    let first = with_agent(earlier, agent.map(|(before, _)| before));
    let second = with_agent(later, agent.map(|(_, after)| after));
    let interval = Interval {
        earlier: &first,
        later: &second,
    };
    let known = COUNTERS
        .iter()
        .filter(|(name, _)| second.vmstat.contains_key(*name));
    let mut unread = later.unread.clone();
    unread.extend(
        earlier
            .unread
            .iter()
            .filter(|text| !later.unread.contains(text))
            .cloned(),
    );
    Report {
        seconds: time.as_secs_f64(),
        counters: known
            .map(|(name, _)| ((*name).to_owned(), interval.grown(name)))
            .collect(),
        nodes: second
            .nodes
            .iter()
            .map(|(node, levels)| NodeReport {
                node: node.0,
                free_bytes: levels.free,
                low_watermark_bytes: levels.low,
                high_watermark_bytes: levels.high,
            })
            .collect(),
        pools: second
            .pools
            .iter()
            .filter(|pool| pool.pages > 0)
            .cloned()
            .collect(),
        huge_pages: events.map(Into::into),
        agent: agent.map(|(before, after)| AgentReport::of(before, after)),
        pathologies: interval
            .pathologies(tiers)
            .into_iter()
            .map(Into::into)
            .collect(),
        contention: None,
        unread,
    }
}

impl HugePagesReport {
    fn write(&self, out: &mut String) {
        out.push_str("\nHuge pages of the whole host, by the kernel's reasons\n");
        let list = |counts: &BTreeMap<String, u64>| {
            let counts = counts.iter().map(|(word, count)| format!("{count} {word}"));
            let listed: Vec<String> = counts.collect();
            match listed.is_empty() {
                true => "none".to_owned(),
                false => listed.join(", "),
            }
        };
        let _ = writeln!(
            out,
            "  looked at for a collapse: {}",
            list(&self.collapse_scans)
        );
        let _ = writeln!(out, "  to be collapsed: {}", list(&self.collapses));
        for (reason, migrated) in &self.migrations {
            let _ = writeln!(
                out,
                "  migrated for {reason}: {} pages, {} failed; huge pages: {} whole, {} failed, {} split",
                migrated.moved_pages,
                migrated.failed_pages,
                migrated.moved_huge_pages,
                migrated.failed_huge_pages,
                migrated.split_huge_pages
            );
        }
        if self.lost > 0 {
            let _ = writeln!(
                out,
                "  {} events were lost: the counts are too low",
                self.lost
            );
        }
    }
}

impl Report {
    pub(super) fn to_text(&self) -> String {
        let mut out = format!("What the kernel did to pages in {:.1} s\n", self.seconds);
        let known: Vec<_> = COUNTERS
            .iter()
            .filter_map(|(name, what)| Some((name, self.counters.get(*name)?, what)))
            .collect();
        let grown = known.iter().filter(|(_, grown, _)| **grown > 0);
        let rows: Vec<Vec<String>> = grown
            .map(|(name, grown, what)| {
                vec![format!("  {name}"), grown.to_string(), (**what).to_owned()]
            })
            .collect();
        out.push_str(&table(&rows, |column| column == 1));
        let still = known.len() - rows.len();
        let _ = match rows.is_empty() {
            true => writeln!(out, "  nothing: all {still} counters stood still"),
            false => writeln!(out, "  the other {still} counters stood still"),
        };
        if let Some(events) = &self.huge_pages {
            events.write(&mut out);
        }
        if let Some(agent) = &self.agent {
            let _ = writeln!(
                out,
                "\nThe agent of {} meanwhile tried {} pages and moved {}: {} promoted, {} demoted",
                agent.name,
                agent.tried_pages,
                agent.moved_pages,
                human(agent.promoted_bytes),
                human(agent.demoted_bytes)
            );
            for (class, pages) in &agent.failed {
                let _ = writeln!(out, "  {class}: {pages}");
            }
        }
        if let Some(contention) = &self.contention {
            out.push_str(&contention.to_text());
        }
        out.push_str("\nMemory\n");
        for node in &self.nodes {
            let _ = writeln!(
                out,
                "  node {}: {} free; watermarks: {} low, {} high",
                node.node,
                human(node.free_bytes),
                human(node.low_watermark_bytes),
                human(node.high_watermark_bytes)
            );
        }
        for pool in &self.pools {
            let own = pool
                .nodes
                .iter()
                .map(|own| format!("{} free of {} on node {}", own.free, own.pages, own.node));
            let _ = writeln!(
                out,
                "  hugetlb pool of {}: {}; {} promised, {} surplus",
                human(pool.page_size),
                own.collect::<Vec<_>>().join(", "),
                pool.reserved,
                pool.surplus
            );
        }
        match self.pathologies.is_empty() {
            true => out.push_str("\nNo known pathology shows.\n"),
            false => out.push_str("\nKnown pathologies\n"),
        }
        for found in &self.pathologies {
            let _ = writeln!(out, "  {}: {}", found.name, found.evidence);
            let _ = writeln!(out, "      {}", found.meaning);
            if let Some(remedy) = &found.remedy {
                let _ = writeln!(out, "      $ {remedy}");
            }
        }
        for trouble in &self.unread {
            let _ = writeln!(out, "\nNot read: {trouble}");
        }
        out
    }
}

#[cfg(test)]
mod tests;
