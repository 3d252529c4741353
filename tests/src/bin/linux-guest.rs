//! The first process of a guest that runs Linux: the workload, and the agent beside it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use lab::image::{BALLOON_MODULE, GUEST_VSOCK_MODULES, VIRTIO_MEM_MODULE};
use lab::pagemap::{PAGE_BYTES, frame_of_pagemap_entry, runs_of_pages};
use lab_guest::{HotSet, Line, Machine, Work};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Runs in one line, so that a line stays short enough for a serial console.
const RUNS_A_LINE: usize = 64;
/// The guest's kernel may move pages by compaction: look again this often.
const RUNS_EVERY: Duration = Duration::from_secs(5);
/// The working set begins at a huge page.
const ALIGN: usize = 2 << 20;

fn main() {
    if let Err(error) = work() {
        tell(Line::Error {
            error: &format_args!("{error:#}"),
        });
    }
    std::thread::sleep(Duration::from_millis(200)); // lets the serial line drain
    // Without ACPI a restart is the way out: QEMU is started with -no-reboot.
    let _ = reboot(RebootCommand::Restart);
}

fn tell(line: Line<'_>) {
    // One write a line keeps the kernel's own messages out of its middle. Nobody is
    // left to hear of a console that fails.
    let line = format!("{line}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
    let _ = std::io::stdout().flush();
}

/// What is typed on the console, read on a thread of its own.
fn typed() -> Receiver<u8> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for byte in std::io::stdin().lock().bytes().map_while(Result::ok) {
            if sender.send(byte).is_err() {
                return;
            }
        }
    });
    receiver
}

fn work() -> anyhow::Result<()> {
    for (kind, path) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
    ] {
        rustix::mount::mount(kind, path, kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {path}"))?;
    }
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    let work = Work::from_command_line(&command_line).map_err(|why| anyhow!("{why}"))?;
    let thp = if work.guest_thp { "always" } else { "never" };
    std::fs::write("/sys/kernel/mm/transparent_hugepage/enabled", thp)
        .context("setting transparent huge pages")?;
    for word in command_line.split_whitespace() {
        match word {
            "tier.balloon" => load_module(BALLOON_MODULE)?,
            "tier.virtio-mem" => load_module(VIRTIO_MEM_MODULE)?,
            _ => {}
        }
    }
    let mut guest = Guest {
        began: Instant::now(),
        typed: typed(),
        agent: Agent::of_command_line(&command_line)?,
        runs: Vec::new(),
        looked: Instant::now(),
    };
    let words = usize::try_from(work.set_mib)? * (1 << 20) / 8;
    // The allocator puts a header before a large block: leave room to start at a huge page.
    let mut block = vec![0_u64; words + ALIGN / 8];
    let start = block.as_ptr() as usize;
    let skip = (start.next_multiple_of(ALIGN) - start) / 8;
    let lived = lab_guest::live(&mut guest, &work, &mut block[skip..skip + words]);
    guest.agent.obey("agent end")?;
    lived.map_err(|trouble| anyhow!("{trouble:#}"))
}

/// A machine with Linux on it.
struct Guest {
    began: Instant,
    typed: Receiver<u8>,
    agent: Agent,
    /// Where the hot pages were told to be.
    runs: Vec<[u64; 2]>,
    looked: Instant,
}

impl Machine for Guest {
    type Error = anyhow::Error;

