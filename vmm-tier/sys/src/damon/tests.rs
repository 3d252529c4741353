//! The life of a kdamond over a kernel that behaves as mm/damon/sysfs.c does.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use super::*;

const EBUSY: i32 = libc::EBUSY;

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, String>,
    /// Slot → kernel thread.
    running: BTreeMap<u32, u32>,
    next_thread: u32,
    refuse_on: bool,
    /// Another agent commits: whoever asks for what needs DAMON's lock and does not give up waits for
    /// ever.
    is_busy: bool,
    commits: u32,
}

/// DAMON's files as the kernel keeps them.
#[derive(Debug)]
struct FakeDamon {
    state: Mutex<State>,
    operations: &'static str,
}

impl FakeDamon {
    fn new(operations: &'static str) -> Arc<Self> {
        let mut state = State {
            next_thread: 900,
            ..State::default()
        };
        state.files.insert("nr_kdamonds".into(), "0".into());
        Arc::new(Self {
            state: Mutex::new(state),
            operations,
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, file: &str) -> Option<String> {
        self.with(|state| state.files.get(file).cloned())
    }

    fn running(&self) -> BTreeMap<u32, u32> {
        self.with(|state| state.running.clone())
    }

    fn error(file: &str, text: &str, errno: i32) -> SysRootError {
        let source = io::Error::from_raw_os_error(errno);
        SysRootError::Write {
            path: PathBuf::from(file),
            text: text.into(),
            source,
        }
    }
}

/// Makes the entries `prefix/0 ..` with these files, throwing away what was there.
fn entries(
    files: &mut BTreeMap<String, String>,
    prefix: &str,
    count: &str,
    names: &[(&str, &str)],
) {
    files.retain(|file, _| {
        let rest = file
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('/'));
        !rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    for index in 0..count.parse().unwrap() {
        for (name, value) in names {
            files.insert(format!("{prefix}/{index}/{name}"), (*value).into());
        }
    }
}

impl AdminFiles for FakeDamon {
    fn read(&self, file: &str) -> Result<String, SysRootError> {
        self.with(|state| {
            assert!(!state.is_busy || !file.ends_with("/state"), "waits");
            let mut parts = file.split('/');
            let slot = parts.next().and_then(|slot| slot.parse::<u32>().ok());
            let thread = slot.and_then(|slot| state.running.get(&slot));
            match (parts.next(), parts.next()) {
                (Some("state"), None) => Ok(if thread.is_some() { "on" } else { "off" }.into()),
                (Some("pid"), None) => Ok(thread.map_or("-1".into(), u32::to_string)),
                _ => state
                    .files
                    .get(file)
                    .cloned()
                    .ok_or_else(|| SysRootError::Read {
                        path: PathBuf::from(file),
                        source: io::Error::from_raw_os_error(libc::ENOENT),
                    }),
            }
        })
    }

    fn write_or_give_up(&self, file: &str, value: &str) -> Result<(), SysRootError> {
        match self.with(|state| state.is_busy) {
            true => Err(Self::error(file, value, EBUSY)),
            false => self.write(file, value),
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<(), SysRootError> {
        self.with(|state| {
            if state.is_busy && value == "commit" {
                return Err(Self::error(file, value, EBUSY));
            }
            assert!(!state.is_busy || !file.ends_with("/nr_regions"), "waits");
            let files = &mut state.files;
            if !files.contains_key(file) {
                return Err(Self::error(file, value, libc::ENOENT));
            }
            let slot = file
                .split('/')
                .next()
                .and_then(|slot| slot.parse::<u32>().ok());
            if file == "nr_kdamonds" {
                if !state.running.is_empty() {
                    return Err(Self::error(file, value, EBUSY));
                }
                files.clear();
                let names = [("state", ""), ("pid", ""), ("contexts/nr_contexts", "0")];
                let count = value.parse::<u32>().unwrap();
                for slot in 0..count {
                    for (name, value) in names {
                        files.insert(format!("{slot}/{name}"), value.into());
                    }
                }
            } else if let Some(prefix) = file.strip_suffix("/nr_contexts") {
                let attributes = "monitoring_attrs";
                let names = [
                    ("avail_operations".to_owned(), self.operations),
                    ("operations".to_owned(), "vaddr"),
                    (format!("{attributes}/intervals/sample_us"), "5000"),
                    (format!("{attributes}/intervals/aggr_us"), "100000"),
                    (format!("{attributes}/intervals/update_us"), "60000000"),
                    (format!("{attributes}/nr_regions/min"), "10"),
                    (format!("{attributes}/nr_regions/max"), "1000"),
                    ("targets/nr_targets".to_owned(), "0"),
                    ("schemes/nr_schemes".to_owned(), "0"),
                ];
                let names: Vec<_> = names
                    .iter()
                    .map(|(name, value)| (name.as_str(), *value))
                    .collect();
                entries(files, prefix, value, &names);
            } else if let Some(prefix) = file.strip_suffix("/nr_targets") {
                entries(
                    files,
                    prefix,
                    value,
                    &[("pid_target", "0"), ("regions/nr_regions", "0")],
                );
            } else if file.ends_with("/regions/nr_regions") {
                let prefix = file.strip_suffix("/nr_regions").unwrap();
                entries(files, prefix, value, &[("start", "0"), ("end", "0")]);
            } else if file.ends_with("/state") {
                let slot = slot.unwrap();
                match value {
                    "on" if state.refuse_on || state.running.contains_key(&slot) => {
                        return Err(Self::error(file, value, EBUSY));
                    }
                    "on" => {
                        state.next_thread += 1;
                        state.running.insert(slot, state.next_thread);
                    }
                    "off" if state.running.remove(&slot).is_none() => {
                        return Err(Self::error(file, value, libc::EPERM));
                    }
                    "commit" if !state.running.contains_key(&slot) => {
                        return Err(Self::error(file, value, libc::EINVAL));
                    }
                    "commit" => state.commits += 1,
                    _ => {}
                }
                return Ok(());
            }
            state.files.insert(file.into(), value.into());
            Ok(())
        })
    }
}

/// A tree with the little of procfs that is read, this process in it, and a run directory.
struct Host {
    folder: tempfile::TempDir,
    kernel: Arc<FakeDamon>,
}

impl Host {
    fn new(operations: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Self {
            folder,
            kernel: FakeDamon::new(operations),
        };
        let random = host.root().proc("sys/kernel/random");
        std::fs::create_dir_all(&random).unwrap();
        std::fs::write(random.join("boot_id"), "boot-one\n").unwrap();
        host.process(std::process::id(), 4711);
        host
    }

    fn root(&self) -> SysRoot {
        SysRoot::at(self.folder.path())
    }

    fn process(&self, pid: u32, start: u64) {
        let stat = format!("{pid} (agent) S 1 1 1 0 -1 0 0 0 0 0 10 5 0 0 20 0 1 0 {start} 0 0\n");
        std::fs::create_dir_all(self.root().process(pid, "")).unwrap();
        std::fs::write(self.root().process(pid, "stat"), stat).unwrap();
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn damon(&self) -> Damon {
        Damon::over(&self.root(), &self.run_dir(), self.kernel.clone()).unwrap()
    }

    fn start(&self) -> Result<Kdamond, DamonError> {
        self.damon().start(
            77,
            &[(Hva(0x20_0000), 0x3000), (Hva(0x10_0000), 0x1000)],
            &DamonSettings::default(),
        )
    }

    fn files_left(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.run_dir().join("damon"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn open_when_kernel_has_no_damon_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Damon::open(&SysRoot::at(folder.path()), folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("CONFIG_DAMON_SYSFS"), "{error}");
}

#[test]
fn start_when_there_are_no_slots_makes_them_and_removes_them_at_the_end() {
    let host = Host::new("vaddr\nfvaddr\npaddr");

    let kdamond = host.start().unwrap();

    let context = "0/contexts/0";
    let get = |file: &str| host.kernel.get(&format!("{context}/{file}")).unwrap();
    assert_eq!(get("operations"), "fvaddr");
    assert_eq!(get("monitoring_attrs/intervals/sample_us"), "10000");
    assert_eq!(get("monitoring_attrs/nr_regions/max"), "1200");
    assert_eq!(get("targets/0/pid_target"), "77");
    // Sorted: the kernel refuses regions that do not rise.
    assert_eq!(get("targets/0/regions/0/start"), 0x10_0000.to_string());
    // Four pages, and 1200 / 3 regions to begin with: one page each.
    assert_eq!(get("targets/0/regions/nr_regions"), "4");
    assert_eq!(get("targets/0/regions/3/end"), 0x20_3000.to_string());
    assert_eq!(
        host.kernel.running(),
        BTreeMap::from([(0, kdamond.thread())])
    );
    assert!(kdamond.is_running().unwrap());

    kdamond.stop().unwrap();

    assert!(host.kernel.running().is_empty());
    assert_eq!(host.kernel.get("nr_kdamonds").as_deref(), Some("0"));
    assert_eq!(host.files_left(), [""; 0]);
}

#[test]
fn stop_when_another_agent_holds_the_lock_is_off_and_empty_before_it_waits() {
    let host = Host::new("vaddr\nfvaddr");
    let kdamond = host.start().unwrap();
    let lock = Slots::new(&host.run_dir()).lock().unwrap();

    let stopping = std::thread::spawn(move || kdamond.stop());
    let contexts = || host.kernel.get("0/contexts/nr_contexts");
    while !host.kernel.running().is_empty() || contexts().as_deref() != Some("0") {
        assert!(!stopping.is_finished(), "it waits for the lock");
        std::thread::yield_now();
    }
    assert_eq!(host.files_left(), ["0.json", "created-slots"]);
    drop(lock);

    stopping.join().unwrap().unwrap();
    assert_eq!(host.files_left(), [""; 0]);
}

#[test]
fn lock_when_it_can_not_be_had_names_who_has_it_or_what_to_mend() {
    let path = Path::new("/run/damon.lock");
    let text = |kind: io::ErrorKind| slots::not_locked(path, kind.into()).to_string();
    let busy = text(io::ErrorKind::WouldBlock);
    assert!(
        busy.starts_with("/run/damon.lock was locked for 10 s: other agents"),
        "{busy}"
    );
    let closed = text(io::ErrorKind::PermissionDenied);
    assert!(closed.contains("make it writable"), "{closed}");
}

#[test]
fn update_when_another_agent_commits_gives_up_and_waits_for_nothing() {
    let host = Host::new("vaddr\nfvaddr");
    let mut kdamond = host.start().unwrap();
    let is_busy = |busy| host.kernel.with(|state| state.is_busy = busy);
    let errno = |result| match result {
        Err(DamonError::Files(error)) => error.errno(),
        other => panic!("{other:?}"),
    };
    is_busy(true);
    let ranges = [(Hva(0x30_0000), 0x2000)];
    assert_eq!(errno(kdamond.update_ranges(&ranges)), Some(EBUSY));
    assert_eq!(errno(kdamond.commit()), Some(EBUSY));
    let settings = DamonSettings {
        sampling: Duration::from_millis(50),
        aggregation: Duration::from_secs(1),
        ..DamonSettings::default()
    };
    assert_eq!(errno(kdamond.update_settings(&settings)), Some(EBUSY));
    let sampling = "0/contexts/0/monitoring_attrs/intervals/sample_us";
    let us = DamonSettings::default().sampling.as_micros().to_string();
    assert_eq!(
        host.kernel.get(sampling),
        Some(us),
        "none for others' commits"
    );
    is_busy(false);
    kdamond.update_ranges(&ranges).unwrap();
    kdamond.stop().unwrap();
}

#[test]
fn start_when_a_host_has_many_guests_finds_a_slot_for_each() {
    let host = Host::new("vaddr\nfvaddr");
    let kdamonds: Vec<_> = (0..100).map(|_| host.start().unwrap()).collect();
    let slots: Vec<_> = kdamonds.iter().map(Kdamond::slot).collect();
    assert_eq!(slots, (0..100).collect::<Vec<_>>());
    drop(kdamonds);
    assert_eq!(host.kernel.get("nr_kdamonds").as_deref(), Some("0"));
}

#[test]
fn start_when_kernel_lacks_fvaddr_takes_vaddr() {
    let host = Host::new("vaddr\npaddr");
    let _kdamond = host.start().unwrap();
    assert_eq!(
        host.kernel.get("0/contexts/0/operations").as_deref(),
        Some("vaddr")
    );
}

#[test]
fn start_when_kernel_lacks_virtual_addresses_leaves_nothing() {
    let host = Host::new("paddr");

    let error = host.start().unwrap_err();

    assert!(error.to_string().contains("CONFIG_DAMON_VADDR"), "{error}");
    assert_eq!(host.kernel.get("nr_kdamonds").as_deref(), Some("0"));
    assert_eq!(host.files_left(), [""; 0]);
}

#[test]
fn start_when_kernel_refuses_to_watch_leaves_nothing() {
    let host = Host::new("fvaddr");
    host.kernel.with(|state| state.refuse_on = true);

    assert!(matches!(
        host.start(),
        Err(DamonError::NotStarted {
            slot: 0,
            pid: 77,
            ..
        })
    ));

    assert_eq!(host.kernel.get("nr_kdamonds").as_deref(), Some("0"));
    assert_eq!(host.files_left(), [""; 0]);
}

#[test]
fn start_when_others_have_slots_takes_a_free_one_and_leaves_theirs() {
    let host = Host::new("fvaddr\npaddr");
    let write = |file: &str, value: &str| host.kernel.write(file, value).unwrap();
    write("nr_kdamonds", "3");
    // Slot 0 runs, slot 1 is set up but off: both are someone else's.
    for slot in ["0", "1"] {
        write(&format!("{slot}/contexts/nr_contexts"), "1");
        write(&format!("{slot}/contexts/0/operations"), "paddr");
    }
    write("0/state", "on");

    let kdamond = host.start().unwrap();
    assert_eq!(kdamond.slot(), 2);
    kdamond.stop().unwrap();

    assert!(host.kernel.running().contains_key(&0));
    assert_eq!(
        host.kernel.get("1/contexts/nr_contexts").as_deref(),
        Some("1")
    );
    // We did not make the slots, so they stay.
    assert_eq!(
        host.kernel.get("2/contexts/nr_contexts").as_deref(),
        Some("0")
    );
}

#[test]
fn start_when_all_slots_are_taken_names_who_has_them() {
    let host = Host::new("fvaddr\npaddr");
    host.kernel.write("nr_kdamonds", "1").unwrap();
    host.kernel.write("0/contexts/nr_contexts", "1").unwrap();
    host.kernel
        .write("0/contexts/0/operations", "paddr")
        .unwrap();
    host.kernel.write("0/state", "on").unwrap();

    let error = host.start().unwrap_err().to_string();

    assert!(
        error.contains("slot 0: paddr, on as thread 901, not vmm-tier's"),
        "{error}"
    );
    assert_eq!(host.kernel.running().len(), 1);
}

#[test]
fn start_when_an_agent_was_killed_clears_its_kdamond_away() {
    let host = Host::new("fvaddr");
    // An agent with another start time had this pid: it is dead, and its kdamond runs on.
    std::mem::forget(host.start().unwrap());
    host.process(std::process::id(), 9999);

    let reclaimed = host.damon().reclaim_orphans().unwrap();

    assert_eq!(reclaimed.len(), 1);
    assert!(reclaimed[0].was_running && reclaimed[0].record.target_pid == 77);
    assert!(host.kernel.running().is_empty());
    // A new one begins, and at its end the slots that the dead one made are removed.
    host.start().unwrap().stop().unwrap();
    assert_eq!(host.kernel.get("nr_kdamonds").as_deref(), Some("0"));
    assert_eq!(host.files_left(), [""; 0]);
}

#[test]
fn reclaim_when_the_agent_still_runs_leaves_its_kdamond() {
    let host = Host::new("fvaddr");
    let kdamond = host.start().unwrap();

    assert!(host.damon().reclaim_orphans().unwrap().is_empty());

    assert!(kdamond.is_running().unwrap());
}

#[test]
fn reclaim_when_someone_else_has_taken_the_slot_since_leaves_it() {
    let host = Host::new("fvaddr");
    std::mem::forget(host.start().unwrap());
    host.process(std::process::id(), 9999);
    host.kernel.write("0/state", "off").unwrap();
    host.kernel
        .write("0/contexts/0/targets/0/pid_target", "123")
        .unwrap();
    host.kernel.write("0/state", "on").unwrap();

    let reclaimed = host.damon().reclaim_orphans().unwrap();

    assert!(!reclaimed[0].was_running);
    assert_eq!(host.kernel.running().len(), 1);
    assert_eq!(
        host.kernel.get("0/contexts/nr_contexts").as_deref(),
        Some("1")
    );
}

#[test]
fn reclaim_when_the_record_is_of_another_boot_only_forgets_it() {
    let host = Host::new("fvaddr");
    std::mem::forget(host.start().unwrap());
    host.process(std::process::id(), 9999);
    std::fs::write(host.root().proc("sys/kernel/random/boot_id"), "boot-two\n").unwrap();

    assert!(host.damon().reclaim_orphans().unwrap().is_empty());

    assert_eq!(host.kernel.running().len(), 1);
    assert_eq!(host.files_left(), [""; 0]);
}

#[test]
fn reclaim_when_a_record_is_garbage_leaves_everything() {
    let host = Host::new("fvaddr");
    std::fs::create_dir_all(host.run_dir().join("damon")).unwrap();
    std::fs::write(host.run_dir().join("damon/0.json"), "{\"slot\":").unwrap();

    assert!(host.damon().reclaim_orphans().unwrap().is_empty());

    assert_eq!(host.files_left(), ["0.json"]);
}

#[test]
fn update_ranges_when_running_commits_them() {
    let host = Host::new("fvaddr");
    let mut kdamond = host.start().unwrap();

    kdamond
        .update_ranges(&[(Hva(0x40_0000), 0x1000), (Hva(0x40_1000), 0x1000)])
        .unwrap();

    let get = |file: &str| {
        host.kernel
            .get(&format!("0/contexts/0/targets/0/regions/{file}"))
    };
    // Neighbours are joined.
    assert_eq!(get("nr_regions").as_deref(), Some("1"));
    assert_eq!(get("0/end"), Some(0x40_2000.to_string()));
    assert_eq!(host.kernel.with(|state| state.commits), 1);
}

#[test]
fn update_settings_when_running_keeps_the_regions_that_damon_has_learned() {
    let host = Host::new("fvaddr");
    let mut kdamond = host.start().unwrap();

    let slower = DamonSettings {
        sampling: Duration::from_millis(50),
        max_regions: 100,
        ..DamonSettings::default()
    };
    kdamond.update_settings(&slower).unwrap();

    let get = |file: &str| host.kernel.get(&format!("0/contexts/0/{file}")).unwrap();
    assert_eq!(get("monitoring_attrs/intervals/sample_us"), "50000");
    assert_eq!(get("monitoring_attrs/nr_regions/max"), "100");
    // The ranges, not the pieces that it began with.
    assert_eq!(get("targets/0/regions/nr_regions"), "2");
    assert_eq!(get("targets/0/regions/1/end"), 0x20_3000.to_string());
}

#[test]
fn update_when_target_has_ended_says_so_and_stop_still_clears_away() {
    let host = Host::new("fvaddr");
    let mut kdamond = host.start().unwrap();
    host.kernel.with(|state| state.running.clear());

    let error = kdamond.update_ranges(&[(Hva(0x1000), 0x1000)]).unwrap_err();

    assert!(
        matches!(error, DamonError::Ended { slot: 0, pid: 77 }),
        "{error}"
    );
    kdamond.stop().unwrap();
    assert_eq!(host.files_left(), [""; 0]);
}

#[test]
fn settings_when_impossible_are_refused_before_anything_is_touched() {
    let host = Host::new("fvaddr");
    let defaults = DamonSettings::default();
    for settings in [
        DamonSettings {
            sampling: Duration::ZERO,
            ..defaults
        },
        DamonSettings {
            aggregation: Duration::from_millis(1),
            ..defaults
        },
        DamonSettings {
            min_regions: 2,
            ..defaults
        },
        DamonSettings {
            max_regions: 5,
            ..defaults
        },
    ] {
        let result = host.damon().start(77, &[(Hva(0x1000), 0x1000)], &settings);
        assert!(
            matches!(result, Err(DamonError::Settings(_))),
            "{settings:?}"
        );
    }
    assert!(matches!(
        host.damon().start(77, &[], &defaults),
        Err(DamonError::Settings(_))
    ));
    assert_eq!(host.kernel.get("nr_kdamonds").as_deref(), Some("0"));
}

#[test]
fn kdamonds_when_read_on_this_host_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Ok(damon) = Damon::open(&SysRoot::real(), folder.path()) else {
        eprintln!("SKIPPED: this kernel has no DAMON, or its files can't be read");
        return;
    };
    let before = damon.kdamonds().unwrap();
    assert_eq!(before, damon.kdamonds().unwrap());
}
