//! Page faults of real threads.

use std::{
    sync::mpsc::{Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tier_core::{
    addr::{Gpa, Hva},
    map::{Backing, BlockIndex, MapRange, RamBlock},
    sample::{AccessKind, SampleAddress},
    sampling_period::PeriodGoals,
};
use tier_sys::{damon::DamonSettings, perf::event::EventSpec, sysroot::SysRoot};

use super::*;
/// The page faults of a thread, which a test can cause.
struct PageFaults;

impl Decode for PageFaults {
    fn kind(&self) -> SourceKind {
        SourceKind::Pebs
    }

    fn sight(&self) -> Sight {
        Sight::Guest
    }

    fn label(&self, _: &Feed) -> String {
        "page faults".to_owned()
    }

    fn decode(&mut self, _: usize, sample: &Sample<'_>) -> Result<AccessSample, DropReason> {
        let address = sample.addr().ok_or(DropReason::Malformed)?;
        Ok(AccessSample {
            address: SampleAddress::Host(Hva(address)),
            len: 1,
            weight: 1.0,
            kind: AccessKind::Any,
        })
    }
}

fn open(setup: &Setup, map: &GuestMemoryMap) -> anyhow::Result<Box<dyn Source>> {
    let events = vec![EventSpec::page_faults(32).into()];
    let goals = PeriodGoals {
        budget: 1.0,
        rate: f64::MAX,
        bounds: 1..=1,
        unit: 1,
        record_cost: Duration::ZERO,
    };
    let feed = Feed::open(setup, events, (goals, 1))?;
    Ok(Box::new(VcpuSource::new(setup, map, PageFaults, feed)))
}

/// A map with one block that lies at `hva`.
fn map(generation: u64, hva: u64, bytes: u64) -> Arc<GuestMemoryMap> {
    let block = RamBlock {
        name: "ram0".to_owned(),
        hva: Hva(hva),
        used: bytes,
        total: bytes,
        page_size: 4096,
        backing: Some(Backing::Anonymous),
    };
    let range = MapRange {
        gpa: Gpa(1 << 20),
        len: bytes,
        block: BlockIndex(0),
        offset: 0,
        hva: Hva(hva),
    };
    Arc::new(GuestMemoryMap::new(generation, vec![block], vec![range]).unwrap())
}

fn setup(vcpus: Vec<u32>) -> Setup {
    Setup {
        root: SysRoot::real(),
        run_dir: std::env::temp_dir(),
        pid: std::process::id(),
        vcpus,
        is_kvm: false,
        damon: DamonSettings::default(),
        quiet_factor: 10,
        cpu_budget: 0.01,
    }
}

/// A thread that touches a page of fresh memory whenever it is told to, and its tid.
fn toucher() -> (u32, Sender<usize>, JoinHandle<()>) {
    let (tid_out, tid_in) = channel();
    let (orders_out, orders_in) = channel::<usize>();
    let thread = std::thread::spawn(move || {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        tid_out.send(tid.cast_unsigned()).unwrap();
        let mut memory: Vec<u8> = Vec::new();
        for page in orders_in {
            // Above the allocator's largest threshold of 32 MiB: never memory that another test has touched.
            memory.reserve(64 << 20);
            memory.spare_capacity_mut()[page * 4096].write(1);
            std::hint::black_box(&mut memory);
        }
    });
    (tid_in.recv().unwrap(), orders_out, thread)
}

#[test]
fn source_when_a_real_thread_touches_pages_tells_each_and_ends_with_it() {
    let (tid, orders, thread) = toucher();
    let map = map(5, 0x7f00_0000_0000, 1 << 20);
    let mut source = match open(&setup(vec![tid]), &map) {
        Ok(source) => source,
        Err(error) => return eprintln!("SKIPPED: {error:#}"),
    };

    for page in [0, 600, 1200, 1800] {
        orders.send(page).unwrap();
    }
    drop(orders);
    thread.join().unwrap();

    let deadline = Instant::now() + Duration::from_secs(10);
    let (mut samples, mut ended) = (Vec::new(), None);
    while ended.is_none() && Instant::now() < deadline {
        let polled = source.poll(Duration::from_millis(50).into()).unwrap();
        for batch in polled.batches {
            assert_eq!((batch.map_generation, batch.period), (5, 1));
            assert!(batch.account.is_valid());
            samples.extend(batch.samples);
        }
        ended = polled.ended;
    }
    assert!(ended.is_some_and(|why| why.contains("gone")));
    // Four touches 2.4 MB apart are four pages, whatever the page size below 2 MiB.
    assert!(samples.len() >= 4, "{} samples", samples.len());
    source.stop().unwrap();
}

#[test]
fn open_when_no_thread_exists_says_so() {
    let error = open(&setup(vec![5_000_000]), &map(1, 0x7f00_0000_0000, 1 << 20));
    let error = format!("{:#}", error.err().unwrap());
    assert!(
        error.contains("none of the vCPU threads") || error.contains("perf"),
        "{error}"
    );
}

#[test]
fn source_when_threads_come_and_go_follows_them() {
    let (first, first_orders, first_thread) = toucher();
    let (second, second_orders, second_thread) = toucher();
    let map = map(1, 0x7f00_0000_0000, 1 << 20);
    let mut source = match open(&setup(vec![first]), &map) {
        Ok(source) => source,
        Err(error) => return eprintln!("SKIPPED: {error:#}"),
    };

    // The second comes, the first goes, one never was.
    source.set_vcpus(&[second, 5_000_000]).unwrap();
    drop(first_orders);
    first_thread.join().unwrap();
    second_orders.send(900).unwrap();

    let deadline = Instant::now() + Duration::from_secs(10);
    let mut samples = 0;
    while samples == 0 && Instant::now() < deadline {
        let polled = source.poll(Duration::from_millis(20).into()).unwrap();
        assert_eq!(polled.ended, None);
        samples += polled
            .batches
            .iter()
            .map(|b| b.samples.len())
            .sum::<usize>();
    }
    assert!(samples > 0);
    drop(second_orders);
    second_thread.join().unwrap();
}
