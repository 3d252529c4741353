//! What moving pages costs a guest beside the copying: waits of QEMU's threads for the lock of its
//! address space, TLB flushes that interrupt them, and KVM's flushes of the guest's TLBs.
//!
//! The first two are counted by tracepoints (`mmap_lock:*`, include/trace/events/mmap_lock.h, and
//! `tlb:tlb_flush`, include/trace/events/tlb.h) on QEMU's threads only, so other processes pay nothing.
//! KVM counts in debugfs, for each VM.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use serde::Serialize;
use tier_sys::{
    perf::{
        event::EventSpec,
        record::Sample,
        threads::ThreadEvents,
        tracepoint::{Field, Tracepoint, TracepointError},
    },
    process,
    sysroot::{SysRoot, numbered_entries, read_value_optional},
};

use crate::log::with_causes;

/// Threads of QEMU that are watched at most; each has three rings.
const MOST_THREADS: usize = 256;
/// Pages of a ring: some hundred records.
const RING_PAGES: usize = 8;
/// How long rings wait to be read, at most.
const READ: Duration = Duration::from_millis(100);
/// Waits for the lock that are under way at most.
const MOST_OPEN: usize = 4 * MOST_THREADS;
/// A lock that was had sooner was free: taking it costs less, and the tracepoints themselves some.
const FREE_NS: u64 = 10_000;
/// Folders of virtual machines that are looked through at most.
const MOST_VMS: usize = 4096;

/// Why a CPU flushed its TLB, by number (`enum tlb_flush_reason`, include/linux/mm_types.h).
const REASONS: [&str; 5] = [
    "task-switch",
    "remote-shootdown",
    "local-shootdown",
    "local-mm-shootdown",
    "remote-send-ipi",
];

/// What is said of the contention in `explain --host`. The JSON is a contract: names and units stay.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Contention {
    /// QEMU's process.
    pid: u32,
    /// Threads of it that were watched.
    threads: usize,
    /// Their waits for the lock of an address space; absent where the kernel does not tell.
    mmap_lock: Option<LockWaits>,
    /// TLB flushes while one of them ran, by reason; absent where the kernel does not tell.
    tlb_flushes: Option<BTreeMap<String, u64>>,
    /// KVM's flushes of the guest's TLBs on all its CPUs; absent where the kernel does not tell.
    kvm: Option<KvmFlushes>,
    /// Records for which there was no room: the figures are that much too small.
    lost_records: u64,
    /// What could not be read, and why.
    #[serde(skip)]
    pub(super) unread: Vec<String>,
}

/// Waits for the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct LockWaits {
    /// Times that the lock was taken.
    acquisitions: u64,
    /// Of them those that took 10 µs or more: somebody had it.
    waits: u64,
    /// How long all of those took together.
    waited_ms: f64,
    /// How long the longest took.
    longest_ms: f64,
}

/// Counters of a VM (`struct kvm_vm_stat_generic`, include/linux/kvm_host.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct KvmFlushes {
    /// Times that the guest's TLBs were flushed on all its CPUs.
    remote_tlb_flush: u64,
    /// Times that it was asked for; one flush answers requests that come together.
    remote_tlb_flush_requests: u64,
}

/// Watches QEMU's process for so long.
pub(super) fn look(root: &SysRoot, pid: u32, time: Duration) -> Contention {
    let ends = Instant::now() + time;
    let mut found = Contention {
        pid,
        ..Contention::default()
    };
    let before = kvm_flushes(root, pid);
    match Watch::begin(root, pid, &mut found.unread) {
        Some(mut watch) => {
            found.threads = watch.threads.watched();
            watch.until(ends);
            watch.end(&mut found);
        }
        None => std::thread::sleep(time),
    }
    let after = kvm_flushes(root, pid);
    found.kvm = before.zip(after).map(|(before, after)| KvmFlushes {
        remote_tlb_flush: (after.remote_tlb_flush).saturating_sub(before.remote_tlb_flush),
        remote_tlb_flush_requests: (after.remote_tlb_flush_requests)
            .saturating_sub(before.remote_tlb_flush_requests),
    });
    if found.kvm.is_none() {
        let folder = root.sys("kernel/debug/kvm");
        found.unread.push(format!(
            "KVM's flushes for process {pid}: no folder of its VM in {}; it takes KVM, root, and debugfs \
             (mount -t debugfs debugfs /sys/kernel/debug)",
            folder.display()
        ));
    }
    found
}

