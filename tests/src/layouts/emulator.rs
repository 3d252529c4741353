//! The QEMU versions that the lab's cache has, and a guest of one, which never outlives its owner.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use qmp::Client;
use qmp::hmp::{Gpa2Hva, parse_gpa2hva};
use serde_json::{Value, json};

use super::qtest::Qtest;
use crate::image::Cache;

/// Addresses that QEMU is asked for before the first answer is read.
const AT_ONCE: usize = 32;
/// How long a guest may take to start: seconds are needed only to populate its memory.
const START: Duration = Duration::from_secs(60);

/// A QEMU that can be started.
#[derive(Debug, Clone)]
pub struct Version {
    /// As QEMU says it: `7.2.22`.
    pub name: String,
    /// Major and minor number.
    pub number: (u32, u32),
    loader: PathBuf,
    root: PathBuf,
}

impl Version {
    /// The versions in the cache, oldest first.
    ///
    /// # Errors
    /// When a version can't be understood.
    pub fn of(cache: &Cache) -> anyhow::Result<Vec<Self>> {
        // The newest brings its own C library; the other stands on this machine's.
        let newest = cache.outer();
        let own = newest.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
        let older = newest.with_file_name("qemu-inner");
        let mut versions = Vec::new();
        for (entry, root, loader) in [
            (
                "qemu-inner",
                older,
                PathBuf::from("/lib64/ld-linux-x86-64.so.2"),
            ),
            ("qemu-outer", newest, own),
        ] {
            let text = cache.version(entry);
            let name = text.split_whitespace().next().unwrap_or_default();
            let number = numbers(name)
                .with_context(|| format!("the version '{text}' of {}", root.display()))?;
            versions.push(Self {
                name: name.to_owned(),
                number,
                loader,
                root,
            });
        }
        versions.sort_by_key(|version| version.number);
        Ok(versions)
    }

    fn command(&self) -> Command {
        // setpriv (util-linux) ends the guest also when the harness is killed.
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new("setpriv");
        command
            .env("QEMU_MODULE_DIR", libraries.join("qemu"))
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.loader)
            .arg("--library-path")
            .arg(&libraries)
            .arg(self.root.join("usr/bin/qemu-system-x86_64"));
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(folder));
        }
        command
    }
}

fn numbers(name: &str) -> Option<(u32, u32)> {
    let mut parts = name.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// A guest without a system: its CPUs never run.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    folder: PathBuf,
    monitor: Option<Client>,
    qtest: Option<Qtest>,
}

