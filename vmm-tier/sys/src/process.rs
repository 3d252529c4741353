//! Processes: who we are and may do, and what can be said of another process.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit},
    thread::{CapabilitySet, capabilities},
    time::{ClockId, clock_gettime},
};
use tier_core::time::Time;

use crate::sysroot::{ParseError, SMALL_FILE, SysRoot, SysRootError, read_text};

/// The longest command line that is kept: QEMU's have some kilobytes.
const MAX_COMMAND_LINE: u64 = 256 << 10;

/// The capabilities that vmm-tier makes use of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Capabilities {
    /// Write DAMON's sysfs, open perf events at any paranoid level, mount tracefs.
    pub sys_admin: bool,
    /// Move pages that several processes map.
    pub sys_nice: bool,
    /// Open perf events of other users' processes.
    pub perfmon: bool,
    /// Look into and move pages of other users' processes.
    pub sys_ptrace: bool,
    /// Lock memory (perf rings) beyond the limit.
    pub ipc_lock: bool,
    /// Read every file.
    pub dac_read_search: bool,
}

impl From<CapabilitySet> for Capabilities {
    fn from(set: CapabilitySet) -> Self {
        Self {
            sys_admin: set.contains(CapabilitySet::SYS_ADMIN),
            sys_nice: set.contains(CapabilitySet::SYS_NICE),
            perfmon: set.contains(CapabilitySet::PERFMON),
            sys_ptrace: set.contains(CapabilitySet::SYS_PTRACE),
            ipc_lock: set.contains(CapabilitySet::IPC_LOCK),
            dac_read_search: set.contains(CapabilitySet::DAC_READ_SEARCH),
        }
    }
}

/// The effective capabilities of this thread; none if the kernel won't tell.
#[must_use]
pub fn effective_capabilities() -> Capabilities {
    capabilities(None)
        .map(|sets| sets.effective.into())
        .unwrap_or_default()
}

/// Now on `CLOCK_MONOTONIC`, the clock of all samples.
#[must_use]
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part of this clock is ever negative.
    let (seconds, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    Time(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The signals that tell this process to end: SIGTERM, SIGINT and SIGHUP. SIGHUP is left out if the process
/// was started with it ignored: `nohup` asks so for a program that outlives its terminal.
#[must_use]
pub fn ending_signals(root: &SysRoot) -> Vec<i32> {
    let status = read_text(&root.proc("self/status"), SMALL_FILE).unwrap_or_default();
    let mut signals = vec![libc::SIGTERM, libc::SIGINT];
    if !ignores(&status, libc::SIGHUP) {
        signals.push(libc::SIGHUP);
    }
    signals
}

/// Whether a process ignores a signal, by the text of its `/proc/PID/status`.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    // Signals count from 1 (proc_pid_status(5)).
    mask & (1 << (signal - 1)) != 0
}

/// The random id of this boot: what was recorded under another one is void.
///
/// # Errors
/// [`SysRootError`] if the file can't be read.
pub fn boot_id(root: &SysRoot) -> Result<String, SysRootError> {
    let path = root.proc("sys/kernel/random/boot_id");
    Ok(read_text(&path, SMALL_FILE)?.trim().to_owned())
}

/// What `/proc/PID/stat` says of a process or thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name in brackets, at most 15 bytes.
    pub comm: String,
    /// `R`, `S`, `D`, `Z` …
    pub state: char,
    /// CPU time used, user and system.
    pub cpu_time: Duration,
    /// The part of the CPU time for which a guest's virtual CPUs ran; 0 from a kernel that does not say.
    pub guest_time: Duration,
    /// When it began, in clock ticks since boot. Together with the pid this names a process for
    /// good, until the next boot.
    pub start_ticks: u64,
    /// The CPU that it ran on last; `None` from a kernel that does not say.
    pub last_cpu: Option<u32>,
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
/// [`SysRootError`]; see [`SysRootError::is_process_gone`].
pub fn stat(root: &SysRoot, pid: u32) -> Result<Stat, SysRootError> {
    stat_file(&root.process(pid, "stat"))
}

/// Reads `/proc/PID/task/TID/stat`.
///
/// # Errors
/// As [`stat`].
pub fn thread_stat(root: &SysRoot, pid: u32, tid: u32) -> Result<Stat, SysRootError> {
    stat_file(&root.process(pid, format!("task/{tid}/stat")))
}

/// A process, told from a later one with its number.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot.
    pub start: u64,
    /// The boot in which both hold.
    pub boot_id: String,
}

