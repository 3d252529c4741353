//! Findings about one guest.

use std::collections::BTreeSet;

use tier_core::text::size::human;
use tier_core::{
    addr::{NodeId, NodeSet},
    constraints::{CgroupCount, PoolBounds},
    holds::{Holder, PRIVATE_MEMORY},
    map::Backing,
    rebind::why_not,
    tiers::Division,
};

use super::{Area, Finding, Level, facts::GuestFacts};
use crate::{discover::Discovered, map_cmd::plural};

pub(super) fn findings(guest: &GuestFacts, division: Option<&Division>) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut add = |id, level, what: String, meaning: &str| {
        out.push(Finding::new(Area::Guest, id, level, what, meaning));
    };

    let accelerator = match guest.kvm {
        Some(true) => "under KVM",
        Some(false) => "emulated (TCG)",
        None => "accelerator unknown",
    };
    let state = guest.state.as_deref().unwrap_or("state unknown");
    let what = format!(
        "QEMU {} as process {} ({}), {accelerator}, {state}",
        guest.version, guest.pid, guest.comm
    );
    add("qemu", Level::Ok, what, "the agent ends with this process");

    match &guest.map {
        Ok(found) => {
            add(
                "map",
                Level::Ok,
                described(found),
                "every page of the guest can be found in QEMU",
            );
            let backings: BTreeSet<_> = found
                .map
                .blocks()
                .iter()
                .filter_map(|block| block.backing)
                .map(backing)
                .collect();
            let sizes: BTreeSet<_> = found
                .map
                .blocks()
                .iter()
                .map(|block| block.page_size)
                .collect();
            let sizes: Vec<_> = sizes.into_iter().map(human).collect();
            let kinds: Vec<_> = backings.iter().map(|(name, _)| *name).collect();
            let what = format!(
                "memory is {}, in pages of {}",
                kinds.join(" and "),
                sizes.join(" and ")
            );
            let blocks = found.map.blocks().iter();
            let reasons: BTreeSet<_> = blocks.filter_map(|block| why_not(block.backing)).collect();
            let is_file = backings.contains(&backing(Backing::File));
            add(
                "backing",
                if is_file { Level::Warn } else { Level::Ok },
                what,
                if is_file {
                    "the kernel writes file pages back while they are moved; use memfd or anonymous memory"
                } else {
                    "such pages can be moved"
                },
            );
            match reasons.is_empty() {
                true => add(
                    "rebind",
                    Level::Ok,
                    "the guest's memory is shared, so its NUMA policy can be set from outside"
                        .to_owned(),
                    "with --rebind, pages that the guest gave back come again from the tier where they lay",
                ),
                false => {
                    let what =
                        "the NUMA policy of some of the guest's memory can't be set from outside";
                    let reasons: Vec<_> = reasons.into_iter().collect();
                    add("rebind", Level::Note, what.to_owned(), &reasons.join("; "));
                }
            }
        }
        Err(error) => add(
            "map",
            Level::Fail,
            error.clone(),
            "without a map nothing can be tiered",
        ),
    }

    match &guest.can_move {
        Ok(()) => add(
            "move-pages",
            Level::Ok,
            "the pages of this process can be asked for and moved".to_owned(),
            "move_pages is permitted",
        ),
        Err(error) => add(
            "move-pages",
            Level::Fail,
            error.clone(),
            "nothing can be moved: run as root",
        ),
    }

    match &guest.holds {
        Some(holds) if holds.are_by(Holder::Vfio) || holds.reason.is_some() => {
            match &holds.reason {
                Some(reason) => add("vfio", Level::Fail, reason.clone(), "nothing is moved"),
                None => add(
                    "vfio",
                    Level::Warn,
                    "a device of the host is passed through (VFIO)".to_owned(),
                    "memory that the device uses is pinned and stays where it is",
                ),
            }
        }
        Some(_) => add(
            "vfio",
            Level::Ok,
            "no device of the host is passed through".to_owned(),
            "pages are not pinned",
        ),
        None => add(
            "vfio",
            Level::Warn,
            format!("the open files of process {} can't be listed", guest.pid),
            "pinned memory would not be noticed",
        ),
    }
    if guest.holds.as_ref().is_some_and(|holds| holds.private) {
        add(
            "private-memory",
            Level::Warn,
            "the guest has a guest_memfd (SEV-SNP, TDX)".to_owned(),
            PRIVATE_MEMORY,
        );
    }
    if let Some(status) = guest
        .migration
        .as_deref()
        .filter(|status| !matches!(*status, "none" | "completed" | "failed" | "cancelled"))
    {
        add(
            "migration",
            Level::Warn,
            format!("a migration is under way ({status})"),
            "the agent waits until it is over",
        );
    }
    let bound: Vec<_> = guest
        .policies
        .iter()
        .filter(|policy| policy.contains(':'))
        .map(String::as_str)
        .collect();
    if !bound.is_empty() {
        add(
            "policy",
            Level::Note,
            format!("the guest's memory has the policy {}", bound.join(", ")),
            "newly allocated pages go there, whatever the agent chose before; --rebind changes that for shared memory",
        );
    }
    out.extend(cpuset(&guest.allowed, guest.pid, division));
    out.extend(guest.pools.iter().flat_map(pool_bounds));
    out
}

