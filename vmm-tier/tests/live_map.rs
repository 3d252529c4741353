//! `vmm-tier map` on live guests: every range, and nothing else, is where QEMU says it is.
//!
//! Needs a QEMU: `VMM_TIER_QEMU`, those that `scripts/setup` unpacked, or `qemu-system-x86_64` in PATH.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use qmp::{
    Client,
    client::Options,
    hmp::{Gpa2Hva, parse_gpa2hva},
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A QEMU to test with.
struct Emulator {
    program: PathBuf,
    /// Where it was unpacked, if it is not installed.
    root: Option<PathBuf>,
}

fn emulators() -> Vec<Emulator> {
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
    fn command(&self) -> Command {
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

/// A guest that never runs (`-S`); killed when dropped.
struct Guest {
    child: Child,
    folder: tempfile::TempDir,
}

impl Guest {
    fn start(emulator: &Emulator, arguments: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
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
            command.arg("-qmp").arg(format!(
                "unix:{},server=on,wait=off",
                folder.path().join(name).display()
            ));
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
        while !guest.socket("b").exists() {
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

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self) -> Client {
        Client::connect(self.socket("b"), &Options::default())
            .unwrap()
            .0
    }

    /// What `vmm-tier map --json` says; the ranges as (gpa, len, block, hva).
    fn map(&self) -> Vec<(u64, u64, String, u64)> {
        let output = vmm_tier()
            .arg("map")
            .arg("--qmp")
            .arg(self.socket("a"))
            .arg("--json")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["pid"], self.child.id());
        let ranges = value["ranges"].as_array().unwrap().iter().map(|range| {
            let number = |key: &str| range[key].as_u64().unwrap();
            let present: u64 = range["nodes"]
                .as_object()
                .unwrap()
                .values()
                .map(|bytes| bytes.as_u64().unwrap())
                .sum();
            assert!(present <= number("len"));
            assert_eq!(number("page-size"), 4096);
            (
                number("gpa"),
                number("len"),
                range["block"].as_str().unwrap().to_owned(),
                number("hva"),
            )
        });
        ranges.collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn vmm_tier() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
}

/// Compares the map with QEMU's translation of 400 addresses: half of them random, half at the edges.
fn check_against_qemu(guest: &Guest, map: &[(u64, u64, String, u64)], label: &str) {
    let client = guest.client();
    let top = map.iter().map(|(gpa, len, ..)| gpa + len).max().unwrap() + GIB;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        // xorshift64: any spread will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut addresses: Vec<u64> = (0..200).map(|_| MIB + random() % (top - MIB)).collect();
    for (gpa, len, ..) in map {
        let edges = [
            gpa.saturating_sub(1).max(MIB),
            *gpa,
            gpa + len / 2,
            gpa + len - 1,
            gpa + len,
        ];
        addresses.extend(edges);
        addresses.extend((0..20).map(|_| gpa + random() % len));
    }
    for gpa in addresses {
        let in_map = map
            .iter()
            .find(|(start, len, ..)| (*start..start + len).contains(&gpa));
        let expected = in_map.map(|(start, _, _, hva)| hva + (gpa - start));
        let found = match parse_gpa2hva(&client.hmp(&format!("gpa2hva {gpa:#x}")).unwrap()).unwrap()
        {
            // Firmware is mapped too, and not in the map.
            Gpa2Hva::Mapped { region, .. } if region == "pc.bios" => None,
            Gpa2Hva::Mapped { hva, .. } => Some(hva),
            Gpa2Hva::Unmapped | Gpa2Hva::NotRam => None,
        };
        assert_eq!(expected, found, "{label}: guest-physical {gpa:#x}");
    }
}

/// Runs `check` for each QEMU there is.
fn on_each_qemu(check: impl Fn(&Emulator, &str)) {
    let emulators = emulators();
    if emulators.is_empty() {
        println!("SKIPPED: no QEMU: run scripts/setup, or name one in VMM_TIER_QEMU");
    }
    for emulator in &emulators {
        check(emulator, &emulator.program.display().to_string());
    }
}

/// Starts a guest, checks its map against QEMU and its ranges against `expected` (gpa, len, block).
fn check_shape(arguments: &str, expected: &[(u64, u64, &str)]) {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(emulator, arguments);

        let map = guest.map();

        let shape: Vec<_> = map
            .iter()
            .map(|(gpa, len, block, _)| (*gpa, *len, block.as_str()))
            .collect();
        assert_eq!(shape, expected, "{label}");
        check_against_qemu(&guest, &map, label);
    });
}

#[test]
fn map_of_a_q35_guest_is_one_range() {
    check_shape("-M q35 -m 512", &[(MIB, 511 * MIB, "pc.ram")]);
}

#[test]
fn map_of_a_guest_above_2_gib_goes_on_at_4_gib() {
    check_shape(
        "-M q35 -m 5G",
        &[(MIB, 2 * GIB - MIB, "pc.ram"), (4 * GIB, 3 * GIB, "pc.ram")],
    );
}

#[test]
fn map_when_low_memory_is_limited_splits_there() {
    check_shape(
        "-M q35,max-ram-below-4g=1G -m 1536",
        &[(MIB, GIB - MIB, "pc.ram"), (4 * GIB, 512 * MIB, "pc.ram")],
    );
}

#[test]
fn map_of_a_memfd_guest_names_its_backend() {
    check_shape(
        "-M q35,memory-backend=ram0 -m 256 -object memory-backend-memfd,id=ram0,size=256M,share=on",
        &[(MIB, 255 * MIB, "ram0")],
    );
}

#[test]
fn map_of_a_numa_guest_has_a_range_for_each_backend() {
    check_shape(
        "-M q35 -m 768 -smp 2 -object memory-backend-ram,id=m0,size=512M \
         -object memory-backend-memfd,id=m1,size=256M \
         -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1",
        &[(MIB, 511 * MIB, "m0"), (512 * MIB, 256 * MIB, "m1")],
    );
}

#[test]
fn map_of_a_guest_with_dimms_has_them_where_they_are_plugged() {
    check_shape(
        "-M q35 -m 256,slots=4,maxmem=8G -object memory-backend-ram,id=h0,size=128M \
         -object memory-backend-ram,id=h1,size=256M -object memory-backend-ram,id=spare,size=64M \
         -device pc-dimm,memdev=h0 -device pc-dimm,memdev=h1,addr=0x180000000",
        &[
            (MIB, 255 * MIB, "pc.ram"),
            (4 * GIB, 128 * MIB, "h0"),
            (6 * GIB, 256 * MIB, "h1"),
        ],
    );
}

#[test]
fn map_of_a_virtio_mem_device_is_its_whole_region() {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(
            emulator,
            "-M q35 -m 256,maxmem=4G -object memory-backend-memfd,id=v0,size=512M \
             -device virtio-mem-pci,memdev=v0,requested-size=0",
        );

        let map = guest.map();

        let shape: Vec<_> = map.iter().map(|(gpa, len, ..)| (*gpa, *len)).collect();
        assert_eq!(shape, [(MIB, 255 * MIB), (4 * GIB, 512 * MIB)], "{label}");
        // QEMU shows the block with or without the device's path.
        assert!(map[1].2.ends_with("v0"), "{label}: {}", map[1].2);
        check_against_qemu(&guest, &map, label);
    });
}

