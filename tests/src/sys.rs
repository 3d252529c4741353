//! The one kernel call of the lab that no safe crate offers: where pages of another process lie.

use std::io;

/// Asks the kernel on which node each page of process `pid` lies, without moving any.
///
/// The answer has one value a page: a node, or a negative errno (`-ENOENT` for a page that
/// is not there).
///
/// # Errors
/// What `move_pages(2)` gives for the whole call, for instance `ESRCH` when the process is gone.
pub fn pages_on_nodes(pid: u32, pages: &[usize]) -> io::Result<Vec<i32>> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut status = vec![-libc::ENOENT; pages.len()];
    if pages.is_empty() {
        return Ok(status);
    }
    // SAFETY: `pages` is an array of `pages.len()` addresses that the kernel reads and never
    // dereferences in this process (they are addresses of process `pid`); a null `nodes`
    // selects query mode, in which nothing moves; `status` is a live, writable array of as
    // many C ints; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            pages.len(),
            pages.as_ptr(),
            std::ptr::null::<libc::c_int>(),
            status.as_mut_ptr(),
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
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
