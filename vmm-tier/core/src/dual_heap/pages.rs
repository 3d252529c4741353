//! All pages' words.
//!
//! Pages stand in chunks of 512 frames (2 MiB, so that a huge page never shares one). A chunk has all
//! its words only while a frame in it other than the first is tracked; a range that is untouched, or
//! backed by huge pages, costs 12 bytes a chunk. All words lie in one array.
//!
//! Where 64 chunks in a row have their blocks in a row, as they do when a guest is tracked from its
//! start to its end, one number says where they begin: those of 1 TiB stay in a core's first cache.
//!
//! ```text
//! words: [ nowhere | head of chunk 0, 1, 2 … | block | block | block … ]
//!                    ▲ the first frame's word,         512 words, of the chunk that owns it
//!                      of chunks without a block
//! ```

mod blocks;

use std::ops::Range;

use prefetch_index::prefetch_index;

use super::word::{SLOW, Slot, key_of, with_key};

/// log2 of the frames in a chunk.
const CHUNK_SHIFT: u32 = 9;
const CHUNK: usize = 1 << CHUNK_SHIFT;

/// log2 of the frames in a group of chunks.
const GROUP_SHIFT: u32 = CHUNK_SHIFT + 6;
const GROUP: usize = 1 << GROUP_SHIFT;
const GROUP_CHUNKS: usize = GROUP / CHUNK;

/// The index of a word that is always `Untracked`: that of all pages that have none.
pub(super) const NOWHERE: usize = 0;

/// What is counted for each chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Frames that are tracked.
    tracked: u16,
    /// Frames that are `FastNever`.
    cold: u16,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Pages {
    words: Vec<u32>,
    /// For each chunk, the index of its first word: its head, or the first word of its block.
    places: Vec<u32>,
    /// For each group whose chunks all have blocks, one after the other, the index of its first word;
    /// for others `NOWHERE`.
    groups: Vec<u32>,
    counts: Vec<Counts>,
    /// One bit a chunk: it holds a `FastNever` page.
    cold_chunks: Vec<u64>,
    /// The chunk of each block.
    owners: Vec<u32>,
    pages: u32,
    tracked: u32,
    cold: u32,
    slow_sampled: u32,
}

impl Pages {
    pub(super) fn new(pages: u32) -> Self {
        let chunks = pages.div_ceil(CHUNK as u32);
        Self {
            words: vec![0; chunks as usize + 1],
            places: (0..chunks).map(|chunk| chunk + 1).collect(),
            groups: vec![NOWHERE as u32; chunks.div_ceil(GROUP_CHUNKS as u32) as usize],
            counts: vec![Counts::default(); chunks as usize],
            cold_chunks: vec![0; chunks.div_ceil(64) as usize],
            owners: Vec::new(),
            pages,
            tracked: 0,
            cold: 0,
            slow_sampled: 0,
        }
    }

    /// The number of pages there is room for.
    pub(super) fn len(&self) -> u32 {
        self.pages
    }

    /// The number of pages that are tracked.
    pub(super) fn tracked(&self) -> u32 {
        self.tracked
    }

    /// The number of pages that are tracked in the chunk of this page.
    pub(super) fn tracked_in_chunk(&self, id: u32) -> u32 {
        let counts = self.counts.get((id >> CHUNK_SHIFT) as usize);
        counts.map_or(0, |counts| u32::from(counts.tracked))
    }

    /// The words of the chunk of this page: all of them, or that of its first page.
    #[inline]
    pub(super) fn words_of_chunk(&self, id: u32) -> &[u32] {
        self.chunk_words((id >> CHUNK_SHIFT) as usize)
    }

    /// The number of pages in the fast tier without a sample.
    pub(super) fn cold(&self) -> u32 {
        self.cold
    }

    /// The number of pages that are `Slow` or `Front`.
    pub(super) fn slow_sampled(&self) -> u32 {
        self.slow_sampled
    }

    /// The index of a page's word in [`Pages::words_mut`], or [`NOWHERE`].
    #[inline]
    pub(super) fn index(&self, id: u32) -> usize {
        if let Some(&start) = self.groups.get((id >> GROUP_SHIFT) as usize)
            && start as usize != NOWHERE
        {
            return start as usize + id as usize % GROUP;
        }
        let offset = id as usize % CHUNK;
        match self.places.get((id >> CHUNK_SHIFT) as usize) {
            Some(&place) if self.is_block(place) => place as usize + offset,
            Some(&place) if offset == 0 => place as usize,
            _ => NOWHERE,
        }
    }

    /// All words.
    #[inline]
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    /// All words. Those of pages with a key may be given another key of the same tier, no others.
    #[inline]
    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Slot {
        Slot::of(self.words[self.index(id)])
    }

