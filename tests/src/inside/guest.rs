//! A guest: its QEMU process, and where its hot pages are in QEMU's memory.

mod command_line;
mod console;

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use self::command_line::{arguments, tsc_khz};
use self::console::{Listener, full_pipe};
use super::measure::cpu_seconds;
use super::monitor::Monitor;
use super::{Limits, RUN_FOLDER, Reporter, locked, scaled};
use crate::event::GuestEvent;
use crate::pagemap::PAGE_BYTES;
use crate::patience::{Moved, Patience};
use crate::scenario::{Guest, System};

/// The inner VMM.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// On the reference machine. A guest that works tells each second that it does; a halted one looks
/// at its console ten times a second.
const BARE_LIMITS: Limits = Limits {
    still: Duration::from_secs(20),
    silent_cpu: Duration::from_secs(30),
};
/// Linux says nothing while it boots, some 10 s, and the workload in it speaks as in a bare guest.
const LINUX_LIMITS: Limits = Limits {
    still: Duration::from_secs(20),
    silent_cpu: Duration::from_secs(90),
};
/// Where the processes of this machine are grouped for their shares of its CPUs.
const CGROUPS: &str = "/sys/fs/cgroup";
/// `cpu.max` counts in periods of so many microseconds.
const CPU_PERIOD_US: u32 = 100_000;
/// QEMU's exit status when nobody reads a bare guest's serial port (see `bare-guest`).
const EXIT_NOT_READ: i32 = 37;
/// A workload reports once a second; a guest that is stopped does not.
/// The firmware's part of the memory ends here.
const MIB: u64 = 1 << 20;
const STALE_AFTER: Duration = Duration::from_secs(3);

/// What the sampler knows of a guest.
#[derive(Debug)]
pub struct Watch {
    /// QEMU's process id.
    pub pid: u32,
    /// The lab's own monitor.
    pub monitor: Monitor,
    /// The workload's last report, and when it came.
    pub updates: Option<(Instant, f64)>,
    /// The longest gap that it reported since the last sample.
    pub gap_ms: Option<u64>,
    /// Guest-physical runs of the hot set that were not yet translated.
    pub new_runs: Option<Vec<[u64; 2]>>,
    /// Addresses of the hot pages in QEMU.
    pub hot_pages: Vec<usize>,
    /// The guest's memory in QEMU, start and bytes, without the first MiB, which is the firmware's.
    pub ram: (u64, u64),
}

/// A running guest.
#[derive(Debug)]
pub struct Running {
    /// The guest's name.
    pub name: String,
    /// Shared with the sampler.
    pub watch: Arc<Mutex<Watch>>,
    child: Child,
    stdin: ChildStdin,
    events: Receiver<GuestEvent>,
    /// Bytes that its console has said.
    said: Arc<AtomicU64>,
    limits: Limits,
    cpu_percent: Option<u32>,
    /// Keeps a serial port that nobody reads from being closed.
    _unread: Option<(PipeReader, Sender<GuestEvent>)>,
}

/// The folder of a guest's sockets.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    Path::new(RUN_FOLDER).join(name)
}

/// The monitor that belongs to the agent.
#[must_use]
pub fn agent_monitor(name: &str) -> PathBuf {
    folder(name).join("qmp.sock")
}

