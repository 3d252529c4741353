//! `vmm-tier doctor --repair`: puts right what agents left that were killed, and touches nothing else.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tier_core::text::size::human;
use tier_sys::{
    damon::{Damon, DamonError},
    hugetlb,
    sysroot::SysRoot,
};

use crate::{
    log::with_causes,
    map_cmd::print,
    pair_journal::{self, PairError, PairRecord},
    policy_journal::{self, PolicyJournalError, PolicyRecord},
    pool_drift,
};

/// How long agents may move hugetlb pages before they are let alone: each moves a batch.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// What was done about something that an agent left.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    Mended(String),
    /// Nothing is to be done.
    Left(String),
    Failed(String),
}

/// Repairs, and prints a line for each thing that was found. The exit code is 0 only if nothing is left
/// to repair.
///
/// # Errors
/// If the lines can't be printed.
pub(crate) fn run(run_dir: &Path) -> anyhow::Result<ExitCode> {
    let root = SysRoot::real();
    let mut all = pairs(&root, run_dir, LOCK_TIMEOUT);
    all.extend(policies(&root, run_dir, policy_journal::LOCK_TIMEOUT));
    all.extend(drifts(&root, run_dir));
    all.extend(kdamonds(&root, run_dir));
    if all.is_empty() {
        all.push(Done::Left("nothing to repair".to_owned()));
    }
    let mut text = String::new();
    for done in &all {
        let (mark, what) = match done {
            Done::Mended(what) => ("mended ", what),
            Done::Left(what) => ("", what),
            Done::Failed(what) => ("failed ", what),
        };
        text += &format!("{mark}{what}\n");
    }
    print(&text)?;
    Ok(
        match all.iter().any(|done| matches!(done, Done::Failed(_))) {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        },
    )
}

/// Pairs of moves between hugetlb pools of which one half is missing. Waits `timeout` at most for agents
/// that move pages.
fn pairs(root: &SysRoot, run_dir: &Path, timeout: Duration) -> Vec<Done> {
    if pair_journal::records(run_dir).is_empty() {
        return Vec::new();
    }
    // Under the lock no pair is under way: what an agent that runs has on record then, it could not
    // undo.
    let lock = pair_journal::lock(run_dir, timeout, || false);
    let repair = |(path, record): (PathBuf, Result<PairRecord, PairError>)| {
        let record = match record {
            Ok(record) => record,
            Err(error) => return Done::Failed(with_causes(&error)),
        };
        match &lock {
            Err(_) if record.is_agent_alive(root) => {
                return Done::Left(format!(
                    "{}: its agent runs and moves pages just now",
                    record.vm
                ));
            }
            Err(error) => return Done::Failed(format!("{}: {}", record.vm, with_causes(error))),
            Ok(_) => {}
        }
        match record.repair(root, &path) {
            Ok(pages) => Done::Mended(format!(
                "{}: hugetlb pools: {pages} pages went back after an unfinished pair of moves",
                record.vm
            )),
            Err(error) => Done::Failed(format!("{}: {}", record.vm, with_causes(&error))),
        }
    };
    let records = pair_journal::records(run_dir);
    records.into_iter().map(repair).collect()
}

/// NUMA policies of guest memory that agents replaced. Those of an agent that runs are its own business.
/// Waits `timeout` at most for agents that restore policies.
fn policies(root: &SysRoot, run_dir: &Path, timeout: Duration) -> Vec<Done> {
    if policy_journal::records(run_dir).is_empty() {
        return Vec::new();
    }
    // What is read under the lock is not restored by the guest's next agent at the same time.
    let lock = policy_journal::lock(run_dir, timeout);
    let repair = |(path, record): (PathBuf, Result<PolicyRecord, PolicyJournalError>)| {
        let record = match record {
            Ok(record) => record,
            Err(error) => return Done::Failed(with_causes(&error)),
        };
        if record.is_agent_alive(root) {
            return Done::Left(format!(
                "{}: its agent runs and restores the NUMA policies when it ends",
                record.vm
            ));
        }
        if let Err(error) = &lock {
            return Done::Failed(format!("{}: {}", record.vm, with_causes(error)));
        }
        match record.restore(root, &path) {
            Ok(restored) => {
                let foreign = match restored.foreign_bytes {
                    0 => String::new(),
                    bytes => format!(
                        "; {} have a policy of somebody else, which stays",
                        human(bytes)
                    ),
                };
                Done::Mended(format!(
                    "{}: {} of guest memory have the NUMA policies again that they had{foreign}",
                    record.vm,
                    human(restored.bytes)
                ))
            }
            Err(error) => Done::Failed(format!("{}: {}", record.vm, with_causes(&error))),
        }
    };
    let records = policy_journal::records(run_dir);
    records.into_iter().map(repair).collect()
}

