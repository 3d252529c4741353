//! Pathologies: known ways in which a host's kernel and a tierer in user space spoil each other's work,
//! found in two readings of the kernel's counters. Pure.
//!
//! Sources: the lessons of TPP (promotion starved by the watermark; pages that go between the active
//! and the inactive list: of 428 M scanned pages none was reclaimed); mm/memcontrol.c and mm/vmscan.c
//! of Linux 6.12 for what each counter counts; mm/hugetlb.c for pools.

use std::collections::BTreeMap;

use crate::{
    addr::{NodeId, NodeSet},
    pools::HugePool,
    text::size::human,
    tiers::Tiers,
};

/// Pages scanned in an interval below which the active and the inactive list are left out of account:
/// 64 MiB.
const LEAST_SCANNED: u64 = 16 << 10;
/// Of so many scanned pages reclaim frees at least one, where it works. A guest of hot huge pages in the
/// lab (scripts/lab explain) has one freed of some 25.
const SCANNED_FOR_EACH: u64 = 10;
/// Candidates of promotion in an interval below which nothing is said of them.
const LEAST_CANDIDATES: u64 = 100;
/// Of so many candidates the kernel promotes at least one, where its promotion works.
const CANDIDATES_FOR_EACH: u64 = 10;

crate::words! {
    /// A pathology.
    pub enum Pathology {
        /// Pages are due for promotion, and the fast node is too full to take any.
        PromotionStarved = "promotion-starved-by-watermark",
        /// Reclaim scans pages back and forth between its lists, and frees few.
        ListPingPong = "active-inactive-ping-pong",
        /// A hugetlb pool has no page that a move may take.
        PoolExhausted = "pool-exhausted",
        /// The pages of a hugetlb pool went from node to node.
        PoolDrift = "pool-drift",
        /// The kernel moves pages by its hint faults.
        NumaBalancing = "numa-balancing",
        /// The kernel demotes pages when a node is short.
        Demotion = "kernel-demotion",
        /// A DAMON scheme of somebody else acts on pages.
        DamonScheme = "damon-scheme",
        /// A kernel module reclaims or sorts pages with DAMON.
        DamonModule = "damon-module",
        /// The kernel module `damon_stat` holds DAMON: no other can use it.
        DamonStat = "damon-stat-holds-damon",
        /// KSM merges pages.
        Ksm = "ksm",
    }
}

impl Pathology {
    /// What follows from it: a part of a sentence.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::PromotionStarved => {
                "pages wait for promotion, and the fast node has no free memory above its watermark: nothing is \
                 promoted before memory is freed there"
            }
            Self::ListPingPong => {
                "reclaim takes pages from the active to the inactive list and back, and frees few: it costs CPU time, \
                 makes little room on the node, and may demote hot pages"
            }
            Self::PoolExhausted => {
                "no page of this pool can be moved: an exchange needs a free page that is promised to nobody"
            }
            Self::PoolDrift => {
                "somebody moved pages beyond what the pool had free, as agents do with `hugetlb.grow`, or changed the \
                 pool: its pages per node are no longer as they were"
            }
            Self::NumaBalancing => {
                "the kernel promotes pages by its own rules and undoes the agent's choices"
            }
            Self::Demotion => "hot pages of a guest may be demoted under pressure",
            Self::DamonScheme => {
                "it acts on the same pages by its own rules; its owner should stop it"
            }
            Self::DamonModule => {
                "it reclaims or reorders pages by its own rules, and holds DAMON for itself: an agent can't sample \
                 with DAMON (EBUSY)"
            }
            Self::DamonStat => {
                "it holds DAMON for itself: an agent can't sample with DAMON (EBUSY)"
            }
            Self::Ksm => {
                "merged pages belong to several guests and can't be moved for a single guest"
            }
        }
    }

    /// The command that mends it, where one command does.
    #[must_use]
    pub const fn remedy(self) -> Option<&'static str> {
        match self {
            Self::NumaBalancing => Some("sysctl kernel.numa_balancing=0"),
            Self::Demotion => Some("echo false > /sys/kernel/mm/numa/demotion_enabled"),
            Self::DamonStat => Some("echo N > /sys/module/damon_stat/parameters/enabled"),
            Self::Ksm => Some("echo 2 > /sys/kernel/mm/ksm/run"),
            Self::ListPingPong => Some("echo false > /sys/kernel/mm/numa/demotion_enabled"),
            Self::PromotionStarved
            | Self::PoolExhausted
            | Self::PoolDrift
            | Self::DamonScheme
            | Self::DamonModule => None,
        }
    }
}

