//! Findings about the host's memory: huge pages, and who else moves pages.

use tier_core::addr::NodeSet;
use tier_core::text::size::human;
use tier_sys::{hugetlb::HugePool, knobs::Knobs};

use super::{
    Area, Finding, Level,
    facts::{DamonFacts, Kdamond},
};

/// A pool that is in use, or `None` for an empty one.
pub(super) fn hugetlb(pool: &HugePool, fast: Option<&NodeSet>) -> Option<Finding> {
    if pool.pages == 0 && pool.surplus == 0 {
        return None;
    }
    let on_node = pool
        .nodes
        .iter()
        .map(|own| format!("node {}: {} free of {}", own.node, own.free, own.pages));
    let what = format!(
        "hugetlb pool of {}: {}",
        human(pool.page_size),
        on_node.collect::<Vec<_>>().join(", ")
    );
    let area = Area::HugePages;
    let empty = fast.filter(|fast| {
        pool.nodes
            .iter()
            .filter(|own| fast.contains(own.node))
            .all(|own| own.free == 0)
    });
    Some(match empty.and_then(|fast| fast.iter().next()) {
        Some(node) => Finding::new(area, "hugetlb-pools", Level::Warn, what, "the fast tier has no free page of this size: guests backed by it can only exchange page for page")
            .mend(format!(
                "echo N > /sys/devices/system/node/node{node}/hugepages/hugepages-{}kB/nr_hugepages",
                pool.page_size >> 10
            )),
        None => Finding::new(area, "hugetlb-pools", Level::Ok, what, "guests backed by this pool can be tiered within it"),
    })
}

pub(super) fn huge_pages(knobs: &Knobs) -> Vec<Finding> {
    let mut out = Vec::new();
    let area = Area::HugePages;
    let meaning = |is_on: bool| match is_on {
        true => "guests may be backed by 2 MiB pages, which are tracked and moved whole",
        false => "guests are backed by 4 KiB pages: each page is tracked and moved by itself",
    };
    if let Some(enabled) = &knobs.thp_enabled {
        let is_on = enabled != "never";
        let what = format!("transparent huge pages for anonymous memory: {enabled}");
        out.push(Finding::new(
            area,
            "thp",
            if is_on { Level::Ok } else { Level::Note },
            what,
            meaning(is_on),
        ));
    }
    if let Some(enabled) = &knobs.thp_shmem_enabled {
        let is_on = !matches!(enabled.as_str(), "never" | "deny");
        let what = format!("transparent huge pages for shared memory: {enabled}");
        out.push(Finding::new(
            area,
            "thp-shmem",
            Level::Note,
            what,
            meaning(is_on),
        ));
    }
    out
}

pub(super) fn rivals(knobs: &Knobs) -> Vec<Finding> {
    let mut out = Vec::new();
    let area = Area::Rivals;
    if let Some(balancing) = knobs.numa_balancing {
        let what = format!("kernel.numa_balancing = {balancing}");
        out.push(match balancing {
            0 => Finding::new(area, "numa-balancing", Level::Ok, what, "the kernel moves no pages between nodes by itself"),
            mode => {
                let meaning = if mode & 2 != 0 {
                    "the kernel promotes pages by its own rules and undoes the agent's choices"
                } else {
                    "the kernel moves pages towards the CPUs that use them and undoes the agent's choices"
                };
                Finding::new(area, "numa-balancing", Level::Warn, what, meaning).mend("sysctl kernel.numa_balancing=0")
            }
        });
    }
    if let Some(demotion) = knobs.demotion_enabled {
        out.push(if demotion {
            Finding::new(
                area,
                "demotion",
                Level::Warn,
                "the kernel demotes pages when a node is short",
                "hot pages of a guest may be demoted under pressure",
            )
            .mend("echo false > /sys/kernel/mm/numa/demotion_enabled")
        } else {
            Finding::new(
                area,
                "demotion",
                Level::Ok,
                "the kernel does not demote",
                "only the agent demotes",
            )
        });
    }
    match knobs.ksm_run {
        Some(1) => out.push(
            Finding::new(
                area,
                "ksm",
                Level::Warn,
                "KSM is merging pages",
                "merged pages belong to several guests and can't be moved for a single guest",
            )
            .mend("echo 2 > /sys/kernel/mm/ksm/run"),
        ),
        Some(_) => out.push(Finding::new(
            area,
            "ksm",
            Level::Ok,
            "KSM does not run",
            "pages stay with their guest",
        )),
        None => {}
    }
    out
}

pub(super) fn other_damon(damon: &DamonFacts) -> Vec<Finding> {
    let area = Area::Rivals;
    let mut out: Vec<Finding> = damon
        .modules
        .iter()
        .map(|module| {
            Finding::new(
                area,
                "damon-module",
                Level::Warn,
                format!("the kernel module {module} is enabled"),
                "it reclaims or reorders pages by its own rules",
            )
            .mend(format!("echo N > /sys/module/{module}/parameters/enabled"))
        })
        .collect();
    for kdamond in damon.kdamonds.iter().filter(|kdamond| kdamond.is_running) {
        out.push(running(kdamond));
    }
    if out.is_empty() && damon.has_sysfs {
        out.push(Finding::new(
            area,
            "kdamonds",
            Level::Ok,
            "no kdamond runs",
            "nobody else samples or moves with DAMON",
        ));
    }
    out
}

fn running(kdamond: &Kdamond) -> Finding {
    let number = kdamond.number;
    let targets: Vec<_> = kdamond.targets.iter().map(ToString::to_string).collect();
    let of = if targets.is_empty() {
        String::new()
    } else {
        format!(" of process {}", targets.join(", "))
    };
    let what = format!(
        "kdamond {number} watches {}{of}",
        kdamond.operations.join(", ")
    );
    // `stat` only counts.
    let mut actions: Vec<_> = kdamond
        .actions
        .iter()
        .map(String::as_str)
        .filter(|&action| action != "stat")
        .collect();
    actions.dedup();
    if actions.is_empty() {
        return Finding::new(
            Area::Rivals,
            "kdamonds",
            Level::Note,
            what,
            "it moves nothing: an agent's own, or a monitor",
        );
    }
    let what = format!("{what} and does {}", actions.join(", "));
    let meaning = "it acts on the same pages by its own rules; its owner should stop it";
    Finding::new(Area::Rivals, "kdamonds", Level::Warn, what, meaning).mend(format!(
        "echo off > /sys/kernel/mm/damon/admin/kdamonds/{number}/state"
    ))
}
