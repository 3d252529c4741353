//! Findings about the host's memory: huge pages, and who else moves pages.

use tier_core::{
    pathology::{Pathology, pool_exhausted},
    text::size::human,
    tiers::Tiers,
};
use tier_sys::{
    damon::users::{DamonUsers, Kdamond},
    hugetlb::HugePool,
    knobs::Knobs,
};

use super::{Area, Finding, Level};

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
    let overcommit = match pool.overcommit {
        0 => String::new(),
        most => format!("; guests may bring about {most} surplus (nr_overcommit_hugepages)"),
    };
    let what = format!(
        "hugetlb pool of {}: {}{promised}{overcommit}",
        human(pool.page_size),
        on_node.collect::<Vec<_>>().join(", ")
    );
    let finding =
        |level, meaning| Finding::new(Area::HugePages, "hugetlb-pools", level, what, meaning);
    let usable = "guests backed by this pool are tiered within it, and the pools stay as they are";
    let Some(tiers) = tiers else {
        return Some(finding(Level::Ok, usable));
    };
    if pool.pairs_within(tiers) > 0 {
        let note = finding(Level::Note, IN_PAIRS);
        let mut own = pool.nodes.iter();
        let slow = own.find(|own| pool.surplus == 0 && tiers.slow.contains(own.node));
        return Some(match slow {
            Some(own) => {
                note.mend(pool.set_pages(own.node, own.pages.saturating_add(pool.lacking())))
            }
            None => note,
        });
    }
    let Some(exhausted) = pool_exhausted(pool, Some(tiers)) else {
        return Some(finding(Level::Ok, usable));
    };
    let nodes = tiers.nodes();
    let mut own = pool.nodes.iter().filter(|own| nodes.contains(own.node));
    let meaning = match own.any(|own| own.surplus > 0) {
        true => {
            "no page of this pool is moved: a page that a move frees would leave the pool, as there are surplus \
             pages. Make them a part of the pool"
        }
        false => exhausted.pathology.meaning(),
    };
    let warning = finding(Level::Warn, meaning);
    Some(match exhausted.remedy {
        Some(remedy) => warning.mend(remedy),
        None => warning,
    })
}

/// What agents let a pool drift, as `hugetlb.grow` allows.
pub(super) fn drift(drift: &Result<(String, Vec<String>), String>) -> Finding {
    let finding = |level, what: &str, meaning| {
        Finding::new(Area::HugePages, "hugetlb-drift", level, what, meaning)
    };
    match drift {
        Ok((what, restore)) => finding(
            Level::Note,
            what,
            "promotions took free memory beyond the pool, as hugetlb.grow allows. Nothing takes it back by itself: run \
             these commands when the pages are free, as after the guest's end",
        )
        .mend(restore.join(" && ")),
        Err(error) => finding(Level::Warn, error, "can't be judged"),
    }
}

/// A pathology of which no second reading is needed.
fn rival(id: &'static str, what: String, pathology: Pathology) -> Finding {
    let found = Finding::new(Area::Rivals, id, Level::Warn, what, pathology.meaning());
    match pathology.remedy() {
        Some(remedy) => found.mend(remedy),
        None => found,
    }
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

/// Pages of several frames that are mapped frame by frame, and whether they can be told apart.
pub(super) fn folios(can_tell: &Result<(), String>) -> Finding {
    let what = "the host makes pages of several frames that are mapped frame by frame (multi-size THP, huge pages of \
                shared memory, or of which a part was given back)";
    let finding =
        |level, what: &str, meaning| Finding::new(Area::HugePages, "folios", level, what, meaning);
    match can_tell {
        Ok(()) => finding(Level::Ok, what, "each is tracked and moved as one page"),
        Err(error) => finding(
            Level::Warn,
            &format!("{what}, and {error}"),
            "they are taken for pages of 4 KiB: a move takes others along that are not counted",
        ),
    }
}

pub(super) fn rivals(knobs: &Knobs) -> Vec<Finding> {
    let mut out = Vec::new();
    let area = Area::Rivals;
    if let Some(balancing) = knobs.numa_balancing {
        let what = format!("kernel.numa_balancing = {balancing}");
        out.push(match balancing {
            0 => Finding::new(
                area,
                "numa-balancing",
                Level::Ok,
                what,
                "the kernel moves no pages between nodes by itself",
            ),
            mode if mode & 2 != 0 => rival("numa-balancing", what, Pathology::NumaBalancing),
            _ => Finding {
                meaning: "the kernel moves pages towards the CPUs that use them and undoes the agent's choices"
                    .to_owned(),
                ..rival("numa-balancing", what, Pathology::NumaBalancing)
            },
        });
    }
    if let Some(demotion) = knobs.demotion_enabled {
        out.push(if demotion {
            let what = "the kernel demotes pages when a node is short".to_owned();
            rival("demotion", what, Pathology::Demotion)
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
        Some(1) => out.push(rival(
            "ksm",
            "KSM is merging pages".to_owned(),
            Pathology::Ksm,
        )),
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

pub(super) fn other_damon(damon: &DamonUsers) -> Vec<Finding> {
    let area = Area::Rivals;
    let mut out: Vec<Finding> = damon
        .modules
        .iter()
        .map(|module| {
            let pathology = match *module {
                "damon_stat" => Pathology::DamonStat,
                _ => Pathology::DamonModule,
            };
            let what = format!("the kernel module {module} is enabled");
            rival("damon-module", what, pathology)
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
    let actions = kdamond.acts();
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
    rival("kdamonds", what, Pathology::DamonScheme).mend(format!(
        "echo off > /sys/kernel/mm/damon/admin/kdamonds/{number}/state"
    ))
}

#[cfg(test)]
mod tests {
    use tier_core::addr::{NodeId, NodeSet};
    use tier_sys::hugetlb::NodePool;

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
            overcommit: 0,
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
    fn pool_when_more_pages_are_promised_than_free_gets_all_that_it_lacks() {
        // A move would take one of the promised pages: the kernel subtracts without a sign.
        let found = hugetlb(&pool(6, [(44, 0, 0), (156, 4, 0)]), Some(&tiers())).unwrap();
        assert_eq!(found.level, Level::Warn);
        let mend =
            "echo 159 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
        assert_eq!(found.remedy.as_deref(), Some(mend));
        let mended = hugetlb(&pool(6, [(44, 0, 0), (159, 7, 0)]), Some(&tiers())).unwrap();
        assert_eq!(mended.level, Level::Ok);
    }

    #[test]
    fn pool_when_surplus_pages_may_come_tells_how_many() {
        let overcommitted = HugePool {
            overcommit: 16,
            ..pool(0, [(44, 0, 0), (157, 1, 0)])
        };
        let found = hugetlb(&overcommitted, Some(&tiers())).unwrap();
        assert_eq!(
            found.what,
            "hugetlb pool of 2 MiB: node 0: 0 free of 44, node 1: 1 free of 157; guests may bring about 16 surplus \
             (nr_overcommit_hugepages)"
        );
    }

    #[test]
    fn pool_when_no_page_is_free_moves_in_pairs_unless_they_would_change_it() {
        let level = |own| hugetlb(&pool(0, own), Some(&tiers())).unwrap().level;
        assert_eq!(level([(44, 0, 14), (156, 0, 0)]), Level::Note);
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
