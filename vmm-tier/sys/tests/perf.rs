//! Perf events of the running kernel, where it lets us.

use std::time::Duration;

use perf_event_open_sys::bindings as abi;
use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities, gettid, set_capabilities},
};
use tier_sys::{
    perf::{
        event::{Event, EventError, EventSpec, Polled, Rate, Target},
        record::Record,
        refusal::Refusal,
        threads::ThreadEvents,
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
    EventSpec {
        exclude_kernel: true,
        exclude_hv: true,
        ..EventSpec::page_faults(data_pages)
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

/// Runs `work` on a thread without these capabilities; other tests keep theirs.
fn without(lost: CapabilitySet, work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(lost);
        set_capabilities(None, sets).unwrap();
        work();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn is_paranoid() -> bool {
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    paranoid.is_ok_and(|text| text.trim().parse::<i32>().is_ok_and(|level| level > 1))
}

#[test]
fn open_when_paranoid_forbids_the_kernels_part_names_the_setting() {
    if !is_paranoid() {
        return eprintln!("SKIPPED: perf_event_paranoid allows everything");
    }
    without(CapabilitySet::SYS_ADMIN | CapabilitySet::PERFMON, || {
        let spec = EventSpec::page_faults(1);
        let error = Event::open(&SysRoot::real(), &spec, own_thread()).unwrap_err();
        assert_eq!(error.refusal(), Some(Refusal::Paranoid), "{error}");
        assert!(
            error.to_string().contains("perf_event_paranoid is"),
            "{error}"
        );
    });
}

#[test]
fn open_when_the_ring_is_over_the_locked_memory_limit_names_it() {
    // The ring must be over what each CPU of a user may have, and the process on top of that.
    let limit = getrlimit(Resource::Memlock).current;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let Some(limit) = limit
        .filter(|&bytes| bytes < 256 << 20)
        .filter(|_| is_paranoid())
    else {
        return eprintln!("SKIPPED: nothing limits locked memory here");
    };
    let pages = (usize::try_from(limit).unwrap() / 4096 + cpus * 1024).next_power_of_two();
    without(CapabilitySet::IPC_LOCK, move || {
        let spec = page_faults(pages);
        match Event::open(&SysRoot::real(), &spec, own_thread()) {
            Ok(_) => eprintln!("SKIPPED: the kernel locks {pages} pages for everyone"),
            Err(error) => {
                assert_eq!(error.refusal(), Some(Refusal::LockedMemory), "{error}");
                assert!(error.to_string().contains("perf_event_mlock_kb"), "{error}");
            }
        }
    });
}

/// Set for the process that runs out of files, so that no other test does.
const CHILD: &str = "TIER_SYS_FEW_FILES";

#[test]
fn open_when_files_are_used_up_names_the_limit() {
    if std::env::var_os(CHILD).is_none() {
        let name = "perf::open_when_files_are_used_up_names_the_limit";
        let script = format!("ulimit -n 24 && exec \"$0\" --exact {name} --nocapture");
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        return eprint!("{text}");
    }
    let root = SysRoot::real();
    let mut opened = Vec::new();
    let error = loop {
        match Event::open(&root, &page_faults(1), own_thread()) {
            Ok(event) => opened.push(event),
            Err(error) => break error,
        }
        assert!(opened.len() < 24, "the limit is not in force");
    };
    if opened.is_empty() {
        return eprintln!("SKIPPED: {error}");
    }
    assert_eq!(error.refusal(), Some(Refusal::FileLimit), "{error}");
    assert!(error.to_string().contains("RLIMIT_NOFILE is 24"), "{error}");
}

#[test]
fn open_when_the_pmu_is_not_known_tells_that_from_a_missing_pmu() {
    let spec = EventSpec {
        kind: 0x7fff_0000,
        ..page_faults(1)
    };
    let root = SysRoot::real();
    let error = Event::open(&root, &spec, own_thread()).unwrap_err();
    let devices = root.sys("bus/event_source/devices");
    let has_pmu = ["cpu", "cpu_core"]
        .iter()
        .any(|name| devices.join(name).exists());
    let expected = if has_pmu {
        Refusal::UnknownEvent
    } else {
        Refusal::NoPmu
    };
    match error.refusal() {
        Some(Refusal::NoPerf | Refusal::Paranoid) => eprintln!("SKIPPED: {error}"),
        refusal => assert_eq!(refusal, Some(expected), "{error}"),
    }
}

#[test]
fn group_when_its_leader_only_counts_delivers_the_members_samples() {
    let root = SysRoot::real();
    let leader = EventSpec {
        exclude_kernel: true,
        exclude_hv: true,
        ..EventSpec::software(
            "dummy",
            u64::from(abi::PERF_COUNT_SW_DUMMY),
            Rate::Period(1),
            1,
        )
    };
    let mut event = match Event::open_group(&root, &leader, &page_faults(16), own_thread()) {
        Ok(event) => event,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let touch = |event: &mut Event| {
        let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
        memory.spare_capacity_mut()[8 << 20].write(1);
        std::hint::black_box(&mut memory);
        let mut samples = 0;
        event.drain(|record| samples += u32::from(matches!(record, Record::Sample(_))));
        samples
    };

    assert_eq!(touch(&mut event), 0, "it begins disabled");
    event.enable().unwrap();
    assert!(touch(&mut event) > 0);
    event.disable().unwrap();
    touch(&mut event);
    assert_eq!(touch(&mut event), 0);
}

#[test]
fn group_when_its_leader_is_refused_names_the_leader() {
    let leader = EventSpec {
        kind: 0x7fff_0000,
        ..EventSpec::software("the-leader", 0, Rate::Period(1), 1)
    };
    let error = Event::open_group(&SysRoot::real(), &leader, &page_faults(1), own_thread());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("the-leader"), "{error}");
}

#[test]
fn set_period_when_raised_samples_less_often() {
    let root = SysRoot::real();
    let Some(mut event) = open(&root, &page_faults(64)) else {
        return;
    };
    event.enable().unwrap();
    let touch = |event: &mut Event| {
        let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
        for page in 0..32 {
            memory.spare_capacity_mut()[page << 21].write(1);
        }
        std::hint::black_box(&mut memory);
        let mut samples = 0;
        event.drain(|record| samples += u32::from(matches!(record, Record::Sample(_))));
        samples
    };

    let each = touch(&mut event);
    event.set_period(8).unwrap();
    let eighth = touch(&mut event);

    // 32 touches of fresh memory are at least 16 faults.
    assert!(each >= 16, "{each}");
    assert!(eighth >= 1 && eighth * 4 < each, "{eighth} of {each}");
    assert_eq!(event.spec().rate, Rate::Period(8));
}

#[test]
fn threads_when_one_ends_keep_what_it_wrote_and_let_go_of_it() {
    let root = SysRoot::real();
    let mut events = ThreadEvents::new(&root, vec![page_faults(16).into()]);
    let (tell, told) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tell.send(gettid().as_raw_nonzero().get().cast_unsigned())
            .unwrap();
        wait.recv().unwrap();
        let mut memory: Vec<u8> = Vec::with_capacity(16 << 20);
        memory.spare_capacity_mut()[8 << 20].write(1);
        // Else the compiler finds that nobody reads it.
        std::hint::black_box(&mut memory).as_ptr() as u64
    });
    let tid = told.recv().unwrap();
    // Named twice, as by a QEMU that runs all CPUs in one thread; and one that does not exist.
    match events.follow(&[tid, tid, 5_000_000]) {
        Ok(watched) => assert_eq!(watched, 1),
        Err(error) => return eprintln!("SKIPPED: {error}"),
    }
    go.send(()).unwrap();
    let base = thread.join().unwrap();

    let mut found = false;
    for _ in 0..100 {
        events.wait(Duration::from_millis(100)).unwrap();
        events.collect(|index, sample| {
            assert_eq!(index, 0);
            found |= sample.addr().is_some_and(|at| at == base + (8 << 20));
        });
        if events.watched() == 0 {
            break;
        }
    }
    assert!(found);
    assert_eq!(events.watched(), 0);
    assert_eq!(events.follow(&[]).unwrap(), 0);
}
