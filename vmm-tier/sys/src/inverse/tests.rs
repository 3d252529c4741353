//! The inverse page map over a page table in memory, and over this process's own.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use proptest::prelude::*;
use tier_core::map::BlockIndex;

use super::{read::WINDOW, *};
use crate::{
    pagemap::{Categories, PageRange, Pagemap},
    sysroot::SysRoot,
};

const PAGE: u64 = BASE_PAGE;
const HUGE: u64 = CHUNK;
/// Somewhere in an address space; a multiple of 1 GiB.
const BASE: u64 = 0x7f00_0000_0000;

/// A process's page table: page number to frame, and the first pages of huge mappings and their length.
#[derive(Default)]
struct Fake {
    frames: BTreeMap<u64, u64>,
    huge: BTreeMap<u64, u64>,
    zero: BTreeSet<u64>,
    no_scan: bool,
    read: Cell<u64>,
}

impl Fake {
    fn map(&mut self, page: u64, frame: u64, pages: u64) {
        self.unmap(page, pages);
        self.frames
            .extend((0..pages).map(|i| (page + i, frame + i)));
        if pages > 1 {
            self.huge.insert(page, pages);
        }
    }

    /// Unmaps pages; a huge mapping that has some of them becomes small ones.
    fn unmap(&mut self, page: u64, pages: u64) {
        self.huge
            .retain(|&head, &mut len| head + len <= page || page + pages <= head);
        for page in page..page + pages {
            self.frames.remove(&page);
            self.zero.remove(&page);
        }
    }

    fn is_huge(&self, page: u64) -> bool {
        let before = self.huge.range(..=page).next_back();
        before.is_some_and(|(head, len)| page < head + len)
    }
}

impl PageTable for Fake {
    fn present(&self, start: Hva, len: u64) -> Result<Option<Vec<PageRange>>, PagemapError> {
        if self.no_scan {
            return Ok(None);
        }
        let mut found: Vec<PageRange> = Vec::new();
        for (&page, _) in self.frames.range(start.0 / PAGE..(start.0 + len) / PAGE) {
            let mut categories = Categories::PRESENT;
            if self.is_huge(page) {
                categories = categories.and(Categories::HUGE);
            }
            if self.zero.contains(&page) {
                categories = categories.and(Categories::ZERO);
            }
            match found.last_mut() {
                Some(last) if last.end.0 == page * PAGE && last.categories == categories => {
                    last.end.0 += PAGE;
                }
                _ => found.push(PageRange {
                    start: Hva(page * PAGE),
                    end: Hva((page + 1) * PAGE),
                    categories,
                }),
            }
        }
        Ok(Some(found))
    }

    fn read(&self, start: Hva, entries: &mut [PageEntry]) -> Result<(), PagemapError> {
        self.read.set(self.read.get() + entries.len() as u64);
        for (page, entry) in (start.0 / PAGE..).zip(entries) {
            let frame = self.frames.get(&page);
            *entry = frame.map_or(PageEntry(0), |&frame| PageEntry::present_at(frame));
        }
        Ok(())
    }
}

fn range(start: u64, pages: u64, page_size: u64) -> HvaRange {
    HvaRange {
        start: Hva(start),
        len: pages * PAGE,
        page_size,
        block: BlockIndex(0),
    }
}

/// A map of one range with everything read.
fn read(fake: &Fake, pages: u64, page_size: u64) -> InverseMap {
    let mut map = InverseMap::new(&[range(BASE, pages, page_size)]).unwrap();
    assert!(map.roll(fake, || true).unwrap().pass_done);
    map
}

fn located(map: &InverseMap, frame: u64) -> Option<u64> {
    let found = map.locate(frame * PAGE + 0x123)?;
    assert_eq!(found.0 % PAGE, 0x123);
    Some(found.0 / PAGE)
}

const FIRST: u64 = BASE / PAGE;

#[test]
fn locate_when_frames_are_scattered_finds_each_and_nothing_else() {
    let mut fake = Fake::default();
    // Odd pages at frames far apart, the first of them low, the last at almost 16 TiB.
    for i in 0..1000 {
        fake.map(FIRST + 2 * i + 1, 77 + i * 4_294_960, 1);
    }
    let map = read(&fake, 4096, PAGE);

    for i in 0..1000 {
        assert_eq!(located(&map, 77 + i * 4_294_960), Some(FIRST + 2 * i + 1));
        assert_eq!(located(&map, 78 + i * 4_294_960), None);
    }
    assert_eq!(map.bound_bytes(), 1000 * PAGE);
    assert!(map.is_valid());
    assert_eq!(map.locate(u64::MAX), None);
}