/// Free memory and watermarks of a node, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeLevels {
    /// Free, that on the lists of single CPUs included.
    pub free: u64,
    /// The low watermark: an allocation below it wakes reclaim.
    pub low: u64,
    /// The high watermark, up to which reclaim frees.
    pub high: u64,
}

/// Who moves pages by rules of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rivals {
    /// `kernel.numa_balancing`, 0 where the kernel has none: bit 0 hint faults, bit 1 tiering.
    pub numa_balancing: u32,
    /// Whether reclaim demotes.
    pub demotes: bool,
    /// Whether KSM merges pages.
    pub ksm_merges: bool,
    /// Kernel modules that run DAMON, such as `damon_reclaim`.
    pub damon_modules: Vec<String>,
    /// The schemes of running kdamonds: the kdamond's number, and what it does, such as `migrate_hot`.
    pub damon_schemes: Vec<(u32, Vec<String>)>,
}

/// What the kernel says at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The counters of `/proc/vmstat`, by name.
    pub vmstat: BTreeMap<String, u64>,
    /// Memory of the nodes.
    pub nodes: BTreeMap<NodeId, NodeLevels>,
    /// The hugetlb pools.
    pub pools: Vec<HugePool>,
    /// Who moves pages.
    pub rivals: Rivals,
    /// Pages that an agent could not move for lack of free memory on their target (classes
    /// `below-watermark` and `no-memory`); 0 without an agent.
    pub agent_lacked_memory: u64,
}

impl Reading {
    fn counter(&self, name: &str) -> u64 {
        self.vmstat.get(name).copied().unwrap_or(0)
    }
}

/// A pathology that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Which.
    pub pathology: Pathology,
    /// What shows it.
    pub evidence: String,
    /// The command that mends it, where one command does.
    pub remedy: Option<String>,
}

impl Named {
    fn new(pathology: Pathology, evidence: String) -> Self {
        Self {
            pathology,
            evidence,
            remedy: pathology.remedy().map(str::to_owned),
        }
    }
}

/// Two readings of one host.
#[derive(Clone, Copy, Debug)]
pub struct Interval<'a> {
    /// The first.
    pub earlier: &'a Reading,
    /// The second.
    pub later: &'a Reading,
}

