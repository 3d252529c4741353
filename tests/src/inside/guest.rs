//! A guest: its QEMU process, its console, and where its hot pages are in QEMU's memory.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{OFlags, fcntl_setfl};

use super::measure::cpu_seconds;
use super::monitor::Monitor;
use super::{Limits, RUN_FOLDER, Reporter, locked, scaled};
use crate::event::{GuestEvent, Mark, guest_event};
use crate::pagemap::{PAGE_BYTES, runs_of_pages};
use crate::patience::{Moved, Patience};
use crate::scenario::{Backend, Guest, GuestAgent, System};

/// The inner VMM.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// What a guest's Linux is told, so that it takes as few interrupts as can be: none of its watchdogs, and a periodic
/// timer, which need not be set anew for each tick.
const LINUX_WORDS: &str = "console=ttyS0 quiet mitigations=off reboot=t panic=-1 \
    nowatchdog tsc=reliable no_timer_check nohz=off highres=off lapic=notscdeadline";
/// The context id of a guest with a vsock device.
const GUEST_CID: u32 = 3;
/// On the reference machine. A guest that works tells each second that it does; a halted one looks at its console
/// ten times a second.
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
/// The port of the device by which a bare guest ends QEMU, and the status when nobody reads its serial port (see
/// `bare-guest`).
const EXIT_PORT: u16 = 0xf4;
const EXIT_NOT_READ: i32 = 37;
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
    /// When the guest stands still or works without a word, QEMU ends, or the workload reports an error.
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

/// Reads a guest's console.
struct Listener {
    guest: String,
    source: String,
    reporter: Reporter,
    watch: Arc<Mutex<Watch>>,
    said: Arc<AtomicU64>,
    sender: Sender<GuestEvent>,
}

