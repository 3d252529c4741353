//! Tries each source on this process for a moment and says what came. Leaves nothing behind: events
//! belong to the doctor's own thread and end with it, and the kdamond that is taken is given back.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use tier_core::{addr::Hva, random::Random, sample::SampleAddress};
use tier_sys::{
    damon::{DamonSettings, source::DamonSource},
    perf::{
        event::{Event, EventError, Target},
        ibs::{self, IbsPmu},
        record::Sample,
        threads::ThreadEvent,
    },
    sysroot::{SysRoot, numbered_entries, read_optional},
};

use crate::source::pebs;

/// How long each hardware event watches the doctor read and write.
const MOMENT: Duration = Duration::from_millis(50);
/// How long DAMON may take to find the doctor's memory used.
const DAMON_LIMIT: Duration = Duration::from_secs(4);
/// Words that are read and written meanwhile: few, for DRAM may be full.
const WORDS: usize = (8 << 20) / 8;
/// The same for events on misses: more than caches hold.
const MANY_WORDS: usize = (64 << 20) / 8;
/// Pages of each ring.
const RING_PAGES: usize = 16;
/// Accesses for each sample: few enough for thousands of samples in a moment.
const PERIOD: u64 = 1009;

/// What came of trying a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// It delivered `records` records, `usable` of them with a usable address.
    Delivers { records: u64, usable: u64 },
    /// It can't be used, for this reason.
    Refused(String),
}

/// What came of trying each source that runs on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probes {
    pub(super) damon: Probe,
    pub(super) ibs: Probe,
    pub(super) pebs: Probe,
}

impl Probes {
    /// Tries them all; takes up to four seconds.
    pub(super) fn take(root: &SysRoot, run_dir: &Path) -> Self {
        let mut memory = vec![1; WORDS];
        Self {
            damon: damon(root, run_dir, &mut memory),
            ibs: ibs(root, &mut memory),
            pebs: pebs(root, &mut memory),
        }
    }
}

fn refused(error: &dyn std::error::Error) -> Probe {
    Probe::Refused(crate::log::with_causes(error))
}

/// Opens an event on this thread.
fn open(root: &SysRoot, event: &ThreadEvent) -> Result<Event, EventError> {
    let tid = rustix::thread::gettid().as_raw_nonzero().get();
    let event = event.open(root, Target::Thread(tid.cast_unsigned()))?;
    event.enable()?;
    Ok(event)
}

/// Opens the events on this thread, does `work`, and counts the samples and those that `is_usable`.
fn watch(
    root: &SysRoot,
    events: &[ThreadEvent],
    work: impl FnOnce(),
    is_usable: impl Fn(&Sample<'_>) -> bool,
) -> Result<Probe, EventError> {
    let opened = events.iter().map(|event| open(root, event));
    let mut opened = opened.collect::<Result<Vec<_>, _>>()?;
    work();
    let (mut records, mut usable) = (0, 0);
    for event in &mut opened {
        event.disable()?;
        let collected = event.collect(|sample| usable += u64::from(is_usable(&sample)));
        records += collected.samples;
    }
    Ok(Probe::Delivers { records, usable })
}

/// Reads and writes all over `memory` for `time`.
fn stir(memory: &mut [u64], time: Duration) {
    let began = Instant::now();
    let mut random = Random::new(1);
    while began.elapsed() < time && !memory.is_empty() {
        for _ in 0..4096 {
            let index = random.below(memory.len() as u64) as usize;
            memory[index] = memory[index].wrapping_add(1);
        }
    }
    black_box(&memory);
}

fn holds(memory: &[u64], address: u64) -> bool {
    let range = memory.as_ptr_range();
    (range.start as u64..range.end as u64).contains(&address)
}

fn ibs(root: &SysRoot, memory: &mut [u64]) -> Probe {
    let pmu = match IbsPmu::read(root) {
        Ok(pmu) => pmu,
        Err(error) => return refused(&error),
    };
    let events = [pmu.event(16 * PERIOD, RING_PAGES).into()];
    let usable = |sample: &Sample<'_>| {
        let op = sample.raw().and_then(ibs::decode);
        op.is_some_and(|op| op.accessed().is_some())
    };
    match watch(root, &events, || stir(memory, MOMENT), usable) {
        Ok(probe) => probe,
        Err(error) => refused(&error),
    }
}

