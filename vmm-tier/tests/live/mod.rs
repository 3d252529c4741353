//! Live QEMUs: `VMM_TIER_QEMU`, those that `scripts/setup` unpacked, or `qemu-system-x86_64` in PATH.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{
    env, fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use qmp::{Client, client::Options};
use tempfile::TempDir;

/// A QEMU to test with.
pub struct Emulator {
    pub program: PathBuf,
    /// Where it was unpacked, if it is not installed.
    root: Option<PathBuf>,
}

pub fn emulators() -> Vec<Emulator> {
    if let Some(program) = env::var_os("VMM_TIER_QEMU") {
        return vec![Emulator {
            program: program.into(),
            root: None,
        }];
    }
    let cache = env::var_os("VMM_TIER_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            Some(
                base.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")))?
                    .join("vmm-tier"),
            )
        });
    let unpacked = ["qemu-inner", "qemu-outer"].iter().filter_map(|name| {
        let root = cache.as_ref()?.join(name);
        let program = root.join("usr/bin/qemu-system-x86_64");
        // The set-up writes this file last.
        (root.join(".complete").exists() && program.exists()).then_some(Emulator {
            program,
            root: Some(root),
        })
    });
    let mut found: Vec<_> = unpacked.collect();
    if found.is_empty() {
        let path = env::var_os("PATH").unwrap_or_default();
        let programs = env::split_paths(&path).map(|folder| folder.join("qemu-system-x86_64"));
        found.extend(
            programs
                .filter(|file| file.exists())
                .take(1)
                .map(|program| Emulator {
                    program,
                    root: None,
                }),
        );
    }
    found
}

impl Emulator {
    /// Starts the program with what was unpacked beside it: its libraries, and its loader if it has one.
    pub fn command(&self) -> Command {
        let Some(root) = &self.root else {
            return Command::new(&self.program);
        };
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let loader = libraries.join("ld-linux-x86-64.so.2");
        if !loader.exists() {
            let mut command = Command::new(&self.program);
            command.env("LD_LIBRARY_PATH", libraries);
            return command;
        }
        let mut command = Command::new(loader);
        command
            .arg("--library-path")
            .arg(libraries)
            .arg(&self.program);
        command
    }
}

/// A guest that runs only when told to (`-S`); killed when dropped.
pub struct Guest {
    pub child: Child,
    folder: Arc<TempDir>,
}

impl Guest {
    pub fn start(emulator: &Emulator, arguments: &str) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::start_in(folder, emulator, arguments)
    }

    /// Starts with its sockets in `folder`; one that was there before leaves nothing behind.
    pub fn start_in(folder: Arc<TempDir>, emulator: &Emulator, arguments: &str) -> Self {
        let mut command = emulator.command();
        if let Some(root) = &emulator.root {
            command.arg("-L").arg(root.join("usr/share/qemu"));
            command.arg("-L").arg(root.join("usr/share/seabios"));
        }
        command.args([
            "-accel",
            "tcg",
            "-S",
            "-display",
            "none",
            "-nodefaults",
            "-serial",
            "none",
            "-monitor",
            "none",
        ]);
        for name in ["a", "b"] {
            let path = folder.path().join(name);
            let _ = fs::remove_file(&path);
            command
                .arg("-qmp")
                .arg(format!("unix:{},server=on,wait=off", path.display()));
        }
        command
            .args(arguments.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let errors = folder.path().join("errors");
        command.stderr(fs::File::create(&errors).unwrap());
        let mut guest = Self {
            child: command.spawn().unwrap(),
            folder,
        };
        let begin = Instant::now();
        // The file is there a moment before QEMU listens.
        while UnixStream::connect(guest.socket("b")).is_err() {
            assert!(
                begin.elapsed() < Duration::from_secs(30)
                    && guest.child.try_wait().unwrap().is_none(),
                "{}",
                fs::read_to_string(&errors).unwrap()
            );
            thread::sleep(Duration::from_millis(10));
        }
        guest
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn client(&self) -> Client {
        Client::connect(self.socket("b"), &Options::default())
            .unwrap()
            .0
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `check` for each QEMU there is, at the same time.
pub fn on_each_qemu(check: impl Fn(&Emulator, &str) + Sync) {
    let emulators = emulators();
    if emulators.is_empty() {
        println!("SKIPPED: no QEMU: run scripts/setup, or name one in VMM_TIER_QEMU");
    }
    thread::scope(|scope| {
        for emulator in &emulators {
            scope.spawn(|| check(emulator, &emulator.program.display().to_string()));
        }
    });
}
