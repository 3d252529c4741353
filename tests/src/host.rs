//! One lab run as seen from the developer's machine: pack, start, listen, conclude, tidy up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::MemfdFlags;
use softpmu::{Layout, Shared};

use crate::emulator::{Emulator, Files, PmuFiles, StandStill};
use crate::event::Event;
use crate::fault::{self, End};
use crate::image::{Cache, Programs, write_overlay};
use crate::patience::{Limits, Moved, Pace, Patience};
use crate::result::{Retry, ScenarioResult};
use crate::scenario::{Scenario, Step};
use crate::show::Screen;

/// Set by a signal: the lab ends the emulator and itself.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// The emulated host powers off within a second or two after its last event.
const POWER_OFF_WITHIN: Duration = Duration::from_secs(10);

/// A q35 machine has this much memory from address 0 on without a gap; the PMU's counters know
/// none.
const LOW_MIB: u64 = 2048;

/// The emulated host tells of each second, once it is up; before, its kernel is silent. Until its
/// pace is known the limits must serve the slowest machine.
const SILENT_HOST: Limits = Limits {
    still: Duration::from_secs(60),
    silent_cpu: Duration::from_secs(180),
};
/// A scenario is ended when it takes so many times as long as expected, and no less than that.
const MOST_TIMES: f64 = 10.0;
const LEAST_LIMIT: Duration = Duration::from_secs(600);

/// How much of each log a failed run shows.
const LAST_LINES: usize = 40;
const LAST_BYTES: usize = 8 << 10;

/// What a lab run needs to know.
#[derive(Debug)]
pub struct Options {
    /// The scenario.
    pub scenario: Scenario,
    /// Logs and the result go here.
    pub folder: PathBuf,
    /// The folder of the programs just built.
    pub programs: PathBuf,
    /// How often a scenario is begun at most, if faults of the emulator end it.
    pub tries: usize,
}

/// Carries a scenario out, and begins again if a fault of the emulator ended it.
///
/// # Errors
/// When the lab could not be started, or was told to stop. A scenario that did not pass is no
/// error: its result says so.
pub fn run(options: &Options, screen: &mut Screen) -> anyhow::Result<ScenarioResult> {
    let mut retries = Vec::new();
    loop {
        let mut result = run_once(options, screen)?;
        let console = fs::read(options.folder.join("console.log")).unwrap_or_default();
        let fault = fault::find(
            &options.scenario,
            &result,
            &String::from_utf8_lossy(&console),
        );
        let again = fault.filter(|_| retries.len() + 1 < options.tries);
        if let Some(fault) = again {
            let (next, of) = (retries.len() + 2, options.tries);
            screen.line(&format!(
                "RETRY {}: the emulator failed ({fault}); starting over, try {next} of {of}",
                result.scenario
            ));
            keep(&options.folder, &format!("try-{}", retries.len() + 1))?;
            let seconds = result.seconds;
            retries.push(Retry { fault, seconds });
            continue;
        }
        result.retries = retries;
        write_json(&result, &options.folder.join("result.json"))?;
        if !result.pass {
            // Where nobody keeps the logs, as in CI, what was said last must be seen.
            for name in ["console.log", "programs.log"] {
                let path = options.folder.join(name);
                screen.line(&format!("the end of {}:", path.display()));
                for line in last_lines(&path) {
                    screen.line(&format!("  | {line}"));
                }
            }
        }
        return Ok(result);
    }
}

/// Puts the logs of a failed try or run aside in a folder of this name, for whoever wants to look.
///
/// # Errors
/// When the folder can't be made.
pub fn keep(folder: &Path, name: &str) -> anyhow::Result<()> {
    let aside = folder.join(name);
    fs::create_dir_all(&aside).with_context(|| format!("creating {}", aside.display()))?;
    for name in [
        "console.log",
        "programs.log",
        "events.jsonl",
        "emulator.log",
        "result.json",
    ] {
        // What this try did not come to write is missing.
        let _ = fs::rename(folder.join(name), aside.join(name));
    }
    Ok(())
}

