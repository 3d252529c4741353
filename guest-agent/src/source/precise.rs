//! PEBS and IBS in the guest, where its virtual PMU has them and records carry addresses.
//!
//! That the event opens says nothing: since 2024 KVM may hide the extended PEBS records from the guest,
//! and then samples come without an address. So each source is probed on a buffer that is known, and must
//! find it.

use anyhow::{Context, bail, ensure};
use tier_core::{sample::AccessKind, wire::Wish};
use tier_sys::{
    perf::{
        event::Target,
        ibs::{self, IbsPmu},
        pebs::{self, Access, DataSource, PebsSettings},
        record::Sample,
        threads::ThreadEvent,
    },
    process,
};

use super::{
    InGuestSource, Setup,
    cpus::{CpuEvents, Plan, RING_PAGES, Seen},
    frames::Frames,
};

/// Periods: Memtis begins at 199 for loads and adjusts from there.
const PEBS_PERIODS: (u64, u64) = (199, 10_000_019);
const PEBS_PERIOD: u64 = 4093;
/// IBS counts operations, of which some third go to memory.
const IBS_PERIOD: u64 = 65_536;
/// The buffer that a probe reads: larger than a second-level cache.
const PROBE_BYTES: usize = 16 << 20;
const PROBE_ROUNDS: usize = 8;

fn pebs_plan(setup: &Setup, period: u64) -> anyhow::Result<Plan> {
    let settings = PebsSettings {
        period,
        latency_cycles: pebs::LATENCY_CYCLES,
        physical: true,
        data_pages: RING_PAGES,
    };
    let mut events = Vec::new();
    for pmu in pebs::read(&setup.root)? {
        // Misses say most for their cost; where no event counts them, slow loads do. Stores beside.
        let loads = pmu
            .event(Access::L3Misses, &settings)
            .or_else(|| pmu.event(Access::Loads, &settings));
        events.extend(loads);
        events.extend(pmu.event(Access::Stores, &settings));
    }
    ensure!(!events.is_empty(), "the PMU has no event for accesses");
    Ok(Plan {
        events,
        read: read_pebs,
        periods: PEBS_PERIODS,
        valid: |period| period,
        period,
    })
}

fn read_pebs(sample: &Sample<'_>) -> Seen {
    let source = DataSource(sample.data_src().unwrap_or(0));
    let kind = match (source.is_store(), source.is_load()) {
        (true, _) => AccessKind::Store,
        (false, true) => AccessKind::Load,
        (false, false) => AccessKind::Any,
    };
    match sample.phys_addr().filter(|&address| address != 0) {
        Some(address) => Seen::Physical(address, kind),
        None => Seen::NoAddress,
    }
}

fn ibs_plan(setup: &Setup, period: u64) -> anyhow::Result<Plan> {
    let pmu = IbsPmu::read(&setup.root)?;
    Ok(Plan {
        events: vec![ThreadEvent::from(pmu.event(period, RING_PAGES))],
        read: read_ibs,
        periods: (ibs::MIN_PERIOD, ibs::MAX_PERIOD),
        valid: ibs::valid_period,
        period: ibs::valid_period(period),
    })
}

/// The hardware's physical address may be the host's: the guest's page table is asked instead.
fn read_ibs(sample: &Sample<'_>) -> Seen {
    let Some(op) = sample.raw().and_then(ibs::decode) else {
        return Seen::NoAddress;
    };
    // Operations that go to no memory are no accesses, and addresses of the kernel are in no process.
    match (op.access, op.linear, sample.pid()) {
        (None, _, _) => Seen::Nothing,
        (Some(kind), Some(address), Some(pid)) if address >> 47 == 0 && pid != 0 => {
            Seen::Virtual(pid, address, kind)
        }
        (Some(_), Some(_), Some(_)) => Seen::Nothing,
        (Some(_), _, _) => Seen::NoAddress,
    }
}

pub(super) fn open_pebs(setup: &Setup, wish: &Wish) -> anyhow::Result<Box<dyn InGuestSource>> {
    let plan = pebs_plan(setup, PEBS_PERIOD)?;
    Ok(Box::new(CpuEvents::open(setup, plan, wish)?))
}

pub(super) fn open_ibs(setup: &Setup, wish: &Wish) -> anyhow::Result<Box<dyn InGuestSource>> {
    let plan = ibs_plan(setup, IBS_PERIOD)?;
    Ok(Box::new(CpuEvents::open(setup, plan, wish)?))
}

pub(super) fn probe_pebs(setup: &Setup) -> anyhow::Result<()> {
    probe(setup, &pebs_plan(setup, PEBS_PERIODS.0)?)
}

pub(super) fn probe_ibs(setup: &Setup) -> anyhow::Result<()> {
    probe(setup, &ibs_plan(setup, 4096)?)
}

/// Reads and writes a buffer under the plan's events: some record must name one of its frames.
fn probe(setup: &Setup, plan: &Plan) -> anyhow::Result<()> {
    let mut buffer = vec![1_u8; PROBE_BYTES];
    let mut frames = Frames::new(&setup.root);
    let pid = std::process::id();
    let start = buffer.as_ptr().expose_provenance() as u64;
    let mut own = std::collections::HashSet::new();
    for offset in (0..PROBE_BYTES as u64).step_by(4096) {
        own.extend(frames.gpa(pid, start + offset).map(|gpa| gpa.0 >> 12));
    }
    // Without CAP_SYS_ADMIN frames are hidden: the virtual address must do, and a frame beside it.
    let inside = |sample: &Sample<'_>| {
        let address = sample.addr().unwrap_or(0);
        own.is_empty() && (start..start + PROBE_BYTES as u64).contains(&address)
    };
    let open = |event: &ThreadEvent| event.open(&setup.root, Target::Thread(pid));
    let mut events = plan
        .events
        .iter()
        .map(open)
        .collect::<Result<Vec<_>, _>>()?;
    for event in &events {
        event.enable()?;
    }
    let until = process::now().0 + 1_000_000_000;
    for round in 0..PROBE_ROUNDS {
        // A stride that no prefetcher follows, over every line once.
        let lines = PROBE_BYTES / 64;
        for line in 0..lines {
            let at = line.wrapping_mul(40_503) % lines * 64;
            buffer[at] = std::hint::black_box(buffer[at].wrapping_add(round as u8));
        }
        if process::now().0 > until {
            break;
        }
    }
    let (mut records, mut found) = (0_u64, 0_u64);
    for event in &mut events {
        event.disable()?;
        let collected = event.collect(|sample| {
            let frame = match (plan.read)(&sample) {
                Seen::Physical(address, _) => Some(address >> 12),
                Seen::Virtual(pid, address, _) => frames.gpa(pid, address).map(|gpa| gpa.0 >> 12),
                Seen::Nothing | Seen::NoAddress => None,
            };
            let known = |frame| own.contains(&frame) || inside(&sample);
            found += u64::from(frame.is_some_and(known));
        });
        records += collected.samples;
    }
    std::hint::black_box(&buffer);
    match (records, found) {
        (0, _) => {
            bail!("no record came of accesses that were made: the virtual PMU does not sample")
        }
        (_, 0) => Err(anyhow::anyhow!(
            "none of {records} records carries the address of the memory that was accessed"
        ))
        .context(
            "the host's KVM hides addresses from the guest (QEMU: -cpu host,pmu=on,migratable=off)",
        ),
        _ => Ok(()),
    }
}
