//! Why the kernel refuses a perf event, and what an operator can do about it. Pure but for
//! [`Surroundings::read`].
//!
//! Error numbers are those of `perf_event_open` in `kernel/events/core.c` and of the x86 PMU drivers
//! in `arch/x86/events` (Linux 6.12); where one number has several causes, the surroundings tell which
//! is the likeliest.

use std::fmt;

use rustix::process::{Resource, getrlimit};

use crate::{
    process::{Capabilities, effective_capabilities},
    sysroot::{SysRoot, read_value_optional},
};

/// What was asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `perf_event_open`.
    Open,
    /// The mmap of the ring.
    Map,
    /// An ioctl or a poll on the open event.
    Use,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "opened",
            Self::Map => "mapped",
            Self::Use => "used",
        })
    }
}

/// What counts of an event for the reading of an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Whether the event needs a PMU: its type is none of the kernel's software ones.
    pub hardware: bool,
    /// `precise_ip`.
    pub precise_ip: u8,
    /// Whether guest mode is left out.
    pub exclude_guest: bool,
}

/// Why an event was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// `perf_event_paranoid` and our capabilities don't allow it.
    Paranoid,
    /// A security module, a seccomp filter or the target's owner forbids it although paranoid would not.
    Forbidden,
    /// The ring is over the limit of locked memory.
    LockedMemory,
    /// No more open files for this process.
    FileLimit,
    /// No more open files on this host.
    HostFileLimit,
    /// There is no PMU at all in this machine.
    NoPmu,
    /// There is a PMU, but it can't sample precisely (a guest's PMU without PEBS, say).
    NotPrecise,
    /// KVM gives the PMU to guests whole (mediated vPMU), so an event that also counts guests is refused.
    GivenToGuests,
    /// The kernel or the CPU does not know the event.
    UnknownEvent,
    /// The CPU or the driver does not support what was asked.
    Unsupported,
    /// All hardware counters are in use.
    CountersFull,
    /// Somebody has the PMU for himself.
    Exclusive,
    /// The load event needs its auxiliary event in front of it in its group.
    MissingAux,
    /// The thread is gone.
    ThreadGone,
    /// A part of the description is wrong for this PMU.
    BadDescription,
    /// The kernel is older than the description.
    TooOldKernel,
    /// Not enough memory.
    NoMemory,
    /// The kernel was built without perf events, or a filter hides the call.
    NoPerf,
    /// Something else.
    Other,
}

/// What the advice needs to know of the host and of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `kernel.perf_event_paranoid`.
    pub paranoid: Option<i32>,
    /// `kernel.perf_event_mlock_kb`.
    pub mlock_kib: Option<u64>,
    /// Whether the NMI watchdog runs, which takes a counter of each CPU.
    pub nmi_watchdog: Option<bool>,
    /// Whether the kernel has a PMU of the CPU's cores.
    pub has_pmu: bool,
    /// The highest `precise_ip` of that PMU.
    pub max_precise: Option<u8>,
    /// The limit of open files of this process; `None` for no limit.
    pub open_files: Option<u64>,
    /// The limit of locked memory of this process, in bytes; `None` for no limit.
    pub locked_bytes: Option<u64>,
    /// Our capabilities.
    pub capabilities: Capabilities,
}

impl Surroundings {
    /// Reads them. What can't be read is unknown.
    #[must_use]
    pub fn read(root: &SysRoot) -> Self {
        let kernel = |name: &str| root.proc("sys/kernel").join(name);
        let devices = root.sys("bus/event_source/devices");
        // A hybrid part has two; the cores that matter have the first.
        let pmu = ["cpu", "cpu_core", "cpu_atom"]
            .into_iter()
            .map(|name| devices.join(name))
            .find(|path| path.join("type").exists());
        Self {
            paranoid: read_value_optional(&kernel("perf_event_paranoid"))
                .ok()
                .flatten(),
            mlock_kib: read_value_optional(&kernel("perf_event_mlock_kb"))
                .ok()
                .flatten(),
            nmi_watchdog: read_value_optional::<u32>(&kernel("nmi_watchdog"))
                .ok()
                .flatten()
                .map(|on| on != 0),
            has_pmu: pmu.is_some(),
            max_precise: pmu.and_then(|path| {
                read_value_optional(&path.join("caps/max_precise"))
                    .ok()
                    .flatten()
            }),
            open_files: getrlimit(Resource::Nofile).current,
            locked_bytes: getrlimit(Resource::Memlock).current,
            capabilities: effective_capabilities(),
        }
    }

