//! QEMU processes, by what the kernel says of them.

use std::collections::BTreeSet;

use tier_core::addr::{Hva, NodeSet};
use tier_sys::{
    maps, numa_maps, process,
    sysroot::{SysRoot, SysRootError, numbered_entries},
};

use super::pools::{Holdings, PoolId};

/// Memory of a QEMU without an agent counts as its guest's from this size of a mapping on: QEMU's own
/// heap, stacks and libraries have smaller ones.
const GUEST_MAPPING_BYTES: u64 = 16 << 20;
/// The most descriptors of a process that are looked at.
const MOST_FDS: usize = 4096;

/// A process that is a QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Qemu {
    pub(super) pid: u32,
    /// When it began, in clock ticks since the boot; with the pid this names it for good.
    pub(super) start: u64,
    /// The user that it runs as.
    pub(super) uid: u32,
    /// The guest's name on its command line.
    pub(super) name: Option<String>,
    /// The guest's UUID on its command line.
    pub(super) uuid: Option<String>,
}

/// Why a process is not the QEMU that an agent says it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProofError {
    #[error(
        "process {pid} can't be looked at: is it there, and in this pid namespace? The daemon and the \
         agents must run where pids mean the same"
    )]
    Gone { pid: u32, source: SysRootError },
    #[error("process {pid} began at tick {start}, not at tick {told}: it is another process")]
    Another { pid: u32, start: u64, told: u64 },
    #[error(
        "process {pid} ({comm}) is no QEMU: neither its name says so nor does it hold a KVM VM"
    )]
    NoQemu { pid: u32, comm: String },
}

impl Qemu {
    /// The process of this pid that began at `told`, if it is a QEMU.
    pub(super) fn prove(root: &SysRoot, pid: u32, told: u64) -> Result<Self, ProofError> {
        let gone = |source| ProofError::Gone { pid, source };
        let stat = process::stat(root, pid).map_err(gone)?;
        if stat.start_ticks != told {
            return Err(ProofError::Another {
                pid,
                start: stat.start_ticks,
                told,
            });
        }
        if stat.state == 'Z' || !(is_named_qemu(root, pid, &stat.comm) || holds_vm(root, pid)) {
            let comm = stat.comm;
            return Err(ProofError::NoQemu { pid, comm });
        }
        Self::of(root, pid, stat.start_ticks).map_err(gone)
    }

    fn of(root: &SysRoot, pid: u32, start: u64) -> Result<Self, SysRootError> {
        let arguments = process::command_line(root, pid).unwrap_or_default();
        let after = |option: &str| {
            let at = (arguments.iter())
                .position(|word| word.strip_prefix('-').is_some_and(|word| word == option))?;
            arguments.get(at + 1).cloned()
        };
        Ok(Self {
            pid,
            start,
            uid: process::user_of(root, pid)?,
            name: after("name").and_then(|words| guest_name(&words)),
            uuid: after("uuid").filter(|uuid| uuid.len() <= 36 && is_plain(uuid)),
        })
    }

    /// All QEMUs that run, as far as their names tell. A process that ends meanwhile is left out.
    pub(super) fn all(root: &SysRoot) -> Result<Vec<Self>, SysRootError> {
        let mut found = Vec::new();
        for (pid, _) in numbered_entries(&root.proc(""), "")? {
            let Ok(stat) = process::stat(root, pid) else {
                continue;
            };
            if stat.state != 'Z' && is_named_qemu(root, pid, &stat.comm) {
                found.extend(Self::of(root, pid, stat.start_ticks));
            }
        }
        Ok(found)
    }
}

/// The guest's name in the words behind `-name`: `guest=NAME,…` or `NAME,…`.
fn guest_name(words: &str) -> Option<String> {
    let mut words = words.split(',');
    let first = words.next()?;
    let name = match first.split_once('=') {
        None => Some(first),
        Some(("guest", name)) => Some(name),
        Some(_) => words.find_map(|word| word.strip_prefix("guest=")),
    };
    name.filter(|name| is_name(name)).map(str::to_owned)
}

