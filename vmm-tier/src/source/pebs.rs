//! Intel's PEBS on the vCPU threads as a source.
//!
//! On the host PEBS sees host code only. An emulated (TCG) guest's accesses are QEMU's own, so they are
//! all seen, with their exact host-virtual address. Of a KVM guest nothing is seen but what QEMU does
//! for it (device emulation); the source says so, and the agent never takes that for the guest's heat.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use tier_core::{
    addr::Hva,
    map::GuestMemoryMap,
    sample::{AccessKind, AccessSample, DropReason, SampleAddress, Sight, SourceKind},
    sampling_period::PeriodGoals,
};
use tier_sys::{
    perf::{
        pebs::{self, Access, CpuMode, LATENCY_CYCLES, PebsPmu, PebsSettings},
        record::Sample,
        threads::ThreadEvent,
    },
    sysroot::SysRoot,
};

use super::{
    Setup, Source,
    vcpus::{Decode, Feed, VcpuSource, is_kernel_address},
};

/// Pages of each ring: a record has 32 bytes.
const RING_PAGES: usize = 16;

/// An event that is open on each thread, by its place in the list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Opened {
    pmu: String,
    access: Access,
}

#[derive(Debug)]
struct Pebs {
    is_kvm: bool,
    events: Vec<Opened>,
}

impl Decode for Pebs {
    fn kind(&self) -> SourceKind {
        SourceKind::Pebs
    }

    fn sight(&self) -> Sight {
        match self.is_kvm {
            true => Sight::HostMode,
            false => Sight::Guest,
        }
    }

    fn label(&self, feed: &Feed) -> String {
        format!("{}; one in {}", self.what(), feed.period())
    }

    fn decode(&mut self, event: usize, sample: &Sample<'_>) -> Result<AccessSample, DropReason> {
        let opened = self.events.get(event).ok_or(DropReason::Malformed)?;
        let address = sample.addr().ok_or(DropReason::Malformed)?;
        // An address of a guest's own address space says nothing to us, nor does one of the kernel's.
        // A sample of kernel mode may have one of QEMU's: the kernel copies from and to user memory.
        if CpuMode::of(sample.misc) == CpuMode::Guest || is_kernel_address(address) {
            return Err(DropReason::WrongMode);
        }
        // A record without an address, as of a PMU whose host hands on a part of PEBS only.
        if address == 0 {
            return Err(DropReason::NoAddress);
        }
        Ok(AccessSample {
            address: SampleAddress::Host(Hva(address)),
            len: 1,
            weight: 1.0,
            kind: match opened.access {
                Access::Loads | Access::L3Misses => AccessKind::Load,
                Access::Stores => AccessKind::Store,
            },
        })
    }
}

impl Pebs {
    /// Which events, and what they see.
    fn what(&self) -> String {
        let events: Vec<_> = self
            .events
            .iter()
            .map(|event| format!("{} ({})", event.access, event.pmu))
            .collect();
        let sees = match self.is_kvm {
            true => "sees QEMU's own accesses only, none of the guest's",
            false => "sees the guest's accesses (it is emulated)",
        };
        format!("PEBS on the vCPU threads, {}: {sees}", events.join(", "))
    }
}

/// The events to open on each thread, one in `period`: loads that miss the L3 where the PMU can tell
/// them (else slow loads), and stores.
pub(crate) fn events(
    root: &SysRoot,
    period: u64,
) -> Result<Vec<(String, Access, ThreadEvent)>, pebs::PebsError> {
    let settings = PebsSettings {
        period,
        latency_cycles: LATENCY_CYCLES,
        physical: false,
        data_pages: RING_PAGES,
    };
    let of_pmu = |pmu: &PebsPmu| {
        let loads = [Access::L3Misses, Access::Loads];
        let loads = loads
            .into_iter()
            .find_map(|access| Some((access, pmu.event(access, &settings)?)));
        let stores = pmu
            .event(Access::Stores, &settings)
            .map(|event| (Access::Stores, event));
        let named = |(access, event)| (pmu.name.clone(), access, event);
        loads
            .into_iter()
            .chain(stores)
            .map(named)
            .collect::<Vec<_>>()
    };
    Ok(pebs::read(root)?.iter().flat_map(of_pmu).collect())
}

/// The period at the start: the one of Demeter for loads (a prime, so that no loop is in step with it).
const START_PERIOD: u64 = 4093;
/// The shortest and the longest period: the shortest is that of Memtis for loads.
const PERIODS: RangeInclusive<u64> = 199..=1 << 20;
/// Samples a second that are wanted: as many as tell pages apart within seconds.
const SAMPLES_PER_S: f64 = 10_000.0;
/// What the kernel takes to write a record down, when the hardware has collected many of them.
const RECORD_COST: Duration = Duration::from_micros(1);

/// Opens the events on the guest's vCPU threads.
///
/// # Errors
/// If this host has no PEBS or the kernel refuses; the text says why and what to do.
pub(crate) fn open(setup: &Setup, map: &Arc<GuestMemoryMap>) -> anyhow::Result<Box<dyn Source>> {
    let events = events(&setup.root, START_PERIOD)?;
    let opened = events
        .iter()
        .map(|(pmu, access, _)| Opened {
            pmu: pmu.clone(),
            access: *access,
        })
        .collect();
    let decode = Pebs {
        is_kvm: setup.is_kvm,
        events: opened,
    };
    let events = events.into_iter().map(|(_, _, event)| event).collect();
    let goals = PeriodGoals {
        budget: setup.cpu_budget,
        rate: SAMPLES_PER_S,
        bounds: PERIODS,
        unit: 1,
        record_cost: RECORD_COST,
    };
    let feed = Feed::open(setup, events, (goals, START_PERIOD))?;
    Ok(Box::new(VcpuSource::new(setup, map, decode, feed)))
}

#[cfg(test)]
mod tests;
