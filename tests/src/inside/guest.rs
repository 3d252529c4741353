//! A guest: its QEMU process, its console, and where its hot pages are in QEMU's memory.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::monitor::Monitor;
use super::{RUN_FOLDER, Reporter, locked};
use crate::event::{GuestEvent, guest_event};
use crate::scenario::{Backend, Guest, GuestAgent};
use crate::workload::PAGE_BYTES;

/// The inner VMM.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// The context id of a guest with a vsock device.
const GUEST_CID: u32 = 3;
/// A boot takes about 10 s; a busy machine can make it several times that.
const UP_WITHIN: Duration = Duration::from_secs(90);
/// A workload reports once a second; a guest that is stopped does not.
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
    /// Guest-physical runs that were not yet translated.
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
    /// Starts QEMU and waits until the guest's first process runs.
    ///
    /// # Errors
    /// When QEMU does not start or the guest is not up within a minute.
    pub fn start(guest: &Guest, reporter: &Reporter) -> anyhow::Result<Self> {
        let folder = folder(&guest.name);
        std::fs::create_dir_all(&folder)?;
        let lab_monitor = folder.join("lab-qmp.sock");
        for socket in [&lab_monitor, &agent_monitor(&guest.name)] {
            let _ = std::fs::remove_file(socket);
        }
        let mut child = Command::new(QEMU)
            .args(arguments(guest))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {QEMU}"))?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            bail!("QEMU has no pipes");
        };
        let source = format!("qemu:{}", guest.name);
        {
            let (reporter, source) = (reporter.clone(), source.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    reporter.log(&source, line);
                }
            });
        }
        let mut monitor = match Monitor::connect_within(&lab_monitor, Duration::from_secs(20)) {
            Ok(monitor) => monitor,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.context("QEMU's monitor"));
            }
        };
        let ram = match ram(&mut monitor, guest.mib) {
            Ok(ram) => ram,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.context("where QEMU has the guest's memory"));
            }
        };
        let watch = Arc::new(Mutex::new(Watch {
            pid: child.id(),
            monitor,
            updates: None,
            new_runs: None,
            hot_pages: Vec::new(),
            ram,
        }));
        let (sender, events) = channel();
        {
            let (reporter, watch) = (reporter.clone(), Arc::clone(&watch));
            std::thread::spawn(move || {
                listen(BufReader::new(stdout), &source, &reporter, &watch, &sender);
            });
        }
        let mut running = Self {
            name: guest.name.clone(),
            watch,
            child,
            stdin,
            events,
        };
        running.await_up()?;
        Ok(running)
    }

    /// Waits until the guest's first process runs, at the start or after a reset.
    ///
    /// # Errors
    /// When it does not within a minute and a half.
    pub fn await_up(&mut self) -> anyhow::Result<()> {
        match self.await_event(UP_WITHIN)? {
            GuestEvent::Up => Ok(()),
            other => bail!("guest {}: {other:?} where up was due", self.name),
        }
    }

    /// Waits for what the workload says next, apart from counts and runs.
    ///
    /// # Errors
    /// When nothing is said within `within`, QEMU ends, or the workload reports an error.
    pub fn await_event(&mut self, within: Duration) -> anyhow::Result<GuestEvent> {
        match self.events.recv_timeout(within) {
            Ok(GuestEvent::Error { error }) => bail!("guest {}: {error}", self.name),
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "guest {} said nothing for {} s",
                    self.name,
                    within.as_secs()
                )
            }
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU of guest {} ended", self.name),
        }
    }

    /// Types a line on the guest's console.
    ///
    /// # Errors
    /// When QEMU has gone.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.stdin, "{line}")?;
        self.stdin
            .flush()
            .with_context(|| format!("console of guest {}", self.name))
    }

    /// Kills QEMU and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

fn listen(
    console: impl BufRead,
    source: &str,
    reporter: &Reporter,
    watch: &Mutex<Watch>,
    sender: &Sender<GuestEvent>,
) {
    let mut gathered: Vec<[u64; 2]> = Vec::new();
    for line in console.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        match guest_event(&line) {
            None => reporter.log(source, line.trim_end()),
            Some(GuestEvent::Updates { count, ms }) => {
                let rate = count as f64 * 1000.0 / ms.max(1) as f64;
                locked(watch).updates = Some((Instant::now(), rate));
            }
            Some(GuestEvent::Runs { runs, first, last }) => {
                if first {
                    gathered.clear();
                }
                gathered.extend(runs);
                if last {
                    locked(watch).new_runs = Some(std::mem::take(&mut gathered));
                }
            }
            Some(event) => {
                if sender.send(event).is_err() {
                    return;
                }
            }
        }
    }
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
        const MIB: u64 = 1 << 20;
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
}