impl Listener {
    fn listen(self, console: impl BufRead) {
        let mut gathered: Vec<[u64; 2]> = Vec::new();
        for line in console.split(b'\n').map_while(Result::ok) {
            self.said
                .fetch_add(line.len() as u64 + 1, Ordering::Relaxed);
            let line = String::from_utf8_lossy(&line);
            match guest_event(&line) {
                None => self.reporter.log(&self.source, line.trim_end()),
                Some(GuestEvent::Updates { count, ms }) => {
                    let rate = count as f64 * 1000.0 / ms.max(1) as f64;
                    locked(&self.watch).updates = Some((Instant::now(), rate));
                }
                Some(GuestEvent::Touched { .. } | GuestEvent::Compared { .. }) => {}
                Some(GuestEvent::Hot {
                    base,
                    first,
                    pages,
                    stride,
                    of,
                }) => {
                    locked(&self.watch).new_runs =
                        Some(runs_of_set(base, first, pages, stride, of));
                }
                Some(GuestEvent::Runs { runs, first, last }) => {
                    if first {
                        gathered.clear();
                    }
                    gathered.extend(runs);
                    if last {
                        locked(&self.watch).new_runs = Some(std::mem::take(&mut gathered));
                    }
                }
                Some(GuestEvent::Obeyed { order }) => {
                    self.reporter.log(&self.source, format!("obeyed {order}"));
                    if order.starts_with("hot") {
                        self.reporter.mark(Mark::HotMoved, &self.guest);
                    }
                }
                Some(event) => {
                    if self.sender.send(event).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The runs of a hot set in a working set that lies in one piece; a page more than the set has is none.
fn runs_of_set(base: u64, first: u64, pages: u64, stride: u64, of: u64) -> Vec<[u64; 2]> {
    let page = |n: u64| (first + n * stride) % of.max(1);
    runs_of_pages((0..pages.min(of)).map(|n| base + page(n) * PAGE_BYTES as u64))
}

/// A pipe that takes nothing more.
fn full_pipe() -> anyhow::Result<(PipeReader, PipeWriter)> {
    let (reader, mut writer) = std::io::pipe()?;
    fcntl_setfl(&writer, OFlags::NONBLOCK)?;
    while writer.write(&[b'.'; 4096]).is_ok() {}
    Ok((reader, writer))
}

/// The rate of the time stamp counter, as this machine's kernel found it.
fn tsc_khz() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    khz_of_cpuinfo(&text).context("/proc/cpuinfo tells no 'cpu MHz'")
}

fn khz_of_cpuinfo(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    Some((mhz * 1000.0).round() as u64).filter(|khz| *khz > 0)
}

/// Puts the threads of a guest's virtual CPUs into a group of their own that gets so much of a CPU for each. The
/// rest of QEMU is not limited: its monitor shall answer.
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

fn arguments(guest: &Guest, tsc_khz: u64) -> Vec<String> {
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
    let work = format!("{} {}{agent}", guest.work.words(), guest.words);
    let exit = format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4");
    let (kernel, start) = match guest.system {
        System::Bare => (
            "/lab/bare-guest",
            vec![
                "-device".to_owned(),
                exit,
                "-append".to_owned(),
                format!("tsc_khz={tsc_khz} {work}"),
            ],
        ),
        System::Linux => (
            "/lab/vmlinuz",
            vec![
                "-initrd".to_owned(),
                "/lab/guest.cpio".to_owned(),
                "-append".to_owned(),
                format!("{LINUX_WORDS} {work}"),
            ],
        ),
    };
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
        ["-kernel", kernel],
    ] {
        words.extend(pair.map(str::to_owned));
    }
    words.extend(start);
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
    fn runs_when_a_hot_set_goes_round_the_end_are_cut_there() {
        // Pages 3, 4, 0 and 1 of 5.
        let runs = runs_of_set(0x20_0000, 3, 4, 1, 5);

        assert_eq!(runs, [[0x20_3000, 0x2000], [0x20_0000, 0x2000]]);
        assert_eq!(runs_of_set(0, 0, 2, 2, 5), [[0, 0x1000], [0x2000, 0x1000]]);
        assert!(runs_of_set(0, 1, u64::MAX, 1, 0).is_empty());
    }

    #[test]
    fn tsc_when_the_kernel_tells_its_rate_is_in_khz() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2596.123\n";

        assert_eq!(khz_of_cpuinfo(text), Some(2_596_123));
        assert_eq!(khz_of_cpuinfo("cpu MHz : 0.000\n"), None);
        assert_eq!(khz_of_cpuinfo(""), None);
    }

    #[test]
    fn pipe_when_full_takes_nothing_more() {
        let (_reader, mut writer) = full_pipe().unwrap();

        let error = writer.write(b"x").unwrap_err();

        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn arguments_when_memory_is_shared_name_the_backend() {
        let words = arguments(&Guest::default(), 2_500_000).join(" ");

        assert!(words.contains("memory-backend-memfd,id=ram0,size=400M,share=on"));
        assert!(words.contains("unix:/run/lab/guest/qmp.sock,server=on,wait=off"));
        assert!(words.contains("-kernel /lab/bare-guest") && words.contains("iobase=0xf4"));
        assert!(words.contains("tsc_khz=2500000 lab.set_mib=300"));
        assert!(words.contains("microvm,acpi=off") && !words.contains("tier.agent"));
    }

    #[test]
    fn arguments_when_the_guest_has_an_agent_give_it_a_way_out() {
        let with = |agent| {
            let guest = Guest {
                agent: Some(agent),
                system: System::Linux,
                ..Guest::default()
            };
            arguments(&guest, 2_500_000).join(" ")
        };
        let serial = with(GuestAgent::Serial);
        assert!(serial.contains("path=/run/lab/guest/guest.sock,server=on"));
        assert!(serial.contains("name=vmm-tier") && serial.contains("tier.agent=serial"));
        let vsock = with(GuestAgent::Vsock);
        assert!(vsock.contains("guest-cid=3") && vsock.contains("tier.agent=vsock"));
    }
}
