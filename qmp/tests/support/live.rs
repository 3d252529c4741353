//! A real QEMU without a machine: `VMM_TIER_TEST_QEMU` (a binary, with more arguments after spaces), the one that
//! `scripts/setup` unpacked, or `qemu-system-x86_64` in PATH.

use std::{
    env, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::wait_until;

/// A running QEMU; killed when dropped.
pub(crate) struct Live(pub(crate) Child);

impl Live {
    /// Starts one that serves these monitors. `None`, said aloud, if there is none to start.
    pub(crate) fn start(monitors: &[&Path]) -> Option<Self> {
        let named = env::var("VMM_TIER_TEST_QEMU").ok();
        let mut start = command(named.as_deref());
        start.args(["-machine", "none", "-nodefaults", "-display", "none"]);
        for monitor in monitors {
            let option = format!("unix:{},server=on,wait=off", monitor.display());
            start.args(["-qmp", &option]);
        }
        let live = match start.stdin(Stdio::null()).spawn() {
            Ok(child) => Self(child),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                println!(
                    "SKIPPED: no QEMU (scripts/setup brings one; or name it in VMM_TIER_TEST_QEMU)"
                );
                return None;
            }
            Err(error) => panic!("{start:?}: {error}"),
        };
        // A socket's file is there a moment before QEMU listens.
        wait_until("QEMU to serve", || {
            monitors
                .iter()
                .all(|path| UnixStream::connect(path).is_ok())
        });
        Some(live)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(named: Option<&str>) -> Command {
    if let Some(named) = named {
        let mut words = named.split_whitespace();
        let mut command = Command::new(words.next().expect("a binary"));
        command.args(words);
        return command;
    }
    let Some(root) = unpacked("qemu-inner") else {
        return Command::new("qemu-system-x86_64");
    };
    let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
    command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
    command
}

/// What `scripts/setup` unpacked under this name.
pub(crate) fn unpacked(name: &str) -> Option<PathBuf> {
    let cache = env::var_os("VMM_TIER_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || Some(Path::new(&env::var_os("HOME")?).join(".cache"));
            Some(base.or_else(home)?.join("vmm-tier"))
        });
    Some(cache?.join(name)).filter(|folder| folder.join(".complete").exists())
}
