//! The one kernel call of the lab that no safe crate offers: where pages lie, and moving them.

use std::io;

/// Asks the kernel on which node each page of process `pid` lies, without moving any.
///
/// The answer has one value a page: a node, or a negative errno (`-ENOENT` for a page that
/// is not there).
///
/// # Errors
/// What `move_pages(2)` gives for the whole call, for instance `ESRCH` when the process is gone.
pub fn pages_on_nodes(pid: u32, pages: &[usize]) -> io::Result<Vec<i32>> {
    let mut status = vec![-libc::ENOENT; pages.len()];
    if !pages.is_empty() {
        move_pages(pid, pages, None, &mut status)?;
    }
    Ok(status)
}

/// Moves pages of process `pid` to a node, in one call and no more: what the kernel could not move is
/// left where it is.
///
/// # Errors
/// What `move_pages(2)` gives for the whole call.
pub fn pages_to_node(pid: u32, pages: &[usize], node: u32) -> io::Result<()> {
    let node = i32::try_from(node).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut status = vec![0; pages.len()];
    move_pages(pid, pages, Some(&vec![node; pages.len()]), &mut status)
}

fn move_pages(
    pid: u32,
    pages: &[usize],
    nodes: Option<&[libc::c_int]>,
    status: &mut [libc::c_int],
) -> io::Result<()> {
    // linux/mempolicy.h: moves pages that no other process maps.
    const MPOL_MF_MOVE: libc::c_int = 1 << 1;
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    assert_eq!(pages.len(), status.len());
    assert!(nodes.is_none_or(|nodes| nodes.len() == pages.len()));
    let flags = nodes.map_or(0, |_| MPOL_MF_MOVE);
    // SAFETY: `pages` is an array of `pages.len()` addresses that the kernel reads and never
    // dereferences in this process (they are addresses of process `pid`); `nodes` is null, which
    // selects query mode, or has as many C ints (asserted); `status` is a live, writable array of as
    // many C ints (asserted); all outlive the call. A page that moves keeps its address and content.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            pages.len(),
            pages.as_ptr(),
            nodes.map_or(std::ptr::null(), <[libc::c_int]>::as_ptr),
            status.as_mut_ptr(),
            flags,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_on_nodes_when_a_page_is_touched_names_a_node() {
        let mut page = vec![1_u8; 8192];
        page[4096] = 7;
        let address = std::hint::black_box(&page)[4096..].as_ptr() as usize & !0xfff;

        let nodes = pages_on_nodes(std::process::id(), &[address]);

        // A container may forbid move_pages altogether; then there is nothing to test here.
        match nodes {
            Ok(nodes) => assert!(nodes[0] >= 0, "status {}", nodes[0]),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
        }
    }
}