impl Running {
    /// Starts QEMU and waits until the workload in the guest runs.
    ///
    /// # Errors
    /// When QEMU does not start, or the guest stands still, says that it can't go on, or ends.
    pub fn start(guest: &Guest, reporter: &Reporter) -> anyhow::Result<Self> {
        let folder = folder(&guest.name);
        fs::create_dir_all(&folder)?;
        let lab_monitor = folder.join("lab-qmp.sock");
        for socket in [&lab_monitor, &agent_monitor(&guest.name)] {
            let _ = fs::remove_file(socket);
        }
        let full = guest.unread.then(full_pipe).transpose()?;
        let (unread, stdout) = match full {
            Some((reader, writer)) => (Some(reader), Stdio::from(writer)),
            None => (None, Stdio::piped()),
        };
        let mut child = Command::new(QEMU)
            .args(arguments(guest, tsc_khz()?))
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {QEMU}"))?;
        let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            bail!("QEMU has no pipes");
        };
        let stdout = child.stdout.take();
        let source = format!("qemu:{}", guest.name);
        {
            let (reporter, source) = (reporter.clone(), source.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    reporter.log(&source, line);
                }
            });
        }
        // From here on dropping it ends QEMU.
        let mut starting = Starting(Some(child));
        let mut monitor = Monitor::connect_within(&lab_monitor, scaled(Duration::from_secs(20)))
            .context("QEMU's monitor")?;
        let ram = ram(&mut monitor, guest.mib).context("where QEMU has the guest's memory")?;
        let child = starting.0.take().context("QEMU is there once")?;
        let watch = Arc::new(Mutex::new(Watch {
            pid: child.id(),
            monitor,
            updates: None,
            gap_ms: None,
            new_runs: None,
            hot_pages: Vec::new(),
            ram,
        }));
        let (sender, events) = channel();
        let said = Arc::new(AtomicU64::new(0));
        if let Some(stdout) = stdout {
            let listener = Listener {
                guest: guest.name.clone(),
                source,
                reporter: reporter.clone(),
                watch: Arc::clone(&watch),
                said: Arc::clone(&said),
                sender: sender.clone(),
            };
            std::thread::spawn(move || listener.listen(BufReader::new(stdout)));
        }
        let mut running = Self {
            name: guest.name.clone(),
            watch,
            child,
            stdin,
            events,
            said,
            limits: match guest.system {
                System::Bare => BARE_LIMITS,
                System::Linux => LINUX_LIMITS,
            },
            cpu_percent: guest.cpu_percent,
            _unread: unread.map(|reader| (reader, sender)),
        };
        locked(&running.watch)
            .monitor
            .execute("cont", Value::Null)?;
        running.await_up()?;
        Ok(running)
    }

    /// Waits until the workload runs, at the start or after a reset.
    ///
    /// # Errors
    /// As [`Self::await_event`].
    pub fn await_up(&mut self) -> anyhow::Result<()> {
        match self.await_event()? {
            GuestEvent::Up => Ok(()),
            other => bail!("guest {}: {other:?} where up was due", self.name),
        }
    }

    /// Waits for what the workload says next, apart from counts, runs and how far it is.
    ///
    /// # Errors
    /// When the guest stands still or works without a word, QEMU ends, or the workload reports an
    /// error.
    pub fn await_event(&mut self) -> anyhow::Result<GuestEvent> {
        let mut patience = Patience::new(self.limits.scaled(), self.moved(), Instant::now());
        loop {
            match self.events.recv_timeout(Duration::from_millis(500)) {
                Ok(GuestEvent::Error { error }) => bail!("guest {}: {error}", self.name),
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(status) = self.child.try_wait()? {
                        bail!("{}", self.ended(status));
                    }
                    if let Some(why) = patience.look(self.moved(), Instant::now()) {
                        bail!("guest {} {why}", self.name);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{}", self.ended(status));
                }
            }
        }
    }

    /// Whether QEMU still runs.
    ///
    /// # Errors
    /// When it has ended.
    pub fn still_there(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{}", self.ended(status)),
            None => Ok(()),
        }
    }

    fn moved(&self) -> Moved {
        Moved {
            bytes: self.said.load(Ordering::Relaxed),
            cpu_s: cpu_seconds(self.child.id()).unwrap_or(0.0),
        }
    }

    fn ended(&self, status: ExitStatus) -> String {
        match status.code() {
            Some(EXIT_NOT_READ) => format!("guest {}: nobody reads its serial port", self.name),
            _ => format!("QEMU of guest {} ended ({status})", self.name),
        }
    }

    /// Types a line on the guest's console.
    ///
    /// # Errors
    /// When QEMU has gone.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let said = writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush());
        let Err(error) = said else {
            return Ok(());
        };
        // QEMU closes its console a moment before it has ended.
        std::thread::sleep(Duration::from_millis(500));
        self.still_there()?;
        Err(error).with_context(|| format!("console of guest {}", self.name))
    }

    /// Kills QEMU and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Keeps the virtual CPUs to their share from now on, if they have one.
    ///
    /// # Errors
    /// When QEMU does not answer or the kernel refuses.
    pub fn limit_cpu(&self) -> anyhow::Result<()> {
        let Some(percent) = self.cpu_percent else {
            return Ok(());
        };
        let threads = locked(&self.watch).monitor.vcpu_threads()?;
        limit_cpu(&self.name, &threads, percent)
    }

    /// Lets the virtual CPUs take what there is.
    pub fn unlimit_cpu(&self) {
        if self.cpu_percent.is_some() {
            // It stays slow then, no more.
            let _ = fs::write(Path::new(CGROUPS).join(&self.name).join("cpu.max"), "max");
        }
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// QEMU before its guest is known to run; dropping it ends it.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Puts the threads of a guest's virtual CPUs into a group of their own that gets so much of a CPU
/// for each. The rest of QEMU is not limited: its monitor shall answer.
fn limit_cpu(name: &str, threads: &[u32], percent: u32) -> anyhow::Result<()> {
    let folder = Path::new(CGROUPS).join(name);
    let attempt = || -> std::io::Result<()> {
        fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), "+cpu")?;
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("cgroup.type"), "threaded")?;
        let quota = CPU_PERIOD_US / 100 * percent * threads.len() as u32;
        fs::write(folder.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?;
        for thread in threads {
            fs::write(folder.join("cgroup.threads"), thread.to_string())?;
        }
        Ok(())
    };
    attempt().with_context(|| format!("limiting the CPU of guest {name} in {}", folder.display()))
}