#[test]
fn locate_when_several_ranges_are_mapped_knows_them_apart() {
    let ranges = [
        range(BASE, 3, PAGE),
        range(BASE + 16 * PAGE, 5, PAGE),
        range(BASE + (1 << 40) + 7 * PAGE, 600, PAGE),
    ];
    let mut fake = Fake::default();
    let pages = ranges.iter().flat_map(|range| {
        let first = range.start.0 / PAGE;
        first..first + range.len / PAGE
    });
    let pages: Vec<u64> = pages.collect();
    for (&page, frame) in pages.iter().zip(100..) {
        fake.map(page, frame * 3, 1);
    }
    // What lies beside the ranges is none of the guest's.
    fake.map(FIRST + 3, 5, 1);
    fake.map(FIRST + 15, 6, 1);
    let mut map = InverseMap::new(&ranges).unwrap();
    map.roll(&fake, || true).unwrap();

    for (&page, frame) in pages.iter().zip(100..) {
        assert_eq!(located(&map, frame * 3), Some(page));
    }
    assert_eq!((located(&map, 5), located(&map, 6)), (None, None));
    assert!(map.is_valid());
}

#[test]
fn locate_when_ranges_lie_far_apart_or_in_any_order_finds_their_pages() {
    // 1 PiB apart: their addresses can't be numbers.
    let apart = 1 << 50;
    let fake = |ranges: &[HvaRange]| {
        let mut fake = Fake::default();
        for (range, frame) in ranges.iter().zip(1..) {
            fake.map(range.start.0 / PAGE, frame * HUGE, HUGE);
            fake.map(range.start.0 / PAGE + HUGE + 5, frame, 1);
        }
        fake
    };
    let near = [
        range(BASE + (3 << 40), 2 * HUGE, PAGE),
        range(BASE, 2 * HUGE, PAGE),
    ];
    let far = [
        range(BASE, 2 * HUGE, PAGE),
        range(BASE + apart, 2 * HUGE, PAGE),
    ];
    for (ranges, by_address) in [(near, true), (far, false)] {
        let fake = fake(&ranges);
        let mut map = InverseMap::new(&ranges).unwrap();
        assert!(map.roll(&fake, || true).unwrap().pass_done);
        assert_eq!(map.base.is_some(), by_address);
        assert_eq!(map.bound_bytes(), 2 * (HUGE + 1) * PAGE);
        for (&page, &frame) in &fake.frames {
            assert_eq!(located(&map, frame), Some(page));
        }
        assert!(map.is_valid());
    }
}

#[test]
fn map_when_pages_are_huge_has_one_entry_for_each() {
    let mut fake = Fake::default();
    for i in 0..64 {
        fake.map(FIRST + i * HUGE, (1000 - i) * HUGE, HUGE);
    }
    let map = read(&fake, 64 * HUGE, PAGE);

    assert_eq!(fake.read.get(), 64);
    assert_eq!(
        located(&map, 990 * HUGE + 511),
        Some(FIRST + 10 * HUGE + 511)
    );
    assert_eq!(map.bound_bytes(), 64 * HUGE * PAGE);
    // Two tables of one small node each, beside what is fixed.
    assert!(map.memory_bytes() < 2 * (64 << 10) + 8 * NODE_BYTES);
    assert!(map.is_valid());
}

#[test]
fn map_when_pages_have_a_gibibyte_has_one_entry_for_each() {
    let giant = HUGE * HUGE;
    let mut fake = Fake::default();
    for i in 0..4 {
        fake.map(FIRST + i * giant, (7 + 2 * i) * giant, giant);
    }
    let map = read(&fake, 4 * giant, giant * PAGE);

    assert_eq!(fake.read.get(), 4);
    assert_eq!(
        located(&map, 11 * giant + 12345),
        Some(FIRST + 2 * giant + 12345)
    );
    assert_eq!(located(&map, 12 * giant), None);
    assert_eq!(map.bound_bytes(), 4 << 30);
    assert!(map.is_valid());
}

