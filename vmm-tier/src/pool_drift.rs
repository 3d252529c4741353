//! Drift: what promotions made the pools of fast nodes larger, and those of slow nodes smaller, as
//! `hugetlb.grow` allows.
//!
//! A move beyond what a pool has leaves the pools of two nodes other than the administrator has set
//! them. So it is written down in the run directory before it begins: then drift is known after the
//! agents are gone, and told from a pair of moves that did not end. Nothing takes it back but the
//! commands that it names.
//!
//! All agents of a host share a record for two nodes and a page size, and write it under the lock of
//! [`pair_journal`](crate::pair_journal). A record says how the pools were, and by how much agents let
//! them drift at most. What others changed since is not counted as drift.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tier_core::{addr::NodeId, pools::HugePool, text::size::human};
use tier_sys::{
    process,
    sysroot::{SysRoot, SysRootError},
};

use crate::{
    pair_journal::PoolBefore,
    record_file::{self, Record},
};

/// The folder of the records in the run directory.
const FOLDER: &str = "drift";

/// Why drift can't be written down or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriftError {
    #[error("{path} can't be written: make its folder writable, or name another run-dir")]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("the record {path} of a drift of hugetlb pools is damaged: {reason}; remove the file")]
    Damaged { path: PathBuf, reason: String },
    #[error("the boot can't be named")]
    Boot(#[from] SysRootError),
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Drifted {
    version: u64,
    boot_id: String,
    page_bytes: u64,
    fast: PoolBefore,
    slow: PoolBefore,
    /// Pages that agents let go from the slow to the fast pool, at most.
    most: u64,
}

impl Record for Drifted {
    const VERSION: u64 = 1;
    const MAX_BYTES: u64 = 64 << 10;

    fn version(&self) -> u64 {
        self.version
    }
}

impl Drifted {
    /// Pages by which the pools are off by what agents did.
    fn pages(&self, pool: &HugePool) -> u64 {
        let now = |before: &PoolBefore| pool.on(NodeId(before.node)).map(|own| own.pages);
        let (Some(fast), Some(slow)) = (now(&self.fast), now(&self.slow)) else {
            return 0;
        };
        let more = fast.saturating_sub(self.fast.pages);
        let fewer = self.slow.pages.saturating_sub(slow);
        more.min(fewer).min(self.most)
    }
}

tier_core::report! {
    /// By how much `hugetlb.grow` let the pools of two nodes drift.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct PoolDrift = "TierPoolDrift" {
        /// The node whose pool became larger.
        #[metric(exempt = "the fast node of the tiers")]
        pub(crate) larger_node: NodeId,
        /// The node whose pool became smaller.
        #[metric(exempt = "the slow node of the tiers")]
        pub(crate) smaller_node: NodeId,
        /// Pages that went from the smaller to the larger node's pool, as `hugetlb.grow` allows.
        #[metric(gauge = "pool_drift_pages")]
        pub(crate) pages: u64,
        /// The commands that take it back, in this order, when the pages are free: when the guest has
        /// ended.
        #[metric(exempt = "text")]
        pub(crate) restore: Vec<String>,
    }
}

impl PoolDrift {
    /// The drift in a sentence without its end.
    pub(crate) fn what(&self, pool: &HugePool) -> String {
        format!(
            "hugetlb pool of {}: {} pages of node {} belong to node {} now",
            human(pool.page_size),
            self.pages,
            self.smaller_node,
            self.larger_node
        )
    }
}

/// Where the drift between two nodes' pools of one page size is written down.
#[derive(Clone, Debug)]
pub(crate) struct DriftRecord {
    path: PathBuf,
    boot_id: String,
    page_bytes: u64,
    nodes: [NodeId; 2],
}

impl DriftRecord {
    /// The record for the pool of pages of `page_bytes` bytes between a fast and a slow node.
    pub(crate) fn new(
        run_dir: &Path,
        root: &SysRoot,
        page_bytes: u64,
        nodes: [NodeId; 2],
    ) -> Result<Self, DriftError> {
        let [fast, slow] = nodes;
        let name = format!(
            "hugepages-{}kB-node{fast}-node{slow}.json",
            page_bytes >> 10
        );
        Ok(Self {
            path: run_dir.join(FOLDER).join(name),
            boot_id: process::boot_id(root)?,
            page_bytes,
            nodes,
        })
    }