/// What agents let pools drift is allowed, and stays: it is told.
fn drifts(root: &SysRoot, run_dir: &Path) -> Vec<Done> {
    let pools = hugetlb::read(root).unwrap_or_default();
    let told = |drift| match drift {
        Ok((what, restore)) => {
            let restore: Vec<String> = restore;
            Done::Left(format!(
                "{what}, as hugetlb.grow allowed: left as it is; to take it back when the pages are free: {}",
                restore.join(" && ")
            ))
        }
        Err(error) => Done::Failed(with_causes(&error)),
    };
    let drifts = pool_drift::all(run_dir, root, &pools);
    drifts.into_iter().map(told).collect()
}

fn kdamonds(root: &SysRoot, run_dir: &Path) -> Vec<Done> {
    match Damon::open(root, run_dir).and_then(|damon| damon.reclaim_orphans()) {
        Ok(orphans) => {
            let told = |orphan: tier_sys::damon::Reclaimed| {
                Done::Mended(format!(
                    "kdamond {} of the dead agent {}: turned off and emptied",
                    orphan.record.slot, orphan.record.owner_pid
                ))
            };
            orphans.into_iter().map(told).collect()
        }
        Err(DamonError::NotInKernel { .. }) => Vec::new(),
        Err(error) => vec![Done::Failed(with_causes(&error))],
    }
}

#[cfg(test)]
mod tests {
    use tier_sys::process::Identity;

    use super::*;
    use crate::pair_journal::tests::{Host, pair};