impl Qemu {
    /// Starts a guest; its sockets and messages are in `folder`.
    pub(super) fn start(
        version: &Version,
        arguments: &[String],
        folder: &Path,
    ) -> anyhow::Result<Self> {
        for name in ["map.qmp", "check.qmp", "qtest"] {
            let _ = fs::remove_file(folder.join(name));
        }
        let messages = folder.join("messages");
        let socket = |option: &str, name: &str| {
            let mut value = OsString::from("unix:");
            value.push(folder.join(name));
            value.push(",server=on,wait=off");
            [OsString::from(option), value]
        };
        let child = version
            .command()
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                // Debian has no module for `-accel qtest`; stopped CPUs do as well.
                "-accel",
                "tcg",
                "-S",
            ])
            .args(["-qtest-log", "/dev/null"])
            .args(socket("-qtest", "qtest"))
            .args(socket("-qmp", "map.qmp"))
            .args(socket("-qmp", "check.qmp"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&messages)?)
            .spawn()
            .context("starting QEMU with setpriv (package util-linux)")?;
        let mut qemu = Self {
            child,
            folder: folder.to_owned(),
            monitor: None,
            qtest: None,
        };
        qemu.connect().with_context(|| {
            let said = fs::read_to_string(&messages).unwrap_or_default();
            format!("QEMU said '{}'", said.trim())
        })?;
        Ok(qemu)
    }

    fn connect(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let socket = self.folder.join("check.qmp");
        // The greeting comes when the guest's memory is there.
        let options = qmp::client::Options {
            greeting_timeout: START,
            ..qmp::client::Options::default()
        };
        let monitor = loop {
            // For a moment the socket's file is there and nobody listens.
            let error = match Client::connect(&socket, &options) {
                Ok((monitor, _)) => break monitor,
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended ({status})");
            }
            if began.elapsed() > START {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.monitor = Some(monitor);
        self.qtest = Some(Qtest::connect(&self.folder.join("qtest"))?);
        Ok(())
    }

    /// The guest's monitor for the program under test.
    pub(super) fn map_socket(&self) -> PathBuf {
        self.folder.join("map.qmp")
    }

    pub(super) fn qtest(&mut self) -> anyhow::Result<&mut Qtest> {
        self.qtest.as_mut().context("no qtest connection")
    }

    fn monitor(&self) -> anyhow::Result<&Client> {
        self.monitor.as_ref().context("no monitor")
    }

    /// Sends a QMP command.
    pub(super) fn execute(&self, name: &str, arguments: Option<Value>) -> anyhow::Result<Value> {
        Ok(self.monitor()?.execute_raw(name, arguments)?)
    }

    /// Sends a line to the human monitor.
    pub(super) fn human(&self, line: &str) -> anyhow::Result<String> {
        Ok(self.monitor()?.hmp(line)?)
    }

    /// Where QEMU says that guest-physical addresses are.
    pub(super) fn translate(&self, gpas: &[u64]) -> anyhow::Result<Vec<Gpa2Hva>> {
        let monitor = self.monitor()?;
        let mut places = Vec::with_capacity(gpas.len());
        for some in gpas.chunks(AT_ONCE) {
            let sent: Vec<_> = some
                .iter()
                .map(|gpa| {
                    let line = json!({"command-line": format!("gpa2hva {gpa:#x}")});
                    monitor.send("human-monitor-command", Some(line))
                })
                .collect::<Result<_, _>>()?;
            for question in sent {
                let answer = question.wait(Duration::from_secs(10))?;
                places.push(parse_gpa2hva(answer.as_str().unwrap_or_default())?);
            }
        }
        Ok(places)
    }

    /// Reads 8 bytes at each address of the QEMU process; `None` where nothing can be read.
    pub(super) fn read_words(&self, addresses: &[u64]) -> anyhow::Result<Vec<Option<u64>>> {
        let path = format!("/proc/{}/mem", self.child.id());
        let memory = File::open(&path).with_context(|| format!("opening {path} (as root)"))?;
        let word = |&address: &u64| {
            let mut bytes = [0; 8];
            memory
                .read_exact_at(&mut bytes, address)
                .is_ok()
                .then(|| u64::from_le_bytes(bytes))
        };
        Ok(addresses.iter().map(word).collect())
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, at most `limit`; what it printed.
pub(super) fn output_of(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.as_mut().map(|out| out.read_to_string(&mut text));
        text
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            bail!("not finished within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut said = String::new();
    if let Some(err) = err.as_mut() {
        err.read_to_string(&mut said)?;
    }
    let text = reader.join().unwrap_or_default();
    if !status.success() {
        bail!("{status}: {}", said.trim());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_when_a_version_is_whole_are_major_and_minor() {
        assert_eq!(numbers("7.2.22"), Some((7, 2)));
        assert_eq!(numbers("11.1.3"), Some((11, 1)));
        assert_eq!(numbers("unknown"), None);
    }

    #[test]
    fn output_when_a_program_fails_is_its_complaint() {
        let mut good = Command::new("echo");
        let mut bad = Command::new("sh");

        let out = output_of(good.arg("yes"), Duration::from_secs(10)).unwrap();
        let error = output_of(
            bad.args(["-c", "echo no >&2; exit 3"]),
            Duration::from_secs(10),
        );

        assert_eq!(out, "yes\n");
        assert!(error.unwrap_err().to_string().ends_with(": no"));
    }
}
