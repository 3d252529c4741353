//! Folders and huge pages for the guests' memory; both are given back at the end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use super::layout::{GIB, MIB};

/// A file of zeros that serves as flash memory.
const FLASH: &str = "flash";

/// Folders on several file systems; dropping them takes them away.
#[derive(Debug)]
pub(super) struct Folders {
    // Before `root`: unmounted first.
    mounts: Vec<Mounted>,
    root: TempDir,
}

#[derive(Debug)]
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Detached at least: a mount point that is busy can't be removed.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

impl Folders {
    pub(super) fn make() -> anyhow::Result<Self> {
        let root = tempfile::Builder::new().prefix("layouts-").tempdir()?;
        let mut mounts = Vec::new();
        fs::create_dir(root.path().join("file"))?;
        for (name, kind, data) in [
            ("tmpfs", "tmpfs", ""),
            ("huge2m", "hugetlbfs", "pagesize=2M"),
            ("huge1g", "hugetlbfs", "pagesize=1G"),
        ] {
            let path = root.path().join(name);
            fs::create_dir(&path)?;
            let data = std::ffi::CString::new(data)?;
            // A kernel without such pages can't mount; then the layouts that want them are skipped.
            match mount(kind, &path, kind, MountFlags::empty(), data.as_c_str()) {
                Ok(()) => mounts.push(Mounted(path)),
                Err(error) if kind == "tmpfs" => {
                    return Err(error).context("mounting a tmpfs (as root)");
                }
                Err(_) => {}
            }
        }
        let flash = fs::File::create(root.path().join(FLASH))?;
        flash.set_len(4 * MIB)?;
        Ok(Self { mounts, root })
    }

    pub(super) fn path(&self) -> &Path {
        self.root.path()
    }

    /// The arguments with folders in the place of their names.
    pub(super) fn fill_in(&self, arguments: &str) -> Vec<String> {
        let mut text = arguments.to_owned();
        for name in ["file", "tmpfs", "huge2m", "huge1g", FLASH] {
            let path = self.root.path().join(name);
            text = text.replace(&format!("{{{name}}}"), &path.display().to_string());
        }
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Removes what a guest left in the folders: files hold memory.
    pub(super) fn forget_files(&self) {
        for name in ["file", "tmpfs", "huge2m", "huge1g"] {
            let entries = fs::read_dir(self.root.path().join(name));
            for entry in entries.into_iter().flatten().flatten() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Huge pages for a guest, or why there are none.
    pub(super) fn pool(&self, page: u64, count: u64) -> Result<Pool, String> {
        let name = if page == GIB { "huge1g" } else { "huge2m" };
        if !self.mounts.iter().any(|mounted| mounted.0.ends_with(name)) {
            return Err(format!(
                "no hugetlbfs with pages of {} MiB here",
                page / MIB
            ));
        }
        Pool::grow(page, count).map_err(|error| format!("{error:#}"))
    }
}

/// Huge pages that were added to the kernel's pool; dropping it takes them out again.
#[derive(Debug)]
pub(super) struct Pool {
    file: PathBuf,
    added: u64,
}

impl Pool {
    fn grow(page: u64, count: u64) -> anyhow::Result<Self> {
        let file = PathBuf::from(format!(
            "/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
            page >> 10
        ));
        let before = read(&file)?;
        let mut pool = Self { file, added: 0 };
        fs::write(&pool.file, (before + count).to_string())
            .with_context(|| format!("writing {} (as root)", pool.file.display()))?;
        // The kernel gives as many as it finds.
        pool.added = read(&pool.file)?.saturating_sub(before);
        anyhow::ensure!(
            pool.added >= count,
            "only {} of {count} huge pages of {} MiB could be had",
            pool.added,
            page / MIB
        );
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Relative: somebody else may have changed the pool meanwhile.
        if let Ok(now) = read(&self.file) {
            let _ = fs::write(&self.file, now.saturating_sub(self.added).to_string());
        }
    }
}

fn read(file: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("{} says '{}'", file.display(), text.trim()))
}