    #[test]
    fn pairs_when_their_agent_runs_or_their_record_is_damaged_are_left() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(2)).unwrap();
        std::fs::write(host.run_dir().join("pairs/a.json"), "{").unwrap();
        let _lock = pair_journal::lock(host.run_dir(), Duration::ZERO, || false).unwrap();

        let done = pairs(&host.root, host.run_dir(), Duration::ZERO);

        assert!(
            matches!(&done[0], Done::Failed(what) if what.contains("a.json")),
            "{done:?}"
        );
        let left = Done::Left("vm: its agent runs and moves pages just now".to_owned());
        assert_eq!(done[1], left);
        assert_eq!(host.records().len(), 2);
    }

    #[test]
    fn drift_when_it_was_allowed_is_left_and_told_with_its_commands() {
        let host = Host::new((44, 0), (156, 0));
        let pool = || hugetlb::read_size(&host.root, 2 << 20).unwrap().unwrap();
        let nodes = [0, 1].map(tier_core::addr::NodeId);
        let record =
            pool_drift::DriftRecord::new(host.run_dir(), &host.root, 2 << 20, nodes).unwrap();
        record.begin(&pool(), 8).unwrap();
        host.set(0, (47, 0));
        host.set(1, (153, 0));
        host.end_all_processes();

        let done = drifts(&host.root, host.run_dir());

        let folder = "hugepages/hugepages-2048kB/nr_hugepages";
        let left = format!(
            "hugetlb pool of 2 MiB: 3 pages of node 1 belong to node 0 now, as hugetlb.grow allowed: left as it is; to \
             take it back when the pages are free: echo 44 > /sys/devices/system/node/node0/{folder} && echo 156 > \
             /sys/devices/system/node/node1/{folder}"
        );
        assert_eq!(done, [Done::Left(left)]);
        assert_eq!(pairs(&host.root, host.run_dir(), Duration::ZERO), []);
        assert_eq!((host.pages(0), host.pages(1)), (47, 153));
        // A record that is damaged is no reason to touch a pool.
        std::fs::write(
            host.run_dir()
                .join("drift/hugepages-2048kB-node0-node1.json"),
            "{",
        )
        .unwrap();
        assert!(matches!(
            drifts(&host.root, host.run_dir())[..],
            [Done::Failed(_)]
        ));
    }

    #[test]
    fn pair_when_its_agent_runs_but_could_not_undo_it_is_mended() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(2)).unwrap();
        host.set(0, (42, 42));
        host.set(1, (158, 158));
        host.end_guest();

        let done = pairs(&host.root, host.run_dir(), Duration::ZERO);

        assert!(matches!(&done[..], [Done::Mended(_)]), "{done:?}");
        assert!(host.records().is_empty());
    }

    #[test]
    fn pair_of_a_dead_agent_when_others_move_pages_is_left_and_told() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(2)).unwrap();
        host.end_all_processes();
        let _lock = pair_journal::lock(host.run_dir(), Duration::ZERO, || false).unwrap();

        let done = pairs(&host.root, host.run_dir(), Duration::ZERO);

        assert!(
            matches!(&done[..], [Done::Failed(what)] if what.contains("hugetlb.lock")),
            "{done:?}"
        );
        assert_eq!(host.records().len(), 1);
    }

    /// The record of policies of a dead agent, and of a guest with this identity.
    fn policy_record(run_dir: &Path, version: u64, agent: &Identity, qemu: &Identity) -> PathBuf {
        let near = serde_json::json!({"mode": 5, "nodes": [0]});
        let default = serde_json::json!({"mode": 0, "nodes": []});
        let range = serde_json::json!({
            "device": [0, 1], "inode": 7, "offset": 0, "bytes": 4 << 20, "piece-bytes": 2 << 20,
            "original": [{"offset": 0, "bytes": 4 << 20, "policy": default}],
        });
        let record = serde_json::json!({
            "version": version, "vm": "vm", "agent": agent, "qemu": qemu,
            "fast": near, "slow": near, "ranges": [range],
        });
        std::fs::create_dir_all(run_dir.join("policies")).unwrap();
        let path = run_dir.join("policies/vm.json");
        std::fs::write(&path, record.to_string()).unwrap();
        path
    }

    #[test]
    fn policies_when_their_guest_is_gone_are_done_with() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::real();
        // Beyond PID_MAX_LIMIT (4 Mi), so no process has it.
        let gone = Identity::of(&root, 5_000_000);
        let path = policy_record(folder.path(), 1, &gone, &gone);

        let done = policies(&root, folder.path(), Duration::ZERO);

        assert!(matches!(&done[..], [Done::Mended(_)]), "{done:?}");
        assert!(!path.exists());
    }

    #[test]
    fn policies_when_others_have_the_lock_are_left_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::real();
        // Beyond PID_MAX_LIMIT (4 Mi), so no process has it.
        let gone = Identity::of(&root, 5_000_000);
        let path = policy_record(folder.path(), 1, &gone, &gone);
        let lock = policy_journal::lock(folder.path(), Duration::ZERO).unwrap();

        let done = policies(&root, folder.path(), Duration::ZERO);

        assert!(
            matches!(&done[..], [Done::Failed(what)] if what.contains("policies.lock")),
            "{done:?}"
        );
        assert!(path.exists());
        drop(lock);
        let done = policies(&root, folder.path(), Duration::ZERO);
        assert!(matches!(&done[..], [Done::Mended(_)]), "{done:?}");
    }

    #[test]
    fn record_when_a_new_agent_has_written_its_own_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::real();
        let gone = Identity::of(&root, 5_000_000);
        let own = Identity::of(&root, std::process::id());
        policy_record(folder.path(), 1, &gone, &gone);
        let (path, old) = policy_journal::records(folder.path()).remove(0);
        policy_record(folder.path(), 1, &own, &gone);
        old.unwrap().restore(&root, &path).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn policies_when_their_agent_runs_or_their_record_is_hostile_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::real();
        let (own, gone) = (
            Identity::of(&root, std::process::id()),
            Identity::of(&root, 5_000_000),
        );
        let path = policy_record(folder.path(), 1, &own, &own);
        let done = policies(&root, folder.path(), Duration::ZERO);
        assert!(matches!(&done[..], [Done::Left(_)]), "{done:?}");
        policy_record(folder.path(), 1, &gone, &gone);
        let good = std::fs::read_to_string(&path).unwrap();
        for text in [
            "{".to_owned(),
            good.replace("\"version\":1", "\"version\":2"),
            // Runs that do not cover their range, overflow it, or have no end.
            good.replace("\"inode\":7,\"offset\":0", "\"inode\":7,\"offset\":4096"),
            good.replace("\"offset\":0", "\"offset\":18446744073709551615"),
            good.replace("\"piece-bytes\":2097152", "\"piece-bytes\":0"),
            good.replace("\"vm\":\"vm\"", "\"vm\":\"vm\",\"more\":1"),
            " ".repeat(5 << 20),
        ] {
            assert_ne!(text, good);
            std::fs::write(&path, &text).unwrap();
            let done = policies(&root, folder.path(), Duration::ZERO);
            assert!(
                matches!(&done[..], [Done::Failed(why)] if why.contains("vm.json")),
                "{done:?}"
            );
            assert!(path.exists());
        }
        std::fs::write(&path, &good).unwrap();
        assert!(matches!(
            &policies(&root, folder.path(), Duration::ZERO)[..],
            [Done::Mended(_)]
        ));
    }

    #[test]
    fn pairs_when_agent_and_guest_are_gone_are_mended() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(2)).unwrap();
        host.set(0, (42, 42));
        host.set(1, (158, 158));
        host.end_all_processes();

        let done = pairs(&host.root, host.run_dir(), Duration::ZERO);

        let what = "vm: hugetlb pools: 2 pages went back after an unfinished pair of moves";
        assert_eq!(done, [Done::Mended(what.to_owned())]);
        assert_eq!(pairs(&host.root, host.run_dir(), Duration::ZERO), []);
    }
}
