//! A terminal that tests type into and read: tmux, with a server of its own.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// No test waits for long; this only ends one that would wait for ever.
const FOR_EVER: Duration = Duration::from_secs(60);

/// A terminal; its programs end with it.
pub struct Tmux {
    socket: std::path::PathBuf,
}

impl Tmux {
    /// A terminal of this size that runs a shell's command, with its socket in `folder`. `None`, said aloud,
    /// without tmux.
    pub fn start(folder: &Path, (width, height): (u16, u16), command: &str) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("SKIPPED: no tmux on this host; scripts/setup installs it");
            return None;
        }
        // A server that ends may still have its socket when the next one begins.
        static SERVERS: AtomicU32 = AtomicU32::new(0);
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let tmux = Self {
            socket: folder.join(format!("tmux-{number}")),
        };
        let (width, height) = (width.to_string(), height.to_string());
        let begun = tmux.run(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &width,
            "-y",
            &height,
            command,
        ]);
        assert!(begun.status.success(), "{begun:?}");
        Some(tmux)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm-256color");
        command.args(["-u", "-S"]).arg(&self.socket).args(arguments);
        command.output().unwrap()
    }

    /// Types keys, by tmux's names of them.
    pub fn keys(&self, keys: &[&str]) {
        let typed = self.run(&[&["send-keys"], keys].concat());
        assert!(typed.status.success(), "{typed:?}");
    }

    /// What is on the screen.
    pub fn screen(&self) -> String {
        let captured = self.run(&["capture-pane", "-p"]);
        String::from_utf8_lossy(&captured.stdout).into_owned()
    }

    /// Waits until the screen is as wanted.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(begin.elapsed() < FOR_EVER, "never: {what}\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until this text is on the screen.
    pub fn wait_for_text(&self, text: &str) -> String {
        self.wait_for(text, |screen| screen.contains(text))
    }

    /// The process of the terminal's command.
    pub fn pid(&self) -> u32 {
        let told = self.run(&["display-message", "-p", "#{pane_pid}"]);
        String::from_utf8_lossy(&told.stdout)
            .trim()
            .parse()
            .unwrap()
    }

    /// The process that the terminal's shell runs.
    pub fn child(&self) -> u32 {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}
