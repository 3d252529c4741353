//! Findings about the host's memory: huge pages, and who else moves pages.

use tier_core::{addr::NodeId, text::size::human, tiers::Tiers};
use tier_sys::{
    hugetlb::{HugePool, NodePool},
    knobs::Knobs,
};

use super::{
    Area, Finding, Level,
    facts::{DamonFacts, Kdamond},
};

/// What a pool without a page to spare means.
const IN_PAIRS: &str = "pages of this pool change places in pairs, by pages that the kernel takes from free memory for \
                        a moment; the pools stay as they are. A page to spare on the slow node saves that";

/// A pool that is in use, or `None` for an empty pool.
pub(super) fn hugetlb(pool: &HugePool, tiers: Option<&Tiers>) -> Option<Finding> {
    if pool.pages == 0 && pool.surplus == 0 {
        return None;
    }
    let on_node = pool.nodes.iter().map(|own| {
        let surplus = match own.surplus {
            0 => String::new(),
            surplus => format!(" ({surplus} surplus)"),
        };
        format!(
            "node {}: {} free of {}{surplus}",
            own.node, own.free, own.pages
        )
    });
    let promised = match pool.reserved {
        0 => String::new(),
        reserved => format!("; {reserved} promised"),
    };
    let what = format!(
        "hugetlb pool of {}: {}{promised}",
        human(pool.page_size),
        on_node.collect::<Vec<_>>().join(", ")
    );
    let finding =
        |level, meaning| Finding::new(Area::HugePages, "hugetlb-pools", level, what, meaning);
    let usable = "guests backed by this pool are tiered within it, and the pools stay as they are";
    let Some(tiers) = tiers else {
        return Some(finding(Level::Ok, usable));
    };
    let set_pages = |node: NodeId, pages: u64| {
        format!(
            "echo {pages} > /sys/devices/system/node/node{node}/hugepages/hugepages-{}kB/nr_hugepages",
            pool.page_size >> 10
        )
    };
    let nodes = tiers.nodes();
    let of_tiers = |own: &&NodePool| nodes.contains(own.node);
    let ends = tiers.fast.iter().next().zip(tiers.slow.iter().next());
    let makes_pairs = ends.is_some_and(|(fast, slow)| {
        nodes.iter().count() == 2 && pool.pairs_between(fast, slow) > 0
    });
    let mut own = pool.nodes.iter().filter(of_tiers);
    if makes_pairs && own.clone().any(|own| own.surplus > 0) {
        return Some(finding(Level::Ok, IN_PAIRS));
    }
    if let Some(own) = own.find(|own| own.surplus > 0) {
        let meaning = "no page of this pool is moved: a page that a move frees would leave the pool, as there are \
                       surplus pages. Make them a part of the pool";
        return Some(finding(Level::Warn, meaning).mend(set_pages(own.node, own.pages)));
    }
    let can_move = nodes.iter().any(|node| pool.spare_on(node, &nodes) > 0);
    if can_move {
        return Some(finding(Level::Ok, usable));
    }
    let meaning = "no page of this pool can be moved: an exchange needs a free page that is promised to nobody";
    let warning = match makes_pairs {
        true => finding(Level::Note, IN_PAIRS),
        false => finding(Level::Warn, meaning),
    };
    let mut slow = pool
        .nodes
        .iter()
        .filter(|own| tiers.slow.contains(own.node));
    Some(match slow.next() {
        Some(own) => warning.mend(set_pages(own.node, own.pages + 1)),
        None => warning,
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

#[cfg(test)]
mod tests {
    use tier_core::addr::NodeSet;

    use super::*;

    fn pool(reserved: u64, own: [(u64, u64, u64); 2]) -> HugePool {
        let nodes = (0..)
            .zip(own)
            .map(|(node, (pages, free, surplus))| NodePool {
                node: NodeId(node),
                pages,
                free,
                surplus,
            });
        HugePool {
            page_size: 2 << 20,
            pages: own.iter().map(|own| own.0).sum(),
            free: own.iter().map(|own| own.1).sum(),
            reserved,
            surplus: own.iter().map(|own| own.2).sum(),
            nodes: nodes.collect(),
        }
    }

    fn tiers() -> Tiers {
        Tiers {
            fast: NodeSet::from_iter([NodeId(0)]),
            slow: NodeSet::from_iter([NodeId(1)]),
            fast_latency_ns: 80.0,
            slow_latency_ns: 250.0,
        }
    }

    #[test]
    fn pool_when_all_free_pages_are_promised_notes_pairs_and_adds_one_to_the_slow_node() {
        let found = hugetlb(&pool(4, [(44, 0, 0), (156, 4, 0)]), Some(&tiers())).unwrap();
        assert_eq!(
            (found.level, found.meaning.as_str()),
            (Level::Note, IN_PAIRS)
        );
        assert_eq!(
            found.what,
            "hugetlb pool of 2 MiB: node 0: 0 free of 44, node 1: 4 free of 156; 4 promised"
        );
        let mend =
            "echo 157 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
        assert_eq!(found.remedy.as_deref(), Some(mend));
        let found = hugetlb(&pool(4, [(44, 0, 0), (157, 5, 0)]), Some(&tiers())).unwrap();
        assert_eq!(
            (found.level, found.remedy),
            (Level::Ok, None),
            "one to spare"
        );
    }

    #[test]
    fn pool_when_no_page_is_free_moves_in_pairs_unless_they_would_change_it() {
        let level = |own| hugetlb(&pool(0, own), Some(&tiers())).unwrap().level;
        assert_eq!(level([(44, 0, 14), (156, 0, 0)]), Level::Ok);
        assert_eq!(level([(44, 0, 0), (156, 0, 3)]), Level::Warn);
        let giant = HugePool {
            page_size: 1 << 30,
            ..pool(0, [(4, 0, 0), (8, 0, 0)])
        };
        let found = hugetlb(&giant, Some(&tiers())).unwrap();
        assert_eq!(found.level, Level::Warn, "can't be made at will");
    }

    #[test]
    fn pool_when_it_has_surplus_pages_warns_and_makes_them_a_part_of_it() {
        let found = hugetlb(&pool(0, [(44, 0, 14), (175, 23, 0)]), Some(&tiers())).unwrap();
        assert_eq!(found.level, Level::Warn);
        assert_eq!(
            found.what,
            "hugetlb pool of 2 MiB: node 0: 0 free of 44 (14 surplus), node 1: 23 free of 175"
        );
        let mend =
            "echo 44 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
        assert_eq!(found.remedy.as_deref(), Some(mend));
    }

    #[test]
    fn pool_when_it_is_empty_is_not_told() {
        assert!(hugetlb(&pool(0, [(0, 0, 0), (0, 0, 0)]), Some(&tiers())).is_none());
    }
}
