//! The outer emulator: its command line, and the process that never outlives its owner.
//!
//! Why this emulator and these options: the host's own KVM may be nested already and then runs no
//! 64-bit guest in a guest, so the outer emulator translates (TCG). `EPYC,+svm,+npt` gives the
//! emulated host KVM with nested paging. Latency and bandwidth of the HMAT are told to the kernel,
//! not emulated.
//!
//! Faults of the emulator (seen in 10.0.2 and 11.1.3; the newest is used in the hope of better) end
//! a run now and then, with and without an agent. [`crate::fault`] knows their signs:
//!
//! - With a thread for each CPU, a write to code discards its translation *before* it stores. A CPU
//!   that translates in between keeps the old code. When the kernel patches its own code (static
//!   keys, tracepoints) a breakpoint may so outlive the patching: "Oops: int3". Toggling
//!   kernel.sched_schedstats 300 times a second beside a guest crashes the emulated host within 20
//!   s.
//! - An interrupt injected into a nested guest (`helper_vmrun`) stays noted as an exception. If the
//!   emulated CPU is kicked before the next exit from the guest, it is delivered once more: a
//!   guest's Linux panics, resets or stands still. With one thread for all CPUs, which kicks them
//!   in turn, four of four guests went so within a minute, no agent near; with a thread for each it
//!   takes some 50 guests. A bare guest takes no interrupt but the end of a halt, and takes that
//!   twice without harm.
//! - A bare guest resets itself, without an exception that it could tell of: twice among 48 that
//!   waited for half a minute each, halting ten times a second, no agent near. The cause is not
//!   known. A guest that works does not halt, and with one emulated CPU in the host none of 24 did so
//!   in several runs: scenario `many` has one.
//! - An emulated CPU that halted is never woken again: its thread sleeps for good, and whatever ran
//!   on that CPU stands still, without a word from the emulated kernel. [`StandStill`] notices. Or
//!   a CPU waits for ever for another's answer after patching: a soft lockup.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::image::Cache;
use crate::scenario::Host;

/// Name of the port on which the emulated host writes its events.
pub const PORT: &str = "lab";

/// Files of one start of the emulator.
#[derive(Debug)]
pub struct Files {
    /// Both archives, one after the other.
    pub initramfs: PathBuf,
    /// The serial console is written here.
    pub console: PathBuf,
    /// The events are written here.
    pub events: PathBuf,
    /// The emulator's own messages.
    pub messages: PathBuf,
    /// A socket that leads to the agent in the emulated host, for scenarios with a bridge.
    pub bridge: Option<PathBuf>,
    /// The software PMU, for hosts that have one.
    pub pmu: Option<PmuFiles>,
}

/// What the software PMU is made of.
#[derive(Debug, Clone)]
pub struct PmuFiles {
    /// The emulator's plugin.
    pub plugin: PathBuf,
    /// The shared file, laid out as `softpmu` wants it.
    pub shared: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// Time of the emulated CPUs' threads, as schedstat counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Running.
    pub run_ns: u64,
    /// Ready to run, while something else had the CPU.
    pub wait_ns: u64,
}

impl CpuTime {
    /// Of the time since `earlier` that the threads wanted to run, the share that they waited.
    #[must_use]
    pub fn wait_share_since(&self, earlier: Self) -> f64 {
        let run = self.run_ns.saturating_sub(earlier.run_ns) as f64;
        let wait = self.wait_ns.saturating_sub(earlier.wait_ns) as f64;
        if run + wait > 0.0 {
            wait / (run + wait)
        } else {
            0.0
        }
    }
}

/// Notices an emulated CPU that never runs again.
#[derive(Debug)]
pub struct StandStill {
    /// When each was seen to have run last.
    ran: BTreeMap<String, (u64, Instant)>,
}

impl StandStill {
    /// Even an idle CPU has a timer now and then.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Begins to watch.
    #[must_use]
    pub fn new() -> Self {
        let ran = BTreeMap::new();
        Self { ran }
    }

    /// The CPU that has not run for a minute, if there is one.
    pub fn look(&mut self, emulator: &Emulator, now: Instant) -> Option<String> {
        self.take(emulator.cpus(), now)
    }

    fn take(&mut self, cpus: BTreeMap<String, CpuTime>, now: Instant) -> Option<String> {
        for (name, cpu) in cpus {
            let last = self.ran.entry(name).or_insert((cpu.run_ns, now));
            if last.0 != cpu.run_ns {
                *last = (cpu.run_ns, now);
            }
        }
        let mut ran = self.ran.iter();
        let stands = ran.find(|(_, (_, at))| now.duration_since(*at) >= Self::LIMIT)?;
        Some(stands.0.clone())
    }
}

