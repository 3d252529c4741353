//! How soon the engine's detector of changes notices one, and how often it gives a false alarm: on
//! generated guests and recorded programs, beside other rules.
//!
//! ```text
//! accesses ─► pages used in ticks of 2.5 ms ─► DAMON ─► engine, host ─► moves, changes ─► rest or work
//! ```
//!
//! Real are the engine, the pace of DAMON and the rules of the agent's rest. Simulated are the guest,
//! the host (moves are carried out at once, one in a hundred finds its page busy), and DAMON's regions.
//! **Not modelled**: what an emulated or busy CPU delays (but late looks, in guests named so), messages
//! between the agent's threads, DAMON's change of its counts when its settings change, a second stage's
//! accessed bits, and bursts: a guest's accesses come at a steady rate, 250,000 a second on 128 MiB (96
//! MiB in huge pages). Recorded programs are small.
//!
//! Rules beside the detector end the rest in its place, each in a run of its own. They don't make the
//! engine forget what it counted, as the detector does.
//!
//! `TIER_BENCH_TRACES=FOLDER` has the traces of `scripts/traces`; without it there are no recorded
//! programs. `TIER_BENCH_MARKDOWN=FILE` keeps the tables. Arguments that don't begin with `-` filter the
//! guests by name. Without `--bench` (as `cargo test` runs it) no guest runs longer than some minutes.

mod agent;
mod clock;
mod damon;
mod generated;
mod input;
mod recorded;
mod report;
mod rules;
mod tally;

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use agent::{Agent, Log};
use clock::{TICK, Ticks, ticks};
use generated::Generated;
use input::Input;
use recorded::Recorded;
use report::{Kind, Row};
use rules::Rule;
use tally::Tally;

/// DRAM is the guest's memory over these.
pub(crate) const SIZES: [u64; 2] = [8, 4];
/// A recorded program is played so often, with other random looks.
const SEEDS: u64 = 5;
/// So long a rule beside the detector runs beside a steady guest.
const RIVALS_UNTIL: Ticks = ticks(Duration::from_secs(900));
/// One in so many accesses is looked at for whether it hits DRAM: a prime, as workloads have periods.
const HITS: u32 = 31;
/// Names of traces.
const TRACES: [&str; 3] = ["database", "compressor", "interpreter"];

/// Plays a guest beside all agents.
fn play(input: Input, mut agents: Vec<Agent>) -> Result<Vec<Log>, Box<dyn Error>> {
    let Input {
        guest,
        mut accesses,
        ..
    } = input;
    let (mut number, mut is_settled) = (0_u32, false);
    let tick_ns = TICK.as_nanos() as u64;
    let mut used = vec![0; guest.pages() as usize];
    let (mut now, mut now_ends) = (1, tick_ns);
    let mut due = 1;
    let mut block = Vec::new();
    let mut more = true;
    let mut last = (u64::MAX, 0);
    while more {
        block.clear();
        more = accesses.fill(&mut block)?;
        for access in &block {
            while access.at.0 >= now_ends {
                if now >= due {
                    for agent in agents.iter_mut().filter(|agent| agent.due() <= now) {
                        agent.advance(now, &used);
                    }
                    due = agents.iter().map(Agent::due).min().unwrap_or(Ticks::MAX);
                }
                now += 1;
                is_settled = now >= tally::SETTLED;
                now_ends += tick_ns;
            }
            let frame = access.address >> 12;
            if frame != last.0 {
                let Some(page) = guest.page_at(access.address) else {
                    continue;
                };
                last = (frame, page);
            }
            used[last.1 as usize] = now;
            number = number.wrapping_add(1);
            if is_settled && number.is_multiple_of(HITS) {
                agents.iter_mut().for_each(|agent| agent.see(last.1));
            }
        }
    }
    Ok(agents.into_iter().map(|agent| agent.end(now)).collect())
}