/// What bounds the guest's use of hugetlb pools. No move is counted against it.
fn pool_bounds(bounds: &PoolBounds) -> Vec<Finding> {
    let size = human(bounds.page_size);
    let mut out = Vec::new();
    if let Some(limit) = &bounds.cgroup {
        let count = match limit.count {
            CgroupCount::Used => "used",
            CgroupCount::Reserved => "used or promised",
        };
        let what = format!(
            "control group {} allows {} in pages of {size}; {} are {count}",
            limit.cgroup,
            human(limit.limit_bytes),
            human(limit.used_bytes)
        );
        let (level, meaning) = match limit.left_bytes() < bounds.page_size {
            true => (
                Level::Note,
                "moves are not counted against it; a page that the guest touches for the first time is",
            ),
            false => (Level::Ok, "moves are not counted against it"),
        };
        let finding = Finding::new(Area::Guest, "hugetlb-cgroup", level, what, meaning);
        out.push(finding);
    }
    for mount in &bounds.mounts {
        let limit = mount.limit_bytes.map_or_else(
            || "any size".to_owned(),
            |bytes| format!("{} at most", human(bytes)),
        );
        let what = format!(
            "guest memory in pages of {size} is on the hugetlbfs mount {}: {limit}, {} promised",
            mount.path,
            human(mount.promised_bytes)
        );
        let meaning =
            "moves take nothing from the mount's own account: a page that moves stays in it";
        let finding = Finding::new(Area::Guest, "hugetlbfs-mount", Level::Ok, what, meaning);
        out.push(finding);
    }
    out
}

/// QEMU's cpuset must allow both tiers: the kernel refuses to move pages to other nodes.
fn cpuset(
    allowed: &Result<NodeSet, String>,
    pid: u32,
    division: Option<&Division>,
) -> Option<Finding> {
    let allowed = match allowed {
        Ok(allowed) => allowed,
        Err(error) => {
            return Some(Finding::new(
                Area::Guest,
                "cpuset",
                Level::Warn,
                error,
                "can't be judged",
            ));
        }
    };
    let tiers = &division?.tiers;
    let outside: NodeSet = tiers
        .fast
        .iter()
        .chain(tiers.slow.iter())
        .filter(|&node| !allowed.contains(node))
        .collect();
    if outside.is_empty() {
        let what = format!("process {pid} may have memory on nodes {allowed}");
        return Some(Finding::new(
            Area::Guest,
            "cpuset",
            Level::Ok,
            what,
            "both tiers are allowed",
        ));
    }
    let is_blocked = |nodes: &NodeSet| nodes.iter().all(|node: NodeId| outside.contains(node));
    let level = if is_blocked(&tiers.fast) || is_blocked(&tiers.slow) {
        Level::Fail
    } else {
        Level::Warn
    };
    let what = format!("process {pid} may have memory on nodes {allowed} only");
    let meaning = format!("the kernel refuses to move its pages to {outside}");
    Some(
        Finding::new(Area::Guest, "cpuset", level, what, meaning).mend(format!(
            "grep -H . /sys/fs/cgroup$(cut -d: -f3 /proc/{pid}/cgroup)/cpuset.mems"
        )),
    )
}

fn described(found: &Discovered) -> String {
    format!(
        "{} in {} of {}",
        human(found.map.total_bytes()),
        plural(found.map.ranges().len(), "range"),
        plural(found.map.blocks().len(), "RAM block")
    )
}

/// Names a backing; the second member keeps files apart from what can be moved freely.
const fn backing(backing: Backing) -> (&'static str, bool) {
    match backing {
        Backing::Anonymous => ("anonymous", true),
        Backing::Shmem => ("shared", true),
        Backing::Hugetlb => ("hugetlb", true),
        Backing::File => ("a file", false),
    }
}
