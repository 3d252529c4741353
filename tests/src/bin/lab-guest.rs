//! The first process of a lab guest: runs the workload and tells about it on the console.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::event::{GUEST_PREFIX, GuestEvent};
use lab::image::GUEST_VSOCK_MODULES;
use lab::scenario::Work;
use lab::workload::{
    HotSet, PAGE_BYTES, PAGE_WORDS, Updates, checksum, frame_of_pagemap_entry, runs_of_pages,
};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Updates between two looks at the clock and the console.
const BATCH: u64 = 8192;
/// Runs in one line, so that a line stays short enough for a serial console.
const RUNS_A_LINE: usize = 64;
/// The guest's kernel may move pages by compaction: look again this often.
const RUNS_EVERY: Duration = Duration::from_secs(5);

fn main() {
    if let Err(error) = work() {
        tell(&GuestEvent::Error {
            error: format!("{error:#}"),
        });
    }
    std::thread::sleep(Duration::from_millis(200)); // lets the serial line drain
    // Without ACPI a restart is the way out: QEMU is started with -no-reboot.
    let _ = reboot(RebootCommand::Restart);
}

fn tell(event: &GuestEvent) {
    if let Ok(json) = serde_json::to_string(event) {
        // One write a line keeps the kernel's own messages out of its middle. Nobody is
        // left to hear of a console that fails.
        let line = format!("{GUEST_PREFIX}{json}\n");
        let _ = std::io::stdout().write_all(line.as_bytes());
        let _ = std::io::stdout().flush();
    }
}

/// The console, read on a thread of its own; one command a line.
fn commands() -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line.trim().to_owned()).is_err() {
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
    let work = Work::from_command_line(&command_line)?;
    let thp = if work.guest_thp { "always" } else { "never" };
    std::fs::write("/sys/kernel/mm/transparent_hugepage/enabled", thp)
        .context("setting transparent huge pages")?;
    let hot = HotSet::new(&work, work.hot_at_mib).context("the hot set does not fit")?;
    let mut agent = Agent::of_command_line(&command_line)?;
    let commands = commands();
    tell(&GuestEvent::Up);
    loop {
        match commands.recv().context("the console was closed")?.as_str() {
            "go" => break,
            command => agent.obey(command)?,
        }
    }

    let words = usize::try_from(work.set_mib)? * (1 << 20) / 8;
    // The allocator puts a header before a large block: leave room to start at a huge page.
    const ALIGN: usize = 2 << 20;
    let mut block = vec![0_u64; words + ALIGN / 8];
    let start = block.as_ptr() as usize;
    let skip = (start.next_multiple_of(ALIGN) - start) / 8;
    let memory = &mut block[skip..skip + words];

    let mut updates = Updates::begin(memory, &work, hot);
    let mut runs = hot_runs(memory, hot)?;
    tell_runs(&runs);
    tell(&GuestEvent::Ready);

    let (mut since, mut looked, mut count) = (Instant::now(), Instant::now(), 0);
    loop {
        updates.run(memory, BATCH);
        count += BATCH;
        let elapsed = since.elapsed();
        if elapsed >= Duration::from_secs(1) {
            let ms = u64::try_from(elapsed.as_millis())?;
            tell(&GuestEvent::Updates { count, ms });
            (since, count) = (Instant::now(), 0);
            if looked.elapsed() >= RUNS_EVERY {
                looked = Instant::now();
                let now = hot_runs(memory, updates.hot())?;
                if now != runs {
                    runs = now;
                    tell_runs(&runs);
                }
            }
        }
        match commands.try_recv() {
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => bail!("the console was closed"),
            Ok(command) if command == "finish" => break,
            Ok(command) => {
                if let Some(mib) = command.strip_prefix("hot ") {
                    let hot = HotSet::new(&work, Some(mib.parse()?))
                        .context("the new hot set does not fit")?;
                    updates.move_hot(hot);
                    runs = hot_runs(memory, hot)?;
                    tell_runs(&runs);
                } else {
                    agent.obey(&command)?;
                }
            }
        }
    }
    agent.obey("agent end")?;
    let found = checksum(memory);
    tell(&GuestEvent::Integrity {
        ok: found == updates.expected(),
        updates: updates.done(),
        expected: updates.expected(),
        found,
    });
    Ok(())
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
    fn obey(&mut self, command: &str) -> anyhow::Result<()> {
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
            "agent kill" => self.end(Signal::KILL)?,
            "agent end" => self.end(Signal::TERM)?,
            _ => {}
        }
        Ok(())
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
    let reach = (hot.pages - 1) * hot.stride + 1;
    debug_assert!((hot.first + reach) * PAGE_WORDS <= memory.len());
    let mut entries = vec![0_u8; reach * 8];
    pagemap
        .read_exact_at(&mut entries, ((first + hot.first) * 8) as u64)
        .context("reading /proc/self/pagemap")?;
    let mut pages = Vec::with_capacity(hot.pages);
    for entry in entries.chunks_exact(8).step_by(hot.stride) {
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
        tell(&GuestEvent::Runs {
            runs: part.to_vec(),
            first: n == 0,
            last: n + 1 == count,
        });
    }
}