    /// Asks for the word of a page that is looked at soon, so that its cache miss overlaps others.
    #[inline]
    pub(super) fn read_ahead(&self, id: u32) {
        prefetch_index(&self.words, self.index(id));
    }

    /// Replaces the word of a page with a key by another of the same tier.
    #[inline]
    pub(super) fn update(&mut self, id: u32, slot: Slot) {
        let index = self.index(id);
        self.words[index] = slot.word();
    }

    /// Replaces a page's word. Ids past the end are ignored.
    pub(super) fn set(&mut self, id: u32, slot: Slot) {
        if id >= self.pages {
            return;
        }
        let chunk = (id >> CHUNK_SHIFT) as usize;
        let offset = id as usize % CHUNK;
        if offset != 0 && !self.is_block(self.places[chunk]) {
            if slot == Slot::Untracked {
                return;
            }
            self.reserve_block();
            self.add_block(chunk);
        }
        let index = self.index(id);
        let old = Slot::of(std::mem::replace(&mut self.words[index], slot.word()));
        let counts = &mut self.counts[chunk];
        match (old == Slot::Untracked, slot == Slot::Untracked) {
            (true, false) => {
                counts.tracked += 1;
                self.tracked += 1;
            }
            (false, true) => {
                counts.tracked -= 1;
                self.tracked -= 1;
            }
            _ => {}
        }
        self.slow_sampled += u32::from(matches!(slot, Slot::Slow(_) | Slot::Front(_)));
        self.slow_sampled -= u32::from(matches!(old, Slot::Slow(_) | Slot::Front(_)));
        match (old == Slot::FastNever, slot == Slot::FastNever) {
            (false, true) => {
                counts.cold += 1;
                self.cold += 1;
                self.cold_chunks[chunk / 64] |= 1 << (chunk % 64);
            }
            (true, false) => {
                counts.cold -= 1;
                self.cold -= 1;
                if counts.cold == 0 {
                    self.cold_chunks[chunk / 64] &= !(1 << (chunk % 64));
                }
            }
            _ => {}
        }
    }

    /// Gives back the memory of the chunk of `id` if nothing in it is tracked any more.
    pub(super) fn trim(&mut self, id: u32) {
        let chunk = (id >> CHUNK_SHIFT) as usize;
        if self.counts.get(chunk).is_some_and(|c| c.tracked == 0)
            && self.is_block(self.places[chunk])
        {
            self.remove_block(chunk);
        }
    }

    /// The words from page `first` to the end of its chunk or to `end`, whichever is nearer, and the
    /// page at which to go on.
    pub(super) fn run_mut(&mut self, first: u32, end: u32) -> (&mut [u32], u32) {
        let chunk = (first >> CHUNK_SHIFT) as usize;
        let next = next_chunk(first).min(end);
        if self.counts[chunk].tracked == 0 {
            return (&mut [], next);
        }
        let words = match self.index(first) {
            NOWHERE => 0..0,
            head if !self.is_block(self.places[chunk]) => head..head + 1,
            start => start..start + (next - first) as usize,
        };
        (&mut self.words[words], next)
    }

    /// The first `FastNever` page at or after `cursor`, going round the end.
    pub(super) fn next_cold(&self, cursor: u32) -> Option<u32> {
        if self.cold == 0 {
            return None;
        }
        let start = (cursor.min(self.pages - 1) >> CHUNK_SHIFT) as usize;
        let offset = cursor as usize % CHUNK;
        self.cold_in_chunk(start, offset)
            .or_else(|| {
                self.cold_chunk(start + 1)
                    .and_then(|chunk| self.cold_in_chunk(chunk, 0))
            })
            .or_else(|| {
                self.cold_chunk(0)
                    .and_then(|chunk| self.cold_in_chunk(chunk, 0))
            })
    }

    fn cold_in_chunk(&self, chunk: usize, offset: usize) -> Option<u32> {
        if self.counts[chunk].cold == 0 {
            return None;
        }
        let found = self
            .chunk_words(chunk)
            .iter()
            .skip(offset)
            .position(|&w| w == Slot::FastNever.word())?;
        Some((chunk * CHUNK + offset + found) as u32)
    }

    fn cold_chunk(&self, from: usize) -> Option<usize> {
        let first = *self.cold_chunks.get(from / 64)? & (u64::MAX << (from % 64));
        let rest = self.cold_chunks[from / 64 + 1..].iter().copied();
        let (word, bits) = (from / 64..)
            .zip(std::iter::once(first).chain(rest))
            .find(|&(_, bits)| bits != 0)?;
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// All tracked pages in rising order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        self.iter_in(0..self.pages)
    }

