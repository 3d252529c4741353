//! Readers of the hugetlb pools.

use std::path::Path;

use tier_core::addr::NodeId;
pub use tier_core::pools::{HugePool, NodePool};

use crate::sysroot::{
    SysRoot, SysRootError, numbered_entries, read_value, read_value_optional, write_value,
};

/// Reads the pools of every page size, smallest first.
///
/// # Errors
/// [`SysRootError`].
pub fn read(root: &SysRoot) -> Result<Vec<HugePool>, SysRootError> {
    let nodes = numbered_entries(&root.sys("devices/system/node"), "node")?;
    let mut pools = Vec::new();
    for (kib, folder) in sizes(&root.sys("kernel/mm/hugepages"))? {
        let name = format!("hugepages-{kib}kB");
        let mut own = Vec::new();
        for (node, path) in &nodes {
            let folder = path.join("hugepages").join(&name);
            let Some(pages) = read_value_optional(&folder.join("nr_hugepages"))? else {
                continue;
            };
            own.push(NodePool {
                node: NodeId(u16::try_from(*node).unwrap_or(u16::MAX)),
                pages,
                free: read_value(&folder.join("free_hugepages"))?,
                surplus: read_value(&folder.join("surplus_hugepages"))?,
            });
        }
        pools.push(HugePool {
            page_size: kib.saturating_mul(1024),
            pages: read_value(&folder.join("nr_hugepages"))?,
            free: read_value(&folder.join("free_hugepages"))?,
            reserved: read_value(&folder.join("resv_hugepages"))?,
            surplus: read_value(&folder.join("surplus_hugepages"))?,
            overcommit: read_value_optional(&folder.join("nr_overcommit_hugepages"))?.unwrap_or(0),
            nodes: own,
        });
    }
    Ok(pools)
}

/// Reads the pools of pages of `page_size` bytes; `None` if the kernel has none.
///
/// # Errors
/// [`SysRootError`].
pub fn read_size(root: &SysRoot, page_size: u64) -> Result<Option<HugePool>, SysRootError> {
    let pools = read(root)?;
    Ok(pools.into_iter().find(|pool| pool.page_size == page_size))
}

/// Sets how many pages of `page_size` bytes the pool of a node has. The kernel may give fewer.
///
/// # Errors
/// [`SysRootError`].
pub fn set_pages(
    root: &SysRoot,
    page_size: u64,
    node: NodeId,
    pages: u64,
) -> Result<(), SysRootError> {
    let kib = page_size >> 10;
    let path = root.sys(format!(
        "devices/system/node/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages"
    ));
    write_value(&path, &pages.to_string())
}

/// The folders `hugepages-NkB`, by rising size in KiB.
fn sizes(folder: &Path) -> Result<Vec<(u64, std::path::PathBuf)>, SysRootError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(SysRootError::Read {
                path: folder.to_owned(),
                source,
            });
        }
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let kib = name
                .to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?;
            Some((kib.parse().ok()?, entry.path()))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}