    /// Whether paranoid and our capabilities allow events on other users' threads, with the kernel's
    /// own part.
    fn allows_all(&self) -> bool {
        let own = self.capabilities;
        let paranoid = self.paranoid.unwrap_or(2);
        // Debian's and Ubuntu's patch: from 3 (4) on CAP_PERFMON is not enough.
        own.sys_admin || (own.perfmon && paranoid < 3) || paranoid < 0
    }
}

impl Refusal {
    /// What the kernel's answer to `step` means.
    #[must_use]
    pub fn of(step: Step, errno: i32, asked: Asked, around: &Surroundings) -> Self {
        match errno {
            libc::EPERM if step == Step::Map => Self::LockedMemory,
            libc::EACCES | libc::EPERM if around.allows_all() => Self::Forbidden,
            libc::EACCES | libc::EPERM => Self::Paranoid,
            libc::EMFILE => Self::FileLimit,
            libc::ENFILE => Self::HostFileLimit,
            libc::ESRCH => Self::ThreadGone,
            libc::ENODEV | libc::ENOENT | libc::EOPNOTSUPP if asked.hardware && !around.has_pmu => {
                Self::NoPmu
            }
            libc::ENODEV | libc::ENOENT | libc::ENXIO => Self::UnknownEvent,
            libc::EOPNOTSUPP
                if asked.precise_ip > 0
                    && around
                        .max_precise
                        .is_some_and(|most| most < asked.precise_ip) =>
            {
                Self::NotPrecise
            }
            libc::EOPNOTSUPP if asked.hardware && !asked.exclude_guest => Self::GivenToGuests,
            libc::EOPNOTSUPP => Self::Unsupported,
            libc::ENOSPC => Self::CountersFull,
            libc::EBUSY => Self::Exclusive,
            libc::ENODATA => Self::MissingAux,
            libc::EINVAL | libc::EOVERFLOW => Self::BadDescription,
            libc::E2BIG => Self::TooOldKernel,
            libc::ENOMEM | libc::EAGAIN => Self::NoMemory,
            libc::ENOSYS => Self::NoPerf,
            _ => Self::Other,
        }
    }

    /// What it means and what to do, one line.
    #[must_use]
    pub fn advice(self, around: &Surroundings) -> String {
        let shown = |value: Option<u64>| value.map_or("not known".to_owned(), |n| n.to_string());
        match self {
            Self::Paranoid => {
                let paranoid = around.paranoid.map_or("not known".to_owned(), |n| n.to_string());
                let need = match around.paranoid {
                    Some(3..) => "at 3 and above CAP_SYS_ADMIN is asked for, CAP_PERFMON is not enough",
                    _ => "CAP_PERFMON is enough",
                };
                format!(
                    "no permission (kernel.perf_event_paranoid is {paranoid}): run as root, or give \
                     the agent the capability ({need})"
                )
            }
            Self::Forbidden => "permission was denied although perf_event_paranoid and our \
                 capabilities allow it: look for a security module (dmesg, ausearch -m avc), a seccomp \
                 filter of the service or the container, or kernel lockdown"
                .to_owned(),
            Self::LockedMemory => format!(
                "locked memory is used up (kernel.perf_event_mlock_kb is {}, RLIMIT_MEMLOCK is {}): \
                 raise kernel.perf_event_mlock_kb or LimitMEMLOCK, or give the agent CAP_IPC_LOCK",
                shown(around.mlock_kib),
                around
                    .locked_bytes
                    .map_or("unlimited".to_owned(), |n| format!("{} KiB", n >> 10)),
            ),
            Self::FileLimit => format!(
                "too many open files (RLIMIT_NOFILE is {}): raise LimitNOFILE; each vCPU thread needs \
                 one file an event",
                around
                    .open_files
                    .map_or("unlimited".to_owned(), |n| n.to_string()),
            ),
            Self::HostFileLimit => {
                "too many open files on this host: raise fs.file-max or end what holds them".to_owned()
            }
            Self::NoPmu => "this machine has no PMU (a virtual machine without one, or a kernel \
                 without its driver): choose another source, or give this machine a PMU (-cpu \
                 host,pmu=on)"
                .to_owned(),
            Self::NotPrecise => format!(
                "the PMU can't sample addresses (caps/max_precise is {}): choose another source; in a \
                 virtual machine the host must hand PEBS on",
                around.max_precise.map_or("not known".to_owned(), |n| n.to_string()),
            ),
            Self::GivenToGuests => "the PMU can't do this while it also counts guests; where KVM hands \
                 it to guests whole (mediated vPMU), exclude guests, or load KVM with enable_mediated_pmu=0"
                .to_owned(),
            Self::Unsupported => "the hardware or its driver can't do this: choose another source"
                .to_owned(),
            Self::UnknownEvent => {
                "the kernel or this CPU does not know the event: choose another source".to_owned()
            }
            Self::CountersFull => {
                format!("all hardware counters are in use: end other perf sessions{}", watchdog(around))
            }
            Self::Exclusive => format!(
                "somebody has the PMU for himself: end other perf, Intel PT or BTS sessions, or leave \
                 it to whoever reserved it (a hypervisor or a driver){}",
                watchdog(around)
            ),
            Self::MissingAux => "this CPU's load event (mem-loads) works only in a group behind \
                 mem-loads-aux: open the group, or ask for no data source"
                .to_owned(),
            Self::ThreadGone => "the thread is gone: look for it again".to_owned(),
            Self::BadDescription => {
                "this PMU does not take a part of the event's description".to_owned()
            }
            Self::TooOldKernel => "the kernel is older than the event's description".to_owned(),
            Self::NoMemory => "not enough memory for the event or its ring: make the ring smaller".to_owned(),
            Self::NoPerf => "the kernel has no perf events (CONFIG_PERF_EVENTS), or a seccomp filter \
                 hides them"
                .to_owned(),
            Self::Other => "see the kernel's answer".to_owned(),
        }
    }
}