fn run_once(options: &Options, screen: &mut Screen) -> anyhow::Result<ScenarioResult> {
    let scenario = &options.scenario;
    let began = Instant::now();
    let cache = Cache::open()?;
    let folder = &options.folder;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let lock = File::create(folder.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!(
            "another lab run uses {}; wait for it or choose another with --log-dir",
            folder.display()
        );
    }
    let workdir = WorkDir::new(folder)?;
    screen.progress("packing the programs just built");
    let programs = Programs::find(&options.programs, &cache, scenario)?;
    let mut versions = BTreeMap::new();
    versions.insert("vmm-tier".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    for entry in ["kernel", "qemu-outer", "qemu-inner"] {
        versions.insert(entry.to_owned(), cache.version(entry));
    }
    let base = cache.base_archive(&mut |what| screen.progress(what))?;
    let overlay = workdir.path.join("overlay.cpio");
    write_overlay(&overlay, &programs, scenario, &versions)?;
    // Its memory goes with this process and the emulator: nothing can be left behind.
    let pmu = pmu_files(scenario, &options.programs)?;
    let files = Files {
        initramfs: workdir.path.join("initramfs.cpio"),
        console: folder.join("console.log"),
        events: folder.join("events.jsonl"),
        messages: folder.join("emulator.log"),
        bridge: has_bridge(scenario).then(|| folder.join("qmp.sock")),
        pmu: pmu.as_ref().map(|(_, files)| files.clone()),
    };
    concatenate(&[&base, &overlay], &files.initramfs)?;
    let _ = fs::remove_file(&files.events);

    screen.progress("booting the emulated two-tier host");
    let mut emulator = Emulator::start(&cache, &scenario.host, &files)?;
    let mut result = ScenarioResult {
        scenario: scenario.name.clone(),
        title: scenario.title.clone(),
        versions,
        ..ScenarioResult::default()
    };
    let log = File::create(folder.join("programs.log"))?;
    let outcome = listen(&mut emulator, scenario, &files, &mut result, log, screen);
    if outcome.is_ok() {
        emulator.wait(POWER_OFF_WITHIN);
    }
    drop(emulator);
    outcome?;
    result.seconds = began.elapsed().as_secs_f64();
    result.conclude(scenario);
    Ok(result)
}

/// The last lines of a log, as far as it can be read.
fn last_lines(path: &Path) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let start = text.len().saturating_sub(LAST_BYTES);
    let text = String::from_utf8_lossy(&text[start..]);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
}

/// Writes a result as one JSON object.
///
/// # Errors
/// When the file can't be written.
pub fn write_json(result: &ScenarioResult, path: &Path) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        serde_json::to_writer(&mut out, result)?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(())
    };
    attempt().with_context(|| format!("writing {}", path.display()))
}

/// Takes events in until the emulated host is done, has failed, or stands still.
fn listen(
    emulator: &mut Emulator,
    scenario: &Scenario,
    files: &Files,
    result: &mut ScenarioResult,
    mut log: File,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let expected = Duration::from_secs(scenario.expect_s);
    let mut events = Tail::new(&files.events);
    let mut cpu = emulator.cpu_time();
    let mut still = StandStill::new();
    let mut heard = 0_u64;
    let mut patience = Patience::new(SILENT_HOST, Moved::default(), began);
    loop {
        let ended = emulator.ended()?;
        while let Some(line) = events.next_line()? {
            heard += line.len() as u64 + 1;
            let Ok(event) = serde_json::from_str::<Event>(&line) else {
                writeln!(log, "not understood: {line}")?;
                continue;
            };
            if let Event::Log { source, line } = &event {
                writeln!(log, "{source}: {line}")?;
            }
            screen.event(&event);
            let last = matches!(event, Event::Done | Event::Failed { .. });
            let second = matches!(event, Event::Sample(_));
            if let Event::Booted(facts) = &event {
                let pace = Pace::of_boot(facts.boot_s);
                screen.expect(pace, expected);
                patience = Patience::new(SILENT_HOST.at(pace), Moved::default(), Instant::now());
            }
            result.take(event);
            if second {
                let now = emulator.cpu_time();
                result.emulator_waited(now.wait_share_since(cpu));
                cpu = now;
            }
            if last {
                return Ok(());
            }
        }
        if STOP.load(Ordering::Relaxed) {
            bail!("stopped by a signal");
        }
        if let Some(status) = ended {
            result.end = End::TooEarly;
            result.error = Some(format!(
                "the emulator ended too early ({status}); see {} and {}",
                files.console.display(),
                files.messages.display()
            ));
            return Ok(());
        }
        let moved = Moved {
            bytes: heard + fs::metadata(&files.console).map_or(0, |facts| facts.len()),
            cpu_s: emulator.cpu_time().run_ns as f64 / 1e9,
        };
        let stuck = match still.look(emulator, Instant::now()) {
            Some(cpu) => Some(format!(
                "the emulator lost {cpu}, which has not run for a minute"
            )),
            None => patience
                .look(moved, Instant::now())
                .map(|why| format!("the emulated host {why}")),
        };
        if let Some(stuck) = stuck {
            result.end = End::StandStill;
            result.error = Some(format!("{stuck}; see {}", files.console.display()));
            return Ok(());
        }
        // Every wait of a scenario ends by itself. This is for a fault in one that does not.
        let pace = result.pace.unwrap_or(1.0).max(1.0);
        let limit = expected.mul_f64(MOST_TIMES * pace).max(LEAST_LIMIT);
        if began.elapsed() >= limit {
            result.end = End::TooLong;
            result.error = Some(format!(
                "not finished after {:.0} s, {MOST_TIMES} times what was expected; see {}",
                limit.as_secs_f64(),
                files.console.display()
            ));
            return Ok(());
        }
        screen.tick();
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the software PMU needs, if the host has one; the file lives as long as its handle.
fn pmu_files(scenario: &Scenario, programs: &Path) -> anyhow::Result<Option<(File, PmuFiles)>> {
    let host = &scenario.host;
    let Some(pmu) = &host.pmu else {
        return Ok(None);
    };
    let plugin = programs.join("libsoftpmu_plugin.so");
    if !plugin.is_file() {
        bail!(
            "no {}; build it with 'cargo build -p softpmu-plugin', as scripts/lab does",
            plugin.display()
        );
    }
    let mib: u64 = host.nodes.iter().map(|node| node.mib).sum();
    if mib > LOW_MIB {
        bail!("a host with a PMU can have {LOW_MIB} MiB at most, not {mib}");
    }
    let layout = Layout::new(
        pmu.ring_kib << 10,
        mib << 20 >> 12,
        u64::from(host.cpus),
        pmu.period,
    )
    .context("the scenario's pmu")?;
    let file = rustix::fs::memfd_create("softpmu", MemfdFlags::CLOEXEC)
        .context("making the PMU's shared memory")?;
    let file = File::from(file);
    file.set_len(layout.file_bytes())?;
    layout.write(&Shared::map(&file, layout.file_bytes())?)?;
    let shared = PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        file.as_raw_fd()
    ));
    let files = PmuFiles {
        plugin,
        shared,
        bytes: layout.file_bytes(),
    };
    Ok(Some((file, files)))
}

