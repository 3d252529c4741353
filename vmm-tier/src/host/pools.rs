//! The pools: memory of the fast nodes, divided apart by the pages that it is made of.
//!
//! A hugetlb page can only be replaced by another of the same size, and free memory is no hugetlb page.
//! So VMs on hugetlb pages share what the nodes' hugetlb pools of that size have, and all others share
//! the rest of the nodes' memory.

use std::{collections::BTreeMap, fmt};

use tier_core::{
    addr::{BASE_PAGE, NodeSet},
    arbiter::{Arbiter, Rules},
};
use tier_sys::{
    hugetlb,
    sysroot::{SysRoot, SysRootError},
};

use super::{report::HostPool, settings::HostSettings};

/// A pool, by the pages that it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PoolId {
    /// Pages of 4 KiB, and transparent huge pages.
    Plain,
    /// hugetlb pages of this size, in bytes.
    Hugetlb(u64),
}

/// DRAM that a QEMU holds, in bytes by pool.
pub(super) type Holdings = BTreeMap<PoolId, u64>;

/// All of what a QEMU holds.
pub(super) fn all(holdings: &Holdings) -> u64 {
    holdings.values().copied().fold(0, u64::saturating_add)
}

impl PoolId {
    /// The pool of a VM by the size of its hugetlb pages, if it has such pages.
    pub(super) const fn of(hugetlb_page_bytes: Option<u64>) -> Self {
        match hugetlb_page_bytes {
            Some(bytes) if bytes > BASE_PAGE => Self::Hugetlb(bytes),
            _ => Self::Plain,
        }
    }

    /// The size of its pages, for hugetlb pages.
    pub(super) const fn hugetlb_page_bytes(self) -> Option<u64> {
        match self {
            Self::Plain => None,
            Self::Hugetlb(bytes) => Some(bytes),
        }
    }
}

/// `plain`, `hugetlb-2M`, `hugetlb-1G`.
impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Plain => f.write_str("plain"),
            Self::Hugetlb(bytes) => {
                let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
                let unit = units.iter().find(|(shift, _)| bytes % (1 << shift) == 0);
                let (shift, unit) = unit.unwrap_or(&(0, ""));
                write!(f, "hugetlb-{}{unit}", bytes >> shift)
            }
        }
    }
}

/// The memory of the fast nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FastMemory {
    pub(super) nodes: NodeSet,
    /// All of it, in bytes.
    pub(super) total: u64,
    /// What of it is hugetlb pages: bytes by the size of the pages.
    pub(super) hugetlb: BTreeMap<u64, u64>,
}

impl FastMemory {
    /// The memory that a pool can have, in bytes.
    pub(super) fn of(&self, id: PoolId) -> u64 {
        match id {
            PoolId::Hugetlb(size) => self.hugetlb.get(&size).copied().unwrap_or(0),
            PoolId::Plain => {
                let huge = self.hugetlb.values().copied();
                self.total.saturating_sub(huge.fold(0, u64::saturating_add))
            }
        }
    }
}

/// What the hugetlb pools of some nodes have: bytes by the size of the pages.
pub(super) fn hugetlb_on(
    root: &SysRoot,
    nodes: &NodeSet,
) -> Result<BTreeMap<u64, u64>, SysRootError> {
    let bytes_of = |pool: hugetlb::HugePool| {
        let on_nodes = pool.nodes.iter().filter(|it| nodes.contains(it.node));
        let pages = on_nodes.fold(0_u64, |sum, it| sum.saturating_add(it.pages));
        (pool.page_size, pages.saturating_mul(pool.page_size))
    };
    let pools = hugetlb::read(root)?.into_iter().map(bytes_of);
    Ok(pools.filter(|(_, bytes)| *bytes > 0).collect())
}

/// A pool, and what was decided of it last.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// What is for guests by the configuration.
    pub(super) configured: u64,
    pub(super) arbiter: Arbiter,
    /// What VMs hold of it that take no part in its division.
    pub(super) charged: u64,
    /// What is dealt.
    pub(super) bytes: u64,
    pub(super) free: u64,
    pub(super) shortfall: u64,
}

