//! `guest-agent report`: what the host can't see and what matters to tiering, as one JSON object.

use std::{fs, io::Read, path::Path};

use anyhow::Context;
use serde::Serialize;

/// The longest file that is read: those below are a line or a page long, meminfo a few.
const MAX_BYTES: u64 = 64 << 10;

/// What a session begins with.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) kernel: String,
    /// Bytes; the base page first.
    pub(crate) page_sizes: Vec<u64>,
    /// 0 if it can't be read.
    pub(crate) memory_bytes: u64,
}

/// What a session begins with, as far as it can be read.
pub(crate) fn about() -> About {
    let kernel = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let kernel = kernel.chars().take(tier_core::wire::MAX_TEXT / 4).collect();
    let meminfo = read(Path::new("/proc/meminfo")).ok();
    About {
        kernel,
        page_sizes: page_sizes(Path::new("/")),
        memory_bytes: meminfo.and_then(|text| total_bytes(&text)).unwrap_or(0),
    }
}

/// The base page, a transparent huge page if there are any, and those of hugetlb pools.
fn page_sizes(root: &Path) -> Vec<u64> {
    let mut sizes = vec![rustix::param::page_size() as u64];
    let mm = root.join("sys/kernel/mm");
    let thp = read(&mm.join("transparent_hugepage/hpage_pmd_size"));
    sizes.extend(thp.ok().and_then(|text| text.trim().parse::<u64>().ok()));
    let pools = fs::read_dir(mm.join("hugepages")).into_iter().flatten();
    sizes.extend(pools.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        kib.checked_mul(1024)
    }));
    sizes.retain(|size| size.is_power_of_two());
    sizes.sort_unstable();
    sizes.dedup();
    sizes.truncate(tier_core::wire::MAX_PAGE_SIZES);
    sizes
}

/// What the guest says of itself.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    /// The version of this program.
    agent: &'static str,
    /// The guest's kernel release.
    kernel: String,
    /// Memory that the guest's kernel manages, in bytes.
    memory_bytes: u64,
    /// The base page size in bytes.
    page_size: usize,
    /// `always`, `madvise` or `never`; `null` where the kernel has no transparent huge pages. With 4 KiB
    /// pages the host can tell hot from cold more finely; with huge pages each TLB miss costs less.
    transparent_hugepage: Option<String>,
    /// Whether the guest's own NUMA balancing unmaps pages to sample them, which the host sees as heat.
    numa_balancing: Option<bool>,
    /// Whether the guest merges equal pages (KSM), which touches all of them.
    ksm_runs: Option<bool>,
    /// Whether the kernel has DAMON, with which the guest can sample for the host.
    has_damon: bool,
}

/// The report as JSON text.
pub(crate) fn report(root: &Path) -> anyhow::Result<String> {
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    Ok(serde_json::to_string(&gather(root, kernel)?)?)
}

fn gather(root: &Path, kernel: String) -> anyhow::Result<Report> {
    let meminfo = root.join("proc/meminfo");
    let text = read(&meminfo).with_context(|| format!("{} can't be read", meminfo.display()))?;
    let flag = |path: &str| read(&root.join(path)).ok().map(|text| text.trim() != "0");
    Ok(Report {
        agent: env!("CARGO_PKG_VERSION"),
        kernel,
        memory_bytes: total_bytes(&text)
            .with_context(|| format!("{} has no MemTotal line", meminfo.display()))?,
        page_size: rustix::param::page_size(),
        transparent_hugepage: read(&root.join("sys/kernel/mm/transparent_hugepage/enabled"))
            .ok()
            .and_then(|text| chosen(&text)),
        numa_balancing: flag("proc/sys/kernel/numa_balancing"),
        ksm_runs: flag("sys/kernel/mm/ksm/run"),
        has_damon: root.join("sys/kernel/mm/damon/admin").is_dir(),
    })
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(MAX_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// `MemTotal: 400000 kB` in bytes.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The word in brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    Some(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn report_when_the_guest_has_everything_says_so() {
        let root = tree(&[
            (
                "proc/meminfo",
                "MemTotal:         400000 kB\nMemFree: 1 kB\n",
            ),
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always [madvise] never\n",
            ),
            ("proc/sys/kernel/numa_balancing", "0\n"),
            ("sys/kernel/mm/ksm/run", "1\n"),
            ("sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds", "0\n"),
        ]);
        let report = gather(root.path(), "6.12".to_owned()).unwrap();
        assert_eq!(report.memory_bytes, 400_000 * 1024);
        assert_eq!(report.transparent_hugepage.as_deref(), Some("madvise"));
        assert_eq!(
            (report.numa_balancing, report.ksm_runs),
            (Some(false), Some(true))
        );
        assert!(report.has_damon);
    }

    #[test]
    fn page_sizes_when_pools_are_there_rise_without_repeats() {
        let root = tree(&[
            (
                "sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
                "2097152\n",
            ),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0"),
            (
                "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
                "0",
            ),
            ("sys/kernel/mm/hugepages/strange/nr_hugepages", "0"),
        ]);
        assert_eq!(page_sizes(root.path()), [4096, 2 << 20, 1 << 30]);
        let bare = tree(&[]);
        assert_eq!(page_sizes(bare.path()), [4096]);
    }

    #[test]
    fn report_when_the_kernel_lacks_mechanisms_leaves_them_open() {
        let root = tree(&[("proc/meminfo", "MemTotal: 1 kB\n")]);
        let report = gather(root.path(), "6.12".to_owned()).unwrap();
        assert_eq!(
            (report.numa_balancing, report.transparent_hugepage),
            (None, None)
        );
        assert!(!report.has_damon);
    }

    #[test]
    fn report_when_meminfo_is_missing_or_strange_names_it() {
        for files in [
            &[][..],
            &[("proc/meminfo", "MemFree: 1 kB\n")],
            &[("proc/meminfo", "MemTotal: 99999999999999999999 kB")],
        ] {
            let root = tree(files);
            let error = gather(root.path(), String::new()).unwrap_err();
            assert!(format!("{error:#}").contains("proc/meminfo"), "{error:#}");
        }
    }
}