impl Watch {
    /// The workload's throughput; `None` when it has not reported lately.
    #[must_use]
    pub fn updates_per_s(&self) -> Option<f64> {
        let (when, rate) = self.updates?;
        (when.elapsed() < STALE_AFTER).then_some(rate)
    }

    /// Translates runs that have come since the last call.
    ///
    /// # Errors
    /// When QEMU does not answer or says that a run is no memory.
    pub fn translate(&mut self) -> anyhow::Result<()> {
        let Some(runs) = self.new_runs.take() else {
            return Ok(());
        };
        // Scattered hot pages are thousands of runs: QEMU was asked once for all, see `ram`.
        let (start, length) = self.ram;
        let mut pages = Vec::new();
        for [gpa, bytes] in runs {
            let behind = gpa
                .checked_sub(MIB)
                .filter(|at| at.checked_add(bytes).is_some_and(|end| end <= length));
            let Some(behind) = behind else {
                bail!("run {gpa:#x}+{bytes:#x} is not in the guest's memory");
            };
            let first = usize::try_from(start + behind)?;
            pages.extend((first..first + usize::try_from(bytes)?).step_by(PAGE_BYTES));
        }
        self.hot_pages = pages;
        Ok(())
    }

    /// The guest-physical address of an address in QEMU; `None` outside the guest's memory.
    #[must_use]
    pub fn guest_address(&self, address: usize) -> Option<u64> {
        let (start, bytes) = self.ram;
        let behind = u64::try_from(address).ok()?.checked_sub(start)?;
        (behind < bytes).then_some(MIB + behind)
    }
}

/// A microvm of less than 3 GiB has its memory in one piece, from guest-physical address 0 on.
fn ram(monitor: &mut Monitor, mib: u64) -> anyhow::Result<(u64, u64)> {
    let start = monitor.host_address(MIB)?;
    let bytes = mib.saturating_sub(1) * MIB;
    let last = monitor.host_address(MIB + bytes - PAGE_BYTES as u64)?;
    if last != start + bytes - PAGE_BYTES as u64 {
        bail!("the memory of {mib} MiB is not in one piece");
    }
    Ok((start, bytes))
}
