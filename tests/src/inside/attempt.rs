//! Starts of the agent with something wrong: what it says, and what it leaves behind.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::monitor::Monitor;
use super::{AGENT, RUN_FOLDER, scaled, steps};
use crate::event::AttemptOutcome;
use crate::scenario::{Attempt, Peer};

/// Most that is kept of what an attempt prints.
const LONGEST: u64 = 64 << 10;

/// Carries an attempt out. `guest_monitor` is the agent's monitor of the run's first guest.
///
/// # Errors
/// When the attempt could not be prepared.
pub fn carry_out(attempt: &Attempt, guest_monitor: &Path) -> anyhow::Result<AttemptOutcome> {
    let folder = Path::new(RUN_FOLDER).join("attempt");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    let control = folder.join("control.sock");
    let peer = PreparedPeer::new(attempt.peer, &folder, guest_monitor)?;
    let hidden = Hidden::cover(&attempt.hide)?;

    let mut command = Command::new(AGENT);
    command
        .arg("run")
        .arg("--qmp")
        .arg(&peer.path)
        .arg("--control")
        .arg(&control)
        .args(&attempt.args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(uid) = attempt.uid {
        fs::set_permissions(guest_monitor, fs::Permissions::from_mode(0o666)).ok();
        command.uid(uid).gid(uid);
    }
    let line = format!("{command:?}");
    let began = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting the agent {AGENT}"))?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let within = scaled(Duration::from_secs(attempt.within_s));
    let mut state = None;
    let mut timed_out = false;
    loop {
        if child.try_wait()?.is_some() {
            break;
        }
        if attempt.expect_state.is_some() {
            state = told_state(&control).or(state);
        }
        let as_expected = state.is_some() && state == attempt.expect_state;
        if as_expected || began.elapsed() >= within {
            timed_out = !as_expected;
            end(&mut child)?;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let seconds = began.elapsed().as_secs_f64();
    let code = child.wait()?.code();
    drop(hidden);
    Ok(AttemptOutcome {
        name: attempt.name.clone(),
        command: line,
        code,
        timed_out,
        seconds,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
        state,
        expected_state: attempt.expect_state.clone(),
        kdamonds_left: steps::kdamonds(),
        socket_left: control.exists(),
    })
}

/// The socket path of an attempt and what keeps its other side as it must be.
struct PreparedPeer {
    path: PathBuf,
    _holder: Option<Monitor>,
}

impl PreparedPeer {
    fn new(peer: Peer, folder: &Path, guest_monitor: &Path) -> anyhow::Result<Self> {
        let path = folder.join("qmp.sock");
        let mut holder = None;
        let path = match peer {
            Peer::None => path,
            Peer::Stale => {
                drop(UnixListener::bind(&path)?);
                path
            }
            Peer::Guest => guest_monitor.to_owned(),
            Peer::Busy => {
                holder = Some(Monitor::connect(guest_monitor, Duration::from_secs(10))?);
                guest_monitor.to_owned()
            }
            Peer::NotQemu => {
                let listener = UnixListener::bind(&path)?;
                std::thread::spawn(move || {
                    let mut held = Vec::new();
                    for mut stream in listener.incoming().flatten() {
                        let _ = stream.write_all(b"220 mail.example ESMTP ready\r\n");
                        held.push(stream);
                    }
                });
                path
            }
        };
        Ok(Self {
            path,
            _holder: holder,
        })
    }
}

/// Folders covered with an empty file system until this is dropped.
struct Hidden<'a>(&'a [String]);

impl<'a> Hidden<'a> {
    fn cover(folders: &'a [String]) -> anyhow::Result<Self> {
        for folder in folders {
            let none: Option<&std::ffi::CStr> = None;
            rustix::mount::mount("tmpfs", folder.as_str(), "tmpfs", MountFlags::RDONLY, none)
                .with_context(|| format!("covering {folder}"))?;
        }
        Ok(Self(folders))
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        for folder in self.0 {
            let _ = rustix::mount::unmount(folder.as_str(), UnmountFlags::DETACH);
        }
    }
}

fn told_state(control: &Path) -> Option<String> {
    let mut monitor = Monitor::connect(control, Duration::from_secs(2)).ok()?;
    let reply = monitor.execute("query-tier", Value::Null).ok()?;
    reply["state"].as_str().map(str::to_owned)
}

/// SIGTERM, and SIGKILL for what does not heed it.
fn end(child: &mut Child) -> anyhow::Result<()> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > Duration::from_secs(10) {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn read_all(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(from) = from {
            let _ = from.take(LONGEST).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
