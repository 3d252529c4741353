//! Carries out the steps of the runs, one after the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

use super::measure::{self, Board, HostWatch, Sampler};
use super::pmu::Pmu;
use super::records::Reader;
use super::{AGENT, Reporter, agent, attempt, bridge, guest, locked, punch, scaled};
use crate::event::{Costs, Event, GuestCosts, GuestEvent, Look, Mark, POOLS_SET};
use crate::moves;
use crate::scenario::{Knobs, Run, Scenario, Signal, Step, Until};
use crate::sys::pages_on_nodes;

const BALLAST: &str = "/run/ballast";
const CGROUPS: &str = "/sys/fs/cgroup";
const KDAMONDS: &str = "/sys/kernel/mm/damon/admin/kdamonds";
/// On the reference machine, as the two below.
const AGENT_END_WITHIN: Duration = Duration::from_secs(45);
/// Huge pages are looked at 2 s in 20 when nothing moves: a hot set that no page was moved of for
/// so long stays.
const NO_RISE_WITHIN: Duration = Duration::from_secs(60);
/// Orders are carried out in some seconds.
const REPLY_WITHIN: Duration = Duration::from_secs(60);

/// Carries out all runs. A run that fails does not keep the next from being tried.
///
/// # Errors
/// When the emulated host itself can't be used any more.
pub fn run_all(scenario: &Scenario, reporter: &Reporter) -> anyhow::Result<()> {
    let pmu = match scenario.host.pmu {
        Some(_) => Some(Arc::new(Pmu::find().context("the software PMU")?)),
        None => None,
    };
    for run in &scenario.runs {
        reporter.start_clock();
        reporter.tell(&Event::RunStarted {
            run: run.name.clone(),
        });
        let error = set_knobs(&run.knobs)
            .and_then(|()| carry_out(run, pmu.as_ref(), reporter))
            .err();
        reporter.tell(&Event::RunEnded {
            run: run.name.clone(),
            error: error.map(|error| format!("{error:#}")),
        });
        if let Some(pmu) = &pmu {
            pmu.arm(false);
        }
        clear_up();
    }
    reporter.tell(&Event::Done);
    Ok(())
}

fn set_knobs(knobs: &Knobs) -> anyhow::Result<()> {
    let set = |path: &str, value: &str| {
        fs::write(path, value).with_context(|| format!("writing {value} to {path}"))
    };
    set(
        "/proc/sys/kernel/numa_balancing",
        &knobs.numa_balancing.to_string(),
    )?;
    set(
        "/sys/kernel/mm/numa/demotion_enabled",
        if knobs.demotion { "1" } else { "0" },
    )?;
    if !knobs.thp.is_empty() {
        set("/sys/kernel/mm/transparent_hugepage/enabled", &knobs.thp)?;
    }
    Ok(())
}

/// What must not reach into the next run: a crashed agent's kdamond, and the ballast.
fn clear_up() {
    let kdamonds = fs::read_dir(KDAMONDS).into_iter().flatten().flatten();
    for kdamond in kdamonds {
        let _ = fs::write(kdamond.path().join("state"), "off");
    }
    let _ = fs::write(format!("{KDAMONDS}/nr_kdamonds"), "0");
    // One for each node that was filled.
    while rustix::mount::unmount(BALLAST, UnmountFlags::empty()).is_ok() {}
    for node in 0..measure::nodes().len() {
        for page_mib in [2, 1024] {
            let _ = fs::write(
                measure::pool_folder(node, page_mib).join("nr_hugepages"),
                "0",
            );
        }
    }
}

struct Runner<'a> {
    run: &'a Run,
    reporter: &'a Reporter,
    board: Arc<Mutex<Board>>,
    guests: BTreeMap<String, guest::Running>,
    agents: BTreeMap<String, agent::Running>,
    host: Option<agent::Running>,
    /// Files that were written, with what stood there before.
    files: Vec<(String, String)>,
}

