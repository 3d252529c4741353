//! Page faults of the guest's processes: only the first access to each page, but everywhere to be had.

use anyhow::Context;
use tier_core::{sample::AccessKind, wire::Wish};
use tier_sys::perf::{
    event::{Event, EventSpec, Target},
    record::Sample,
    threads::ThreadEvent,
};

use super::{
    InGuestSource, Setup,
    cpus::{CpuEvents, Plan, RING_PAGES, Seen, online},
};

/// Faults for each sample at first and at most.
const PERIODS: (u64, u64) = (1, 10_000);

fn event() -> EventSpec {
    EventSpec {
        // The faults of kernel code are told with addresses of user memory too.
        exclude_hv: true,
        ..EventSpec::page_faults(RING_PAGES)
    }
}

/// The page is there only after the fault: its frame is looked up when the record is read.
fn read(sample: &Sample<'_>) -> Seen {
    match (sample.pid(), sample.addr()) {
        (Some(pid), Some(address)) if pid != 0 && pid != std::process::id() => {
            Seen::Virtual(pid, address, AccessKind::Any)
        }
        (Some(_), Some(_)) => Seen::Nothing,
        _ => Seen::NoAddress,
    }
}

pub(super) fn probe(setup: &Setup) -> anyhow::Result<()> {
    let cpu = online(&setup.root)?.first().copied();
    let cpu = cpu.context("no CPU is online")?;
    Event::open(&setup.root, &event(), Target::Cpu(cpu))?;
    Ok(())
}

pub(super) fn open(setup: &Setup, wish: &Wish) -> anyhow::Result<Box<dyn InGuestSource>> {
    let plan = Plan {
        events: vec![ThreadEvent::from(event())],
        read,
        periods: PERIODS,
        valid: |period| period,
        period: PERIODS.0,
    };
    Ok(Box::new(CpuEvents::open(setup, plan, wish)?))
}
