//! Policies of shared memory, set from outside of the process that has it, on the running kernel.

use std::{fs::File, io::Write as _, os::fd::AsFd as _};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use tier_core::addr::Hva;
use tier_sys::{
    maps::{self, Mapping},
    mempolicy::{MempolicyError, Policy, PolicyRun, SharedRange},
    numa_maps,
    sysroot::SysRoot,
};

const MIB: u64 = 1 << 20;
const BYTES: u64 = 8 * MIB;
/// The number of the mode `bind`.
const BIND: u32 = 2;

/// Memory that this process shares, as QEMU has its guest's.
struct Shared {
    file: File,
    address: Hva,
}

impl Shared {
    fn new(name: &str) -> Self {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&file, BYTES).unwrap();
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null address lets the kernel choose the place, so no other mapping is replaced; no
        // reference into the mapping is made.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                BYTES as usize,
                rights,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        };
        let address = Hva(address.unwrap() as u64);
        Self { file, address }
    }

    fn mapping(&self) -> Mapping {
        let own = maps::read(&SysRoot::real(), std::process::id(), |mapping| {
            mapping.contains(self.address)
        });
        own.unwrap().remove(0)
    }

    fn range(&self) -> Result<SharedRange, MempolicyError> {
        let root = SysRoot::real();
        SharedRange::map(&root, std::process::id(), &self.mapping(), 0, BYTES)
    }

    /// The policy at the start, as the kernel shows it of this process.
    fn shown(&self) -> String {
        let root = SysRoot::real();
        let found = numa_maps::read(&root, std::process::id(), |start| start == self.address);
        found.unwrap().remove(0).policy
    }

    fn resident_bytes(&self) -> u64 {
        let root = SysRoot::real();
        let found = numa_maps::read(&root, std::process::id(), |start| start == self.address);
        found.unwrap().remove(0).bytes.values().sum()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let address = std::ptr::without_provenance_mut(self.address.0 as usize);
        // SAFETY: address and length are those of our own mapping, into which no reference was made.
        unsafe { munmap(address, BYTES as usize) }.unwrap();
    }
}

fn policy(mode: u32, nodes: &str) -> Policy {
    let nodes: tier_core::addr::NodeSet = nodes.parse().unwrap();
    let nodes = serde_json::to_value(nodes).unwrap();
    serde_json::from_value(serde_json::json!({"mode": mode, "nodes": nodes})).unwrap()
}

/// Shared memory, if the kernel has policies and this process may look behind its mappings.
fn shared(name: &str) -> Option<(Shared, SharedRange)> {
    let shared = Shared::new(name);
    let skip = |why: String| eprintln!("SKIPPED: {why}");
    match shared.range() {
        Ok(range) => match range.policy(0) {
            Ok(_) => return Some((shared, range)),
            Err(error) => skip(error.to_string()),
        },
        Err(error @ MempolicyError::Open { .. }) => skip(error.to_string()),
        Err(error) => panic!("{error}"),
    }
    None
}

#[test]
fn policy_when_set_from_outside_holds_for_the_owner_of_the_memory() {
    let Some((memory, range)) = shared("policy-set") else {
        return;
    };
    let (default, near) = (policy(0, ""), Policy::preferring("0".parse().unwrap()));
    assert_eq!(range.policy(0).unwrap(), default);

    range.set(0, 4 * MIB, &near).unwrap();
    range.set(6 * MIB, 2 * MIB, &policy(BIND, "0")).unwrap();

    assert_eq!(memory.shown(), "prefer (many):0");
    let run = |offset, bytes, policy: &Policy| PolicyRun {
        offset,
        bytes,
        policy: policy.clone(),
    };
    let runs = range.policies(2 * MIB, 8).unwrap().unwrap();
    assert_eq!(
        runs,
        [
            run(0, 4 * MIB, &near),
            run(4 * MIB, 2 * MIB, &default),
            run(6 * MIB, 2 * MIB, &policy(BIND, "0")),
        ]
    );
    assert_eq!(range.policies(2 * MIB, 2).unwrap(), None);
    drop(range);
    assert_eq!(memory.shown(), "prefer (many):0", "the file keeps it");

    let range = memory.range().unwrap();
    range.set(0, 2 * MIB, &default).unwrap();
    assert_eq!(memory.shown(), "default");
    let runs = range.policies(2 * MIB, 8).unwrap().unwrap();
    assert_eq!(
        runs,
        [
            run(0, 2 * MIB, &default),
            run(2 * MIB, 2 * MIB, &near),
            run(4 * MIB, 2 * MIB, &default),
            run(6 * MIB, 2 * MIB, &policy(BIND, "0")),
        ],
        "nothing but what was asked for"
    );
}

#[test]
fn memory_when_its_policy_is_set_is_neither_made_present_nor_changed() {
    let Some((mut memory, range)) = shared("policy-no-touch") else {
        return;
    };
    memory.file.write_all(&[7; 64 << 10]).unwrap();
    let stat = || rustix::fs::fstat(&memory.file).unwrap().st_blocks;
    let before = stat();

    range
        .set(0, BYTES, &Policy::preferring("0".parse().unwrap()))
        .unwrap();
    let all = range.policies(4096, 8).unwrap().unwrap();

    assert_eq!(all.len(), 1);
    assert_eq!(stat(), before);
    assert_eq!(
        memory.resident_bytes(),
        0,
        "nobody touched it by the mapping"
    );

    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&memory.file, flags, 0, 64 << 10).unwrap();
    assert_eq!(stat(), 0);
    assert_eq!(range.policy(0).unwrap(), all[0].policy, "a hole keeps it");
}

#[test]
fn policy_of_nodes_that_are_not_there_when_set_is_refused() {
    let Some((_memory, range)) = shared("policy-refused") else {
        return;
    };
    let error = range
        .set(0, BYTES, &Policy::preferring("1023".parse().unwrap()))
        .unwrap_err();
    assert!(matches!(error, MempolicyError::Set { .. }), "{error}");
    assert_eq!(range.policy(0).unwrap(), policy(0, ""));
}

#[test]
fn mapping_when_it_is_of_another_file_is_not_opened() {
    let Some((memory, _range)) = shared("policy-other-file") else {
        return;
    };
    let root = SysRoot::real();
    let own = std::process::id();
    let other = Mapping {
        inode: memory.mapping().inode + 1,
        ..memory.mapping()
    };
    let error = SharedRange::map(&root, own, &other, 0, BYTES).unwrap_err();
    assert!(matches!(error, MempolicyError::OtherFile { .. }), "{error}");
}

#[test]
fn mapping_when_it_is_of_a_file_on_disk_is_refused() {
    let root = SysRoot::real();
    let own = std::process::id();
    let is_program = |mapping: &Mapping| mapping.name.starts_with('/');
    let program = maps::read(&root, own, is_program).unwrap().remove(0);
    match SharedRange::map(&root, own, &program, 0, 4096) {
        Err(MempolicyError::NotShmem { .. }) => {}
        Err(error @ MempolicyError::Open { .. }) => eprintln!("SKIPPED: {error}"),
        Err(error) => panic!("{error}"),
        Ok(_) => eprintln!("SKIPPED: this program lies on a tmpfs"),
    }
}
