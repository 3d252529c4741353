//! NUMA policies of shared memory: what places the next page of a range of a memfd or a file on tmpfs.
//!
//! Such a file has a policy for each of its ranges, kept with the file (`mm/mempolicy.c`,
//! `mpol_set_shared_policy`). Whoever maps the file can set it, and it holds for all who map it. So an
//! agent maps the file of another process for a moment, without the right to read or write, and sets
//! policies there. Hugetlbfs keeps no such policy, and private memory has only that of its owner's
//! mapping.

mod kernel;

use std::{
    fmt, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs, major, minor, open};
use serde::{Deserialize, Serialize};
use tier_core::addr::{NodeId, NodeSet};

use self::kernel::{NodeMask, Window};
use crate::{maps::Mapping, sysroot::SysRoot};

/// `linux/magic.h`: tmpfs, and what the kernel has memfds on.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// `linux/magic.h`: hugetlbfs.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// `linux/mempolicy.h`: as if nothing had been set.
const MPOL_DEFAULT: u32 = 0;
/// `linux/mempolicy.h`: the node of the CPU that touches the page.
const MPOL_LOCAL: u32 = 4;
/// `linux/mempolicy.h`, since Linux 5.15: the nodes first, all others when these have nothing free.
const MPOL_PREFERRED_MANY: u32 = 5;
/// `linux/mempolicy.h`: the names of the modes, as in `numa_maps`.
const MODES: [&str; 7] = [
    "default",
    "prefer",
    "bind",
    "interleave",
    "local",
    "prefer (many)",
    "weighted interleave",
];
/// The bits of a mode that are flags (`MPOL_MODE_FLAGS`).
const MODE_FLAGS: u32 = 0b111 << 13;

/// Why a policy can't be read or set.
#[derive(Debug, thiserror::Error)]
pub enum MempolicyError {
    /// The file behind the mapping can't be opened.
    #[error(
        "the file {path} of another process can't be opened: run as root, or with CAP_CHECKPOINT_RESTORE \
         or CAP_SYS_ADMIN"
    )]
    Open {
        /// The link to the file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another file is mapped there by now.
    #[error("another file than before is mapped at {path}")]
    OtherFile {
        /// The link to the file.
        path: PathBuf,
    },
    /// Hugetlbfs.
    #[error("hugetlbfs has no shared policy")]
    Hugetlbfs,
    /// Neither a memfd nor a file on tmpfs.
    #[error("{path} is neither a memfd nor a file on tmpfs")]
    NotShmem {
        /// The link to the file.
        path: PathBuf,
    },
    /// The file can't be mapped.
    #[error("{bytes} bytes of shared memory from offset {offset:#x} can't be mapped")]
    Map {
        /// Where the range begins in the file.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The policy can't be read.
    #[error(
        "the policy of shared memory at offset {offset:#x} can't be read (does the kernel have CONFIG_NUMA?)"
    )]
    Get {
        /// Where in the file.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The policy can't be set.
    #[error("the policy {policy} can't be set for shared memory at offset {offset:#x}")]
    Set {
        /// The policy.
        policy: Policy,
        /// Where the range begins in the file.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A policy, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// The mode and its flags, a number of `linux/mempolicy.h`.
    mode: u32,
    /// The nodes.
    nodes: NodeSet,
}

impl Policy {
    /// Pages come from these nodes while they have free memory, and from others when they have none. An
    /// allocation never fails for it, and the nodes are not reclaimed for it.
    #[must_use]
    pub const fn preferring(nodes: NodeSet) -> Self {
        Self {
            mode: MPOL_PREFERRED_MANY,
            nodes,
        }
    }

    /// The nodes; none of a policy that names none.
    #[must_use]
    pub const fn nodes(&self) -> &NodeSet {
        &self.nodes
    }

    fn from_kernel((mode, mask): (u32, NodeMask)) -> Self {
        let has = |node: &u16| mask[usize::from(*node) / 64] >> (node % 64) & 1 == 1;
        let nodes = (0..(mask.len() * 64) as u16).filter(has).map(NodeId);
        Self {
            mode,
            nodes: nodes.collect(),
        }
    }

    /// The nodes as a mask. A node beyond the largest number of nodes is left out.
    fn mask(&self) -> NodeMask {
        let mut mask = NodeMask::default();
        for node in self.nodes.iter() {
            if let Some(word) = mask.get_mut(usize::from(node.0) / 64) {
                *word |= 1 << (node.0 % 64);
            }
        }
        mask
    }
}

impl fmt::Display for Policy {
    /// As in `numa_maps`: `bind:0`, `prefer (many):0-1`, `default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MODES.get((self.mode & !MODE_FLAGS) as usize) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "mode {}", self.mode & !MODE_FLAGS)?,
        }
        if self.mode & MODE_FLAGS != 0 {
            write!(f, "={:#x}", self.mode & MODE_FLAGS)?;
        }
        match self.nodes.is_empty() {
            true => Ok(()),
            false => write!(f, ":{}", self.nodes),
        }
    }
}

/// A range of a file with one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PolicyRun {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// The policy.
    pub policy: Policy,
}

/// A range of shared memory of another process, mapped without any right to its content.
#[derive(Debug)]
pub struct SharedRange {
    file: OwnedFd,
    window: Window,
    offset: u64,
    bytes: u64,
}