impl Default for StandStill {
    fn default() -> Self {
        Self::new()
    }
}

/// A running emulator; dropping it kills it.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
}

impl Emulator {
    /// Starts an emulated host.
    ///
    /// # Errors
    /// When a file can't be made or the emulator can't be started.
    pub fn start(cache: &Cache, host: &Host, files: &Files) -> anyhow::Result<Self> {
        let root = cache.outer();
        let messages = std::fs::File::create(&files.messages)
            .with_context(|| format!("creating {}", files.messages.display()))?;
        // Dropping kills it; setpriv (util-linux, on every Debian) covers a lab that is itself
        // killed and drops nothing. The emulator may want a newer C library than this machine's: it
        // brings its own, with its loader.
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(libraries.join("ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(&libraries)
            .arg(root.join("usr/bin/qemu-system-x86_64"))
            .args(arguments(&root, &cache.kernel(), host, files))
            .stdin(Stdio::null())
            .stdout(messages.try_clone()?)
            .stderr(messages)
            .spawn()
            .context("starting the emulator with setpriv (package util-linux)")?;
        Ok(Self { child })
    }

    /// The exit status, if the emulator has ended.
    ///
    /// # Errors
    /// What waiting for a child gives.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// How long the threads of the emulated CPUs have run, and waited for a CPU of this machine.
    #[must_use]
    pub fn cpu_time(&self) -> CpuTime {
        let mut sum = CpuTime::default();
        for cpu in self.cpus().values() {
            sum.run_ns += cpu.run_ns;
            sum.wait_ns += cpu.wait_ns;
        }
        sum
    }

    /// The same of each emulated CPU, by the name of its thread.
    fn cpus(&self) -> BTreeMap<String, CpuTime> {
        let folder = format!("/proc/{}/task", self.child.id());
        let mut cpus = BTreeMap::new();
        for task in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let name = read("comm").trim().to_owned();
            if name.starts_with("CPU ") {
                let text = read("schedstat");
                let mut fields = text.split_whitespace().map(|f| f.parse().unwrap_or(0));
                let mut next = || fields.next().unwrap_or(0);
                let (run_ns, wait_ns) = (next(), next());
                cpus.insert(name, CpuTime { run_ns, wait_ns });
            }
        }
        cpus
    }

    /// Waits for the emulator's own end for a while.
    pub fn wait(&mut self, at_most: Duration) {
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < at_most {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The emulator's arguments.
#[must_use]
pub fn arguments(root: &Path, kernel: &Path, host: &Host, files: &Files) -> Vec<OsString> {
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    let total: u64 = host.nodes.iter().map(|node| node.mib).sum();
    add(&["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
    add(&["-vga", "none", "-nic", "none"]);
    // Names the threads of the emulated CPUs, see `cpu_time`.
    add(&["-name", "lab,debug-threads=on"]);
    add(&["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"]);
    add(&["-M", "q35,hmat=on"]);
    add(&["-smp", &host.cpus.to_string()]);
    add(&["-m", &format!("{total}M")]);
    for (id, node) in host.nodes.iter().enumerate() {
        let cpus = if id == 0 {
            format!(",cpus=0-{}", host.cpus - 1)
        } else {
            String::new()
        };
        add(&[
            "-object",
            &format!("memory-backend-ram,id=m{id},size={}M", node.mib),
            "-numa",
            &format!("node,nodeid={id},memdev=m{id},initiator=0{cpus}"),
        ]);
    }
    for (id, node) in host.nodes.iter().enumerate() {
        if id > 0 {
            let (distance, back) = (node.distance, node.distance);
            add(&["-numa", &format!("dist,src=0,dst={id},val={distance}")]);
            add(&["-numa", &format!("dist,src={id},dst=0,val={back}")]);
        }
        let to = format!("hmat-lb,initiator=0,target={id},hierarchy=memory");
        add(&[
            "-numa",
            &format!("{to},data-type=access-latency,latency={}", node.latency_ns),
            "-numa",
            &format!(
                "{to},data-type=access-bandwidth,bandwidth={}G",
                node.bandwidth_gib_s
            ),
        ]);
    }
    if let Some(pmu) = &files.pmu {
        list.push("-plugin".into());
        list.push(joined(&[
            &escaped(&pmu.plugin),
            ",ring=".as_ref(),
            &escaped(&pmu.shared),
        ]));
        // The emulated host sees the file as BAR 2 of a device without a driver.
        let backend = format!(
            "memory-backend-file,id=pmu,share=on,size={},mem-path=",
            pmu.bytes
        );
        list.push("-object".into());
        list.push(joined(&[backend.as_ref(), &escaped(&pmu.shared)]));
        list.push("-device".into());
        list.push("ivshmem-plain,memdev=pmu".into());
    }
    let mut with_path = |option: &str, before: &str, path: &Path| {
        let mut value = OsString::from(before);
        value.push(path);
        list.push(option.into());
        list.push(value);
    };
    for folder in ["usr/share/qemu", "usr/share/seabios"] {
        with_path("-L", "", &root.join(folder));
    }
    with_path("-kernel", "", kernel);
    with_path("-initrd", "", &files.initramfs);
    with_path("-serial", "file:", &files.console);
    with_path("-chardev", "file,id=events,path=", &files.events);
    if let Some(bridge) = &files.bridge {
        let listening = "socket,id=bridge,server=on,wait=off,path=";
        with_path("-chardev", listening, bridge);
    }
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&["-device", "virtio-serial-pci"]);
    add(&[
        "-device",
        &format!("virtserialport,chardev=events,name={PORT}"),
    ]);
    if files.bridge.is_some() {
        add(&["-device", "virtserialport,chardev=bridge,name=bridge"]);
    }
    // panic=-1 with -no-reboot: a crashed emulated host ends the emulator.
    let args = format!(
        "console=ttyS0 quiet mitigations=off panic=-1 {}",
        host.kernel_args
    );
    add(&["-append", args.trim_end()]);
    list
}

fn joined(parts: &[&OsStr]) -> OsString {
    parts.iter().copied().collect()
}

/// A path as a value in the emulator's lists: a comma is doubled.
fn escaped(path: &Path) -> OsString {
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(files: &Files) -> String {
        arguments(Path::new("/root"), Path::new("k"), &Host::default(), files)
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn files() -> Files {
        Files {
            initramfs: "i".into(),
            console: "c".into(),
            events: "e".into(),
            messages: "m".into(),
            bridge: None,
            pmu: None,
        }
    }

    #[test]
    fn arguments_when_a_host_has_a_pmu_name_plugin_and_device() {
        assert!(!words(&files()).contains("plugin"));

        let text = words(&Files {
            pmu: Some(PmuFiles {
                plugin: "/a,b/p.so".into(),
                shared: "/proc/7/fd/3".into(),
                bytes: 8192,
            }),
            ..files()
        });

        assert!(
            text.contains("-plugin /a,,b/p.so,ring=/proc/7/fd/3"),
            "{text}"
        );
        assert!(
            text.contains("memory-backend-file,id=pmu,share=on,size=8192,mem-path=/proc/7/fd/3")
        );
        assert!(text.contains("-device ivshmem-plain,memdev=pmu"));
    }

    #[test]
    fn cpu_when_it_never_runs_again_is_noticed_and_one_that_idles_is_not() {
        let mut still = StandStill::new();
        let begin = Instant::now();
        let mut found = None;
        for second in 0..=90_u64 {
            let run = |run_ns| CpuTime {
                run_ns,
                wait_ns: second,
            };
            let cpus = [
                ("CPU 0/TCG", run(second.min(20))),
                ("CPU 1/TCG", run(second / 50)),
            ];
            let cpus = cpus.map(|(name, time)| (name.to_owned(), time)).into();
            found = still.take(cpus, begin + Duration::from_secs(second));
            assert_eq!(found.is_some(), second >= 80, "{second}");
        }
        assert_eq!(found.as_deref(), Some("CPU 0/TCG"));
    }

    #[test]
    fn wait_share_when_a_quarter_was_waited_says_so() {
        let earlier = CpuTime {
            run_ns: 100,
            wait_ns: 50,
        };
        let later = CpuTime {
            run_ns: 400,
            wait_ns: 150,
        };

        assert_eq!(later.wait_share_since(earlier), 0.25);
        assert_eq!(later.wait_share_since(later), 0.0);
    }

    #[test]
    fn arguments_when_a_host_has_two_nodes_describe_both_in_the_hmat() {
        let text = words(&files());

        assert!(text.contains("-numa node,nodeid=0,memdev=m0,initiator=0,cpus=0-1"));
        assert!(text.contains("-numa node,nodeid=1,memdev=m1,initiator=0 "));
        assert_eq!(text.matches("hmat-lb").count(), 4);
        assert!(text.contains("-m 1216M"));
    }
}