#[test]
fn map_when_the_kernel_can_not_scan_still_gives_huge_pages_one_entry() {
    let mut fake = Fake {
        no_scan: true,
        ..Fake::default()
    };
    fake.map(FIRST, 9 * HUGE, HUGE);
    fake.map(FIRST + HUGE + 5, 4, 1);
    let map = read(&fake, 4 * HUGE, PAGE);

    assert_eq!(located(&map, 9 * HUGE + 500), Some(FIRST + 500));
    assert_eq!(located(&map, 4), Some(FIRST + HUGE + 5));
    assert_eq!(
        map.frames.piece(map.areas[0].first as u32).unwrap().span,
        Span::Huge
    );
}

#[test]
fn refresh_when_pages_changed_places_reports_each_at_its_new_frame_only() {
    let mut fake = Fake::default();
    fake.map(FIRST, 1000, 1);
    fake.map(FIRST + 1, 2000, 1);
    fake.map(FIRST + 2, 3000, 1);
    let mut map = read(&fake, HUGE, PAGE);

    // The first two change places; the third's frame is free now.
    fake.map(FIRST, 2000, 1);
    fake.map(FIRST + 1, 1000, 1);
    fake.map(FIRST + 2, 4000, 1);
    let moved = [(Hva(BASE), PAGE), (Hva(BASE + 2 * PAGE), PAGE)];
    let done = map.refresh(&fake, &moved).unwrap();

    assert_eq!((done.read, done.changed), (2, 2));
    assert_eq!(located(&map, 2000), Some(FIRST));
    assert_eq!(
        located(&map, 1000),
        None,
        "the second was not read again yet"
    );
    assert_eq!(located(&map, 3000), None);
    assert_eq!(located(&map, 4000), Some(FIRST + 2));
    assert!(map.is_valid());
    map.refresh(&fake, &[(Hva(BASE + PAGE), PAGE)]).unwrap();
    assert_eq!(located(&map, 1000), Some(FIRST + 1));
    assert!(map.is_valid());
}

#[test]
fn refresh_when_one_page_of_a_huge_one_moved_keeps_the_others() {
    let mut fake = Fake::default();
    fake.map(FIRST, 8 * HUGE, HUGE);
    let mut map = read(&fake, HUGE, PAGE);

    fake.map(FIRST + 7, 5, 1);
    fake.unmap(FIRST + 9, 1);
    map.refresh(&fake, &[(Hva(BASE + 7 * PAGE), 3 * PAGE)])
        .unwrap();

    assert_eq!(located(&map, 5), Some(FIRST + 7));
    assert_eq!(located(&map, 8 * HUGE + 7), None);
    assert_eq!(located(&map, 8 * HUGE + 8), Some(FIRST + 8));
    assert_eq!(located(&map, 8 * HUGE + 9), None);
    assert_eq!(located(&map, 8 * HUGE + 511), Some(FIRST + 511));
    assert_eq!(map.bound_bytes(), 511 * PAGE);
    assert!(map.is_valid());
}

#[test]
fn roll_when_the_kernel_moved_pages_finds_them_within_one_pass() {
    let mut fake = Fake::default();
    let pages = 64 * HUGE;
    for i in 0..pages {
        fake.map(FIRST + i, 10 * pages - 3 * i, 1);
    }
    let mut map = read(&fake, pages, PAGE);
    // khugepaged made a huge page of 512, and compaction moved some others.
    fake.map(FIRST + 3 * HUGE, 900 * HUGE, HUGE);
    for i in 40 * HUGE..41 * HUGE {
        fake.map(FIRST + i, 20 * pages + i, 1);
    }

    let (mut calls, mut changed) = (0, 0);
    loop {
        let done = map.roll(&fake, || false).unwrap();
        calls += 1;
        changed += done.changed;
        assert!(done.read <= WINDOW);
        if done.pass_done {
            break;
        }
    }

    // One window a call, and one call to find the end.
    assert_eq!(calls, pages / WINDOW + 1);
    assert!((2 * HUGE..3 * HUGE + 1).contains(&changed), "{changed}");
    for (&page, &frame) in &fake.frames {
        assert_eq!(located(&map, frame), Some(page));
    }
    assert_eq!(located(&map, 10 * pages - 9 * HUGE), None);
    assert!(map.is_valid());
}

#[test]
fn roll_when_pages_are_zero_or_gone_forgets_them() {
    let mut fake = Fake::default();
    fake.map(FIRST, 700, 1);
    fake.map(FIRST + 1, 701, 1);
    fake.map(FIRST + 2, 999, 1);
    let mut map = read(&fake, 4 * HUGE, PAGE);
    fake.unmap(FIRST, 1);
    fake.zero.insert(FIRST + 1);

    let done = map.roll(&fake, || true).unwrap();

    assert_eq!(done.changed, 2);
    assert_eq!(
        [700, 701, 999].map(|frame| located(&map, frame)),
        [None, None, Some(FIRST + 2)]
    );
    assert!(map.is_valid());
}