/// A guest beside an agent for each size of DRAM and each rule.
fn generated(guest: &Generated, kind: Kind, is_short: bool) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = rows(guest.name, kind);
    let runs = if is_short { 1 } else { guest.runs };
    for run in 0..runs {
        let input = guest.input(run, is_short);
        let shared = Arc::new(input.guest.clone());
        let is_late = input.is_late;
        let agents = rows.iter().map(|row| {
            let until = match (kind, row.rule) {
                (Kind::Steady, Rule::PageHinkley | Rule::Rise | Rule::Nothing) => RIVALS_UNTIL,
                _ => Ticks::MAX,
            };
            let fast_bytes = shared.bytes() / row.size;
            Agent::new(&shared, fast_bytes, row.rule, until, run + 1, is_late)
        });
        let agents = agents.collect();
        let changes = input.changes.clone();
        let logs = play(input, agents)?;
        for (row, log) in rows.iter_mut().zip(&logs) {
            row.tally.add(log, &changes);
        }
    }
    Ok(rows)
}

/// A recorded program beside some agents for each size of DRAM and each rule.
fn recorded(name: &'static str, path: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    let trace = Recorded::read(path)?;
    let guest = Arc::new(trace.guest()?);
    let mut rows = rows(name, Kind::Recorded);
    let agents = rows.iter().flat_map(|row| {
        let fast_bytes = guest.bytes() / row.size;
        let guest = &guest;
        let agent =
            move |seed| Agent::new(guest, fast_bytes, row.rule, Ticks::MAX, seed + 1, false);
        (0..SEEDS).map(agent)
    });
    let agents = agents.collect();
    let logs = play(trace.input()?, agents)?;
    for (row, logs) in rows.iter_mut().zip(logs.chunks(SEEDS as usize)) {
        let changes = trace.changes(guest.bytes() / row.size);
        for log in logs {
            row.tally.add(log, &changes);
        }
    }
    Ok(rows)
}

/// Rows without figures, one for each size of DRAM and each rule.
fn rows(name: &'static str, kind: Kind) -> Vec<Row> {
    let row = |size, rule| Row {
        name,
        kind,
        size,
        rule,
        tally: Tally::default(),
    };
    SIZES
        .iter()
        .flat_map(|&size| Rule::ALL.map(|rule| row(size, rule)))
        .collect()
}

/// A guest to play.
#[derive(Clone, Debug)]
enum Job {
    Generated(&'static Generated, Kind),
    Recorded(&'static str, PathBuf),
}

impl Job {
    const fn name(&self) -> &'static str {
        match self {
            Self::Generated(guest, _) => guest.name,
            Self::Recorded(name, _) => name,
        }
    }

    fn run(&self, is_short: bool) -> Result<Vec<Row>, String> {
        let rows = match self {
            Self::Generated(guest, kind) => generated(guest, *kind, is_short),
            Self::Recorded(name, path) => recorded(name, path),
        };
        rows.map_err(|error| format!("{}: {error}", self.name()))
    }
}

/// Runs all, as many at a time as there are CPUs; their rows in the order of the jobs.
fn run_all(jobs: &[Job], is_short: bool) -> Result<Vec<Row>, String> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(job) = jobs.get(number)
        {
            done.push((number, job.run(is_short)?));
        }
        Ok::<_, String>(done)
    };
    let threads = thread::available_parallelism().map_or(1, Into::into);
    let mut done = Vec::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            done.extend(worker.join().map_err(|_| "a guest's thread panicked")??);
        }
        Ok::<_, String>(())
    })?;
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().flat_map(|(_, rows)| rows).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let is_short = !std::env::args().any(|arg| arg == "--bench");
    let guests = |kind, guests: &'static [Generated]| {
        guests.iter().map(move |guest| Job::Generated(guest, kind))
    };
    let traces = std::env::var_os("TIER_BENCH_TRACES").map(PathBuf::from);
    let traces = traces.iter().flat_map(|folder| {
        TRACES.map(|name| Job::Recorded(name, folder.join(format!("{name}.trace"))))
    });
    let jobs: Vec<Job> = guests(Kind::Changing, generated::CHANGING)
        .chain(guests(Kind::Steady, generated::STEADY))
        .chain(traces)
        .filter(|job| wanted.is_empty() || wanted.iter().any(|want| job.name().contains(want)))
        .collect();
    let rows = run_all(&jobs, is_short)?;
    print!("{}", report::text(&rows));
    if let Some(file) = std::env::var_os("TIER_BENCH_MARKDOWN") {
        std::fs::write(file, report::markdown(&rows))?;
    }
    Ok(())
}