impl Interval<'_> {
    /// How much a counter of `/proc/vmstat` grew; 0 where the kernel has none of that name.
    #[must_use]
    pub fn grown(&self, name: &str) -> u64 {
        self.later
            .counter(name)
            .saturating_sub(self.earlier.counter(name))
    }

    /// How much all counters whose names begin so grew together.
    #[must_use]
    pub fn grown_all(&self, prefixes: &[&str]) -> u64 {
        let names = self.later.vmstat.keys();
        let names = names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        names
            .map(|name| self.grown(name))
            .fold(0, u64::saturating_add)
    }

    /// All pathologies that show, in the order of [`Pathology::ALL`].
    #[must_use]
    pub fn pathologies(&self, tiers: Option<&Tiers>) -> Vec<Named> {
        let mut found: Vec<Named> = self.promotion_starved(tiers).into_iter().collect();
        found.extend(self.list_ping_pong());
        for pool in &self.later.pools {
            found.extend(pool_exhausted(pool, tiers));
        }
        found.extend(self.pools_drifted());
        found.extend(self.rivals());
        found
    }

    /// Somebody wanted to promote, and a fast node is not above its high watermark.
    fn promotion_starved(&self, tiers: Option<&Tiers>) -> Option<Named> {
        let candidates = self.grown("pgpromote_candidate");
        let promoted = self.grown("pgpromote_success");
        let lacked = self
            .later
            .agent_lacked_memory
            .saturating_sub(self.earlier.agent_lacked_memory);
        let kernel_waits =
            candidates >= LEAST_CANDIDATES && promoted < candidates / CANDIDATES_FOR_EACH;
        if !kernel_waits && lacked == 0 {
            return None;
        }
        let is_fast = |node: NodeId| tiers.is_none_or(|tiers| tiers.fast.contains(node));
        let is_full = |levels: &NodeLevels| levels.free <= levels.high;
        let full =
            (self.later.nodes.iter()).find(|(node, levels)| is_fast(**node) && is_full(levels));
        let (node, levels) = full?;
        let who = match kernel_waits {
            true => format!("the kernel promoted {promoted} of {candidates} candidates"),
            false => format!("an agent lacked memory for {lacked} pages"),
        };
        Some(Named::new(
            Pathology::PromotionStarved,
            format!(
                "{who}; node {node} has {} free, and its high watermark is {}",
                human(levels.free),
                human(levels.high)
            ),
        ))
    }

    fn list_ping_pong(&self) -> Option<Named> {
        let scanned = self.grown("pgscan_anon");
        let freed = self.grown("pgsteal_anon");
        let deactivated = self.grown("pgdeactivate");
        let circles = scanned >= LEAST_SCANNED
            && freed < scanned / SCANNED_FOR_EACH
            && deactivated >= scanned / 2;
        circles.then(|| {
            Named::new(
                Pathology::ListPingPong,
                format!(
                    "{scanned} anonymous pages were scanned and {freed} freed, while {deactivated} went to the \
                     inactive list"
                ),
            )
        })
    }

    fn pools_drifted(&self) -> Vec<Named> {
        let drift = |pool: &HugePool| {
            let mut pools = self.earlier.pools.iter();
            let before = pools.find(|before| before.page_size == pool.page_size)?;
            let pages = |pool: &HugePool| -> Vec<(NodeId, u64, u64)> {
                let own = pool.nodes.iter();
                own.map(|own| (own.node, own.pages, own.surplus)).collect()
            };
            let (was, is) = (pages(before), pages(pool));
            (was != is).then(|| Named {
                pathology: Pathology::PoolDrift,
                evidence: format!(
                    "the pool of {} went from {} to {}",
                    human(pool.page_size),
                    on_nodes(before),
                    on_nodes(pool)
                ),
                remedy: before.nodes.iter().find_map(|own| {
                    let now = pool.nodes.iter().find(|now| now.node == own.node);
                    let is_less = now.is_none_or(|now| now.pages < own.pages);
                    is_less.then(|| pool.set_pages(own.node, own.pages))
                }),
            })
        };
        self.later.pools.iter().filter_map(drift).collect()
    }

    fn rivals(&self) -> Vec<Named> {
        let rivals = &self.later.rivals;
        let mut found = Vec::new();
        if rivals.numa_balancing != 0 {
            found.push(Named::new(
                Pathology::NumaBalancing,
                format!(
                    "kernel.numa_balancing is {}; {} hint faults, {} pages migrated and {} promoted meanwhile",
                    rivals.numa_balancing,
                    self.grown("numa_hint_faults"),
                    self.grown("numa_pages_migrated"),
                    self.grown("pgpromote_success")
                ),
            ));
        }
        if rivals.demotes {
            found.push(Named::new(
                Pathology::Demotion,
                format!(
                    "demotion_enabled is true; {} pages were demoted meanwhile",
                    self.grown_all(&["pgdemote_"])
                ),
            ));
        }
        for (number, actions) in &rivals.damon_schemes {
            found.push(Named {
                remedy: Some(format!(
                    "echo off > /sys/kernel/mm/damon/admin/kdamonds/{number}/state"
                )),
                ..Named::new(
                    Pathology::DamonScheme,
                    format!("kdamond {number} runs and does {}", actions.join(", ")),
                )
            });
        }
        for module in &rivals.damon_modules {
            let pathology = match module.as_str() {
                "damon_stat" => Pathology::DamonStat,
                _ => Pathology::DamonModule,
            };
            found.push(Named {
                remedy: Some(format!("echo N > /sys/module/{module}/parameters/enabled")),
                ..Named::new(pathology, format!("the kernel module {module} is enabled"))
            });
        }
        if rivals.ksm_merges {
            found.push(Named::new(
                Pathology::Ksm,
                format!(
                    "/sys/kernel/mm/ksm/run is 1; {} merged pages were copied again meanwhile",
                    self.grown("cow_ksm")
                ),
            ));
        }
        found
    }
}