/// The counters of the VMs of a process: folders are called `PID-FD` (`kvm_create_vm_debugfs`,
/// virt/kvm/kvm_main.c). `None` if there are none.
fn kvm_flushes(root: &SysRoot, pid: u32) -> Option<KvmFlushes> {
    let own = format!("{pid}-");
    let entries = fs::read_dir(root.sys("kernel/debug/kvm")).ok()?;
    let entries = entries.take(MOST_VMS).flatten();
    let folders = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&own));
    let mut sum: Option<KvmFlushes> = None;
    for folder in folders {
        let count = |name: &str| {
            read_value_optional(&folder.path().join(name))
                .ok()
                .flatten()
        };
        // Kernels before 5.14 have no count of requests.
        let Some(flushes) = count("remote_tlb_flush") else {
            continue;
        };
        let requests = count("remote_tlb_flush_requests").unwrap_or(0);
        let sum = sum.get_or_insert_default();
        sum.remote_tlb_flush = sum.remote_tlb_flush.saturating_add(flushes);
        sum.remote_tlb_flush_requests = sum.remote_tlb_flush_requests.saturating_add(requests);
    }
    sum
}

/// What an event is, and where the fields of its records lie.
enum Probe {
    Starts(Field),
    Returns(Field),
    Flushes(Field),
}

/// The tracepoints on QEMU's threads.
struct Watch {
    threads: ThreadEvents,
    probes: Vec<Probe>,
    locks: Locks,
    flushes: BTreeMap<String, u64>,
    lost: u64,
}

impl Watch {
    /// `None` if the kernel has none of the tracepoints or refuses to watch the threads.
    fn begin(root: &SysRoot, pid: u32, unread: &mut Vec<String>) -> Option<Self> {
        let mut specs = Vec::new();
        let mut probes = Vec::new();
        let mut add = |(system, name): (&str, &str), field: &str, probe: fn(Field) -> Probe| {
            let tracepoint = Tracepoint::read(root, system, name)?;
            probes.push(probe(tracepoint.field(field)?));
            specs.push(EventSpec::tracepoint(&tracepoint.name, tracepoint.id, RING_PAGES).into());
            Ok::<_, TracepointError>(())
        };
        let lock = add(
            ("mmap_lock", "mmap_lock_start_locking"),
            "mm",
            Probe::Starts,
        )
        .and_then(|()| {
            add(
                ("mmap_lock", "mmap_lock_acquire_returned"),
                "mm",
                Probe::Returns,
            )
        });
        let tlb = add(("tlb", "tlb_flush"), "reason", Probe::Flushes);
        unread.extend(
            [lock, tlb]
                .into_iter()
                .filter_map(Result::err)
                .map(|error| with_causes(&error)),
        );
        if probes.is_empty() {
            return None;
        }
        let tids = match numbered_entries(&root.process(pid, "task"), "") {
            Ok(tids) => tids.into_iter().map(|(tid, _)| tid).collect::<Vec<_>>(),
            Err(error) => {
                unread.push(with_causes(&error));
                return None;
            }
        };
        if tids.len() > MOST_THREADS {
            unread.push(format!(
                "of the {} threads of process {pid} only {MOST_THREADS} are watched for locks and flushes",
                tids.len()
            ));
        }
        let mut threads = ThreadEvents::new(root, specs);
        if let Err(error) = threads.follow(&tids[..tids.len().min(MOST_THREADS)]) {
            unread.push(with_causes(&error));
            return None;
        }
        Some(Self {
            threads,
            probes,
            locks: Locks::default(),
            flushes: BTreeMap::new(),
            lost: 0,
        })
    }

    fn until(&mut self, ends: Instant) {
        loop {
            let left = ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            // If it can't wait it is read at once.
            let _ = self.threads.wait(left.min(READ));
            self.collect();
        }
    }

    fn collect(&mut self) {
        // What is older stands in all rings.
        let cut = process::now().0;
        let Self {
            threads,
            probes,
            locks,
            flushes,
            lost,
        } = self;
        let collected = threads.collect(|index, sample| match &probes[index] {
            Probe::Starts(mm) => locks.add(&sample, mm, true),
            Probe::Returns(mm) => locks.add(&sample, mm, false),
            Probe::Flushes(reason) => {
                if let Some(reason) = sample.raw().and_then(|raw| reason.read(raw)) {
                    *flushes.entry(name_of(reason)).or_default() += 1;
                }
            }
        });
        *lost = lost.saturating_add(collected.lost);
        locks.pair(cut);
    }

    fn end(mut self, found: &mut Contention) {
        self.collect();
        self.locks.pair(u64::MAX);
        let has = |wanted: fn(&Probe) -> bool| self.probes.iter().any(wanted);
        found.mmap_lock =
            has(|probe| matches!(probe, Probe::Returns(_))).then_some(self.locks.waits);
        found.tlb_flushes = has(|probe| matches!(probe, Probe::Flushes(_))).then_some(self.flushes);
        found.lost_records = self.lost;
    }
}

