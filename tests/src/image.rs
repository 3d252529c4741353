//! The archives that the emulated host and its guests start from.
//!
//! The base archive (inner VMM, firmware, kernel, modules and the C library) changes seldom and
//! is kept in the cache folder under a name made from what went into it. The overlay of one lab
//! run holds the programs just built and the scenario; the kernel unpacks one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cpio::Archive;
use crate::scenario::{GuestAgent, Scenario};

/// Raise when what the base archive holds changes.
const BASE_FORMAT: u32 = 2;
/// Where shared libraries go: the dynamic loader looks there by itself.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// The dynamic loader's path in every x86-64 program.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// Firmware that `-M microvm` and a direct kernel start read.
const FIRMWARE: [&str; 6] = [
    "bios-256k.bin",
    "qboot.rom",
    "bios-microvm.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
    "kvmvapic.bin",
];
/// Modules that the emulated host loads, in this order; those missing are built in.
pub const HOST_MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];
/// Modules that the emulated host loads for guests with a vsock device.
pub const HOST_VSOCK_MODULES: [&str; 5] = [
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vhost_iotlb",
    "vhost",
    "vhost_vsock",
];
/// The module of a guest's balloon.
pub const BALLOON_MODULE: &str = "virtio_balloon";
/// The module of a guest's memory that can be resized.
pub const VIRTIO_MEM_MODULE: &str = "virtio_mem";
/// Modules that a guest loads for its vsock device.
pub const GUEST_VSOCK_MODULES: [&str; 3] = [
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// The cache folder and what `scripts/setup` put there.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The folder that `scripts/setup` uses.
    ///
    /// # Errors
    /// When something is missing there, with the command that mends it.
    pub fn open() -> anyhow::Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let root = if let Some(folder) = variable("VMM_TIER_CACHE") {
            PathBuf::from(folder)
        } else if let Some(folder) = variable("XDG_CACHE_HOME") {
            PathBuf::from(folder).join("vmm-tier")
        } else {
            let home = variable("HOME").context("neither VMM_TIER_CACHE nor HOME is set")?;
            PathBuf::from(home).join(".cache/vmm-tier")
        };
        for entry in ["kernel", "qemu-outer", "qemu-inner"] {
            if !root.join(entry).join(".complete").is_file() {
                bail!(
                    "the lab's {entry} is not in {}; run scripts/setup",
                    root.display()
                );
            }
        }
        Ok(Self { root })
    }

    /// The kernel that boots the emulated host and the guests.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.root.join("kernel/vmlinuz")
    }

    /// Root of the unpacked outer emulator.
    #[must_use]
    pub fn outer(&self) -> PathBuf {
        self.root.join("qemu-outer")
    }

    /// A module of that kernel; it is not there if it is built in.
    #[must_use]
    pub fn module(&self, name: &str) -> PathBuf {
        self.root.join(format!("kernel/modules/{name}.ko"))
    }

    /// The version that an entry holds.
    #[must_use]
    pub fn version(&self, entry: &str) -> String {
        fs::read_to_string(self.root.join(entry).join("VERSION"))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    }

    /// The base archive, made now if it is not there yet.
    ///
    /// # Errors
    /// When a part can't be read, or the cache folder can't be written.
    pub fn base_archive(&self, say: &mut dyn FnMut(&str)) -> anyhow::Result<PathBuf> {
        let inner = self.root.join("qemu-inner");
        let libraries = inner.join(LIBRARIES);
        let qemu = inner.join("usr/bin/qemu-system-x86_64");
        let mut files = BTreeMap::new();
        for (name, path) in shared_libraries(&qemu, Some(&libraries))? {
            files.insert(name, path);
        }
        files.insert("usr/bin/qemu-system-x86_64".to_owned(), qemu);
        for name in FIRMWARE {
            let path = ["usr/share/qemu", "usr/share/seabios"]
                .iter()
                .map(|folder| inner.join(folder).join(name))
                .find(|path| path.exists())
                .with_context(|| format!("no firmware {name} in {}", inner.display()))?;
            files.insert(format!("usr/share/qemu/{name}"), path);
        }
        files.insert("lab/vmlinuz".to_owned(), self.kernel());
        for module in HOST_MODULES.into_iter().chain(HOST_VSOCK_MODULES) {
            let path = self.module(module);
            if path.exists() {
                files.insert(format!("lab/modules/{module}.ko"), path);
            }
        }
        let path = self.root.join(format!("lab-base-{}.cpio", key(&files)?));
        if path.exists() {
            return Ok(path);
        }
        say("packing the emulated host's base archive (once)");
        self.forget_other_bases();
        write_whole(&path, |out| {
            archive_of(&files, out)?.finish()?;
            Ok(())
        })?;
        Ok(path)
    }

    /// Removes base archives that an earlier build of the lab made.
    fn forget_other_bases(&self) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("lab-base-") {
                // A file that another run holds open stays readable for it.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The programs of one lab run.
#[derive(Debug)]
pub struct Programs {
    /// First process of the emulated host.
    pub init: PathBuf,
    /// The guest without an operating system.
    pub bare_guest: PathBuf,
    /// First process of a guest that runs Linux, for scenarios with such guests.
    pub linux_guest: Option<PathBuf>,
    /// The agent under test; a scenario without agent steps needs none.
    pub agent: Option<PathBuf>,
    /// What the guests of this scenario hold beside their first process, by the name in the
    /// archive.
    pub in_guest: BTreeMap<String, PathBuf>,
}

impl Programs {
    /// The programs in `folder`, where cargo puts them; the agent for guests lies in the folder of
    /// its own target and profile.
    ///
    /// # Errors
    /// When the scenario needs the agent for guests and it was not built.
    pub fn find(folder: &Path, cache: &Cache, scenario: &Scenario) -> anyhow::Result<Self> {
        let built = |path: PathBuf| {
            if !path.is_file() {
                bail!("no {}; build it as scripts/lab does", path.display());
            }
            Ok(path)
        };
        // What runs in guests is built for its own target.
        let target = folder
            .parent()
            .unwrap_or(folder)
            .join("x86_64-unknown-linux-gnu");
        let mut in_guest = BTreeMap::new();
        if scenario.has_guest_agent(None) {
            let agent = built(target.join("guest/guest-agent"))?;
            in_guest.insert("usr/bin/guest-agent".to_owned(), agent);
        }
        let mut wanted = Vec::new();
        if scenario.has_guest_agent(Some(GuestAgent::Vsock)) {
            wanted.extend(GUEST_VSOCK_MODULES);
        }
        if scenario.has_guest(|guest| guest.balloon) {
            wanted.push(BALLOON_MODULE);
        }
        if scenario.has_guest(|guest| guest.virtio_mem_mib > 0) {
            wanted.push(VIRTIO_MEM_MODULE);
        }
        for name in wanted {
            let path = cache.module(name);
            if path.exists() {
                in_guest.insert(format!("lab/modules/{name}.ko"), path);
            }
        }
        Ok(Self {
            init: folder.join("lab-init"),
            bare_guest: built(target.join("bare/bare-guest"))?,
            linux_guest: scenario
                .has_linux_guest()
                .then(|| built(folder.join("linux-guest")))
                .transpose()?,
            agent: Some(folder.join("vmm-tier")).filter(|path| path.exists()),
            in_guest,
        })
    }
}

/// Writes the overlay of one lab run to `path`.
///
/// # Errors
/// When a program can't be read or the archive can't be written.
pub fn write_overlay(
    path: &Path,
    programs: &Programs,
    scenario: &Scenario,
    versions: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let work = path.parent().context("the overlay needs a folder")?;
    let guest_archive = programs
        .linux_guest
        .as_ref()
        .map(|init| linux_guest(init, programs, work))
        .transpose()?;

    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut program = |name: &str, path: &Path| -> anyhow::Result<()> {
        let stripped = strip(path, work)?;
        files.extend(shared_libraries(&stripped, None)?);
        files.insert(name.to_owned(), stripped);
        Ok(())
    };
    program("init", &programs.init)?;
    if let Some(agent) = &programs.agent {
        program("usr/bin/vmm-tier", agent)?;
    }
    files.insert("lab/bare-guest".to_owned(), programs.bare_guest.clone());
    if let Some(archive) = guest_archive {
        files.insert("lab/guest.cpio".to_owned(), archive);
    }
    write_whole(path, |out| {
        let mut archive = archive_of(&files, out)?;
        archive.file("lab/scenario.json", 0o644, &serde_json::to_vec(scenario)?)?;
        archive.file("lab/versions.json", 0o644, &serde_json::to_vec(versions)?)?;
        archive.finish()?;
        Ok(())
    })
}

/// Packs what a guest that runs Linux starts from, in a folder.
fn linux_guest(init: &Path, programs: &Programs, work: &Path) -> anyhow::Result<PathBuf> {
    let init = strip(init, work)?;
    let path = work.join("guest.cpio");
    write_whole(&path, |out| {
        let mut files: BTreeMap<String, PathBuf> =
            shared_libraries(&init, None)?.into_iter().collect();
        files.insert("init".to_owned(), init.clone());
        files.extend(programs.in_guest.clone());
        archive_of(&files, out)?.finish()?;
        Ok(())
    })?;
    Ok(path)
}

/// Begins an archive with these files and what each archive has.
fn archive_of<W: Write>(files: &BTreeMap<String, PathBuf>, out: W) -> anyhow::Result<Archive<W>> {
    let mut archive = Archive::new(out);
    skeleton(&mut archive, files)?;
    for (name, from) in files {
        add(&mut archive, name, from)?;
    }
    Ok(archive)
}

/// The folders of all files, the links of a merged /usr and the console.
fn skeleton<W: Write>(
    archive: &mut Archive<W>,
    files: &BTreeMap<String, PathBuf>,
) -> anyhow::Result<()> {
    let mut folders: BTreeSet<String> =
        ["dev", "proc", "sys", "run", "tmp", "usr/lib", "usr/lib64"]
            .map(str::to_owned)
            .into();
    for name in files.keys() {
        folders.extend(
            Path::new(name)
                .ancestors()
                .skip(1)
                .filter(|folder| !folder.as_os_str().is_empty())
                .map(|folder| folder.to_string_lossy().into_owned()),
        );
    }
    folders.insert("usr".to_owned());
    for folder in folders {
        archive.directory(&folder)?;
    }
    for (link, target) in [
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("bin", "usr/bin"),
    ] {
        archive.symlink(link, target)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    Ok(())
}

fn add<W: Write>(archive: &mut Archive<W>, name: &str, from: &Path) -> anyhow::Result<()> {
    let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let program = name == "init" || name.contains("bin/") || name.contains("/ld-");
    let permissions = if program { 0o755 } else { 0o644 };
    archive
        .file(name, permissions, &content)
        .with_context(|| format!("packing {}", from.display()))
}

/// Writes a file so that it is there whole or not at all.
fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let draft = path.with_extension(format!("draft.{}", std::process::id()));
    let attempt = || -> anyhow::Result<()> {
        let mut out = BufWriter::new(File::create(&draft)?);
        fill(&mut out)?;
        out.flush()?;
        fs::rename(&draft, path)?;
        Ok(())
    };
    let result = attempt().with_context(|| {
        format!(
            "writing {}; check the disk there (df -h) or set VMM_TIER_CACHE",
            path.display()
        )
    });
    if result.is_err() {
        let _ = fs::remove_file(&draft);
    }
    result
}

/// A name for a set of files that changes when one of them changes.
fn key(files: &BTreeMap<String, PathBuf>) -> anyhow::Result<String> {
    let mut hasher = DefaultHasher::new();
    BASE_FORMAT.hash(&mut hasher);
    for (name, path) in files {
        let facts = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
        (name, facts.len(), facts.mtime(), facts.mtime_nsec()).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// A copy of a program without debug information: the emulated host's memory is small.
fn strip(program: &Path, into: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().context("a program needs a name")?;
    let stripped = into.join(name).with_extension("stripped");
    let status = Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(program)
        .status()
        .context("running strip (package binutils)")?;
    if !status.success() {
        bail!("strip {} failed ({status})", program.display());
    }
    Ok(stripped)
}

/// The shared libraries of a program and its loader: name in the archive → file.
///
/// Libraries of the C library's family always come from this machine, so that one C library
/// serves the inner VMM and the programs built here.
fn shared_libraries(
    program: &Path,
    search: Option<&Path>,
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut command = Command::new("ldd");
    command.arg(program);
    if let Some(folder) = search {
        command.env("LD_LIBRARY_PATH", folder);
    }
    let output = command.output().context("running ldd (package libc-bin)")?;
    if !output.status.success() {
        bail!("ldd {} failed ({})", program.display(), output.status);
    }
    libraries_of_ldd(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("libraries of {}", program.display()))
}

fn libraries_of_ldd(text: &str) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, "=>", "not", "found", ..] => bail!("{name} is missing"),
            [name, "=>", path, ..] => {
                found.push((format!("{LIBRARIES}/{name}"), PathBuf::from(path)));
            }
            [path, _] if path.starts_with("/lib64/ld-") => {
                found.push((format!("usr/{LOADER}"), PathBuf::from(path)));
            }
            _ => {} // linux-vdso, "statically linked"
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_when_ldd_prints_them_get_their_place_in_the_archive() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";

        let found = libraries_of_ldd(text).unwrap();

        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
                "usr/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }

    #[test]
    fn libraries_when_one_is_missing_name_it() {
        let error = libraries_of_ldd("\tlibfdt.so.1 => not found\n").unwrap_err();

        assert_eq!(error.to_string(), "libfdt.so.1 is missing");
    }

    #[test]
    fn write_whole_when_filling_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.cpio");

        let result = write_whole(&path, |out| {
            out.write_all(b"half")?;
            bail!("disk full")
        });

        assert!(result.is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