    /// The tracked pages among `ids` in rising order.
    pub(super) fn iter_in(&self, ids: Range<u32>) -> impl Iterator<Item = (u32, Slot)> + '_ {
        let first = (ids.start >> CHUNK_SHIFT) as usize;
        let end = (ids.end as usize).div_ceil(CHUNK).min(self.counts.len());
        (first..end)
            .filter(|&chunk| self.counts[chunk].tracked > 0)
            .flat_map(|chunk| {
                let slots = self.chunk_words(chunk).iter().map(|&word| Slot::of(word));
                ((chunk * CHUNK) as u32..).zip(slots)
            })
            .filter(move |(id, slot)| ids.contains(id) && *slot != Slot::Untracked)
    }

    /// Calls `each` with the words of every chunk that is tracked, and its first page.
    #[inline]
    pub(super) fn for_chunks(&self, mut each: impl FnMut(u32, &[u32])) {
        for (chunk, counts) in self.counts.iter().enumerate() {
            if counts.tracked > 0 {
                each((chunk * CHUNK) as u32, self.chunk_words(chunk));
            }
        }
    }

    /// Puts every key in a word through `change`; pages whose key became 0 are without a sample now.
    pub(super) fn rescale(&mut self, change: impl Fn(f32) -> f32) {
        for chunk in 0..self.counts.len() {
            if self.counts[chunk].tracked == 0 {
                continue;
            }
            let (mut fast, mut slow) = (0, 0);
            let words = self.chunk_range(chunk);
            for word in &mut self.words[words] {
                let Some(key) = key_of(*word) else { continue };
                let key = change(key);
                if key > 0.0 {
                    *word = with_key(*word, key);
                } else if *word < SLOW {
                    *word = Slot::FastNever.word();
                    fast += 1;
                } else {
                    *word = Slot::SlowNever.word();
                    slow += 1;
                }
            }
            self.slow_sampled -= slow;
            if fast > 0 {
                self.counts[chunk].cold += fast;
                self.cold += u32::from(fast);
                self.cold_chunks[chunk / 64] |= 1 << (chunk % 64);
            }
        }
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u32>()
            + (self.places.capacity() + self.groups.capacity()) * size_of::<u32>()
            + self.counts.capacity() * size_of::<Counts>()
            + self.cold_chunks.capacity() * size_of::<u64>()
            + self.owners.capacity() * size_of::<u32>()
    }

    /// Whether all counts, bits and blocks agree with the words.
    pub(super) fn check(&self) -> Result<(), String> {
        let blocks = self.places.iter().filter(|&&place| self.is_block(place));
        let past_heads = self.words.len() - self.places.len() - 1;
        if blocks.count() != self.owners.len() || past_heads != self.owners.len() * CHUNK {
            return Err("blocks are miscounted".to_owned());
        }
        let at = |block: usize| (self.places.len() + 1 + block * CHUNK) as u32;
        for (block, &chunk) in self.owners.iter().enumerate() {
            if self.places[chunk as usize] != at(block) || self.words[chunk as usize + 1] != 0 {
                return Err(format!("chunk {chunk}: its block is another's"));
            }
        }
        for (group, &start) in self.groups.iter().enumerate() {
            if start as usize != NOWHERE && self.start_of_group(group) != Some(start) {
                return Err(format!("group {group}: its words are not in a row"));
            }
        }
        if self.words[NOWHERE] != Slot::Untracked.word() {
            return Err("what is nowhere is tracked".to_owned());
        }
        let (mut tracked, mut cold, mut slow) = (0, 0, 0);
        for (chunk, counts) in self.counts.iter().enumerate() {
            let slots = || self.chunk_words(chunk).iter().map(|&word| Slot::of(word));
            let found = Counts {
                tracked: slots().filter(|&slot| slot != Slot::Untracked).count() as u16,
                cold: slots().filter(|&slot| slot == Slot::FastNever).count() as u16,
            };
            if found != *counts {
                return Err(format!("chunk {chunk}: its counts differ from its words"));
            }
            if (self.cold_chunks[chunk / 64] >> (chunk % 64) & 1 == 1) != (found.cold > 0) {
                return Err(format!(
                    "chunk {chunk}: its cold bit differs from its words"
                ));
            }
            tracked += u32::from(found.tracked);
            cold += u32::from(found.cold);
            slow += slots()
                .filter(|slot| matches!(slot, Slot::Slow(_) | Slot::Front(_)))
                .count() as u32;
        }
        if (tracked, cold, slow) != (self.tracked, self.cold, self.slow_sampled) {
            return Err("page counts differ from the chunks".to_owned());
        }
        Ok(())
    }
}

/// The first page of the chunk after that of `id`.
fn next_chunk(id: u32) -> u32 {
    ((id >> CHUNK_SHIFT) + 1).saturating_mul(CHUNK as u32)
}
