//! Perf events of the running kernel, where it lets us.

use std::time::Duration;

use perf_event_open_sys::bindings as abi;
use rustix::thread::gettid;
use tier_sys::{
    perf::{
        event::{Event, EventError, EventSpec, Polled, Rate, Target},
        record::Record,
        tracepoint::Tracepoint,
    },
    process::now,
    sysroot::SysRoot,
};

fn own_thread() -> Target {
    Target::Thread(gettid().as_raw_nonzero().get().cast_unsigned())
}

/// Page faults of user code, which everyone may count of his own processes.
fn page_faults(data_pages: usize) -> EventSpec {
    let config = u64::from(abi::PERF_COUNT_SW_PAGE_FAULTS);
    EventSpec {
        exclude_kernel: true,
        exclude_hv: true,
        ..EventSpec::software("page-faults", config, Rate::Period(1), data_pages)
    }
}

/// The event, or the reason why this machine can't run it.
fn open(root: &SysRoot, spec: &EventSpec) -> Option<Event> {
    match Event::open(root, spec, own_thread()) {
        Ok(event) => Some(event),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            eprintln!("SKIPPED: {error}: {}", source.unwrap_or_default());
            None
        }
    }
}

#[test]
fn tracepoint_when_hit_delivers_its_fields_on_the_monotonic_clock() {
    let root = SysRoot::real();
    let tracepoint = match Tracepoint::read(&root, "syscalls", "sys_enter_madvise") {
        Ok(tracepoint) => tracepoint,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let (start, length) = (
        tracepoint.field("start").unwrap(),
        tracepoint.field("len_in").unwrap(),
    );
    let Some(mut event) = open(
        &root,
        &EventSpec::tracepoint(&tracepoint.name, tracepoint.id, 8),
    ) else {
        return;
    };
    let before = now();
    event.enable().unwrap();

    // Advice 4711 does not exist: the call is refused, but the tracepoint is hit.
    let call = |n: usize| {
        let address = std::ptr::without_provenance_mut((n + 1) << 12);
        // SAFETY: advice that the kernel does not know changes nothing at any address.
        unsafe { libc::madvise(address, 4096 * (n + 1), 4711) }
    };
    for n in 0..100 {
        assert_eq!(call(n), -1);
    }
    event.disable().unwrap();

    let mut found = Vec::new();
    let drained = event.drain(|record| {
        if let Record::Sample(sample) = record {
            let raw = sample.raw().unwrap();
            let time = sample.time().unwrap();
            assert!(before.0 <= time && time <= now().0);
            found.push((start.read(raw).unwrap(), length.read(raw).unwrap()));
        }
    });
    assert_eq!(
        found,
        (1..=100).map(|n| (n << 12, n * 4096)).collect::<Vec<_>>()
    );
    assert_eq!((drained.malformed, drained.overruns), (0, 0));
}

#[test]
fn tracepoint_when_ring_overflows_says_how_much_was_lost() {
    let root = SysRoot::real();
    let tracepoint = match Tracepoint::read(&root, "syscalls", "sys_enter_getpid") {
        Ok(tracepoint) => tracepoint,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let Some(mut event) = open(
        &root,
        &EventSpec::tracepoint(&tracepoint.name, tracepoint.id, 1),
    ) else {
        return;
    };
    event.enable().unwrap();
    let count = |calls: u64, event: &mut Event| {
        for _ in 0..calls {
            std::hint::black_box(rustix::process::getpid());
        }
        let (mut samples, mut lost) = (0, 0);
        event.drain(|record| match record {
            Record::Sample(_) => samples += 1,
            Record::Lost { lost: n, .. } => lost += n,
            other => panic!("{other:?}"),
        });
        (samples, lost)
    };

    // One page holds far fewer than 1000 records; what was lost is told with the next that fits.
    let (first, _) = count(1000, &mut event);
    let (second, lost) = count(1, &mut event);

    assert!(first > 10 && first < 1000, "{first}");
    assert_eq!(first + second + lost, 1001);
}

#[test]
fn software_event_when_pages_are_touched_tells_their_addresses() {
    let root = SysRoot::real();
    let spec = page_faults(16);
    let Some(mut event) = open(&root, &spec) else {
        return;
    };
    let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
    let base = memory.as_ptr() as u64;
    event.enable().unwrap();

    for page in 0..32 {
        memory.spare_capacity_mut()[page << 20].write(1);
    }

    let mut faults = 0;
    event.drain(|record| {
        if let Record::Sample(sample) = record {
            let address = sample.addr().unwrap();
            faults += usize::from((base..base + (32 << 20)).contains(&address));
        }
    });
    // With huge pages one fault serves two of our touches.
    assert!((16..=33).contains(&faults), "{faults} faults");
}

#[test]
fn poll_when_watched_thread_ends_says_so() {
    let root = SysRoot::real();
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let spec = page_faults(1);
    let opened = Event::open(&root, &spec, Target::Thread(child.id()));
    let first = opened
        .as_ref()
        .map(|event| event.poll(Duration::from_millis(1)));

    child.kill().unwrap();
    child.wait().unwrap();

    let polled = match (&opened, first) {
        (Ok(event), Ok(first)) => {
            assert_eq!(first.unwrap(), Polled::TimedOut);
            event.poll(Duration::from_secs(10)).unwrap()
        }
        (Err(error), _) | (_, Err(error)) => return eprintln!("SKIPPED: {error}"),
    };
    assert_eq!(polled, Polled::Ended);
}

#[test]
fn open_when_thread_does_not_exist_says_that_it_is_gone() {
    let spec = page_faults(1);
    // Beyond PID_MAX_LIMIT (4 Mi).
    let error = Event::open(&SysRoot::real(), &spec, Target::Thread(5_000_000)).unwrap_err();
    match error {
        EventError::Refused { ref source, .. } if source.raw_os_error() == Some(libc::ENOSYS) => {
            eprintln!("SKIPPED: this kernel has no perf events");
        }
        EventError::Refused { ref source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            eprintln!("SKIPPED: {error}");
        }
        error => assert!(error.is_target_gone(), "{error}"),
    }
}

#[test]
fn open_when_hardware_can_not_sample_says_what_to_do() {
    // A raw event of a PMU type that no kernel registers.
    let spec = EventSpec {
        kind: 0x7fff_0000,
        ..EventSpec::software("no-such-event", 0, Rate::Period(1), 1)
    };
    let error = Event::open(&SysRoot::real(), &spec, own_thread())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no-such-event") && error.contains(": "),
        "{error}"
    );
    assert!(
        error.contains("choose another source") || error.contains("permission"),
        "{error}"
    );
}
