//! The software PMU as the emulated host sees it: a device, and the truth about a guest's accesses.
//!
//! The PMU counts every access of the emulated CPUs by physical page. With a guest's page table
//! (QEMU's pagemap) and the nodes' spans that tells how many of the accesses to the guest's memory
//! went to which node: nothing of it rests on the code under test.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use softpmu::layout::{DATA_HEAD, DATA_TAIL, Layout, Word};
use softpmu::shared::Shared;

use crate::event::{Accesses, PmuCounts};
use crate::pagemap::{PAGE_BYTES, frame_of_pagemap_entry};

const DEVICES: &str = "/sys/bus/pci/devices";
/// Red Hat's inter-VM shared memory device.
const IVSHMEM: (&str, &str) = ("0x1af4", "0x1110");

/// The PMU's device.
#[derive(Debug)]
pub struct Pmu {
    /// What the agent maps for its records.
    pub path: PathBuf,
    shared: Shared,
    layout: Layout,
    nodes: Vec<(Range<u64>, usize)>,
}

impl Pmu {
    /// Finds the device, lets it answer and reads what its memory holds.
    ///
    /// # Errors
    /// When there is none, or its memory can't be mapped.
    pub fn find() -> anyhow::Result<Self> {
        let device = device(Path::new(DEVICES))?;
        fs::write(device.join("enable"), "1")
            .with_context(|| format!("enabling {}", device.display()))?;
        let path = device.join("resource2");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let bytes = file.metadata()?.len();
        let shared = Shared::map(&file, bytes)
            .with_context(|| format!("mapping {} bytes of {}", bytes, path.display()))?;
        let layout = Layout::read(&shared).with_context(|| path.display().to_string())?;
        let nodes = node_spans(&fs::read_to_string("/proc/zoneinfo")?);
        if nodes.is_empty() {
            bail!("/proc/zoneinfo tells of no zone");
        }
        Ok(Self {
            path,
            shared,
            layout,
            nodes,
        })
    }

    /// The memory, and what lies where in it.
    pub(super) fn memory(&self) -> (&Shared, Layout) {
        (&self.shared, self.layout)
    }

    /// Starts or stops counting and sampling on the CPUs of the guests.
    pub fn arm(&self, on: bool) {
        let mut mask = 0;
        for cpu in guest_cpus(self.layout.cpus()) {
            mask |= u64::from(on) << cpu;
        }
        self.shared.store(self.layout.word(Word::Armed), mask);
    }

    /// Empties the ring: for whoever reads from now on nothing was written before and nothing lost,
    /// as with an event of perf that is opened. Nobody may read at this time.
    pub fn empty(&self) {
        let armed = self.layout.word(Word::Armed);
        let before = self.shared.load(armed).unwrap_or(0);
        self.shared.store(armed, 0);
        // A record that is being written is soon done.
        std::thread::sleep(Duration::from_millis(10));
        let head = self.shared.word(DATA_HEAD);
        let head = head.map_or(0, |head| head.load(Ordering::Acquire));
        self.shared.store(DATA_TAIL, head);
        self.shared.store(self.layout.word(Word::Untold), 0);
        self.shared.store(armed, before);
    }

    /// Gives a guest's virtual CPUs the CPUs that are counted, and the others to all other threads
    /// of its QEMU and of this process, and to whatever they start from now on.
    ///
    /// # Errors
    /// When the threads can't be listed, or the kernel forbids it.
    pub fn arrange(&self, qemu: u32, vcpus: &[u32]) -> anyhow::Result<()> {
        let guests = guest_cpus(self.layout.cpus());
        let others = 0..guests.start.max(1);
        for process in [std::process::id(), qemu] {
            let folder = format!("/proc/{process}/task");
            for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
                let name = entry?.file_name();
                let thread = name.to_str().and_then(|name| name.parse::<u32>().ok());
                let Some(thread) = thread else { continue };
                let cpus = match vcpus.contains(&thread) {
                    true => guests.clone(),
                    false => others.clone(),
                };
                pin(thread, cpus)?;
            }
        }
        Ok(())
    }

    /// Records written and lost since boot.
    #[must_use]
    pub fn counts(&self) -> PmuCounts {
        let word = |word| self.shared.load(self.layout.word(word)).unwrap_or(0);
        PmuCounts {
            records: word(Word::Records),
            lost: word(Word::Lost),
        }
    }

    /// Accesses to a page frame since boot, by all CPUs.
    fn accesses(&self, frame: u64) -> u64 {
        guest_cpus(self.layout.cpus())
            .filter_map(|cpu| self.shared.load(self.layout.counters(cpu) + frame * 8))
            .sum()
    }

    /// The node of a page frame.
    pub(super) fn node(&self, frame: u64) -> Option<usize> {
        self.nodes
            .iter()
            .find(|(span, _)| span.contains(&frame))
            .map(|(_, node)| *node)
    }
}