impl SharedRange {
    /// Maps `bytes` bytes from `offset` of the file that process `pid` has mapped by `mapping`. No page
    /// becomes present. The file stays in use until this is dropped: don't keep it.
    ///
    /// # Errors
    /// If the file is gone, is another one, or has no shared policies.
    pub fn map(
        root: &SysRoot,
        pid: u32,
        mapping: &Mapping,
        offset: u64,
        bytes: u64,
    ) -> Result<Self, MempolicyError> {
        let (start, end) = (mapping.start.0, mapping.end.0);
        let path = root.process(pid, format!("map_files/{start:x}-{end:x}"));
        let cant_open = |errno: rustix::io::Errno| MempolicyError::Open {
            path: path.clone(),
            source: errno.into(),
        };
        // The owner of the process chooses what is behind the link: look before it is opened.
        let found =
            open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(cant_open)?;
        let stat = fstat(&found).map_err(cant_open)?;
        let device = (major(stat.st_dev), minor(stat.st_dev));
        if (device, stat.st_ino) != (mapping.device, mapping.inode) {
            return Err(MempolicyError::OtherFile { path });
        }
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let file_system: i64 = fstatfs(&found).map_err(cant_open)?.f_type;
        match file_system {
            TMPFS_MAGIC if is_file => {}
            HUGETLBFS_MAGIC => return Err(MempolicyError::Hugetlbfs),
            _ => return Err(MempolicyError::NotShmem { path }),
        }
        let own = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(cant_open)?;
        let cant_map = |source: io::Error| MempolicyError::Map {
            offset,
            bytes,
            source,
        };
        let length =
            usize::try_from(bytes).map_err(|_| cant_map(io::ErrorKind::InvalidInput.into()))?;
        let window = Window::map(file.as_fd(), offset, length).map_err(cant_map)?;
        Ok(Self {
            file,
            window,
            offset,
            bytes,
        })
    }

    /// The policy that places the page at `offset` of the file.
    ///
    /// # Errors
    /// If the kernel has no policies.
    ///
    /// # Panics
    /// If the range does not hold the offset.
    pub fn policy(&self, offset: u64) -> Result<Policy, MempolicyError> {
        let found = self.window.policy(self.at(offset, 1));
        let found = found.map_err(|source| MempolicyError::Get { offset, source })?;
        Ok(Policy::from_kernel(found))
    }

    /// The policies of the range, looked up every `step` bytes: runs that cover it, in rising order. At
    /// most `most` runs; `None` if there are more.
    ///
    /// # Errors
    /// As [`Self::policy`].
    pub fn policies(
        &self,
        step: u64,
        most: usize,
    ) -> Result<Option<Vec<PolicyRun>>, MempolicyError> {
        let mut runs: Vec<PolicyRun> = Vec::new();
        let end = self.offset + self.bytes;
        let mut offset = self.offset;
        while offset < end {
            let bytes = step.min(end - offset);
            let policy = self.policy(offset)?;
            let is_full = runs.len() >= most;
            match runs.last_mut() {
                Some(last) if last.policy == policy => last.bytes += bytes,
                _ if is_full => return Ok(None),
                _ => runs.push(PolicyRun {
                    offset,
                    bytes,
                    policy,
                }),
            }
            offset += bytes;
        }
        Ok(Some(runs))
    }

    /// Sets the policy of `bytes` bytes from `offset` of the file. No page moves.
    ///
    /// # Errors
    /// If the kernel knows no such policy, or allows this process none of its nodes.
    ///
    /// # Panics
    /// If the range does not hold all of it.
    pub fn set(&self, offset: u64, bytes: u64, policy: &Policy) -> Result<(), MempolicyError> {
        let at = self.at(offset, bytes);
        let length = bytes as usize;
        let bound = match policy.mode {
            MPOL_DEFAULT => self.set_default(offset, length),
            mode => self.window.bind(at, length, mode, &policy.mask()),
        };
        bound.map_err(|source| MempolicyError::Set {
            policy: policy.clone(),
            offset,
            source,
        })
    }

    /// Sets the policy `default`. `mm/mempolicy.c`, `mbind_range` does nothing where *this* mapping has
    /// the policy already, and a new mapping has it; so `local` is set first, which places pages alike.
    /// It also joins a mapping with its neighbours of the same policy and then sets the policy of all of
    /// the file that is mapped there; so this mapping is of nothing but the range.
    fn set_default(&self, offset: u64, bytes: usize) -> io::Result<()> {
        let window = Window::map(self.file.as_fd(), offset, bytes)?;
        window.bind(0, bytes, MPOL_LOCAL, &NodeMask::default())?;
        window.bind(0, bytes, MPOL_DEFAULT, &NodeMask::default())
    }

    fn at(&self, offset: u64, bytes: u64) -> usize {
        let at = offset.checked_sub(self.offset);
        let at = at.filter(|at| at.checked_add(bytes).is_some_and(|end| end <= self.bytes));
        // Not longer than the mapping, whose length is a usize.
        at.expect("a part of the range") as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: u32, nodes: &str) -> Policy {
        let nodes = nodes.parse().unwrap();
        Policy { mode, nodes }
    }

    #[test]
    fn policy_when_shown_reads_as_in_numa_maps() {
        for (mode, nodes, text) in [
            (0, "", "default"),
            (2, "0-1", "bind:0-1"),
            (5, "0", "prefer (many):0"),
            (4, "", "local"),
            // MPOL_F_STATIC_NODES.
            (2 | 1 << 15, "1", "bind=0x8000:1"),
            (99, "", "mode 99"),
        ] {
            assert_eq!(policy(mode, nodes).to_string(), text);
        }
    }

    #[test]
    fn policy_when_it_goes_to_the_kernel_and_back_is_the_same() {
        for nodes in ["", "0", "63-64,1023"] {
            let policy = policy(5, nodes);
            assert_eq!(Policy::from_kernel((5, policy.mask())), policy);
        }
    }
}