#[test]
fn map_of_a_microvm_guest_leaves_its_firmware_out() {
    check_shape("-M microvm -m 256", &[(MIB, 255 * MIB, "microvm.ram")]);
}

#[test]
fn map_when_a_dimm_is_plugged_and_unplugged_follows() {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(emulator, "-M q35 -m 256,slots=2,maxmem=4G");
        let ranges = || guest.map().len();
        assert_eq!(ranges(), 1, "{label}");

        let client = guest.client();
        let object =
            serde_json::json!({"qom-type": "memory-backend-ram", "id": "h0", "size": 128 * MIB});
        client.execute_raw("object-add", Some(object)).unwrap();
        assert_eq!(ranges(), 1, "{label}: a backend alone is not in the guest");
        let device = serde_json::json!({"driver": "pc-dimm", "id": "d0", "memdev": "h0"});
        client.execute_raw("device_add", Some(device)).unwrap();
        assert_eq!(ranges(), 2, "{label}");
    });
}

#[test]
fn map_as_text_names_the_process_and_sums_up() {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(emulator, "-M q35 -m 512");

        let output = vmm_tier()
            .arg("map")
            .arg("--qmp")
            .arg(guest.socket("a"))
            .output()
            .unwrap();

        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains(&format!("process {}", guest.child.id())),
            "{label}: {text}"
        );
        assert!(
            text.lines()
                .any(|line| line.starts_with("total") && line.contains("511 MiB")),
            "{label}: {text}"
        );
    });
}

#[test]
fn map_when_the_socket_is_wrong_says_what_to_do_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, expected) in [
        (folder.path().join("none"), "no socket at"),
        (file, "is not a socket"),
    ] {
        let output = vmm_tier()
            .arg("map")
            .arg("--qmp")
            .arg(&path)
            .output()
            .unwrap();

        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(output.stdout.is_empty());
        assert!(
            error.contains(expected) && error.contains(path.to_str().unwrap()),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