/// All but the first, which is left for QEMU's other threads, the agent and the lab: so the records
/// are those of the virtual CPUs' threads, as with an event of perf for each of them. The kernel's
/// own work aside.
fn guest_cpus(cpus: u64) -> Range<u64> {
    if cpus > 1 { 1..cpus } else { 0..1 }
}

/// Lets a thread run on some CPUs only. One that has ended meanwhile needs none.
fn pin(thread: u32, cpus: Range<u64>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(usize::try_from(cpu)?);
    }
    let thread = i32::try_from(thread).ok().and_then(Pid::from_raw);
    match sched_setaffinity(thread, &set) {
        Err(Errno::SRCH) => Ok(()),
        other => other.context("pinning a thread to its CPUs"),
    }
}

/// The folder of the one device of this kind.
fn device(devices: &Path) -> anyhow::Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(devices).with_context(|| devices.display().to_string())? {
        let path = entry?.path();
        let is = |file: &str, id: &str| {
            fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == id)
        };
        if is("vendor", IVSHMEM.0) && is("device", IVSHMEM.1) {
            found.push(path);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        count => bail!(
            "{count} ivshmem devices in {}, one is due",
            devices.display()
        ),
    }
}

/// The page frames of each zone and its node, from `/proc/zoneinfo`.
fn node_spans(text: &str) -> Vec<(Range<u64>, usize)> {
    let mut spans = Vec::new();
    let (mut node, mut spanned) = (None, 0);
    for line in text.lines() {
        // "Node 0, zone    DMA32", later "        spanned  110592" and "  start_pfn:
        // 4096".
        if let Some(rest) = line.strip_prefix("Node ") {
            node = rest.split(',').next().and_then(|n| n.trim().parse().ok());
            spanned = 0;
            continue;
        }
        let mut words = line.split_whitespace();
        let number = |word: Option<&str>| word.and_then(|w| w.parse::<u64>().ok());
        match words.next() {
            Some("spanned") => spanned = number(words.next()).unwrap_or(0),
            Some("start_pfn:") => {
                if let (Some(node), Some(start)) = (node, number(words.next()))
                    && spanned > 0
                {
                    spans.push((start..start + spanned, node));
                }
            }
            _ => {}
        }
    }
    spans
}

/// Counts the accesses to one guest's memory by node, from look to look.
#[derive(Debug, Default)]
pub struct Truth {
    /// The page table's entries for the guest's memory at the last look.
    entries: Vec<u8>,
    /// For each page of it that was there its frame, node, and the accesses until the last look.
    pages: Vec<(u64, Option<usize>, u64)>,
}

impl Truth {
    /// The accesses since the last look, to pages where they were then; `None` at the first look,
    /// and when the process has gone. `ram` is the guest's memory in QEMU, start and bytes.
    ///
    /// A page that moved meanwhile is counted where it was: a part of a second's accesses to it is
    /// missed.
    pub fn look(&mut self, pmu: &Pmu, pid: u32, ram: (u64, u64)) -> Option<Accesses> {
        let entries = entries(pid, ram).ok()?;
        let mut counted = Accesses::default();
        for (frame, node, before) in &mut self.pages {
            let now = pmu.accesses(*frame);
            let gone = now.saturating_sub(*before);
            *before = now;
            match node {
                Some(0) => counted.fast += gone,
                Some(_) => counted.slow += gone,
                None => {}
            }
        }
        let first = self.entries.is_empty();
        if self.entries != entries {
            self.pages = frames_of(&entries)
                .flatten()
                .map(|frame| (frame, pmu.node(frame), pmu.accesses(frame)))
                .collect();
            self.entries = entries;
        }
        (!first).then_some(counted)
    }
}

/// The page table's entries for a range of a process's addresses.
fn entries(pid: u32, (start, bytes): (u64, u64)) -> anyhow::Result<Vec<u8>> {
    let page = PAGE_BYTES as u64;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut entries = vec![0_u8; usize::try_from(bytes / page * 8)?];
    pagemap.read_exact_at(&mut entries, start / page * 8)?;
    Ok(entries)
}

/// The page frame of each page, if it is there.
fn frames_of(entries: &[u8]) -> impl Iterator<Item = Option<u64>> {
    let (entries, _) = entries.as_chunks::<8>();
    entries
        .iter()
        .map(|entry| frame_of_pagemap_entry(u64::from_ne_bytes(*entry)))
}