/// The pages of a pool by node, surplus pages told.
fn on_nodes(pool: &HugePool) -> String {
    let own = pool.nodes.iter().map(|own| match own.surplus {
        0 => format!("{} on node {}", own.pages, own.node),
        surplus => format!("{} ({surplus} surplus) on node {}", own.pages, own.node),
    });
    own.collect::<Vec<_>>().join(" and ")
}

/// Whether no page of a pool that is in use can be moved between the nodes of the tiers; without tiers,
/// between any.
#[must_use]
pub fn pool_exhausted(pool: &HugePool, tiers: Option<&Tiers>) -> Option<Named> {
    if pool.pages == 0 && pool.surplus == 0 {
        return None;
    }
    let all = || pool.nodes.iter().map(|own| own.node).collect();
    let nodes: NodeSet = tiers.map_or_else(all, Tiers::nodes);
    let in_pairs = tiers.is_some_and(|tiers| pool.pairs_within(tiers) > 0);
    if in_pairs || nodes.iter().any(|node| pool.spare_on(node, &nodes) > 0) {
        return None;
    }
    let mut own = pool.nodes.iter().filter(|own| nodes.contains(own.node));
    let is_slow = |node: NodeId| tiers.is_none_or(|tiers| tiers.slow.contains(node));
    // Surplus pages become a part of the pool; else a slow node gets a page.
    let remedy = match own.clone().find(|own| own.surplus > 0) {
        Some(own) => Some((own.node, own.pages)),
        None => own
            .find(|own| is_slow(own.node))
            .map(|own| (own.node, own.pages.saturating_add(pool.lacking()))),
    };
    Some(Named {
        pathology: Pathology::PoolExhausted,
        evidence: format!(
            "the pool of {} has {}; {} are free and {} promised",
            human(pool.page_size),
            on_nodes(pool),
            pool.free,
            pool.reserved
        ),
        remedy: remedy.map(|(node, pages)| pool.set_pages(node, pages)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pools::NodePool;
    use crate::tiers::tests::two_nodes;

    fn named(earlier: &Reading, later: &Reading) -> Vec<Named> {
        Interval { earlier, later }.pathologies(Some(&two_nodes()))
    }

    #[test]
    fn readings_when_nothing_is_wrong_name_nothing() {
        let mut later = Reading::default();
        // Reclaim that frees what it scans.
        for (name, value) in [
            ("pgscan_anon", 90_000),
            ("pgsteal_anon", 80_000),
            ("pgdeactivate", 70_000),
        ] {
            later.vmstat.insert(name.to_owned(), value);
        }
        let levels = NodeLevels {
            free: 900,
            low: 100,
            high: 200,
        };
        later.nodes.insert(NodeId(0), levels);
        assert_eq!(named(&Reading::default(), &later), []);
    }

    proptest! {
        #[test]
        fn readings_when_they_are_anything_are_told_without_a_panic(
            counters in prop::collection::vec((prop::sample::select(vec![
                "pgscan_anon", "pgsteal_anon", "pgdeactivate", "pgpromote_candidate", "pgpromote_success",
                "pgdemote_kswapd", "numa_hint_faults", "",
            ]), any::<u64>(), any::<u64>()), 0..20),
            levels in any::<[u64; 3]>(),
            pools in prop::collection::vec(any::<[u64; 4]>(), 0..4),
            lacked: u64,
            numa_balancing: u32,
        ) {
            let pool = |[pages, free, surplus, reserved]: [u64; 4]| HugePool {
                page_size: 2 << 20,
                pages,
                free,
                reserved,
                surplus,
                overcommit: 0,
                nodes: vec![NodePool { node: NodeId(1), pages: pages.saturating_sub(1), free, surplus }],
            };
            let mut reading = Reading {
                pools: pools.into_iter().map(pool).collect(),
                agent_lacked_memory: lacked,
                ..Reading::default()
            };
            reading.rivals.numa_balancing = numa_balancing;
            let [free, low, high] = levels;
            reading.nodes.insert(NodeId(0), NodeLevels { free, low, high });
            let mut earlier = reading.clone();
            for (name, before, after) in counters {
                earlier.vmstat.insert(name.to_owned(), before);
                reading.vmstat.insert(name.to_owned(), after);
            }
            for found in named(&earlier, &reading) {
                prop_assert!(!found.evidence.is_empty());
            }
            prop_assert!(named(&Reading::default(), &reading).len() < 100);
        }
    }
}