impl Drop for Runner<'_> {
    fn drop(&mut self) {
        for (file, before) in self.files.iter().rev() {
            // The word in brackets is the one in force.
            let word = before
                .split_once('[')
                .and_then(|(_, rest)| rest.split_once(']'));
            let before = word.map_or(before.as_str(), |(word, _)| word);
            let _ = fs::write(file, before.trim());
        }
    }
}

fn carry_out(run: &Run, pmu: Option<&Arc<Pmu>>, reporter: &Reporter) -> anyhow::Result<()> {
    let board = Arc::new(Mutex::new(Board {
        pmu: pmu.cloned(),
        watches_dram: run.watch_dram,
        ..Board::default()
    }));
    let mut runner = Runner {
        run,
        reporter,
        board: Arc::clone(&board),
        guests: BTreeMap::new(),
        agents: BTreeMap::new(),
        host: None,
        files: Vec::new(),
    };
    let _sampler = Sampler::start(&board, reporter);
    let before = measure::vmstat();
    let outcome = run.steps.iter().try_for_each(|step| runner.step(step));
    runner.note("vmstat", measure::vmstat_since(&before));
    outcome
}

impl Runner<'_> {
    fn name(&self, guest: &str) -> anyhow::Result<String> {
        let found = self.run.guest(guest);
        Ok(found
            .with_context(|| format!("run {} has no guest '{guest}'", self.run.name))?
            .name
            .clone())
    }

    fn guest(&mut self, name: &str) -> anyhow::Result<&mut guest::Running> {
        let name = self.name(name)?;
        self.guests
            .get_mut(&name)
            .with_context(|| format!("guest {name} was not started"))
    }

    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::StartGuest { guest, with_work } => self.each(guest, |runner, name| {
                runner.start_guest(name)?;
                match with_work {
                    true => runner.start_work(name),
                    false => Ok(()),
                }
            }),
            Step::AwaitGuestUp { guest } => {
                self.reporter
                    .progress("waiting for the guest to be up again");
                let running = self.guest(guest)?;
                locked(&running.watch).hot_pages.clear();
                running.await_up()
            }
            Step::Ballast {
                node,
                leave_free_mib,
            } => self.ballast(*node, *leave_free_mib),
            Step::StartWork { guest } => self.each(guest, Self::start_work),
            Step::Say { guest, line } => {
                self.each(guest, |this, guest| this.guest(guest)?.say(line))
            }
            Step::PunchHot {
                guest,
                note,
                min,
                max,
            } => {
                self.reporter
                    .progress("taking the hot pages away from the guest");
                let watch = Arc::clone(&self.guest(guest)?.watch);
                let (pid, pages) = {
                    let watch = locked(&watch);
                    (watch.pid, watch.hot_pages.clone())
                };
                let back = punch::punch(pid, &pages)?;
                let share = back.share();
                self.note(
                    note,
                    json!({ "pages": back.pages, "on-node-0": back.fast, "share": share }),
                );
                if !(*min..=*max).contains(&share) {
                    bail!(
                        "{share:.3} of the hot pages came back on node 0, where {min} to {max} were due"
                    );
                }
                Ok(())
            }
            Step::MoveHot { guest, to_mib } => {
                let running = self.guest(guest)?;
                // It says when it has done so.
                running.say(&format!("hot {to_mib}"))
            }
            Step::Wait { seconds, phase } => {
                self.phase(phase);
                let what = if phase.is_empty() { "" } else { " " };
                self.reporter
                    .progress(format!("measuring{what}{phase} for {seconds} s"));
                std::thread::sleep(Duration::from_secs(*seconds));
                Ok(())
            }
            Step::AwaitShare { guest, min, phase } => {
                self.phase(phase);
                self.each(guest, |this, guest| this.await_share(guest, *min))
            }
            Step::StartAgent { guest, args } => {
                self.each(guest, |this, guest| this.start_agent(guest, args))
            }
            Step::StartHost { config } => self.start_host(config),
            Step::EndHost { with } => {
                self.reporter
                    .progress(format!("ending the host daemon ({with:?})"));
                locked(&self.board).host = None;
                let running = self.host.take().context("no host daemon runs")?;
                running.signal(signal(*with));
                self.agent_ended(running, AGENT_END_WITHIN)
            }
            Step::HostCtl {
                execute,
                arguments,
                note,
                until,
            } => {
                let note = if note.is_empty() { execute } else { note };
                let socket = agent::host_socket();
                self.ctl(&socket, execute, arguments, note, until.as_ref())
            }
            Step::Repeat { times, steps } => {
                (0..*times).try_for_each(|_| steps.iter().try_for_each(|step| self.step(step)))
            }
            Step::EndAgent { guest, with } => {
                self.reporter
                    .progress(format!("ending the agent ({with:?})"));
                self.each(guest, |this, guest| this.end_agent(guest, *with))
            }
            Step::AwaitAgentEnd { guest, within_s } => {
                let (name, running) = self.take_agent(guest)?;
                self.reporter.progress("waiting for the agent to end");
                self.agent_ended(running, Duration::from_secs(*within_s))?;
                self.reporter.mark(Mark::AgentEnded, &name);
                Ok(())
            }
            Step::KillGuest { guest } => {
                self.reporter.progress("killing the guest's QEMU");
                let name = self.name(guest)?;
                locked(&self.board).guests.remove(&name);
                let mut running = self.guests.remove(&name).context("no such guest")?;
                running.kill();
                Ok(())
            }
            Step::Qmp {
                guest,
                execute,
                arguments,
            } => {
                let arguments = match arguments.as_str() {
                    "" => Value::Null,
                    text => serde_json::from_str(text).context("arguments")?,
                };
                let watch = Arc::clone(&self.guest(guest)?.watch);
                let reply = locked(&watch).monitor.execute(execute, arguments)?;
                self.note(execute, reply);
                Ok(())
            }
            Step::Ctl {
                guest,
                execute,
                arguments,
                note,
                until,
            } => {
                let note = if note.is_empty() { execute } else { note };
                self.each(guest, |this, guest| {
                    let socket = agent::control_socket(&this.name(guest)?);
                    this.ctl(&socket, execute, arguments, note, until.as_ref())
                })
            }
            Step::Bridge { guest } => bridge::start(&agent::control_socket(&self.name(guest)?)),
            Step::Ask { name, args, during } => self.ask(name, args, during),
            Step::Attempt(attempt) => {
                self.reporter.progress(format!("attempt {}", attempt.name));
                let monitor = match self.run.guest("") {
                    Some(guest) => guest::agent_monitor(&guest.name),
                    None => guest::agent_monitor("none"),
                };
                let outcome = attempt::carry_out(attempt, &monitor)?;
                self.reporter.tell(&Event::Attempt(outcome));
                Ok(())
            }
            Step::ReadRecords {
                guest,
                note,
                seconds,
            } => self.read_records(guest, note, Duration::from_secs(*seconds)),
            Step::BareMoves {
                note,
                pages,
                rounds,
            } => {
                self.reporter
                    .progress("moving pages as an agent does, and bare");
                let found = moves::measure(0, 1, *pages, *rounds)?;
                self.note(note, json!({ "reply": found }));
                Ok(())
            }
            Step::SetPools { pages, page_mib } => self.set_pools(pages, *page_mib),
            Step::SetFile { file, to, may_fail } => match self.set_file(file, to) {
                Err(error) if *may_fail => {
                    self.reporter.log("lab", format!("refused: {error:#}"));
                    Ok(())
                }
                done => done,
            },
            Step::Look { name } => {
                self.look(name);
                Ok(())
            }
            Step::Costs => {
                self.costs();
                Ok(())
            }
            Step::FinishWork { guest } => self.each(guest, Self::finish_work),
        }
    }

    /// Does it for the guest of this name, or for all.
    fn each(
        &mut self,
        guest: &str,
        what: impl Fn(&mut Self, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if guest != "*" {
            return what(self, guest);
        }
        let names = self.run.guests.iter().map(|guest| guest.name.as_str());
        names.into_iter().try_for_each(|name| what(self, name))
    }

    fn set_pools(&self, pages: &[u64], page_mib: u64) -> anyhow::Result<()> {
        for (node, pages) in pages.iter().enumerate() {
            let path = measure::pool_folder(node, page_mib).join("nr_hugepages");
            fs::write(&path, pages.to_string())
                .with_context(|| format!("writing {pages} to {}", path.display()))?;
            // Pages in use stay as surplus, so there may be more.
            let found: u64 = fs::read_to_string(&path)?.trim().parse()?;
            if found < *pages {
                bail!(
                    "the kernel found memory for {found} of {pages} pages of {page_mib} MiB on node {node}"
                );
            }
        }
        self.note(POOLS_SET, json!(pages));
        Ok(())
    }

    fn ask(&mut self, note: &str, args: &[String], during: &[Step]) -> anyhow::Result<()> {
        let name = self.run.guest("").map_or("none", |guest| &guest.name);
        let (monitor, control) = (guest::agent_monitor(name), agent::control_socket(name));
        let hot = self.guests.get(name).and_then(|guest| {
            let watch = locked(&guest.watch);
            let middle = watch.hot_pages.len() / 2;
            watch.guest_address(*watch.hot_pages.get(middle)?)
        });
        let hot = hot.map_or_else(|| "none".to_owned(), |address| format!("{address:#x}"));
        let mut command = Command::new(AGENT);
        let args = args.iter().map(|arg| {
            arg.replace("{qmp}", &monitor.to_string_lossy())
                .replace("{control}", &control.to_string_lossy())
                .replace("{hot}", &hot)
        });
        command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let running = command
            .spawn()
            .with_context(|| format!("starting {AGENT}"))?;
        let taken = during.iter().try_for_each(|step| self.step(step));
        let answer = answer(&running.wait_with_output()?);
        self.note(note, answer);
        taken
    }

    fn set_file(&mut self, file: &str, to: &str) -> anyhow::Result<()> {
        let path = Path::new(file);
        if !path.starts_with("/proc") && !path.starts_with("/sys") {
            bail!("{file} is no file of /proc or /sys");
        }
        let name = self.name("")?;
        let pid = |pid: Option<u32>| pid.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
        let to = to
            .replace(
                "{qemu}",
                &pid(self.guests.get(&name).map(guest::Running::pid)),
            )
            .replace(
                "{agent}",
                &pid(self.agents.get(&name).map(agent::Running::pid)),
            );
        match path.parent() {
            Some(group) if path.starts_with(CGROUPS) => fs::create_dir_all(group)?,
            _ => {
                let before = fs::read_to_string(path).with_context(|| format!("reading {file}"))?;
                self.files.push((file.to_owned(), before));
            }
        }
        fs::write(path, &to).with_context(|| format!("writing {to} to {file}"))
    }

    fn phase(&self, phase: &str) {
        if !phase.is_empty() {
            self.reporter.tell(&Event::Phase {
                t: self.reporter.t(),
                phase: phase.to_owned(),
            });
        }
    }

    /// Waits for a share, as long as it rises.
    fn await_share(&mut self, guest: &str, min: f64) -> anyhow::Result<()> {
        let name = self.name(guest)?;
        self.reporter.progress(format!(
            "waiting for {:.0} % of the hot set in DRAM",
            min * 100.0
        ));
        let patience = scaled(NO_RISE_WITHIN);
        let (mut best, mut risen) = (0.0, Instant::now());
        loop {
            let share = locked(&self.board).shares.get(&name).copied();
            let share = share.unwrap_or(0.0);
            if share >= min {
                return Ok(());
            }
            if share > best {
                (best, risen) = (share, Instant::now());
            }
            if risen.elapsed() >= patience {
                self.note_why_stuck(&name);
                bail!(
                    "guest {name}: the share of the hot set in DRAM was {best:.3} at best and has not risen for {:.0} s; \
                     {min} was waited for",
                    patience.as_secs_f64()
                );
            }
            self.guest(&name)?.still_there()?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Notes what the agent says about itself and about a hot page that is not in DRAM.
    fn note_why_stuck(&mut self, name: &str) {
        let hot_on_slow = self.guest(name).ok().and_then(|guest| {
            let watch = locked(&guest.watch);
            let nodes = pages_on_nodes(watch.pid, &watch.hot_pages).ok()?;
            let mut pages = watch.hot_pages.iter().zip(nodes);
            let (page, _) = pages.find(|(_, node)| *node != 0)?;
            watch.guest_address(*page)
        });
        let control = agent::control_socket(name);
        let answer = |execute: &str, arguments: &str| {
            ask_socket(&control, execute, arguments)
                .unwrap_or_else(|error| json!(format!("{error:#}")))
        };
        let explain = |address: u64| {
            let arguments = json!({ "address": address });
            answer("tier-explain", &arguments.to_string())
        };
        let why = json!({
            "nodes": measure::nodes(),
            "query-tier": answer("query-tier", ""),
            "tier-explain": hot_on_slow.map(explain),
        });
        self.note("stuck", why);
    }

    fn end_agent(&mut self, guest: &str, with: Signal) -> anyhow::Result<()> {
        let (name, running) = self.take_agent(guest)?;
        self.reporter.mark(Mark::AgentEnded, &name);
        running.signal(signal(with));
        self.agent_ended(running, AGENT_END_WITHIN)
    }

    fn costs(&self) {
        let guests = self.guests.iter().map(|(name, guest)| {
            let agent = self.agents.get(name);
            let costs = GuestCosts {
                qemu: measure::process_costs(guest.pid()),
                agent: agent.and_then(|agent| measure::process_costs(agent.pid())),
            };
            (name.clone(), costs)
        });
        self.reporter.tell(&Event::Costs(Costs {
            t: self.reporter.t(),
            guests: guests.collect(),
        }));
    }

    fn note(&self, name: &str, value: Value) {
        self.reporter.tell(&Event::Note {
            t: self.reporter.t(),
            name: name.to_owned(),
            value,
        });
    }

    fn start_guest(&mut self, guest: &str) -> anyhow::Result<()> {
        let guest = self
            .run
            .guest(guest)
            .with_context(|| format!("no guest '{guest}'"))?;
        self.reporter.progress(format!(
            "starting guest {} ({} MiB, {:?})",
            guest.name, guest.mib, guest.backend
        ));
        let running = guest::Running::start(guest, self.reporter)?;
        locked(&self.board)
            .guests
            .insert(guest.name.clone(), Arc::clone(&running.watch));
        self.reporter.mark(Mark::GuestUp, &guest.name);
        self.guests.insert(guest.name.clone(), running);
        Ok(())
    }

    fn start_work(&mut self, guest: &str) -> anyhow::Result<()> {
        self.reporter
            .progress("the workload touches its working set");
        let running = self.guest(guest)?;
        running.say("go")?;
        let name = running.name.clone();
        match running.await_event()? {
            GuestEvent::Ready => {}
            other => bail!("guest {name}: {other:?} where ready was due"),
        }
        // Not before: the first touch would take minutes.
        running.limit_cpu()?;
        // The next sample shall know where the hot set is.
        locked(&running.watch).translate()?;
        // Not before: booting and the first touch would take longer.
        let watch = Arc::clone(&running.watch);
        let pmu = locked(&self.board).pmu.clone();
        if let Some(pmu) = pmu {
            let mut watch = locked(&watch);
            let vcpus = watch.monitor.vcpu_threads()?;
            pmu.arrange(watch.pid, &vcpus)?;
            pmu.arm(true);
        }
        self.reporter.mark(Mark::WorkReady, &name);
        Ok(())
    }

    fn finish_work(&mut self, guest: &str) -> anyhow::Result<()> {
        self.reporter
            .progress("comparing the guest's memory with its updates");
        let running = self.guest(guest)?;
        running.unlimit_cpu();
        running.say("finish")?;
        let name = running.name.clone();
        match running.await_event()? {
            GuestEvent::Integrity { ok, updates, .. } => {
                self.reporter.tell(&Event::Integrity {
                    guest: name.clone(),
                    ok,
                    updates,
                });
            }
            other => bail!("guest {name}: {other:?} where integrity was due"),
        }
        locked(&self.board).guests.remove(&name);
        self.guests.remove(&name);
        Ok(())
    }

    /// A tmpfs bound to one node: its pages stay there. `noswap` makes them unevictable, so
    /// that kernel tiering can't demote them either.
    fn ballast(&mut self, node: u32, leave_free_mib: u64) -> anyhow::Result<()> {
        fs::create_dir_all(BALLAST)?;
        let options = std::ffi::CString::new(format!("noswap,mpol=bind:{node},size=100%"))?;
        rustix::mount::mount(
            "tmpfs",
            BALLAST,
            "tmpfs",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .context("mounting the ballast")?;
        let free_kib = || {
            measure::nodes()
                .iter()
                .find(|facts| facts.node == node)
                .map(|facts| facts.free_kib)
                .with_context(|| format!("there is no node {node}"))
        };
        let before = free_kib()?;
        let mut file = fs::File::create(Path::new(BALLAST).join("fill"))?;
        let chunk = vec![0x5a_u8; 1 << 20];
        while free_kib()? > (leave_free_mib + 1) * 1024 {
            file.write_all(&chunk)
                .with_context(|| format!("filling node {node}"))?;
        }
        let after = free_kib()?;
        self.note(
            "ballast",
            json!({ "node": node, "free-kib-before": before, "free-kib-after": after }),
        );
        if after + 8 * 1024 < leave_free_mib * 1024 {
            bail!("node {node} has only {after} KiB free; {leave_free_mib} MiB were asked for");
        }
        Ok(())
    }

    fn start_agent(&mut self, guest: &str, args: &[String]) -> anyhow::Result<()> {
        let name = self.name(guest)?;
        self.reporter.progress("starting vmm-tier run");
        self.reporter.mark(Mark::AgentStarted, &name);
        let pmu = locked(&self.board).pmu.clone();
        let pmu = pmu.map(|pmu| {
            pmu.empty();
            pmu.path.to_string_lossy().into_owned()
        });
        let host = agent::host_socket();
        let fill = |arg: &String| {
            let arg = arg.replace("{host}", &host.to_string_lossy());
            match &pmu {
                Some(path) => arg.replace("{pmu}", path),
                None => arg,
            }
        };
        let args: Vec<String> = args.iter().map(fill).collect();
        let mut running = agent::Running::start(&name, &args, self.reporter)?;
        if !running.await_ready()? {
            self.agent_ended(running, AGENT_END_WITHIN)?;
            bail!("the agent ended at once");
        }
        self.reporter.mark(Mark::AgentReady, &name);
        locked(&self.board)
            .agents
            .insert(name.clone(), agent::Watch::new(running.pid(), &name));
        self.agents.insert(name, running);
        Ok(())
    }

    fn start_host(&mut self, config: &str) -> anyhow::Result<()> {
        self.reporter.progress("starting vmm-tier host");
        let mut running = agent::Running::start_host(config, self.reporter)?;
        if !running.await_ready()? {
            self.agent_ended(running, AGENT_END_WITHIN)?;
            bail!("the host daemon ended at once");
        }
        locked(&self.board).host = Some(HostWatch::new(running.pid(), agent::host_socket()));
        self.host = Some(running);
        Ok(())
    }

    fn take_agent(&mut self, guest: &str) -> anyhow::Result<(String, agent::Running)> {
        let name = self.name(guest)?;
        locked(&self.board).agents.remove(&name);
        let running = self
            .agents
            .remove(&name)
            .with_context(|| format!("no agent runs beside guest {name}"))?;
        Ok((name, running))
    }

    fn agent_ended(&self, running: agent::Running, within: Duration) -> anyhow::Result<()> {
        let end = running.await_end(within, self.reporter)?;
        self.reporter.tell(&Event::AgentEnd(end));
        Ok(())
    }

    fn ctl(
        &mut self,
        socket: &Path,
        execute: &str,
        arguments: &str,
        note: &str,
        until: Option<&Until>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let answer = ask_socket(socket, execute, arguments)?;
            let missing = until.filter(|until| !until.holds(&answer["reply"]));
            let patience = scaled(REPLY_WITHIN);
            match missing {
                Some(_) if began.elapsed() < patience => {
                    std::thread::sleep(Duration::from_secs(1));
                }
                Some(until) => {
                    let found = answer["reply"].pointer(&until.at).cloned();
                    self.note(note, answer);
                    bail!(
                        "{execute} says {} at {} after {:.0} s",
                        found.unwrap_or(Value::Null),
                        until.at,
                        patience.as_secs_f64()
                    );
                }
                None => {
                    self.note(note, answer);
                    return Ok(());
                }
            }
        }
    }

    fn read_records(&mut self, guest: &str, note: &str, time: Duration) -> anyhow::Result<()> {
        let pmu = locked(&self.board).pmu.clone();
        let pmu = pmu.context("the host has no software PMU")?;
        self.reporter.progress("reading the PMU's records");
        let watch = Arc::clone(&self.guest(guest)?.watch);
        let mut reader = Reader::new(&pmu, &locked(&watch))?;
        reader.read(time);
        self.note(note, json!({ "reply": { "source": reader.account() } }));
        Ok(())
    }

    fn look(&self, name: &str) {
        let held = self.agents.values().chain(&self.host);
        let held: Vec<u32> = held.map(agent::Running::pid).collect();
        let sockets = self
            .run
            .guests
            .iter()
            .filter(|guest| !self.agents.contains_key(&guest.name))
            .map(|guest| agent::control_socket(&guest.name))
            .filter(|socket| socket.exists())
            .map(|socket| socket.display().to_string())
            .collect();
        let mut processes = measure::processes_named(|name| name == "vmm-tier");
        processes.retain(|pid| !held.contains(pid));
        self.reporter.tell(&Event::Look(Look {
            name: name.to_owned(),
            t: self.reporter.t(),
            kdamonds: kdamonds(),
            kdamond_threads: measure::kdamond_threads().len() as u64,
            sockets,
            processes,
        }));
    }
}

const fn signal(with: Signal) -> rustix::process::Signal {
    match with {
        Signal::Term => rustix::process::Signal::TERM,
        Signal::Kill => rustix::process::Signal::KILL,
    }
}

/// Asks the agent or the host daemon behind a socket; without arguments the command has none.
fn ask_socket(socket: &Path, execute: &str, arguments: &str) -> anyhow::Result<Value> {
    let mut command = Command::new(AGENT);
    command.arg("ctl").arg(socket).arg(execute);
    if !arguments.is_empty() {
        command.arg(arguments);
    }
    ask(command)
}

fn ask(mut command: Command) -> anyhow::Result<Value> {
    let output = command
        .output()
        .with_context(|| format!("starting {AGENT}"))?;
    Ok(answer(&output))
}

fn answer(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    json!({
        "code": output.status.code(),
        "reply": serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text)),
        "stderr": String::from_utf8_lossy(&output.stderr),
    })
}

/// How many kdamonds are configured; none when the kernel has no DAMON.
pub(crate) fn kdamonds() -> u64 {
    fs::read_to_string(format!("{KDAMONDS}/nr_kdamonds"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}