#[test]
fn map_when_frames_are_hidden_says_what_is_missing() {
    let mut fake = Fake::default();
    fake.map(FIRST + 3, 0, 1);
    let mut map = InverseMap::new(&[range(BASE, HUGE, PAGE)]).unwrap();
    let error = map.roll(&fake, || true).unwrap_err().to_string();
    assert!(
        error.contains("0x7f0000003000") && error.contains("CAP_SYS_ADMIN"),
        "{error}"
    );
}

#[test]
fn map_when_there_is_more_ram_than_it_can_number_is_refused() {
    let pages = 1 << 31;
    let ranges = [
        range(BASE, pages, PAGE),
        range(BASE + pages * PAGE, pages, PAGE),
    ];
    let error = InverseMap::new(&ranges).unwrap_err().to_string();
    assert!(error.contains("17592186044416 bytes"), "{error}");
    InverseMap::new(&ranges[..1]).unwrap();
}

#[test]
fn map_when_frames_lie_too_far_apart_or_too_high_leaves_some_out_and_counts_them() {
    let mut fake = Fake::default();
    // Each frame needs a node of 2 KiB of its own, and one in 512 another: 8 MiB for 4096 pages, which is
    // within the fixed part; and one lies beyond 16 TiB.
    for i in 0..4096 {
        fake.map(FIRST + i, 512 * 512 + 512 * i, 1);
    }
    fake.map(FIRST + 4096, LIMIT, 1);
    let mut map = read(&fake, 2 * 4096, PAGE);
    assert_eq!((map.bound_bytes(), map.left_out()), (4096 * PAGE, 1));
    assert!(map.memory_bytes() < 20 << 20);
    assert!(map.is_valid());

    // The same with less allowed.
    map.most_nodes = map.pages.nodes() + map.frames.nodes();
    fake.map(FIRST, 3, 1);
    fake.map(FIRST + 1, 512 * 512 * 1000, 1);
    fake.map(FIRST + 5000, 512 * 512 * 2000, 1);
    map.roll(&fake, || true).unwrap();
    assert!(map.left_out() > 1);
    assert!(map.pages.nodes() + map.frames.nodes() <= map.most_nodes + 4);
    for (&page, &frame) in &fake.frames {
        let found = located(&map, frame);
        assert!(found.is_none() || found == Some(page));
    }
    assert!(map.is_valid());
}

/// What happens to the page table, and what is read of it.
#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, frame: u64 },
    MapHuge { huge: u64, frame: u64 },
    Unmap { page: u64, pages: u64 },
    Swap { a: u64, b: u64 },
    Refresh { page: u64, pages: u64 },
    Roll { windows: u64 },
}

const PAGES: u64 = 12 * HUGE;

fn step() -> impl Strategy<Value = Step> {
    let page = 0..PAGES;
    let frame = 1..40 * HUGE;
    prop_oneof![
        4 => (page.clone(), frame.clone()).prop_map(|(page, frame)| Step::Map { page, frame }),
        2 => (0..12u64, 1..40u64).prop_map(|(huge, frame)| Step::MapHuge { huge, frame }),
        1 => (page.clone(), 1..600u64).prop_map(|(page, pages)| Step::Unmap { page, pages }),
        2 => (page.clone(), page.clone()).prop_map(|(a, b)| Step::Swap { a, b }),
        3 => (page, 1..600u64).prop_map(|(page, pages)| Step::Refresh { page, pages }),
        1 => (1..4u64).prop_map(|windows| Step::Roll { windows }),
    ]
}