impl Pool {
    pub(super) fn new(configured: u64, rules: Rules) -> Self {
        Self {
            configured,
            arbiter: Arbiter::new(rules),
            charged: 0,
            bytes: configured,
            free: configured,
            shortfall: 0,
        }
    }

    pub(super) fn report(&self, id: PoolId) -> HostPool {
        HostPool {
            name: id.to_string(),
            page_bytes: id.hugetlb_page_bytes(),
            pool_bytes: self.bytes,
            configured_bytes: self.configured,
            charged_bytes: self.charged,
            free_bytes: self.free,
            shortfall_bytes: self.shortfall,
        }
    }
}

/// The pools that the configuration and the nodes make, with what each has for guests.
pub(super) fn configured(settings: &HostSettings, memory: &FastMemory) -> BTreeMap<PoolId, u64> {
    let sizes = memory.hugetlb.keys().chain(settings.hugetlb.keys());
    let huge = sizes.map(|&size| PoolId::Hugetlb(size));
    let bytes = |id: PoolId| (id, settings.pool_size(id).bytes(memory.of(id)));
    let huge = huge.map(bytes).filter(|(_, bytes)| *bytes > 0);
    huge.chain([bytes(PoolId::Plain)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::settings::HostArgs;

    #[test]
    fn pool_when_it_is_told_of_has_the_name_that_an_operator_writes() {
        let names = [
            (PoolId::of(None), "plain"),
            (PoolId::of(Some(4096)), "plain"),
            (PoolId::of(Some(64 << 10)), "hugetlb-64K"),
            (PoolId::of(Some(2 << 20)), "hugetlb-2M"),
            (PoolId::of(Some(1 << 30)), "hugetlb-1G"),
        ];
        for (id, name) in names {
            assert_eq!(id.to_string(), name);
        }
    }

    #[test]
    fn pools_when_nodes_have_hugetlb_pages_have_these_apart() {
        let memory = FastMemory {
            total: 1000 << 20,
            hugetlb: BTreeMap::from([(2 << 20, 300 << 20), (32 << 20, 64 << 20)]),
            ..FastMemory::default()
        };
        let pools = |toml: &str| {
            let settings = HostSettings::of_text(HostArgs::default(), toml).unwrap();
            let pools = configured(&settings, &memory).into_iter();
            let pools = pools.map(|(id, bytes)| (id.to_string(), bytes >> 20));
            pools.collect::<BTreeMap<_, _>>()
        };
        let expected = |pools: &[(&str, u64)]| {
            let pools = pools.iter().map(|&(name, mib)| (name.to_owned(), mib));
            pools.collect::<BTreeMap<_, _>>()
        };
        // 1000 − 364 = 636 MiB are in small pages; a tenth of that is no guest's.
        let all = [("plain", 572), ("hugetlb-2M", 300), ("hugetlb-32M", 64)];
        assert_eq!(pools(""), expected(&all));
        let toml = "[pool]\nbytes = '84M'\n[hugetlb.2M]\nreserve = '100M'\n[hugetlb.32M]\nbytes = 0\n\
                    [hugetlb.1G]\nbytes = '2G'";
        let set = [("plain", 84), ("hugetlb-2M", 200), ("hugetlb-1G", 2048)];
        assert_eq!(pools(toml), expected(&set));
    }

    #[test]
    fn hugetlb_pages_when_read_are_those_of_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: String, pages: u64| {
            let path = folder.path().join("sys").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{pages}\n")).unwrap();
        };
        for (place, pages) in [
            ("kernel/mm", 15),
            ("devices/system/node/node0", 7),
            ("devices/system/node/node1", 8),
        ] {
            for file in [
                "nr_hugepages",
                "free_hugepages",
                "surplus_hugepages",
                "resv_hugepages",
            ] {
                let pages = if file == "nr_hugepages" { pages } else { 0 };
                write(format!("{place}/hugepages/hugepages-2048kB/{file}"), pages);
            }
        }
        let root = SysRoot::at(folder.path());
        let nodes = "0".parse().unwrap();
        let found = hugetlb_on(&root, &nodes).unwrap();
        assert_eq!(found, BTreeMap::from([(2 << 20, 14 << 20)]));
        assert_eq!(
            hugetlb_on(&root, &"2".parse().unwrap()).unwrap(),
            BTreeMap::new()
        );
    }
}
