//! What became of huge pages on the whole host, by the kernel's own reasons: tracepoints of khugepaged
//! and of migration, over an interval.
//!
//! khugepaged collapses for all processes from a thread of its own, and compaction migrates for whoever
//! waits: none of it can be told apart by guest.

use std::{collections::BTreeMap, fmt};

use crate::{
    perf::{
        event::{Event, EventError, EventSpec, Target},
        record::Sample,
        tracepoint::{Field, Tracepoint, TracepointError},
    },
    sysroot::{SysRoot, SysRootError},
    topology::CpuSet,
};

/// Pages of a ring: 16 KiB hold 150 records of 100 bytes and more.
const RING_PAGES: usize = 4;
/// Words that are kept of a field at most: the kernel has some thirty.
const MOST_WORDS: usize = 64;

/// The events can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum ThpEventsError {
    /// A tracepoint.
    #[error(transparent)]
    Tracepoint(#[from] TracepointError),
    /// A perf event.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The list of CPUs.
    #[error(transparent)]
    Cpus(#[from] SysRootError),
}

/// Migrations for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Pages that were migrated, in base pages.
    pub succeeded: u64,
    /// Pages that could not be migrated, in base pages.
    pub failed: u64,
    /// Huge pages that were migrated whole.
    pub thp_succeeded: u64,
    /// Huge pages that could not be migrated.
    pub thp_failed: u64,
    /// Huge pages that were split to be migrated.
    pub thp_split: u64,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThpEvents {
    /// How often 2 MiB were looked at for a collapse, by what was found.
    pub scans: BTreeMap<String, u64>,
    /// How often 2 MiB were to be collapsed, by how it ended.
    pub collapses: BTreeMap<String, u64>,
    /// Migrations by who asked for them.
    pub migrations: BTreeMap<String, Migrated>,
    /// Events for which there was no room: the counts are too low.
    pub lost: u64,
}

impl ThpEvents {
    fn take(&mut self, meaning: &Meaning, sample: &Sample<'_>) {
        let taken = sample.raw().and_then(|raw| self.take_raw(meaning, raw));
        self.lost += u64::from(taken.is_none());
    }

    fn take_raw(&mut self, meaning: &Meaning, raw: &[u8]) -> Option<()> {
        match meaning {
            Meaning::Scan(status) => *entry(&mut self.scans, status.read(raw)?) += 1,
            Meaning::Collapse(status) => *entry(&mut self.collapses, status.read(raw)?) += 1,
            Meaning::Migration { reason, counts } => {
                let mut read = [0; 5];
                for (read, field) in read.iter_mut().zip(counts.iter()) {
                    *read = field.read(raw)?;
                }
                let [succeeded, failed, thp_succeeded, thp_failed, thp_split] = read;
                let sum = entry(&mut self.migrations, reason.read(raw)?);
                sum.succeeded = sum.succeeded.saturating_add(succeeded);
                sum.failed = sum.failed.saturating_add(failed);
                sum.thp_succeeded = sum.thp_succeeded.saturating_add(thp_succeeded);
                sum.thp_failed = sum.thp_failed.saturating_add(thp_failed);
                sum.thp_split = sum.thp_split.saturating_add(thp_split);
            }
        }
        Some(())
    }
}

fn entry<T: Default>(counts: &mut BTreeMap<String, T>, word: String) -> &mut T {
    let word = match counts.len() < MOST_WORDS || counts.contains_key(&word) {
        true => word,
        false => "other".to_owned(),
    };
    counts.entry(word).or_default()
}

/// A field whose values have names.
#[derive(Debug)]
struct Words {
    field: Field,
    words: BTreeMap<u64, String>,
}

impl Words {
    fn of(tracepoint: &Tracepoint, field: &str) -> Result<Self, TracepointError> {
        Ok(Self {
            field: tracepoint.field(field)?,
            words: tracepoint.words(field),
        })
    }

    fn read(&self, raw: &[u8]) -> Option<String> {
        let value = self.field.read(raw)?;
        let word = self.words.get(&value);
        Some(word.cloned().unwrap_or_else(|| value.to_string()))
    }
}

/// What a tracepoint's records say.
#[derive(Debug)]
enum Meaning {
    Scan(Words),
    Collapse(Words),
    Migration {
        reason: Words,
        /// Those of [`Migrated`], in their order.
        counts: Box<[Field; 5]>,
    },
}

/// The events of all CPUs.
pub struct ThpWatch {
    watched: Vec<(Meaning, Vec<Event>)>,
    found: ThpEvents,
}

impl fmt::Debug for ThpWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThpWatch")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl ThpWatch {
    /// Follows `huge_memory:mm_khugepaged_scan_pmd`, `huge_memory:mm_collapse_huge_page` and
    /// `migrate:mm_migrate_pages` on every CPU that is online. [`Self::collect`] must be called a few
    /// times a second, or events are lost.
    ///
    /// # Errors
    /// [`ThpEventsError`] if tracefs is not mounted, the permission is missing, or the kernel has no
    /// such tracepoints.
    pub fn start(root: &SysRoot) -> Result<Self, ThpEventsError> {
        let cpus = CpuSet::online(root)?;
        let read = |system, name| Tracepoint::read(root, system, name);
        let scan = read("huge_memory", "mm_khugepaged_scan_pmd")?;
        let collapse = read("huge_memory", "mm_collapse_huge_page")?;
        let migrate = read("migrate", "mm_migrate_pages")?;
        let counts = Box::new([
            migrate.field("succeeded")?,
            migrate.field("failed")?,
            migrate.field("thp_succeeded")?,
            migrate.field("thp_failed")?,
            migrate.field("thp_split")?,
        ]);
        let meanings = [
            (Meaning::Scan(Words::of(&scan, "status")?), &scan),
            (
                Meaning::Collapse(Words::of(&collapse, "status")?),
                &collapse,
            ),
            (
                Meaning::Migration {
                    reason: Words::of(&migrate, "reason")?,
                    counts,
                },
                &migrate,
            ),
        ];
        let mut watched = Vec::new();
        for (meaning, tracepoint) in meanings {
            let spec = EventSpec::tracepoint(&tracepoint.name, tracepoint.id, RING_PAGES);
            let mut events = Vec::new();
            for cpu in cpus.iter() {
                let event = Event::open(root, &spec, Target::Cpu(cpu))?;
                event.enable()?;
                events.push(event);
            }
            watched.push((meaning, events));
        }
        Ok(Self {
            watched,
            found: ThpEvents::default(),
        })
    }

    /// Counts what has come since.
    pub fn collect(&mut self) {
        let Self { watched, found } = self;
        for (meaning, events) in watched {
            for event in events {
                let collected = event.collect(|sample| found.take(meaning, &sample));
                found.lost += collected.lost + collected.malformed;
            }
        }
    }

    /// Counts the rest, and ends.
    #[must_use]
    pub fn finish(mut self) -> ThpEvents {
        self.collect();
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tracing folder with the formats of Linux 6.18.
    fn tracing() -> (tempfile::TempDir, SysRoot) {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        let formats = [
            (
                "huge_memory/mm_khugepaged_scan_pmd",
                include_str!("../tests/data/mm_khugepaged_scan_pmd.format"),
            ),
            (
                "huge_memory/mm_collapse_huge_page",
                include_str!("../tests/data/mm_collapse_huge_page.format"),
            ),
            (
                "migrate/mm_migrate_pages",
                include_str!("../tests/data/mm_migrate_pages.format"),
            ),
        ];
        for (name, format) in formats {
            let folder = root.tracing("events").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("id"), "7\n").unwrap();
            std::fs::write(folder.join("format"), format).unwrap();
        }
        (folder, root)
    }

    #[test]
    fn records_when_taken_are_counted_by_the_kernels_words() {
        let (_folder, root) = tracing();
        let collapse = Tracepoint::read(&root, "huge_memory", "mm_collapse_huge_page").unwrap();
        let meaning = Meaning::Collapse(Words::of(&collapse, "status").unwrap());
        let mut events = ThpEvents::default();
        for status in [1, 1, 24, 4000_u32] {
            let mut raw = [0; 24];
            raw[20..].copy_from_slice(&status.to_ne_bytes());
            assert_eq!(events.take_raw(&meaning, &raw), Some(()));
        }
        assert_eq!(events.take_raw(&meaning, &[0; 20]), None, "it is cut off");
        let expected = [("alloc_huge_page_failed", 1), ("succeeded", 2), ("4000", 1)];
        let expected = expected.map(|(word, count)| (word.to_owned(), count));
        assert_eq!(events.collapses, BTreeMap::from(expected));
    }

    #[test]
    fn migrations_when_taken_are_summed_by_reason() {
        let (_folder, root) = tracing();
        let migrate = Tracepoint::read(&root, "migrate", "mm_migrate_pages").unwrap();
        let names = [
            "succeeded",
            "failed",
            "thp_succeeded",
            "thp_failed",
            "thp_split",
        ];
        let meaning = Meaning::Migration {
            reason: Words::of(&migrate, "reason").unwrap(),
            counts: Box::new(names.map(|name| migrate.field(name).unwrap())),
        };
        let mut events = ThpEvents::default();
        for reason in [3, 3, 8_u32] {
            let mut raw = [0; 64];
            for (at, count) in (1..6_u64).enumerate() {
                raw[8 + at * 8..16 + at * 8].copy_from_slice(&count.to_ne_bytes());
            }
            raw[60..].copy_from_slice(&reason.to_ne_bytes());
            events.take_raw(&meaning, &raw).unwrap();
        }
        let found = events.migrations["syscall_or_cpuset"];
        assert_eq!(
            (found.succeeded, found.thp_succeeded, found.thp_split),
            (2, 6, 10)
        );
        assert_eq!(events.migrations["demotion"].failed, 2);
        assert_eq!(events.migrations.len(), 2);
    }

    #[test]
    fn words_when_they_never_end_are_bounded() {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for word in 0..1000 {
            *entry(&mut counts, word.to_string()) += 1;
        }
        assert_eq!(counts.len(), MOST_WORDS + 1);
        assert_eq!(counts.values().sum::<u64>(), 1000);
    }

    #[test]
    fn watch_when_tracefs_is_not_mounted_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        let path = root.sys("devices/system/cpu/online");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "0\n").unwrap();
        let error = ThpWatch::start(&root).unwrap_err().to_string();
        assert!(error.contains("mount -t tracefs"), "{error}");
    }
}