impl Identity {
    /// The identity of the process that has this number now.
    ///
    /// # Errors
    /// As [`stat`].
    pub fn read(root: &SysRoot, pid: u32) -> Result<Self, SysRootError> {
        Ok(Self {
            pid,
            start: stat(root, pid)?.start_ticks,
            boot_id: boot_id(root)?,
        })
    }

    /// As [`Self::read`]. A process that is gone has an identity that no other will have.
    #[must_use]
    pub fn of(root: &SysRoot, pid: u32) -> Self {
        Self {
            pid,
            start: stat(root, pid).map_or(0, |stat| stat.start_ticks),
            boot_id: boot_id(root).unwrap_or_default(),
        }
    }

    /// Whether the process is still there, and is no zombie.
    #[must_use]
    pub fn is_alive(&self, root: &SysRoot) -> bool {
        let is_zombie = stat(root, self.pid).is_ok_and(|stat| stat.state == 'Z');
        self.start > 0 && !is_zombie && *self == Self::of(root, self.pid)
    }
}

fn stat_file(path: &Path) -> Result<Stat, SysRootError> {
    parse_stat(&read_text(path, SMALL_FILE)?).map_err(|error| error.in_file(path))
}

/// Parses the text of a `stat` file.
///
/// # Errors
/// [`ParseError`] if a field is missing or no number.
pub fn parse_stat(text: &str) -> Result<Stat, ParseError> {
    let error = |what: &str| ParseError::at(0, what);
    // The name may itself hold brackets and spaces: it ends at the last bracket.
    let (name, rest) = text
        .rsplit_once(')')
        .ok_or_else(|| error("no name in brackets"))?;
    let comm = name
        .split_once('(')
        .ok_or_else(|| error("no name in brackets"))?
        .1
        .to_owned();
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize, what: &str| -> Result<u64, ParseError> {
        fields
            .get(index)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| error(what))
    };
    // Fields count from 3 behind the name (proc_pid_stat(5)): utime 14, stime 15, starttime 22,
    // processor 39, guest_time 43.
    let ticks = number(14 - 3, "no utime")?.saturating_add(number(15 - 3, "no stime")?);
    let state = fields.first().and_then(|text| text.chars().next());
    Ok(Stat {
        comm,
        state: state.ok_or_else(|| error("no state"))?,
        cpu_time: ticks_to_duration(ticks),
        guest_time: ticks_to_duration(number(43 - 3, "").unwrap_or(0)),
        start_ticks: number(22 - 3, "no starttime")?,
        last_cpu: fields.get(39 - 3).and_then(|text| text.parse().ok()),
    })
}

fn ticks_to_duration(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// CPU time of the calling thread so far: what its kernel calls cost, whoever else has the CPU meanwhile.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The command line of a process, one string an argument; empty for a kernel thread.
///
/// # Errors
/// As [`stat`].
pub fn command_line(root: &SysRoot, pid: u32) -> Result<Vec<String>, SysRootError> {
    let text = read_text(&root.process(pid, "cmdline"), MAX_COMMAND_LINE)?;
    let arguments = text.strip_suffix('\0').unwrap_or(&text);
    Ok(match arguments {
        "" => Vec::new(),
        arguments => arguments.split('\0').map(str::to_owned).collect(),
    })
}

/// The effective user of a process.
///
/// # Errors
/// As [`stat`].
pub fn user_of(root: &SysRoot, pid: u32) -> Result<u32, SysRootError> {
    let path = root.process(pid, "status");
    let text = read_text(&path, SMALL_FILE)?;
    let ids = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved and file system's (proc_pid_status(5)).
    let effective = ids.and_then(|ids| ids.split_ascii_whitespace().nth(1)?.parse().ok());
    effective.ok_or_else(|| ParseError::at(0, "no user").in_file(&path))
}

/// Lets this process have as many files open as it may. Returns how many, `None` for no bound.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // What is refused stays as it was.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current
}

/// A process held by a descriptor: the pid can't be given to another one unnoticed.
#[derive(Debug)]
pub struct ProcessHandle {
    fd: OwnedFd,
}