/// Whether a VM may be called so.
pub(super) fn is_name(name: &str) -> bool {
    (1..=256).contains(&name.len()) && is_plain(name)
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// Whether the process or its program is called as QEMU's system emulators are. A process may give
/// itself another name; its program keeps its own.
fn is_named_qemu(root: &SysRoot, pid: u32, comm: &str) -> bool {
    let is_one =
        |name: &str| name.starts_with("qemu-system") || matches!(name, "qemu-kvm" | "qemu" | "kvm");
    let program = || std::fs::read_link(root.process(pid, "exe"));
    is_one(comm)
        || program().is_ok_and(|program| {
            let name = program.file_name().and_then(|name| name.to_str());
            name.is_some_and(is_one)
        })
}

/// Whether the process holds a virtual machine of KVM.
fn holds_vm(root: &SysRoot, pid: u32) -> bool {
    let fds = std::fs::read_dir(root.process(pid, "fd"));
    let mut fds = fds.into_iter().flatten().flatten().take(MOST_FDS);
    fds.any(|fd| {
        // The name that KVM gives the file (virt/kvm/kvm_main.c, kvm_dev_ioctl_create_vm).
        std::fs::read_link(fd.path()).is_ok_and(|file| file.as_os_str() == "anon_inode:kvm-vm")
    })
}

/// The guest's memory of a QEMU on some nodes, by pool, by what the kernel says. `ram` is where it lies:
/// first address and bytes, rising; without it, all large mappings count. The kernel walks the page
/// tables for it.
pub(super) fn holdings(
    root: &SysRoot,
    pid: u32,
    nodes: &NodeSet,
    ram: Option<&[(u64, u64)]>,
) -> Result<Holdings, SysRootError> {
    // A mapping may begin before the RAM that lies in it.
    let guests = maps::read(root, pid, |mapping| {
        let (start, end) = (mapping.start.0, mapping.end.0);
        match ram {
            Some(ram) => ram
                .iter()
                .any(|&(first, bytes)| start < first.saturating_add(bytes) && first < end),
            // What can be executed is QEMU's own: a library, or translated code.
            None => end - start >= GUEST_MAPPING_BYTES && !mapping.permissions.contains('x'),
        }
    })?;
    let starts: BTreeSet<Hva> = guests.iter().map(|mapping| mapping.start).collect();
    let mappings = numa_maps::read(root, pid, |start| starts.contains(&start))?;
    let mut holdings = Holdings::new();
    for mapping in mappings {
        let pool = PoolId::of(mapping.huge.then_some(mapping.page_size));
        let on_nodes = mapping.bytes.iter();
        let on_nodes = on_nodes.filter(|(node, _)| nodes.contains(**node));
        let bytes = on_nodes.fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        if bytes > 0 {
            let held = holdings.entry(pool).or_default();
            *held = held.saturating_add(bytes);
        }
    }
    Ok(holdings)
}

#[cfg(test)]
pub(super) mod fake {
    //! A folder that looks like `/proc` with QEMUs in it.

    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    pub(in crate::host) struct FakeProc {
        folder: TempDir,
        pub(in crate::host) root: SysRoot,
    }

    impl FakeProc {
        pub(in crate::host) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(folder.path().join("proc")).unwrap();
            let root = SysRoot::at(folder.path());
            Self { folder, root }
        }

        /// A process whose virtual CPUs ran for so many clock ticks.
        pub(in crate::host) fn process(&self, pid: u32, comm: &str, start: u64, guest_ticks: u64) {
            let folder = self.folder.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&folder).unwrap();
            let before = "S 1 1 1 0 -1 0 9 0 0 0 500 0 0 0 20 0 1 0";
            let zeros = "0 ".repeat(20);
            let stat = format!("{pid} ({comm}) {before} {start} {zeros}{guest_ticks} 0\n");
            std::fs::write(folder.join("stat"), stat).unwrap();
            std::fs::write(folder.join("status"), "Name:\tx\nUid:\t0\t64055\t0\t0\n").unwrap();
            let line =
                format!("/usr/bin/{comm}\0-name\0guest=vm{pid},debug-threads=on\0-uuid\0u-{pid}\0");
            std::fs::write(folder.join("cmdline"), line).unwrap();
        }

        /// What `maps` and `numa_maps` say: mappings of 64 MiB each, with so many pages of 4 KiB on node 0.
        pub(in crate::host) fn memory(&self, pid: u32, mappings: &[(u64, u64)]) {
            let plain = "kernelpagesize_kB=4";
            let mappings = mappings.iter().map(|&(start, pages)| (start, pages, plain));
            self.memory_of(pid, &mappings.collect::<Vec<_>>());
        }

        /// As [`memory`](Self::memory), with what `numa_maps` says of the pages.
        pub(in crate::host) fn memory_of(&self, pid: u32, mappings: &[(u64, u64, &str)]) {
            let folder = self.folder.path().join(format!("proc/{pid}"));
            let (mut maps, mut nodes) = (String::new(), String::new());
            for (start, pages, kind) in mappings {
                let end = start + (64 << 20);
                maps += &format!("{start:x}-{end:x} rw-p 00000000 00:00 0 \n");
                nodes += &format!("{start:x} default anon=9 N0={pages} N1=7 {kind}\n");
            }
            std::fs::write(folder.join("maps"), maps).unwrap();
            std::fs::write(folder.join("numa_maps"), nodes).unwrap();
        }

        pub(in crate::host) fn link(&self, pid: u32, name: &str, to: &str) {
            let path = self.folder.path().join(format!("proc/{pid}/{name}"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
        }

        pub(in crate::host) fn end(&self, pid: u32) {
            std::fs::remove_dir_all(self.folder.path().join(format!("proc/{pid}"))).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use tier_core::addr::NodeId;

    use super::{fake::FakeProc, *};
    use crate::host::pools;

    #[test]
    fn process_when_it_is_a_qemu_is_proven_with_what_its_command_line_says() {
        let proc = FakeProc::new();
        proc.process(7, "qemu-system-x86", 100, 0);
        let expected = Qemu {
            pid: 7,
            start: 100,
            uid: 64055,
            name: Some("vm7".to_owned()),
            uuid: Some("u-7".to_owned()),
        };
        assert_eq!(Qemu::prove(&proc.root, 7, 100).unwrap(), expected);
        assert_eq!(Qemu::all(&proc.root).unwrap(), [expected]);
    }

    #[test]
    fn process_when_only_its_program_or_its_vm_says_so_is_a_qemu() {
        let proc = FakeProc::new();
        proc.process(7, "vm7", 100, 0);
        proc.link(7, "exe", "/usr/libexec/qemu-kvm");
        proc.process(8, "vm8", 100, 0);
        proc.link(8, "fd/11", "anon_inode:kvm-vm");
        assert!(Qemu::prove(&proc.root, 7, 100).is_ok());
        assert!(Qemu::prove(&proc.root, 8, 100).is_ok());
    }

    #[test]
    fn process_when_it_is_not_what_was_told_is_refused_by_name() {
        let proc = FakeProc::new();
        proc.process(7, "qemu-system-x86", 100, 0);
        proc.process(8, "qemu-img", 100, 0);
        proc.link(8, "fd/11", "anon_inode:kvm-vcpu:0");
        let refused = |pid, start| Qemu::prove(&proc.root, pid, start).unwrap_err().to_string();
        assert!(refused(7, 101).contains("began at tick 100, not at tick 101"));
        assert!(refused(8, 100).contains("process 8 (qemu-img) is no QEMU"));
        assert!(refused(9, 100).contains("process 9 can't be looked at"));
    }

    #[test]
    fn name_when_written_in_qemus_ways_is_found() {
        for (words, name) in [
            ("vm1", Some("vm1")),
            ("guest=vm1,debug-threads=on", Some("vm1")),
            ("debug-threads=on,guest=vm1", Some("vm1")),
            ("process=x", None),
            ("a\u{7}b", None),
            ("", None),
        ] {
            assert_eq!(guest_name(words).as_deref(), name, "{words}");
        }
    }

    #[test]
    fn memory_when_counted_is_that_of_the_guest_on_these_nodes() {
        let proc = FakeProc::new();
        proc.process(7, "qemu-system-x86", 100, 0);
        proc.memory(7, &[(0x1_0000_0000, 10), (0x2_0000_0000, 20)]);
        let nodes: NodeSet = [NodeId(0)].into_iter().collect();
        let held = |ram: Option<&[(u64, u64)]>| {
            let holdings = holdings(&proc.root, 7, &nodes, ram).unwrap();
            pools::all(&holdings)
        };
        assert_eq!(held(None), 30 << 12);
        assert_eq!(held(Some(&[(0x2_0000_0000, 4096)])), 20 << 12);
        // RAM that begins a page after its mapping does.
        assert_eq!(held(Some(&[(0x1_0000_1000, 1 << 30)])), 10 << 12);
        assert_eq!(held(Some(&[])), 0);
    }

    #[test]
    fn memory_when_it_is_in_pages_of_several_sizes_is_told_by_pool() {
        let proc = FakeProc::new();
        proc.process(7, "qemu-system-x86", 100, 0);
        let mappings = [
            (0x1_0000_0000, 10, "kernelpagesize_kB=4"),
            (0x2_0000_0000, 20, "huge kernelpagesize_kB=2048"),
            (0x3_0000_0000, 1, "huge kernelpagesize_kB=1048576"),
            (0x4_0000_0000, 5, "huge kernelpagesize_kB=2048"),
        ];
        proc.memory_of(7, &mappings);
        let nodes = [NodeId(0)].into_iter().collect();
        let expected = [
            (PoolId::Plain, 10 << 12),
            (PoolId::Hugetlb(2 << 20), 25 * (2 << 20)),
            (PoolId::Hugetlb(1 << 30), 1 << 30),
        ];
        let found = holdings(&proc.root, 7, &nodes, None).unwrap();
        assert_eq!(found, Holdings::from(expected));
    }
}