/// The page frames behind a range of a process's addresses.
pub(super) fn frames(pid: u32, ram: (u64, u64)) -> anyhow::Result<Vec<Option<u64>>> {
    Ok(frames_of(&entries(pid, ram)?).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes as the lab's kernel tells them, shortened.
    const ZONEINFO: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 3
  pages free     2816
        spanned  4095
        present  3998
  start_pfn:           1
Node 0, zone    DMA32
  pages free     20000
        spanned  110592
        present  110080
  start_pfn:           4096
Node 0, zone   Normal
  pages free     0
        spanned  0
        present  0
Node 1, zone    DMA32
  pages free     190000
        spanned  196608
  start_pfn:           114688
";

    #[test]
    fn node_spans_when_zones_are_empty_leave_them_out() {
        let spans = node_spans(ZONEINFO);

        assert_eq!(
            spans,
            [(1..4096, 0), (4096..114_688, 0), (114_688..311_296, 1)]
        );
    }

    fn pci(folder: &Path, address: &str, vendor: &str, device: &str) {
        let path = folder.join(address);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("vendor"), format!("{vendor}\n")).unwrap();
        fs::write(path.join("device"), format!("{device}\n")).unwrap();
    }

    #[test]
    fn device_when_others_are_there_is_the_one_of_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        pci(folder.path(), "0000:00:01.0", "0x1af4", "0x1003");
        assert!(device(folder.path()).is_err());
        pci(folder.path(), "0000:00:02.0", "0x1af4", "0x1110");

        let found = device(folder.path()).unwrap();

        assert!(found.ends_with("0000:00:02.0"));
    }

    #[test]
    fn ring_when_emptied_tells_nothing_of_before() {
        let layout = Layout::new(4096, 16, 2, 64).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(layout.file_bytes()).unwrap();
        let map = || Shared::map(&file, layout.file_bytes()).unwrap();
        layout.write(&map()).unwrap();
        let producer = softpmu::Pmu::new(map()).unwrap();
        let pmu = Pmu {
            path: PathBuf::new(),
            shared: map(),
            layout,
            nodes: Vec::new(),
        };
        pmu.arm(true);
        let access = softpmu::Access {
            rip: 0,
            linear: 0,
            physical: 0,
            store: false,
            size_shift: 0,
        };
        for _ in 0..100 {
            producer.sample(&access, 1);
        }

        pmu.empty();

        assert!(producer.armed(1), "it goes on");
        assert_eq!(pmu.shared.load(DATA_HEAD), pmu.shared.load(DATA_TAIL));
        let head = pmu.shared.load(DATA_HEAD).unwrap();
        producer.sample(&access, 1);
        // A sample of 104 bytes and no note of lost ones.
        assert_eq!(pmu.shared.load(DATA_HEAD), Some(head + 104));
        // What the lab tells of it goes on.
        assert_eq!(pmu.counts().lost, 61);
    }

    /// A process's own memory, seen through a PMU whose counters the test writes.
    #[test]
    fn truth_when_a_frame_is_accessed_counts_it_for_its_node() {
        let memory = vec![1_u8; 3 * PAGE_BYTES];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES as u64);
        let ram = (start, 2 * PAGE_BYTES as u64);
        let pid = std::process::id();
        let found = frames(pid, ram).unwrap();
        let (Some(one), Some(two)) = (found[0], found[1]) else {
            println!("SKIPPED: page frames are not told here: CAP_SYS_ADMIN is missing");
            return;
        };
        let layout = Layout::new(4096, one.max(two) + 1, 1, 64).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(layout.file_bytes()).unwrap();
        let shared = Shared::map(&file, layout.file_bytes()).unwrap();
        layout.write(&shared).unwrap();
        let pmu = Pmu {
            path: PathBuf::new(),
            shared,
            layout,
            nodes: vec![(one..one + 1, 0), (two..two + 1, 1)],
        };
        let access = |frame: u64, times: u64| {
            let at = layout.counters(0) + frame * 8;
            pmu.shared.store(at, pmu.shared.load(at).unwrap() + times);
        };
        let mut truth = Truth::default();
        access(one, 100);

        assert_eq!(truth.look(&pmu, pid, ram), None);
        access(one, 3);
        access(two, 4);

        assert_eq!(
            truth.look(&pmu, pid, ram),
            Some(Accesses { fast: 3, slow: 4 })
        );
        assert_eq!(truth.look(&pmu, pid, ram), Some(Accesses::default()));
        drop(memory);
    }
}
