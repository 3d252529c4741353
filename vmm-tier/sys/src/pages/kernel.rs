//! The calls behind moving pages, and a trait over them.

use std::{io, path::Path, time::Duration};

use tier_core::addr::{Hva, NodeId};

use crate::{
    maps,
    sysroot::SysRoot,
    vmstat::VmStat,
    zoneinfo::{self, NodeMarks},
};

/// The kernel behind the logic of this module, so that partial failures can be tested.
pub(super) trait PageCalls {
    /// `move_pages(2)`: 0 or the number of pages not moved, or an error number. With `nodes` of
    /// `None` it asks where the pages lie.
    fn call(
        &mut self,
        pid: u32,
        addresses: &[Hva],
        nodes: Option<&[i32]>,
        status: &mut [i32],
        all: bool,
    ) -> Result<u64, i32>;

    /// Whether each address lies in a mapping of the process (the addresses rise).
    fn mapped(&mut self, pid: u32, addresses: &[Hva]) -> Vec<bool>;

    /// Whether the node's free memory is not above its low watermark, that on the lists of single CPUs
    /// included.
    fn is_below_watermark(&mut self, node: NodeId) -> bool;

    /// Base pages that are pinned now, on the whole host.
    fn pinned_pages(&mut self) -> u64;

    /// Lets time pass.
    fn pause(&mut self, time: Duration);
}

/// The running kernel.
pub(super) struct Kernel;

impl PageCalls for Kernel {
    fn call(
        &mut self,
        pid: u32,
        addresses: &[Hva],
        nodes: Option<&[i32]>,
        status: &mut [i32],
        all: bool,
    ) -> Result<u64, i32> {
        // linux/mempolicy.h: MPOL_MF_MOVE is 1 << 1, MPOL_MF_MOVE_ALL 1 << 2.
        let flags = match (nodes, all) {
            (None, _) => 0,
            (Some(_), false) => 1 << 1,
            (Some(_), true) => 1 << 2,
        };
        sys_move_pages(pid, addresses, nodes, status, flags)
    }

    fn mapped(&mut self, pid: u32, addresses: &[Hva]) -> Vec<bool> {
        let hit = |mapping: &maps::Mapping| {
            let next = addresses.partition_point(|&address| address < mapping.start);
            addresses
                .get(next)
                .is_some_and(|&address| mapping.contains(address))
        };
        match maps::read(&SysRoot::at(Path::new("/")), pid, hit) {
            Ok(found) => addresses
                .iter()
                .map(|&address| found.iter().any(|mapping| mapping.contains(address)))
                .collect(),
            Err(_) => vec![false; addresses.len()],
        }
    }

    fn is_below_watermark(&mut self, node: NodeId) -> bool {
        let marks = zoneinfo::read(&SysRoot::at(Path::new("/"))).unwrap_or_default();
        let is_below = |marks: &NodeMarks| marks.free.saturating_add(marks.cached) <= marks.low;
        marks.get(&node).is_some_and(is_below)
    }

    fn pinned_pages(&mut self) -> u64 {
        VmStat::read(&SysRoot::at(Path::new("/"))).map_or(0, |stat| stat.pinned_pages())
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

fn sys_move_pages(
    pid: u32,
    addresses: &[Hva],
    nodes: Option<&[i32]>,
    status: &mut [i32],
    flags: libc::c_int,
) -> Result<u64, i32> {
    assert_eq!(addresses.len(), status.len());
    assert!(nodes.is_none_or(|nodes| nodes.len() == addresses.len()));
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|&pid| pid > 0)
        .ok_or(libc::ESRCH)?;
    let pointers: Vec<*const libc::c_void> = addresses
        .iter()
        .map(|address| std::ptr::without_provenance(address.0 as usize))
        .collect();
    let nodes = nodes.map_or(std::ptr::null(), <[i32]>::as_ptr);
    // SAFETY: move_pages(2) reads `count` pointers and, unless null, `count` ints, and writes `count`
    // ints: all three arrays have that length (asserted) and outlive the call. The addresses are
    // those of another process (or of this one) and are only looked up, never dereferenced; moving a
    // page changes where it lies physically but neither its contents nor its address.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            pointers.len(),
            pointers.as_ptr(),
            nodes,
            status.as_mut_ptr(),
            flags,
        )
    };
    // -1 is the only negative result.
    u64::try_from(result).map_err(|_| {
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    })
}