/// A microvm of less than 3 GiB has its memory in one piece, from guest-physical address 0 on.
fn ram(monitor: &mut Monitor, mib: u64) -> anyhow::Result<(u64, u64)> {
    const MIB: u64 = 1 << 20;
    let start = monitor.host_address(MIB)?;
    let bytes = mib.saturating_sub(1) * MIB;
    let last = monitor.host_address(MIB + bytes - PAGE_BYTES as u64)?;
    if last != start + bytes - PAGE_BYTES as u64 {
        bail!("the memory of {mib} MiB is not in one piece");
    }
    Ok((start, bytes))
}

fn arguments(guest: &Guest) -> Vec<String> {
    let mib = guest.mib;
    let backend = match guest.backend {
        Backend::Memfd => format!("memory-backend-memfd,id=ram0,size={mib}M,share=on"),
        Backend::Ram => format!("memory-backend-ram,id=ram0,size={mib}M"),
        Backend::Shm => format!(
            "memory-backend-file,id=ram0,size={mib}M,share=on,mem-path=/dev/shm/{}",
            guest.name
        ),
    };
    let monitor = |name: &str| {
        let path = folder(&guest.name).join(name);
        format!("unix:{},server=on,wait=off", path.display())
    };
    let mut words: Vec<String> = Vec::new();
    // The kernel finds virtio devices by ACPI only, and without devices a boot without it is shorter.
    let machine = match guest.agent {
        None => "microvm,acpi=off,memory-backend=ram0",
        Some(_) => "microvm,acpi=on,pcie=on,memory-backend=ram0",
    };
    let agent = guest.agent.map_or("", agent_word);
    for pair in [
        ["-name", guest.name.as_str()],
        ["-M", machine],
        ["-cpu", "host"],
        ["-accel", "kvm"],
        ["-smp", &guest.cpus.to_string()],
        ["-m", &format!("{mib}M")],
        ["-object", &backend],
        ["-display", "none"],
        ["-serial", "stdio"],
        ["-qmp", &monitor("qmp.sock")],
        ["-qmp", &monitor("lab-qmp.sock")],
        ["-L", "/usr/share/qemu"],
        ["-kernel", "/lab/vmlinuz"],
        ["-initrd", "/lab/guest.cpio"],
        [
            "-append",
            &format!(
                "console=ttyS0 quiet mitigations=off reboot=t panic=-1 {}{agent}",
                guest.work.command_line()
            ),
        ],
    ] {
        words.extend(pair.map(str::to_owned));
    }
    for word in ["-nodefaults", "-no-user-config"] {
        words.push(word.to_owned());
    }
    words.extend(guest.agent.iter().flat_map(|&agent| {
        let socket = folder(&guest.name).join("guest.sock");
        agent_devices(agent, &socket)
    }));
    if !guest.may_reset {
        words.push("-no-reboot".to_owned());
    }
    words
}

/// What the guest's first process is told of its agent, on the kernel's command line.
fn agent_word(agent: GuestAgent) -> &'static str {
    match agent {
        GuestAgent::Serial => " tier.agent=serial",
        GuestAgent::Vsock => " tier.agent=vsock",
    }
}

/// The devices by which a guest's agent reaches the host.
fn agent_devices(agent: GuestAgent, socket: &Path) -> Vec<String> {
    match agent {
        GuestAgent::Serial => vec![
            "-chardev".to_owned(),
            format!(
                "socket,id=tier,path={},server=on,wait=off",
                socket.display()
            ),
            "-device".to_owned(),
            "virtio-serial-pci".to_owned(),
            "-device".to_owned(),
            "virtserialport,chardev=tier,name=vmm-tier".to_owned(),
        ],
        GuestAgent::Vsock => vec![
            "-device".to_owned(),
            format!("vhost-vsock-pci,guest-cid={GUEST_CID}"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_when_memory_is_shared_name_the_backend() {
        let words = arguments(&Guest::default()).join(" ");

        assert!(words.contains("memory-backend-memfd,id=ram0,size=400M,share=on"));
        assert!(words.contains("unix:/run/lab/guest/qmp.sock,server=on,wait=off"));
        assert!(words.contains("lab.set_mib=300"));
        assert!(words.contains("microvm,acpi=off") && !words.contains("tier.agent"));
    }

    #[test]
    fn arguments_when_the_guest_has_an_agent_give_it_a_way_out() {
        let with = |agent| {
            let guest = Guest {
                agent: Some(agent),
                ..Guest::default()
            };
            arguments(&guest).join(" ")
        };
        let serial = with(GuestAgent::Serial);
        assert!(serial.contains("path=/run/lab/guest/guest.sock,server=on"));
        assert!(serial.contains("name=vmm-tier") && serial.contains("tier.agent=serial"));
        let vsock = with(GuestAgent::Vsock);
        assert!(vsock.contains("guest-cid=3") && vsock.contains("tier.agent=vsock"));
    }
}