fn has_bridge(scenario: &Scenario) -> bool {
    let mut steps = scenario.runs.iter().flat_map(|run| &run.steps);
    steps.any(|step| matches!(step, Step::Bridge { .. }))
}

/// Whether a scenario starts the agent.
#[must_use]
pub fn needs_agent(scenario: &Scenario) -> bool {
    scenario.runs.iter().flat_map(|run| &run.steps).any(|step| {
        matches!(
            step,
            Step::StartAgent { .. } | Step::Attempt(_) | Step::Ctl { .. } | Step::Ask { .. }
        )
    })
}

/// Reads lines of a file that another process is still writing.
struct Tail {
    path: PathBuf,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl Tail {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            line: Vec::new(),
        }
    }

    /// The next whole line, or `None` when there is none yet.
    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok().map(BufReader::new);
        }
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        file.read_until(b'\n', &mut self.line)?;
        if self.line.pop_if(|last| *last == b'\n').is_none() {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        Ok(Some(line))
    }
}

/// The large files of a run; they are gone when this is dropped.
struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("work");
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn concatenate(parts: &[&Path], whole: &Path) -> anyhow::Result<()> {
    let attempt = || -> io::Result<()> {
        let mut out = File::create(whole)?;
        for part in parts {
            io::copy(&mut File::open(part)?, &mut out)?;
        }
        Ok(())
    };
    attempt().with_context(|| format!("writing {}; is the disk full?", whole.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_when_a_log_is_long_are_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        assert!(last_lines(&path).is_empty(), "no log, nothing to show");
        let text: String = (0..5000).map(|i| format!("line {i}\r\n")).collect();
        fs::write(&path, text).unwrap();

        let lines = last_lines(&path);

        assert_eq!(lines.len(), LAST_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line 4999"));
    }

    #[test]
    fn tail_when_a_line_comes_in_parts_gives_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut tail = Tail::new(&path);
        assert_eq!(tail.next_line().unwrap(), None);

        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"a\":").unwrap();
        assert_eq!(tail.next_line().unwrap(), None);
        file.write_all(b"1}\n{").unwrap();

        assert_eq!(tail.next_line().unwrap().as_deref(), Some("{\"a\":1}"));
        assert_eq!(tail.next_line().unwrap(), None);
    }
}