    /// Writes down that up to `pages` pages are about to go to the fast node's pool, which is `pool`
    /// now. Only under the lock.
    pub(crate) fn begin(&self, pool: &HugePool, pages: u64) -> Result<(), DriftError> {
        let before = |node: NodeId| PoolBefore {
            node: node.0,
            pages: pool.on(node).map_or(0, |own| own.pages),
        };
        // What others changed since is theirs.
        let drifted = self.read()?.map_or(0, |record| record.pages(pool));
        let [fast, slow] = self.nodes.map(before);
        let record = Drifted {
            version: Drifted::VERSION,
            boot_id: self.boot_id.clone(),
            page_bytes: self.page_bytes,
            fast: PoolBefore {
                pages: fast.pages.saturating_sub(drifted),
                ..fast
            },
            slow: PoolBefore {
                pages: slow.pages.saturating_add(drifted),
                ..slow
            },
            most: drifted.saturating_add(pages),
        };
        self.write(&record)
    }

    /// Corrects the record by what happened: the pool is `pool` now. Only under the lock.
    pub(crate) fn settle(&self, pool: &HugePool) -> Result<(), DriftError> {
        let Some(record) = self.read()? else {
            return Ok(());
        };
        match record.pages(pool) {
            0 => record_file::remove(&self.path).map_err(|source| self.unwritable(source)),
            most => self.write(&Drifted { most, ..record }),
        }
    }

    /// The drift as the pools are now, if there is any.
    pub(crate) fn drift(&self, pool: &HugePool) -> Result<Option<PoolDrift>, DriftError> {
        let [larger_node, smaller_node] = self.nodes;
        let pages = self.read()?.map_or(0, |record| record.pages(pool));
        let on = |node: NodeId| pool.on(node).map_or(0, |own| own.pages);
        Ok((pages > 0).then(|| PoolDrift {
            larger_node,
            smaller_node,
            pages,
            restore: vec![
                pool.set_pages(larger_node, on(larger_node).saturating_sub(pages)),
                pool.set_pages(smaller_node, on(smaller_node).saturating_add(pages)),
            ],
        }))
    }

    /// The record, unless it is of another boot: then the pools are others.
    fn read(&self) -> Result<Option<Drifted>, DriftError> {
        let damaged = |reason: String| DriftError::Damaged {
            path: self.path.clone(),
            reason,
        };
        let Some(record) = record_file::read::<Drifted>(&self.path).map_err(damaged)? else {
            return Ok(None);
        };
        let nodes = [record.fast.node, record.slow.node].map(NodeId);
        if nodes != self.nodes || record.page_bytes != self.page_bytes {
            return Err(damaged(
                "it is of other nodes or pages than its name".to_owned(),
            ));
        }
        Ok((record.boot_id == self.boot_id).then_some(record))
    }

    fn write(&self, record: &Drifted) -> Result<(), DriftError> {
        let text = serde_json::to_vec(record).map_err(io::Error::from);
        let written = text.and_then(|text| record_file::write(&self.path, &text, 0o644));
        written.map_err(|source| self.unwritable(source))
    }

    fn unwritable(&self, source: io::Error) -> DriftError {
        DriftError::Unwritable {
            path: self.path.clone(),
            source,
        }
    }
}

/// The drifts of pools by the records of the run directory, each as a sentence without its end, with the
/// commands that take it back. A record that can't be read is told.
pub(crate) fn all(
    run_dir: &Path,
    root: &SysRoot,
    pools: &[HugePool],
) -> Vec<Result<(String, Vec<String>), DriftError>> {
    let told = |pool: &HugePool| {
        let drifts = of_pool(run_dir, root, pool).into_iter();
        let told = drifts.map(|drift| drift.map(|drift| (drift.what(pool), drift.restore)));
        told.collect::<Vec<_>>()
    };
    pools.iter().flat_map(told).collect()
}

