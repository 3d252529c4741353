//! The first process of a lab guest: runs the workload and tells about it on the console.

use std::fs::File;
use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::event::{GUEST_PREFIX, GuestEvent};
use lab::scenario::Work;
use lab::workload::{
    HotSet, PAGE_BYTES, PAGE_WORDS, Updates, checksum, frame_of_pagemap_entry, runs_of_pages,
};
use rustix::mount::MountFlags;
use rustix::system::{RebootCommand, reboot};

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
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys")] {
        rustix::mount::mount(kind, path, kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {path}"))?;
    }
    let work = Work::from_command_line(&std::fs::read_to_string("/proc/cmdline")?)?;
    let thp = if work.guest_thp { "always" } else { "never" };
    std::fs::write("/sys/kernel/mm/transparent_hugepage/enabled", thp)
        .context("setting transparent huge pages")?;
    let hot = HotSet::new(&work, work.hot_at_mib).context("the hot set does not fit")?;
    let commands = commands();
    tell(&GuestEvent::Up);
    loop {
        match commands.recv().context("the console was closed")?.as_str() {
            "go" => break,
            _ => continue,
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
                }
            }
        }
    }
    let found = checksum(memory);
    tell(&GuestEvent::Integrity {
        ok: found == updates.expected(),
        updates: updates.done(),
        expected: updates.expected(),
        found,
    });
    Ok(())
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