    fn micros(&mut self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn tell(&mut self, line: Line<'_>) {
        tell(line);
    }

    fn typed(&mut self) -> Option<u8> {
        self.typed.try_recv().ok()
    }

    fn halt(&mut self, micros: u64) {
        std::thread::sleep(Duration::from_micros(micros));
    }

    fn tell_hot(&mut self, memory: &[u64], hot: HotSet) -> anyhow::Result<()> {
        self.looked = Instant::now();
        let runs = hot_runs(memory, hot)?;
        if runs != self.runs {
            self.runs = runs;
            tell_runs(&self.runs);
        }
        Ok(())
    }

    fn obey(&mut self, order: &str) -> anyhow::Result<bool> {
        self.agent.obey(order)
    }

    fn second(&mut self, memory: &[u64], hot: HotSet) -> anyhow::Result<()> {
        match self.looked.elapsed() >= RUNS_EVERY {
            true => self.tell_hot(memory, hot),
            false => Ok(()),
        }
    }
}

/// The agent in this guest.
#[derive(Default)]
struct Agent {
    /// How it reaches the host; without it there is none.
    way: Vec<&'static str>,
    child: Option<Child>,
}

impl Agent {
    /// Starts the agent that the kernel's command line tells of, if it does.
    fn of_command_line(line: &str) -> anyhow::Result<Self> {
        let way = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("tier.agent="));
        let way = match way {
            None => return Ok(Self::default()),
            Some("serial") => vec!["--port", "/dev/virtio-ports/vmm-tier"],
            Some("vsock") => {
                for name in GUEST_VSOCK_MODULES {
                    load_module(name)?;
                }
                vec!["--vsock", "7420"]
            }
            Some(other) => bail!("tier.agent={other} on the command line is unknown"),
        };
        let mut agent = Self { way, child: None };
        agent.obey("agent start")?;
        Ok(agent)
    }

    /// Carries a command of the console out that begins with "agent"; others are not for it.
    fn obey(&mut self, command: &str) -> anyhow::Result<bool> {
        match command {
            "agent start" if self.child.is_none() && !self.way.is_empty() => {
                let mut child = Command::new("/usr/bin/guest-agent")
                    .arg("run")
                    .args(&self.way)
                    .stdin(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .context("starting /usr/bin/guest-agent")?;
                if let Some(said) = child.stderr.take() {
                    std::thread::spawn(move || pass_on(said));
                }
                self.child = Some(child);
            }
            "agent start" => {}
            "agent kill" => self.end(Signal::KILL)?,
            "agent end" => self.end(Signal::TERM)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("the agent has no pid")?, signal)?;
        let status = child.wait()?;
        let line = format!("lab-guest: the agent ended: {status}\n");
        let _ = std::io::stdout().write_all(line.as_bytes());
        Ok(())
    }
}

/// Prints what the agent says, whole lines at a time.
fn pass_on(said: impl Read) {
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
    }
}

fn load_module(name: &str) -> anyhow::Result<()> {
    let path = format!("/lab/modules/{name}.ko");
    let Ok(file) = File::open(&path) else {
        return Ok(()); // built in
    };
    finit_module(&file, c"", 0).with_context(|| format!("loading {path}"))
}

/// The guest-physical runs of the hot pages, in the order of the pages.
fn hot_runs(memory: &[u64], hot: HotSet) -> anyhow::Result<Vec<[u64; 2]>> {
    let pagemap = File::open("/proc/self/pagemap").context("opening /proc/self/pagemap")?;
    let first = memory.as_ptr() as usize / PAGE_BYTES;
    let mut entries = vec![0_u8; hot.of * 8];
    pagemap
        .read_exact_at(&mut entries, (first * 8) as u64)
        .context("reading /proc/self/pagemap")?;
    let mut pages = Vec::with_capacity(hot.pages);
    for page in hot.iter() {
        let entry = entries
            .get(page * 8..page * 8 + 8)
            .context("a hot page is not in the set")?;
        let entry = u64::from_le_bytes(entry.try_into()?);
        let frame = frame_of_pagemap_entry(entry).context("a hot page has no frame")?;
        pages.push(frame * PAGE_BYTES as u64);
    }
    Ok(runs_of_pages(pages))
}

fn tell_runs(runs: &[[u64; 2]]) {
    let parts = runs.chunks(RUNS_A_LINE);
    let count = parts.len();
    for (n, part) in parts.enumerate() {
        tell(Line::Runs {
            runs: part,
            first: n == 0,
            last: n + 1 == count,
        });
    }
}
