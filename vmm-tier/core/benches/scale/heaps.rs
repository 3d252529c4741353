//! The heaps of a guest, and an array of words beside them: what a sample costs.

use std::{fmt, hint::black_box, ops::Range, time::Duration};

use prefetch_index::prefetch_index;
use serde::Serialize;
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    time::Time,
};

use crate::{BATCH, Cost, Effort, STEP, loads::Load, seconds, size};

const HALF_LIFE: Duration = Duration::from_secs(10);
/// Exchanges after each batch: 1.6 MiB a second each way, what a guest whose pattern changes slowly is
/// moved.
const EXCHANGES: usize = 4;
/// Frames of a folded huge page.
const FOLD: u32 = 512;

/// A row of the table.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Row {
    pub(crate) guest: String,
    pub(crate) load: &'static str,
    /// Pages that are tracked, of whatever size.
    pages: u32,
    ns_per_sample: f64,
    /// Half of the range between the quartiles.
    ns_spread: f64,
    million_samples_per_s: f64,
    /// How many times what it costs in the least guest.
    pub(crate) times_least: Option<f64>,
    /// The same samples, added to an array of words.
    array_ns_per_sample: f64,
    pub(crate) array_times_least: Option<f64>,
    bytes_per_page: f64,
    /// What a landmark move costs: every 64 half-lives, all keys are scaled.
    landmark_move_ms: f64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<24} {:<10} {:>10} {:>7.1} ± {:<4.1} {:>7.1} {:>8.1} {:>7.2} {:>9.1}",
            self.guest,
            self.load,
            self.pages,
            self.ns_per_sample,
            self.ns_spread,
            self.million_samples_per_s,
            self.array_ns_per_sample,
            self.bytes_per_page,
            self.landmark_move_ms
        )
    }
}

/// A guest: its frames, and how its pages come to be tracked.
pub(crate) struct Guest {
    pub(crate) name: String,
    frames: u32,
    place: fn(&mut DualHeap),
    /// The page that a sampled frame belongs to.
    page_of: fn(u32, u32) -> PageId,
}

impl Guest {
    /// All of it in 4 KiB pages.
    pub(crate) fn of_base_pages(shift: u32) -> Self {
        Self {
            name: format!("{} in 4 KiB pages", size(1 << shift)),
            frames: 1 << shift,
            place: |heap| {
                let frames = heap.capacity();
                place_all(heap, 0..frames / 5, Placement::Fast);
                place_all(heap, frames / 5..frames, Placement::Slow);
            },
            page_of: |_, frame| PageId(frame),
        }
    }

    /// The first half in huge pages, a quarter in 4 KiB pages, a quarter untouched.
    pub(crate) fn of_mixed_pages(shift: u32) -> Self {
        Self {
            name: format!("{} in mixed pages", size(1 << shift)),
            frames: 1 << shift,
            place: |heap| {
                let frames = heap.capacity();
                for head in (0..frames / 2).step_by(FOLD as usize) {
                    heap.place(PageId(head), tier_of(head / FOLD));
                }
                let (middle, end) = (frames / 2, frames / 4 * 3);
                place_all(heap, middle..middle + frames / 20, Placement::Fast);
                place_all(heap, middle + frames / 20..end, Placement::Slow);
            },
            page_of: |frames, frame| {
                if frame < frames / 2 {
                    PageId(frame / FOLD * FOLD)
                } else {
                    PageId(frame)
                }
            },
        }
    }

    fn build(&self) -> DualHeap {
        let mut heap = DualHeap::new(self.frames, HALF_LIFE).expect("a guest that can be indexed");
        (self.place)(&mut heap);
        heap
    }
}

fn place_all(heap: &mut DualHeap, ids: Range<u32>, placement: Placement) {
    for id in ids {
        heap.place(PageId(id), placement);
    }
}

fn tier_of(number: u32) -> Placement {
    if number.is_multiple_of(5) {
        Placement::Fast
    } else {
        Placement::Slow
    }
}

/// Both tops are taken and change their tiers.
fn exchange(heap: &mut DualHeap, now: Time) {
    let hot = heap.take_hottest_slow(now);
    let cold = heap.take_coldest_fast(now);
    for (taken, tier) in [(hot, Placement::Fast), (cold, Placement::Slow)] {
        if let Some((id, _)) = taken {
            heap.settle(id, tier, None);
        }
    }
}