impl ProcessHandle {
    /// Opens the process.
    ///
    /// # Errors
    /// `ESRCH` if there is none (or `pid` is 0), `EMFILE`.
    pub fn open(pid: u32) -> io::Result<Self> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        Ok(Self {
            fd: pidfd_open(pid, PidfdFlags::empty())?,
        })
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Waits up to `timeout` for the process to end; `true` if it has.
    ///
    /// # Errors
    /// The kernel's, if it can't wait.
    pub fn wait_for_exit(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_stat_when_name_holds_brackets_finds_the_fields_behind() {
        // proc_pid_stat(5), field 14 = 150 and 15 = 50 ticks, 22 = 4711.
        let text =
            "42 (a) b (c)) S 1 42 42 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 1 0 4711 100 2 3\n";

        let stat = parse_stat(text).unwrap();

        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.start_ticks),
            ("a) b (c)", 'S', 4711)
        );
        assert_eq!(stat.cpu_time, ticks_to_duration(200));
    }

    #[test]
    fn parse_stat_when_cut_short_is_an_error() {
        for text in [
            "",
            "42",
            "42 (x",
            "42 (x) S 1 2",
            "42 (x) S 1 42 42 0 -1 4 9 0 0 0 x 50",
        ] {
            assert!(parse_stat(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ending_signals_when_hup_is_ignored_are_without_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/self")).unwrap();
        let root = SysRoot::at(folder.path());
        // SIGHUP is bit 0, SIGINT bit 1, SIGPIPE bit 12 (signal(7) numbers them from 1).
        for (mask, has_hup) in [("1000", true), ("1001", false), ("1002", true), ("", true)] {
            let status = format!("Name:\tx\nSigBlk:\t0001\nSigIgn:\t{mask}\nSigCgt:\t0001\n");
            std::fs::write(root.proc("self/status"), status).unwrap();

            let signals = ending_signals(&root);

            assert_eq!(signals.contains(&libc::SIGHUP), has_hup, "{mask}");
            assert!(signals.starts_with(&[libc::SIGTERM, libc::SIGINT]));
        }
    }

    #[test]
    fn stat_when_asked_for_ourselves_is_stable_in_its_start() {
        let (root, pid) = (SysRoot::real(), std::process::id());

        let (first, second) = (stat(&root, pid).unwrap(), stat(&root, pid).unwrap());

        assert_eq!(first.start_ticks, second.start_ticks);
        assert!(thread_stat(&root, pid, pid).is_ok());
        assert!(!command_line(&root, pid).unwrap().is_empty());
    }

    #[test]
    fn identity_when_anything_differs_is_not_alive() {
        let root = SysRoot::real();
        let own = Identity::read(&root, std::process::id()).unwrap();
        assert_eq!(own, Identity::of(&root, own.pid));
        assert!(own.is_alive(&root));

        let later = Identity {
            start: own.start + 1,
            ..own.clone()
        };
        let rebooted = Identity {
            boot_id: "another".to_owned(),
            ..own
        };
        // No process has a number this high (PID_MAX_LIMIT is 2²²).
        let gone = Identity::of(&root, 5_000_000);
        for identity in [later, rebooted, gone] {
            assert!(!identity.is_alive(&root), "{identity:?}");
        }
        assert!(Identity::read(&root, 5_000_000).is_err());
    }

    #[test]
    fn capabilities_when_read_agree_with_proc() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .unwrap();
        let bits = u64::from_str_radix(line.trim(), 16).unwrap();

        // CAP_SYS_NICE is bit 23, CAP_SYS_ADMIN bit 21 (linux/capability.h).
        let own = effective_capabilities();
        assert_eq!(own.sys_nice, bits & (1 << 23) != 0);
        assert_eq!(own.sys_admin, bits & (1 << 21) != 0);
    }

    #[test]
    fn process_handle_when_child_ends_says_so() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let handle = ProcessHandle::open(child.id()).unwrap();
        assert!(!handle.wait_for_exit(Duration::ZERO).unwrap());

        child.kill().unwrap();

        assert!(handle.wait_for_exit(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert!(ProcessHandle::open(0).is_err());
    }

    #[test]
    fn now_when_called_twice_does_not_go_back() {
        let first = now();
        assert!(now() >= first);
    }
}