fn pebs(root: &SysRoot, memory: &mut Vec<u64>) -> Probe {
    let events = match pebs::events(root, PERIOD) {
        Ok(events) => events,
        Err(error) => return refused(&error),
    };
    let events: Vec<_> = events.into_iter().map(|(_, _, event)| event).collect();
    memory.resize(MANY_WORDS, 1);
    let range = memory.as_ptr_range();
    let range = range.start as u64..range.end as u64;
    let usable = |sample: &Sample<'_>| {
        sample
            .addr()
            .is_some_and(|address| range.contains(&address))
    };
    match watch(root, &events, || stir(memory, MOMENT), usable) {
        Ok(probe) => probe,
        Err(error) => refused(&error),
    }
}

/// Lets DAMON watch the doctor's memory until it finds it used.
fn damon(root: &SysRoot, run_dir: &Path, memory: &mut [u64]) -> Probe {
    if let Some(has) = lacks_virtual_addresses(root) {
        return Probe::Refused(format!(
            "this kernel's DAMON can't watch a process (it has {has}): CONFIG_DAMON_VADDR is off"
        ));
    }
    let is_new = !run_dir.exists();
    let probe = watch_with_damon(root, run_dir, memory);
    if is_new {
        // Nobody else uses what was not there a moment ago; what is not empty stays.
        let _ = std::fs::remove_dir(run_dir.join("damon"))
            .and_then(|()| std::fs::remove_file(run_dir.join("damon.lock")))
            .and_then(|()| std::fs::remove_dir(run_dir));
    }
    probe
}

/// What DAMON can watch, if that is no process, as far as a kdamond that somebody has set up tells.
fn lacks_virtual_addresses(root: &SysRoot) -> Option<String> {
    let kdamonds = root.sys("kernel/mm/damon/admin/kdamonds");
    let path = numbered_entries(&kdamonds, "")
        .ok()?
        .into_iter()
        .map(|(_, kdamond)| kdamond.join("contexts/0/avail_operations"))
        .find(|path| path.exists())?;
    let text = read_optional(&path).ok()??;
    let has: Vec<_> = text.split_ascii_whitespace().collect();
    (!has.contains(&"vaddr")).then(|| has.join(", "))
}

fn watch_with_damon(root: &SysRoot, run_dir: &Path, memory: &mut [u64]) -> Probe {
    let settings = DamonSettings {
        sampling: Duration::from_millis(5),
        aggregation: Duration::from_millis(100),
        min_regions: 10,
        max_regions: 100,
        ..DamonSettings::default()
    };
    let page = rustix::param::page_size() as u64;
    let start = (memory.as_ptr() as u64).next_multiple_of(page);
    let bytes = (memory.len() as u64 * 8).saturating_sub(page) / page * page;
    let ranges = [(Hva(start), bytes)];
    let pid = std::process::id();
    let mut source = match DamonSource::start(root, run_dir, pid, &ranges, settings, 0) {
        Ok(source) => source,
        Err(error) => return refused(&error),
    };
    let began = Instant::now();
    let (mut records, mut usable) = (0, 0);
    while usable == 0 && began.elapsed() < DAMON_LIMIT {
        stir(memory, MOMENT);
        let poll = match source.poll(Duration::from_millis(1)) {
            Ok(poll) => poll,
            Err(error) => return refused(&error),
        };
        for sample in poll.batches.iter().flat_map(|batch| &batch.samples) {
            records += 1;
            let within = matches!(sample.address, SampleAddress::Host(Hva(address))
                if holds(memory, address));
            usable += u64::from(within && sample.weight > 0.0);
        }
        if poll.ended {
            break;
        }
    }
    match source.stop() {
        Ok(()) => Probe::Delivers { records, usable },
        Err(error) => refused(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damon_when_the_kernel_watches_no_process_is_told_without_trying() {
        for (operations, expected) in [
            ("paddr\n", Some("paddr".to_owned())),
            ("vaddr\nfvaddr\npaddr\n", None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let root = SysRoot::at(folder.path());
            let path = root.sys("kernel/mm/damon/admin/kdamonds/0/contexts/0/avail_operations");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, operations).unwrap();

            assert_eq!(lacks_virtual_addresses(&root), expected);
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(lacks_virtual_addresses(&SysRoot::at(folder.path())), None);
    }

    #[test]
    fn probes_when_the_host_has_nothing_are_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        let run_dir = folder.path().join("run");

        let probes = Probes::take(&root, &run_dir);

        for (probe, part) in [
            (&probes.damon, "damon_aggregated"),
            (&probes.ibs, "ibs_op"),
            (&probes.pebs, "no PMU"),
        ] {
            assert!(
                matches!(probe, Probe::Refused(why) if why.contains(part)),
                "{probe:?}"
            );
        }
        assert!(!run_dir.exists());
    }
}