/// The heaps of a guest, of which every page was sampled once, and an array beside them.
struct Heaps<'a> {
    guest: &'a Guest,
    heap: DualHeap,
    words: Vec<u32>,
    now: Time,
}

impl<'a> Heaps<'a> {
    fn new(guest: &'a Guest) -> Self {
        let mut heap = guest.build();
        heap.sample_run(Time(0), 0..guest.frames, 1.0);
        Self {
            guest,
            heap,
            // Not zeros, which the kernel would all back with one page.
            words: vec![1_u32; guest.frames as usize],
            now: Time(0),
        }
    }

    fn draw(&self, draw: fn(u32, usize) -> Vec<PageId>, samples: usize) -> Vec<PageId> {
        let frames = self.guest.frames;
        let drawn = draw(frames, samples).into_iter();
        drawn
            .map(|PageId(frame)| (self.guest.page_of)(frames, frame))
            .collect()
    }

    /// Samples these pages. Returns what a sample took, in ns.
    fn sample(&mut self, ids: &[PageId]) -> f64 {
        let spent = seconds(|| {
            for batch in ids.chunks(BATCH) {
                self.now = self.now + STEP;
                black_box(self.heap.sample_batch(self.now, batch, 1.0));
                for _ in 0..EXCHANGES {
                    exchange(&mut self.heap, self.now);
                }
            }
        });
        spent * 1e9 / ids.len() as f64
    }

    fn add(&mut self, ids: &[PageId]) -> f64 {
        seconds(|| add_to_words(&mut self.words, ids)) * 1e9 / ids.len() as f64
    }

    fn tracked(&self) -> u32 {
        self.heap.len(Placement::Fast) + self.heap.len(Placement::Slow)
    }
}

pub(crate) fn measure(
    guest: &Guest,
    least: Option<&Guest>,
    loads: &[Load],
    effort: &Effort,
) -> Vec<Row> {
    let mut heaps = Heaps::new(guest);
    let mut least = least.map(Heaps::new);
    let pages = heaps.tracked();
    let mut rows = Vec::new();
    for &(load, draw) in loads {
        let ids = heaps.draw(draw, effort.samples);
        let of_least = least.as_ref().map(|least| least.draw(draw, effort.samples));
        let of_least = of_least.unwrap_or_default();
        let (warm, _) = ids.split_at(effort.samples / 2);
        heaps.sample(warm);
        if let Some(least) = &mut least {
            least.sample(&of_least[..effort.samples / 2]);
        }
        let [mut parts, mut parts_of_least] =
            [&ids, &of_least].map(|ids| ids.chunks(effort.run).cycle());
        let mut next = || parts.next().unwrap_or_default();
        let mut next_of_least = || parts_of_least.next().unwrap_or_default();
        let cost = Cost::of(
            effort.runs,
            || heaps.sample(next()),
            least.as_mut().map(|least| || least.sample(next_of_least())),
        );
        let array = Cost::of(
            effort.runs,
            || heaps.add(next()),
            least.as_mut().map(|least| || least.add(next_of_least())),
        );
        rows.push(Row {
            guest: guest.name.clone(),
            load,
            pages,
            ns_per_sample: cost.median(),
            ns_spread: cost.spread(),
            million_samples_per_s: 1e3 / cost.median(),
            times_least: cost.times_least,
            array_ns_per_sample: array.median(),
            array_times_least: array.times_least,
            bytes_per_page: heaps.heap.memory_bytes() as f64 / f64::from(pages),
            landmark_move_ms: 0.0,
        });
    }
    let later = heaps.now + 70 * HALF_LIFE;
    let moved = seconds(|| assert_eq!(heaps.heap.tick(later), 0)) * 1e3;
    rows.iter_mut().for_each(|row| row.landmark_move_ms = moved);
    rows
}

/// The least that counting samples can be: each page has a word, and a sample adds to it.
fn add_to_words(words: &mut [u32], ids: &[PageId]) {
    let mut blocks = ids.chunks(64).peekable();
    while let Some(block) = blocks.next() {
        for id in blocks.peek().into_iter().copied().flatten() {
            prefetch_index(&words, id.0 as usize);
        }
        for id in block {
            let word = &mut words[id.0 as usize];
            *word = word.wrapping_add(2);
        }
    }
    black_box(words);
}