/// Maps pages to frames that no other page has.
fn take_frames(fake: &mut Fake, page: u64, frame: u64, pages: u64) {
    let holders: Vec<u64> = fake
        .frames
        .iter()
        .filter(|(_, held)| (frame..frame + pages).contains(held))
        .map(|(&page, _)| page)
        .collect();
    for holder in holders {
        fake.unmap(holder, 1);
    }
    fake.map(page, frame, pages);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Model: the page table itself. A page that was read since it changed is found at its frame and at
    /// no other; whatever is found was so when it was last read.
    #[test]
    fn map_when_pages_come_go_and_change_places_never_reports_what_it_read_otherwise(
        steps in prop::collection::vec(step(), 1..60),
        no_scan: bool,
    ) {
        let mut fake = Fake { no_scan, ..Fake::default() };
        let mut map = InverseMap::new(&[range(BASE, PAGES, PAGE)]).unwrap();
        // What the map was told of each page last, and the same by frame.
        let mut told: BTreeMap<u64, u64> = BTreeMap::new();
        let mut holders: BTreeMap<u64, u64> = BTreeMap::new();
        let mut cursor = 0;
        for step in steps {
            let mut seen = 0..0;
            match step {
                Step::Map { page, frame } => take_frames(&mut fake, FIRST + page, frame, 1),
                Step::MapHuge { huge, frame } => {
                    take_frames(&mut fake, FIRST + huge * HUGE, frame * HUGE, HUGE);
                }
                Step::Unmap { page, pages } => fake.unmap(FIRST + page, pages),
                Step::Swap { a, b } => {
                    let frame = |page| fake.frames.get(&(FIRST + page)).copied();
                    if let (Some(one), Some(other)) = (frame(a), frame(b)) {
                        fake.map(FIRST + a, other, 1);
                        fake.map(FIRST + b, one, 1);
                    }
                }
                Step::Refresh { page, pages } => {
                    let pages = pages.min(PAGES - page);
                    map.refresh(&fake, &[(Hva((FIRST + page) * PAGE), pages * PAGE)]).unwrap();
                    seen = page..page + pages;
                }
                Step::Roll { windows } => {
                    let mut left = windows;
                    let done = map.roll(&fake, || { left -= 1; left > 0 }).unwrap();
                    let end = if done.pass_done { PAGES } else { (cursor + windows * WINDOW).min(PAGES) };
                    seen = cursor..end;
                    cursor = if done.pass_done { 0 } else { end };
                }
            }
            for page in seen {
                let frame = fake.frames.get(&(FIRST + page)).copied();
                if let Some(left) = told.remove(&page) {
                    holders.remove(&left);
                }
                if let Some(frame) = frame {
                    // Another page that was told to be there is there no more.
                    if let Some(other) = holders.insert(frame, page) {
                        told.remove(&other);
                    }
                    told.insert(page, frame);
                }
            }
            prop_assert!(map.is_valid());
        }
        prop_assert_eq!(map.bound_bytes(), told.len() as u64 * PAGE);
        for (page, frame) in told {
            prop_assert_eq!(located(&map, frame), Some(FIRST + page));
        }
    }
}

#[test]
fn map_of_this_process_when_it_may_read_frames_finds_its_own_pages() {
    let mut memory: Vec<u8> = Vec::with_capacity(8 << 20);
    let start = (memory.as_ptr() as u64).next_multiple_of(2 << 20);
    let skew = usize::try_from(start - memory.as_ptr() as u64).unwrap();
    for page in 0..1024 {
        memory.spare_capacity_mut()[skew + page * 4096].write(1);
    }
    let pagemap = Pagemap::open(&SysRoot::real(), std::process::id()).unwrap();
    let mut map = InverseMap::new(&[range(start, 1024, PAGE)]).unwrap();
    match map.roll(&pagemap, || true) {
        Ok(done) => assert!(done.pass_done && done.read > 0),
        Err(error @ InverseError::Hidden { .. }) => return eprintln!("SKIPPED: {error}"),
        Err(error) => panic!("{error}"),
    }

    assert_eq!(map.bound_bytes(), 4 << 20);
    assert!(map.is_valid());
    for page in (0..1024).step_by(7) {
        let at = Hva(start + page * PAGE);
        let mut entry = [PageEntry::default()];
        pagemap.entries(at, &mut entry).unwrap();
        let physical = entry[0].frame().unwrap() * PAGE + 9;
        assert_eq!(map.locate(physical), Some(Hva(at.0 + 9)));
    }
    let again = map.roll(&pagemap, || true).unwrap();
    assert!(again.changed < 1024, "most pages stay where they are");
}

#[test]
fn entries_when_the_process_is_gone_is_an_error_that_names_it() {
    let mut child = std::process::Command::new("sleep")
        .arg("100")
        .spawn()
        .unwrap();
    let pagemap = Pagemap::open(&SysRoot::real(), child.id()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let error = pagemap
        .entries(Hva(BASE), &mut [PageEntry::default()])
        .unwrap_err();
    assert!(
        error.to_string().contains(&child.id().to_string()),
        "{error}"
    );
}