fn watchdog(around: &Surroundings) -> &'static str {
    match around.nmi_watchdog {
        Some(true) => "; the NMI watchdog takes one too (sysctl kernel.nmi_watchdog=0 frees it)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Capabilities = Capabilities {
        sys_admin: true,
        sys_nice: true,
        perfmon: true,
        sys_ptrace: true,
        ipc_lock: true,
        dac_read_search: true,
    };

    /// A host with a PMU on which all is well.
    fn host() -> Surroundings {
        Surroundings {
            paranoid: Some(2),
            mlock_kib: Some(516),
            nmi_watchdog: Some(false),
            has_pmu: true,
            max_precise: Some(3),
            open_files: Some(1024),
            locked_bytes: Some(8 << 20),
            capabilities: ROOT,
        }
    }

    const PEBS: Asked = Asked {
        hardware: true,
        precise_ip: 2,
        exclude_guest: true,
    };

    fn opened(errno: i32, asked: Asked, around: &Surroundings) -> (Refusal, String) {
        let refusal = Refusal::of(Step::Open, errno, asked, around);
        (refusal, refusal.advice(around))
    }

    #[test]
    fn refusal_when_paranoid_forbids_names_its_value_and_the_capability() {
        let user = Surroundings {
            capabilities: Capabilities::default(),
            ..host()
        };
        let (refusal, advice) = opened(libc::EACCES, PEBS, &user);
        assert_eq!(refusal, Refusal::Paranoid);
        assert!(
            advice.contains("paranoid is 2") && advice.contains("CAP_PERFMON is enough"),
            "{advice}"
        );

        // Debian: CAP_PERFMON does not help at 3.
        let debian = Surroundings {
            paranoid: Some(3),
            capabilities: Capabilities {
                perfmon: true,
                ..Capabilities::default()
            },
            ..host()
        };
        let (refusal, advice) = opened(libc::EACCES, PEBS, &debian);
        assert_eq!(refusal, Refusal::Paranoid);
        assert!(advice.contains("CAP_SYS_ADMIN is asked for"), "{advice}");
    }

    #[test]
    fn refusal_when_capabilities_would_do_looks_for_another_guard() {
        let (refusal, advice) = opened(libc::EPERM, PEBS, &host());
        assert_eq!(refusal, Refusal::Forbidden);
        assert!(advice.contains("seccomp"), "{advice}");
    }

    #[test]
    fn refusal_when_the_ring_is_over_the_limit_names_both_limits() {
        let refusal = Refusal::of(Step::Map, libc::EPERM, PEBS, &host());
        assert_eq!(refusal, Refusal::LockedMemory);
        let advice = refusal.advice(&host());
        assert!(
            advice.contains("mlock_kb is 516") && advice.contains("8192 KiB"),
            "{advice}"
        );
    }

    #[test]
    fn refusal_when_files_are_used_up_names_the_limit() {
        let (refusal, advice) = opened(libc::EMFILE, PEBS, &host());
        assert_eq!(refusal, Refusal::FileLimit);
        assert!(
            advice.contains("1024") && advice.contains("LimitNOFILE"),
            "{advice}"
        );
        assert_eq!(
            opened(libc::ENFILE, PEBS, &host()).0,
            Refusal::HostFileLimit
        );
    }

    #[test]
    fn refusal_when_there_is_no_pmu_says_so_for_hardware_events_only() {
        let bare = Surroundings {
            has_pmu: false,
            max_precise: None,
            ..host()
        };
        for errno in [libc::ENOENT, libc::ENODEV, libc::EOPNOTSUPP] {
            assert_eq!(opened(errno, PEBS, &bare).0, Refusal::NoPmu);
        }
        let software = Asked::default();
        assert_eq!(
            opened(libc::ENOENT, software, &bare).0,
            Refusal::UnknownEvent
        );
    }

    #[test]
    fn refusal_when_not_supported_tells_its_three_causes_apart() {
        let no_pebs = Surroundings {
            max_precise: Some(0),
            ..host()
        };
        let (refusal, advice) = opened(libc::EOPNOTSUPP, PEBS, &no_pebs);
        assert_eq!(refusal, Refusal::NotPrecise);
        assert!(advice.contains("max_precise is 0"), "{advice}");

        let with_guests = Asked {
            exclude_guest: false,
            ..PEBS
        };
        let (refusal, advice) = opened(libc::EOPNOTSUPP, with_guests, &host());
        assert_eq!(refusal, Refusal::GivenToGuests);
        assert!(advice.contains("mediated"), "{advice}");

        assert_eq!(
            opened(libc::EOPNOTSUPP, PEBS, &host()).0,
            Refusal::Unsupported
        );
    }

    #[test]
    fn refusal_when_counters_are_taken_mentions_a_running_watchdog() {
        let watched = Surroundings {
            nmi_watchdog: Some(true),
            ..host()
        };
        for (errno, expected) in [
            (libc::ENOSPC, Refusal::CountersFull),
            (libc::EBUSY, Refusal::Exclusive),
        ] {
            let (refusal, advice) = opened(errno, PEBS, &watched);
            assert_eq!(refusal, expected);
            assert!(advice.contains("nmi_watchdog=0"), "{advice}");
            assert!(!opened(errno, PEBS, &host()).1.contains("nmi_watchdog"));
        }
    }

    #[test]
    fn refusal_when_the_aux_event_is_missing_says_to_open_the_group() {
        let (refusal, advice) = opened(libc::ENODATA, PEBS, &host());
        assert_eq!(refusal, Refusal::MissingAux);
        assert!(advice.contains("mem-loads-aux"), "{advice}");
    }

    #[test]
    fn refusal_when_of_the_other_kinds_has_an_advice_of_its_own() {
        let expected = [
            (libc::ESRCH, Refusal::ThreadGone),
            (libc::EINVAL, Refusal::BadDescription),
            (libc::E2BIG, Refusal::TooOldKernel),
            (libc::ENOMEM, Refusal::NoMemory),
            (libc::ENOSYS, Refusal::NoPerf),
            (libc::EIO, Refusal::Other),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for (errno, refusal) in expected {
            let (found, advice) = opened(errno, PEBS, &host());
            assert_eq!(found, refusal);
            assert!(!advice.is_empty() && seen.insert(advice));
        }
    }

    #[test]
    fn surroundings_when_read_from_a_tree_find_the_hybrid_cores() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/sys/kernel/perf_event_paranoid", "4\n");
        write("proc/sys/kernel/nmi_watchdog", "1\n");
        let devices = "sys/bus/event_source/devices";
        write(&format!("{devices}/cpu_core/type"), "4\n");
        write(&format!("{devices}/cpu_core/caps/max_precise"), "3\n");

        let around = Surroundings::read(&SysRoot::at(folder.path()));

        assert_eq!((around.paranoid, around.mlock_kib), (Some(4), None));
        assert_eq!(around.nmi_watchdog, Some(true));
        assert_eq!((around.has_pmu, around.max_precise), (true, Some(3)));
    }
}
