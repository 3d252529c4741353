//! A bridge from the developer's machine to a socket in the emulated host.
//!
//! The emulator offers a virtio port, whose other side is a unix socket on the developer's machine. Whoever
//! connects there talks to the agent's control socket: clients that the emulated host does not hold, such
//! as qmp-shell, can drive the agent.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

/// The second port of the emulator's only virtio-serial device.
const PORT: &str = "/dev/vport0p2";
/// How often a port without a client is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Serves one client after the other, on a thread of its own, as long as the emulated host runs.
///
/// # Errors
/// When the port can't be opened: the emulator was started without it.
pub(super) fn start(socket: &Path) -> anyhow::Result<()> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(PORT)
        .with_context(|| format!("opening {PORT}"))?;
    let socket: PathBuf = socket.to_owned();
    std::thread::spawn(move || {
        loop {
            if has_client(&port)
                && let Ok(stream) = UnixStream::connect(&socket)
                && let Err(error) = carry(&port, &stream)
            {
                eprintln!("lab-init: bridge: {error}");
            }
            std::thread::sleep(LOOK);
        }
    });
    Ok(())
}

/// Whether the other side of the port is connected: the kernel then says no `HUP`.
fn has_client(port: &File) -> bool {
    let mut ports = [PollFd::new(port, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut ports, Some(&now)).is_ok() && !ports[0].revents().contains(PollFlags::HUP)
}

/// Carries bytes both ways until one side ends.
fn carry(port: &File, stream: &UnixStream) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        let out = scope.spawn(|| {
            let mut from = stream;
            let mut to = port;
            std::io::copy(&mut from, &mut to).map(drop)
        });
        let mut chunk = [0; 4096];
        let (mut from, mut to) = (port, stream);
        let into = loop {
            // A port whose other side is not connected reads as ended.
            match from.read(&mut chunk) {
                Ok(0) => break Ok(()),
                Ok(length) => to.write_all(&chunk[..length])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        // Wakes the other direction.
        let _ = stream.shutdown(Shutdown::Both);
        let _ = out.join();
        into
    })
}