fn name_of(reason: u64) -> String {
    let known = usize::try_from(reason)
        .ok()
        .and_then(|reason| REASONS.get(reason));
    known.map_or_else(|| "other".to_owned(), |name| (*name).to_owned())
}

/// A thread that begins to take a lock, or has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LockEvent {
    time: u64,
    tid: u32,
    /// The address space.
    mm: u64,
    starts: bool,
}

/// From events to waits.
#[derive(Debug, Default)]
struct Locks {
    events: Vec<LockEvent>,
    /// When a thread began to take the lock of an address space.
    open: BTreeMap<(u32, u64), u64>,
    waits: LockWaits,
}

impl Locks {
    fn add(&mut self, sample: &Sample<'_>, mm: &Field, starts: bool) {
        let read = || {
            Some(LockEvent {
                time: sample.time()?,
                tid: sample.tid()?,
                mm: mm.read(sample.raw()?)?,
                starts,
            })
        };
        self.events.extend(read());
    }

    /// Pairs the events up to `cut`, in the order of time: each kind stands in a ring of its own.
    fn pair(&mut self, cut: u64) {
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.events)
            .into_iter()
            .partition(|event| event.time <= cut);
        self.events = later;
        due.sort_unstable();
        for LockEvent {
            time,
            tid,
            mm,
            starts,
        } in due
        {
            if starts {
                if self.open.len() < MOST_OPEN {
                    self.open.insert((tid, mm), time);
                }
                continue;
            }
            self.waits.acquisitions += 1;
            // An attempt that does not wait (`mmap_read_trylock`) only returns.
            let took = self.open.remove(&(tid, mm)).map(|began| time - began);
            if let Some(took) = took.filter(|&took| took >= FREE_NS) {
                let ms = took as f64 / 1e6;
                self.waits.waits += 1;
                self.waits.waited_ms += ms;
                self.waits.longest_ms = self.waits.longest_ms.max(ms);
            }
        }
    }
}

impl Contention {
    pub(super) fn to_text(&self) -> String {
        let mut out = format!(
            "\nWhat QEMU's process {} met ({} threads watched)\n",
            self.pid, self.threads
        );
        if let Some(lock) = &self.mmap_lock {
            let _ = writeln!(
                out,
                "  the lock of its address space: taken {} times, waited for {} times, {:.1} ms in all, {:.1} ms at \
                 most",
                lock.acquisitions, lock.waits, lock.waited_ms, lock.longest_ms
            );
        }
        if let Some(flushes) = &self.tlb_flushes {
            let each = flushes
                .iter()
                .map(|(reason, count)| format!("{count} {reason}"));
            let each: Vec<String> = each.collect();
            let each = if each.is_empty() {
                "none".to_owned()
            } else {
                each.join(", ")
            };
            let _ = writeln!(out, "  TLB flushes while its threads ran: {each}");
        }
        if let Some(kvm) = &self.kvm {
            let _ = writeln!(
                out,
                "  KVM flushed the TLBs of all the guest's CPUs {} times, and was asked {} times",
                kvm.remote_tlb_flush, kvm.remote_tlb_flush_requests
            );
        }
        if self.lost_records > 0 {
            let _ = writeln!(
                out,
                "  {} records found no room: these figures are too small",
                self.lost_records
            );
        }
        match self.mmap_lock.is_none() && self.tlb_flushes.is_none() && self.kvm.is_none() {
            true => String::new(),
            false => out,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Locks {
        fn of(events: Vec<LockEvent>) -> Self {
            Self {
                events,
                ..Self::default()
            }
        }
    }

    fn event(time_us: u64, tid: u32, starts: bool) -> LockEvent {
        LockEvent {
            time: time_us * 1000,
            tid,
            mm: 7,
            starts,
        }
    }

    #[test]
    fn waits_when_the_rings_are_read_one_after_the_other_are_paired_by_time() {
        // As the rings are read: all starts, then all returns. Thread 1 waits 2 ms, thread 2 not at all.
        let mut locks = Locks::of(vec![
            event(100, 1, true),
            event(200, 2, true),
            event(5000, 1, true),
            event(201, 2, false),
            event(2100, 1, false),
        ]);
        locks.pair(3_000_000);
        let expected = LockWaits {
            acquisitions: 2,
            waits: 1,
            waited_ms: 2.0,
            longest_ms: 2.0,
        };
        assert_eq!(locks.waits, expected);
        assert_eq!(locks.events, [event(5000, 1, true)], "waits for its return");
        locks.events.push(event(9000, 1, false));
        locks.pair(u64::MAX);
        assert_eq!((locks.waits.waits, locks.waits.longest_ms), (2, 4.0));
    }

    #[test]
    fn waits_when_a_try_returns_without_a_start_are_none() {
        let mut locks = Locks::of(vec![event(100, 1, false), event(900_000, 1, false)]);
        locks.pair(u64::MAX);
        let expected = LockWaits {
            acquisitions: 2,
            ..LockWaits::default()
        };
        assert_eq!(locks.waits, expected);
    }

    #[test]
    fn flushes_of_kvm_when_other_machines_are_there_are_those_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        assert_eq!(kvm_flushes(&root, 70), None);
        for (name, flushes) in [
            ("70-11", "5\n"),
            ("70-12", "6\n"),
            ("701-11", "900\n"),
            ("7-1", "9"),
        ] {
            let vm = folder.path().join("sys/kernel/debug/kvm").join(name);
            fs::create_dir_all(&vm).unwrap();
            fs::write(vm.join("remote_tlb_flush"), flushes).unwrap();
        }
        let vm = folder.path().join("sys/kernel/debug/kvm/70-11");
        fs::write(vm.join("remote_tlb_flush_requests"), "40\n").unwrap();
        let expected = KvmFlushes {
            remote_tlb_flush: 11,
            remote_tlb_flush_requests: 40,
        };
        assert_eq!(kvm_flushes(&root, 70), Some(expected));
    }

    #[test]
    fn look_when_the_kernel_tells_nothing_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let found = look(&SysRoot::at(folder.path()), 70, Duration::ZERO);
        assert_eq!(found.to_text(), "");
        let unread = found.unread.join("\n");
        for missing in [
            "mmap_lock:mmap_lock_start_locking",
            "tlb:tlb_flush",
            "kernel/debug/kvm",
        ] {
            assert!(unread.contains(missing), "{unread}");
        }
    }

