//! The calls behind NUMA policies: `mbind(2)` and `get_mempolicy(2)` on a mapping that nobody can touch.

use std::{io, os::fd::BorrowedFd, ptr::NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The most nodes of an `x86_64` kernel (`CONFIG_NODES_SHIFT` = 10).
const MAX_NODES: usize = 1024;
/// `linux/mempolicy.h`: ask for the policy of an address.
const MPOL_F_ADDR: libc::c_ulong = 1 << 1;

/// A set of nodes as the kernel takes it: a bit a node.
pub(super) type NodeMask = [u64; MAX_NODES / 64];

/// A mapping of a file without any right: its pages can be neither read nor written through it, and
/// none is made present by it.
#[derive(Debug)]
pub(super) struct Window {
    base: NonNull<libc::c_void>,
    bytes: usize,
}

impl Window {
    /// Maps `bytes` bytes of the file from `offset`, both multiples of the page size.
    pub(super) fn map(file: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::empty(), MapFlags::SHARED);
        // SAFETY: a null address lets the kernel choose the place, so no other mapping is replaced; the
        // kernel refuses a length of zero; the mapping has no rights, so nothing is aliased; rustix
        // checks the result.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, protection, flags, file, offset) }?;
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, bytes })
    }

    /// The address `at` bytes into the window, and as many of `bytes` bytes as lie in it.
    fn part(&self, at: usize, bytes: usize) -> (*mut libc::c_void, usize) {
        assert!(at <= self.bytes && bytes <= self.bytes - at);
        (self.base.as_ptr().wrapping_byte_add(at), bytes)
    }

    /// `mbind(2)` without any of its flags: no page moves.
    pub(super) fn bind(
        &self,
        at: usize,
        bytes: usize,
        mode: u32,
        nodes: &NodeMask,
    ) -> io::Result<()> {
        let (address, bytes) = self.part(at, bytes);
        // The kernel takes one bit less than it is told (mm/mempolicy.c, get_nodes).
        let max_node = (MAX_NODES + 1) as libc::c_ulong;
        // SAFETY: mbind(2) reads 1024 bits of `nodes`, which has as many and outlives the call. The
        // range lies within our own mapping (asserted); its pages stay as they are, since no flag asks
        // for a move, and nothing refers to them, since the mapping has no rights.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                address,
                bytes,
                libc::c_ulong::from(mode),
                nodes.as_ptr(),
                max_node,
                0 as libc::c_uint,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// `get_mempolicy(2)`: mode and nodes of the policy that places the page `at` bytes into the
    /// window.
    pub(super) fn policy(&self, at: usize) -> io::Result<(u32, NodeMask)> {
        let (address, _) = self.part(at, 1);
        let mut mode: libc::c_int = 0;
        let mut nodes: NodeMask = [0; MAX_NODES / 64];
        // SAFETY: get_mempolicy(2) writes one int and 1024 bits: `mode` and `nodes` are that large and
        // outlive the call. The address lies within our own mapping (asserted) and is only looked up.
        let result = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut mode,
                nodes.as_mut_ptr(),
                MAX_NODES as libc::c_ulong,
                address,
                MPOL_F_ADDR,
            )
        };
        match result {
            0 => Ok((mode.cast_unsigned(), nodes)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: base and length are those of our own mapping; no reference into it was ever made, and
        // it is not used afterwards.
        let unmapped = unsafe { munmap(self.base.as_ptr(), self.bytes) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
