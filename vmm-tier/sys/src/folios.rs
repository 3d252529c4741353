//! Folios of several frames that are mapped frame by frame: what `/proc/kpageflags` tells of them, and
//! whether this host has any.
//!
//! The page table shows a transparent huge page only where one entry maps all of it. A smaller folio
//! (16 KiB to 1 MiB), and a huge page of shared memory that is not mapped on its own border, have an
//! entry for each frame. Such a folio moves as a whole whichever of its frames is named. Its frames lie
//! side by side in physical memory, and kpageflags names the first and the others.

use std::{fs::File, io, os::unix::fs::FileExt};

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    moves::Page,
};

use crate::{
    pagemap::{PageEntry, Pagemap, PagemapError},
    sysroot::{SysRoot, SysRootError, open, read_choice, read_value_optional},
    vmstat::VmStat,
};

/// Frames in the largest page that is looked for: 2 MiB.
const MOST_FRAMES: usize = (HUGE_PAGE / BASE_PAGE) as usize;
/// Sizes of folios, as powers of two of 1 KiB: 8 KiB to 2 MiB.
const KIB_SHIFTS: std::ops::RangeInclusive<u32> = 3..=11;

/// Why folios can't be told apart.
#[derive(Debug, thiserror::Error)]
pub enum FoliosError {
    /// `/proc/kpageflags` can't be opened: it belongs to root.
    #[error("the flags of page frames can't be read: run the agent as root")]
    Open(#[source] SysRootError),
    /// The flags of these frames can't be read.
    #[error("the flags of the page frames from {frame:#x} on can't be read")]
    Read {
        /// The first frame's number.
        frame: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The page table can't be read.
    #[error(transparent)]
    Pagemap(#[from] PagemapError),
}

/// What the kernel says of a page frame (include/uapi/linux/kernel-page-flags.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FrameFlags(u64);

impl FrameFlags {
    const HEAD: u64 = 1 << 15;
    const TAIL: u64 = 1 << 16;
    const HUGETLB: u64 = 1 << 17;

    const fn is_tail(self) -> bool {
        self.0 & Self::TAIL != 0 && self.0 & Self::HUGETLB == 0
    }

    /// Whether the frame belongs to a folio of several frames.
    const fn is_compound(self) -> bool {
        self.0 & (Self::HEAD | Self::TAIL) != 0 && self.0 & Self::HUGETLB == 0
    }
}

/// The open `/proc/kpageflags`.
#[derive(Debug)]
pub struct Folios {
    flags: File,
}

impl Folios {
    /// Opens `/proc/kpageflags`.
    ///
    /// # Errors
    /// [`FoliosError::Open`].
    pub fn open(root: &SysRoot) -> Result<Self, FoliosError> {
        let flags = open(&root.proc("kpageflags")).map_err(FoliosError::Open)?;
        Ok(Self { flags })
    }

    /// The folios of several frames among the present pages of `start .. start + len`, in rising order:
    /// of each the part that is mapped there in one piece. A part that crosses a border of 2 MiB is cut
    /// there.
    ///
    /// It reads 8 bytes for each page of the range, and 8 more for each page whose neighbour in the
    /// guest is its neighbour in physical memory too. Another may move or free a page between the two
    /// reads: then the answer is wrong until the next.
    ///
    /// # Errors
    /// [`FoliosError::Read`], [`FoliosError::Pagemap`].
    pub fn find(&self, map: &Pagemap, start: Hva, len: u64) -> Result<Vec<Page>, FoliosError> {
        let start = start.align_down(BASE_PAGE);
        let mut found = Vec::new();
        let mut entries = [PageEntry::default(); MOST_FRAMES];
        let mut at = start.0;
        let end = start.0.saturating_add(len);
        while at < end {
            let block_end = (at + 1).next_multiple_of(HUGE_PAGE).min(end);
            let frames = ((block_end - at) / BASE_PAGE) as usize;
            let entries = &mut entries[..frames];
            map.entries(Hva(at), entries)?;
            let folios = folios_among(entries, |frame, flags| self.read(frame, flags))?;
            found.extend(folios.into_iter().map(|(first, count)| Page {
                hva: Hva(at + first as u64 * BASE_PAGE),
                bytes: count as u64 * BASE_PAGE,
            }));
            at = block_end;
        }
        Ok(found)
    }

    fn read(&self, frame: u64, flags: &mut [FrameFlags]) -> Result<(), FoliosError> {
        let mut bytes = [0; MOST_FRAMES * 8];
        let bytes = &mut bytes[..flags.len() * 8];
        let read = self.flags.read_exact_at(bytes, frame * 8);
        read.map_err(|source| FoliosError::Read { frame, source })?;
        for (flags, word) in flags.iter_mut().zip(bytes.as_chunks().0) {
            *flags = FrameFlags(u64::from_ne_bytes(*word));
        }
        Ok(())
    }
}

/// The folios among at most 2 MiB of pages: for each the first page, and how many. `read` gives the
/// flags of neighbouring frames.
fn folios_among<E>(
    entries: &[PageEntry],
    mut read: impl FnMut(u64, &mut [FrameFlags]) -> Result<(), E>,
) -> Result<Vec<(usize, usize)>, E> {
    let mut found = Vec::new();
    let mut flags = [FrameFlags::default(); MOST_FRAMES];
    let mut first = 0;
    while first < entries.len() {
        let run = run_len(&entries[first..]);
        // The kernel hides frames as number 0.
        let frame = entries[first].frame().filter(|&frame| frame != 0);
        if let (2.., Some(frame)) = (run, frame) {
            let flags = &mut flags[..run.min(MOST_FRAMES)];
            read(frame, flags)?;
            let mut at = 0;
            while at < flags.len() {
                let behind = flags[at + 1..].iter();
                let count = 1 + behind.take_while(|flags| flags.is_tail()).count();
                if flags[at].is_compound() && count > 1 {
                    found.push((first + at, count));
                }
                at += count;
            }
        }
        first += run.max(1);
    }
    Ok(found)
}

/// How many pages from the first on lie side by side in physical memory; 0 if the first is absent.
fn run_len(entries: &[PageEntry]) -> usize {
    let Some(first) = entries.first().and_then(|entry| entry.frame()) else {
        return 0;
    };
    let follows = |(entry, frame): &(&PageEntry, u64)| entry.frame() == Some(*frame);
    entries.iter().zip(first..).take_while(follows).count()
}

/// Whether the host makes folios that are mapped frame by frame, or has made one since its start: then
/// [`Folios::find`] is worth its time. Where every size is `never`, and no huge page was ever mapped by
/// small entries because a part of it was given back, no page need be looked at.
#[must_use]
pub fn may_exist(root: &SysRoot) -> bool {
    let folder = root.sys("kernel/mm/transparent_hugepage");
    let choice = |path: &str| read_choice(&folder.join(path)).ok().flatten();
    let is_on = |choice: Option<String>| {
        choice.is_some_and(|choice| !matches!(choice.as_str(), "never" | "deny"))
    };
    // A size that inherits does what the knob of all sizes says.
    let resolve = |own: Option<String>, all: &str| match own.as_deref() {
        Some("inherit") => choice(all),
        _ => own,
    };
    let was_mapped_small = |stat: VmStat| stat.get("thp_split_pmd") > 0;
    if VmStat::read(root).is_ok_and(was_mapped_small) {
        return true;
    }
    if is_on(choice("shmem_enabled")) {
        return true;
    }
    KIB_SHIFTS.clone().any(|shift| {
        let size = format!("hugepages-{}kB", 1 << shift);
        let made = |name: &str| {
            let count = read_value_optional::<u64>(&folder.join(&size).join("stats").join(name));
            count.is_ok_and(|count| count.is_some_and(|count| count > 0))
        };
        let shmem = choice(&format!("{size}/shmem_enabled"));
        if is_on(resolve(shmem, "shmem_enabled")) || made("shmem_alloc") {
            return true;
        }
        // An anonymous huge page has one entry.
        let is_huge = 1024 << shift == HUGE_PAGE;
        let anon = choice(&format!("{size}/enabled"));
        !is_huge && (is_on(resolve(anon, "enabled")) || made("anon_fault_alloc"))
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Pages of a process over physical memory that consists of folios of these lengths from frame
    /// 100 on: `(folio, first frame in it, frames)` is mapped one after the other.
    fn find(folios: &[usize], mapped: &[Option<(usize, usize, usize)>]) -> Vec<(usize, usize)> {
        let begin = |folio: usize| 100 + folios[..folio].iter().sum::<usize>() as u64;
        let mut entries = Vec::new();
        for piece in mapped {
            match *piece {
                None => entries.push(PageEntry::default()),
                Some((folio, first, count)) => entries.extend(
                    (first..first + count)
                        .map(|at| PageEntry::present_at(begin(folio) + at as u64)),
                ),
            }
        }
        let flags_of = |frame: u64| {
            let folio = (0..folios.len())
                .rfind(|&folio| begin(folio) <= frame)
                .unwrap();
            FrameFlags(match (folios[folio], frame - begin(folio)) {
                (1, _) => 0,
                (_, 0) => FrameFlags::HEAD,
                _ => FrameFlags::TAIL,
            })
        };
        let read = |frame: u64, flags: &mut [FrameFlags]| {
            for (flags, frame) in flags.iter_mut().zip(frame..) {
                *flags = flags_of(frame);
            }
            Ok::<(), Infallible>(())
        };
        let Ok(found) = folios_among(&entries, read);
        found
    }

    #[test]
    fn folios_when_side_by_side_in_physical_memory_are_told_apart() {
        let whole = [Some((0, 0, 4)), Some((1, 0, 1)), Some((2, 0, 16))];
        assert_eq!(find(&[4, 1, 16], &whole), [(0, 4), (5, 16)]);
        let pages = [Some((0, 0, 1)), Some((1, 0, 1)), Some((2, 0, 1))];
        assert_eq!(find(&[1, 1, 1], &pages), []);
    }

    #[test]
    fn folio_when_only_a_part_is_mapped_is_that_part() {
        // Its first frame lies elsewhere, another one is absent.
        let mapped = [Some((0, 2, 6)), None, Some((0, 9, 7))];
        assert_eq!(find(&[16], &mapped), [(0, 6), (7, 7)]);
        assert_eq!(find(&[16], &[Some((0, 2, 1)), None, Some((0, 4, 1))]), []);
    }

    #[test]
    fn folios_when_the_kernel_hides_frames_are_not_guessed() {
        let hidden = [PageEntry::present_at(0); 8];
        let read = |_, _: &mut [FrameFlags]| -> Result<(), Infallible> { panic!("asked") };
        assert_eq!(folios_among(&hidden, read), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn folios_when_mapped_whole_in_any_order_are_found_whole(
            folios in prop::collection::vec(prop::sample::select(vec![1_usize, 2, 4, 16, 64]), 1..8)
                .prop_flat_map(|folios| {
                    let order: Vec<usize> = (0..folios.len()).collect();
                    (Just(folios), Just(order).prop_shuffle())
                }),
        ) {
            let (folios, order) = folios;
            let mut at = 0;
            let mut expected = Vec::new();
            for &folio in &order {
                if folios[folio] > 1 {
                    expected.push((at, folios[folio]));
                }
                at += folios[folio];
            }
            let mapped: Vec<_> = order.iter().map(|&folio| Some((folio, 0, folios[folio]))).collect();
            prop_assert_eq!(find(&folios, &mapped), expected);
        }
    }

    #[test]
    fn may_exist_when_every_size_is_never_says_no() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        let knobs = root.sys("kernel/mm/transparent_hugepage");
        let write = |path: &str, text: &str| {
            let path = knobs.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(!may_exist(&root), "a kernel without any");
        write("enabled", "always [madvise] never\n");
        write(
            "shmem_enabled",
            "always within_size advise [never] deny force\n",
        );
        write("hugepages-64kB/enabled", "always inherit madvise [never]\n");
        write(
            "hugepages-64kB/shmem_enabled",
            "always inherit within_size advise [never]\n",
        );
        write(
            "hugepages-2048kB/enabled",
            "always [inherit] madvise never\n",
        );
        write(
            "hugepages-2048kB/shmem_enabled",
            "always [inherit] within_size advise never\n",
        );
        write("hugepages-64kB/stats/anon_fault_alloc", "0\n");
        assert!(!may_exist(&root));

        write("hugepages-64kB/stats/anon_fault_alloc", "3\n");
        assert!(may_exist(&root), "some were made before the knob was set");
        write("hugepages-64kB/stats/anon_fault_alloc", "0\n");

        write("hugepages-64kB/enabled", "always [inherit] madvise never\n");
        assert!(may_exist(&root));
        write("hugepages-64kB/enabled", "always inherit madvise [never]\n");

        std::fs::create_dir_all(root.proc("")).unwrap();
        std::fs::write(root.proc("vmstat"), "thp_split_pmd 0\n").unwrap();
        assert!(!may_exist(&root));
        std::fs::write(root.proc("vmstat"), "thp_split_pmd 2\n").unwrap();
        assert!(may_exist(&root), "a part of a huge page was given back");
        std::fs::remove_file(root.proc("vmstat")).unwrap();

        write(
            "shmem_enabled",
            "always within_size [advise] never deny force\n",
        );
        assert!(may_exist(&root));
    }
}