    #[test]
    fn look_when_at_this_process_counts_its_locks_or_says_why_not() {
        let found = std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                look(
                    &SysRoot::real(),
                    std::process::id(),
                    Duration::from_millis(300),
                )
            });
            while !looking.is_finished() {
                // Each takes the lock of this address space twice.
                drop(std::hint::black_box(vec![1_u8; 8 << 20]));
            }
            looking.join().unwrap()
        });
        match found.mmap_lock {
            // Threads of the test's own that begin later are not watched.
            Some(lock) => assert!(
                found.threads > 0 && lock.waits <= lock.acquisitions,
                "{found:?}"
            ),
            None => {
                assert!(!found.unread.is_empty(), "{found:?}");
                eprintln!("SKIPPED: {}", found.unread.join("; "));
            }
        }
    }

    #[test]
    fn text_when_all_is_known_has_a_line_each() {
        let found = Contention {
            pid: 4711,
            threads: 9,
            mmap_lock: Some(LockWaits {
                acquisitions: 1200,
                waits: 31,
                waited_ms: 45.25,
                longest_ms: 8.04,
            }),
            tlb_flushes: Some(
                [
                    ("remote-shootdown".to_owned(), 88),
                    (name_of(2), 2),
                    (name_of(77), 1),
                ]
                .into(),
            ),
            kvm: Some(KvmFlushes {
                remote_tlb_flush: 512,
                remote_tlb_flush_requests: 1024,
            }),
            lost_records: 3,
            unread: Vec::new(),
        };
        let expected = "
What QEMU's process 4711 met (9 threads watched)
  the lock of its address space: taken 1200 times, waited for 31 times, 45.2 ms in all, 8.0 ms at most
  TLB flushes while its threads ran: 2 local-shootdown, 1 other, 88 remote-shootdown
  KVM flushed the TLBs of all the guest's CPUs 512 times, and was asked 1024 times
  3 records found no room: these figures are too small
";
        assert_eq!(found.to_text(), expected);
    }

    proptest! {
        #[test]
        fn events_when_they_are_anything_are_paired_without_a_panic(
            events in prop::collection::vec((any::<u64>(), 0..3_u32, 0..2_u64, any::<bool>()), 0..60), cut: u64,
        ) {
            let returns = events.iter().filter(|(.., starts)| !starts).count() as u64;
            let all = events.into_iter();
            let events = all.map(|(time, tid, mm, starts)| LockEvent { time, tid, mm, starts }).collect();
            let mut locks = Locks::of(events);
            locks.pair(cut);
            locks.pair(u64::MAX);
            prop_assert_eq!(locks.waits.acquisitions, returns);
            prop_assert!(locks.waits.waits <= returns && locks.open.len() <= 6);
            prop_assert!(locks.waits.longest_ms <= locks.waits.waited_ms);
        }
    }
}