/// The drift of a pool between any two of its nodes.
pub(crate) fn of_pool(
    run_dir: &Path,
    root: &SysRoot,
    pool: &HugePool,
) -> Vec<Result<PoolDrift, DriftError>> {
    let nodes = || pool.nodes.iter().map(|own| own.node);
    let pairs = nodes().flat_map(|fast| nodes().map(move |slow| [fast, slow]));
    let drift = |nodes: [NodeId; 2]| {
        let record = DriftRecord::new(run_dir, root, pool.page_size, nodes);
        record.and_then(|record| record.drift(pool)).transpose()
    };
    if !run_dir.join(FOLDER).is_dir() {
        return Vec::new();
    }
    pairs
        .filter(|[fast, slow]| fast != slow)
        .filter_map(drift)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair_journal::tests::Host;

    const NODES: [NodeId; 2] = [NodeId(0), NodeId(1)];
    const HUGE: u64 = 2 << 20;

    fn record(host: &Host) -> DriftRecord {
        DriftRecord::new(host.run_dir(), &host.root, HUGE, NODES).unwrap()
    }

    fn pool(host: &Host) -> HugePool {
        tier_sys::hugetlb::read_size(&host.root, HUGE)
            .unwrap()
            .unwrap()
    }

    fn drifted(host: &Host) -> u64 {
        let drift = record(host).drift(&pool(host)).unwrap();
        drift.map_or(0, |drift| drift.pages)
    }

    /// `pages` pages are about to go, and `go` of them do.
    fn grow(host: &Host, pages: u64, go: u64) {
        record(host).begin(&pool(host), pages).unwrap();
        host.set(0, (host.pages(0) + go, 0));
        host.set(1, (host.pages(1) - go, 0));
    }

    #[test]
    fn drift_when_pools_grow_is_what_went_and_names_what_takes_it_back() {
        let host = Host::new((44, 0), (156, 0));
        assert_eq!(drifted(&host), 0);
        grow(&host, 10, 7);
        assert_eq!(
            drifted(&host),
            7,
            "known before it is settled: a kill loses none"
        );
        record(&host).settle(&pool(&host)).unwrap();
        grow(&host, 5, 5);
        record(&host).settle(&pool(&host)).unwrap();
        let drift = record(&host).drift(&pool(&host)).unwrap().unwrap();
        assert_eq!(drift.pages, 12);
        let command = |node, pages| {
            format!(
                "echo {pages} > /sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"
            )
        };
        assert_eq!(drift.restore, [command(0, 44), command(1, 156)]);
        let all = of_pool(host.run_dir(), &host.root, &pool(&host));
        assert_eq!(all.len(), 1);
        assert_eq!(*all[0].as_ref().unwrap(), drift);
    }

    #[test]
    fn drift_when_it_is_taken_back_is_over() {
        let host = Host::new((44, 0), (156, 0));
        grow(&host, 10, 10);
        host.set(0, (44, 0));
        host.set(1, (156, 0));
        assert_eq!(drifted(&host), 0);
        record(&host).settle(&pool(&host)).unwrap();
        assert_eq!(of_pool(host.run_dir(), &host.root, &pool(&host)).len(), 0);
        assert!(!record(&host).path.exists());
    }

    #[test]
    fn drift_when_others_change_the_pools_counts_only_what_agents_did() {
        let host = Host::new((44, 0), (156, 0));
        grow(&host, 10, 10);
        // An administrator gives each node 20 pages.
        host.set(0, (74, 20));
        host.set(1, (166, 20));
        assert_eq!(drifted(&host), 0, "node 1 has more than before");
        host.set(1, (151, 5));
        assert_eq!(drifted(&host), 5);
        grow(&host, 4, 4);
        record(&host).settle(&pool(&host)).unwrap();
        let drift = record(&host).drift(&pool(&host)).unwrap().unwrap();
        assert_eq!(drift.pages, 9);
        assert!(drift.restore[0].starts_with("echo 69 > "), "{drift:?}");
    }

    #[test]
    fn record_when_it_is_of_another_boot_or_damaged_is_not_trusted() {
        let host = Host::new((44, 0), (156, 0));
        grow(&host, 10, 10);
        let text = std::fs::read_to_string(&record(&host).path).unwrap();
        let boot = &record(&host).boot_id;
        std::fs::write(&record(&host).path, text.replace(boot.as_str(), "other")).unwrap();
        assert_eq!(drifted(&host), 0);
        for damaged in [
            "{",
            "{}",
            &text.replace("\"version\":1", "\"version\":2"),
            &text.replace("\"node\":0", "\"node\":3"),
        ] {
            std::fs::write(&record(&host).path, damaged).unwrap();
            let error = record(&host).drift(&pool(&host)).unwrap_err();
            assert!(matches!(error, DriftError::Damaged { .. }), "{error}");
            assert!(
                record(&host).begin(&pool(&host), 1).is_err(),
                "nothing grows then"
            );
        }
    }
}
