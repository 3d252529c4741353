//! The word that each tracked page has: which heap it is in and where, or its key itself.
//!
//! Pages stand in chunks of 512 frames (2 MiB, so that a huge page never shares one). A chunk takes
//! memory only while a frame in it other than the first is tracked; a range that is untouched, or
//! backed by huge pages, costs its 16-byte directory entry.

use std::ops::Range;

/// log2 of the frames in a chunk.
const CHUNK_SHIFT: u32 = 9;
const CHUNK: usize = 1 << CHUNK_SHIFT;

/// The most pages that can be tracked: indices need two tag bits of a word.
pub(super) const MAX_PAGES: u32 = 1 << 30;

const SLOW_TAG: u32 = 0x8000_0000;
const ASIDE_TAG: u32 = 0xc000_0000;
const INDEX_MASK: u32 = 0x3fff_ffff;

/// What a page's word says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Slot {
    /// Not tracked.
    Untracked,
    /// In the fast tier, without a sample.
    FastNever,
    /// In the slow tier, without a sample.
    SlowNever,
    /// In the fast tier, with this key; the fast heap has at least one entry for it.
    Fast(f32),
    /// In the slow heap, at this index.
    Slow(u32),
    /// In the side table, at this index.
    Aside(u32),
}

impl Slot {
    /// Keys are never subnormal, so their bit patterns below 2^23 are free for tags.
    pub(super) fn word(self) -> u32 {
        match self {
            Self::Untracked => 0,
            Self::FastNever => 1,
            Self::SlowNever => 2,
            Self::Fast(key) => key.to_bits(),
            Self::Slow(index) => SLOW_TAG | index,
            Self::Aside(index) => ASIDE_TAG | index,
        }
    }

    #[inline]
    pub(super) fn of(word: u32) -> Self {
        match word {
            0 => Self::Untracked,
            1 => Self::FastNever,
            2 => Self::SlowNever,
            w if w < SLOW_TAG => Self::Fast(f32::from_bits(w)),
            w if w < ASIDE_TAG => Self::Slow(w & INDEX_MASK),
            w => Self::Aside(w & INDEX_MASK),
        }
    }
}

#[derive(Debug, Default)]
struct Chunk {
    /// All words, if a frame other than the first is or was tracked.
    words: Option<Box<[u32; CHUNK]>>,
    /// The first frame's word, if `words` is none.
    head: u32,
    /// Frames that are tracked.
    tracked: u16,
    /// Frames that are `FastNever`.
    cold: u16,
}

impl Chunk {
    fn words(&self) -> &[u32] {
        self.words
            .as_ref()
            .map_or(std::slice::from_ref(&self.head), |words| words.as_slice())
    }

    fn words_mut(&mut self) -> &mut [u32] {
        match &mut self.words {
            Some(words) => words.as_mut_slice(),
            None => std::slice::from_mut(&mut self.head),
        }
    }
}

/// All pages' words.
#[derive(Debug)]
pub(super) struct Pages {
    chunks: Vec<Chunk>,
    /// One bit a chunk: it holds a `FastNever` page.
    cold_chunks: Vec<u64>,
    pages: u32,
    tracked: u32,
    cold: u32,
    allocated_chunks: usize,
}

impl Pages {
    pub(super) fn new(pages: u32) -> Self {
        let chunks = (pages as usize).div_ceil(CHUNK);
        Self {
            chunks: std::iter::repeat_with(Chunk::default)
                .take(chunks)
                .collect(),
            cold_chunks: vec![0; chunks.div_ceil(64)],
            pages,
            tracked: 0,
            cold: 0,
            allocated_chunks: 0,
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

    /// The number of pages in the fast tier without a sample.
    pub(super) fn cold(&self) -> u32 {
        self.cold
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Slot {
        let chunk = self.chunks.get((id >> CHUNK_SHIFT) as usize);
        let word = chunk.and_then(|chunk| chunk.words().get(id as usize % CHUNK));
        Slot::of(word.copied().unwrap_or(0))
    }

    /// Replaces the word of a tracked page by one of the same kind (a grown key, a new index).
    #[inline]
    pub(super) fn update(&mut self, id: u32, slot: Slot) {
        let chunk = &mut self.chunks[(id >> CHUNK_SHIFT) as usize];
        chunk.words_mut()[id as usize % CHUNK] = slot.word();
    }

    /// Replaces a page's word by any other. Ids past the end are ignored.
    pub(super) fn set(&mut self, id: u32, slot: Slot) {
        if id >= self.pages {
            return;
        }
        let number = (id >> CHUNK_SHIFT) as usize;
        let chunk = &mut self.chunks[number];
        let offset = id as usize % CHUNK;
        if offset != 0 && chunk.words.is_none() {
            if slot == Slot::Untracked {
                return;
            }
            let mut words = Box::new([0; CHUNK]);
            words[0] = chunk.head;
            chunk.words = Some(words);
            self.allocated_chunks += 1;
        }
        let word = &mut chunk.words_mut()[offset];
        let old = Slot::of(std::mem::replace(word, slot.word()));
        match (old == Slot::Untracked, slot == Slot::Untracked) {
            (true, false) => {
                chunk.tracked += 1;
                self.tracked += 1;
            }
            (false, true) => {
                chunk.tracked -= 1;
                self.tracked -= 1;
            }
            _ => {}
        }
        match (old == Slot::FastNever, slot == Slot::FastNever) {
            (false, true) => {
                chunk.cold += 1;
                self.cold += 1;
                self.cold_chunks[number / 64] |= 1 << (number % 64);
            }
            (true, false) => {
                chunk.cold -= 1;
                self.cold -= 1;
                if chunk.cold == 0 {
                    self.cold_chunks[number / 64] &= !(1 << (number % 64));
                }
            }
            _ => {}
        }
    }

    /// Gives back the memory of the chunk of `id` if nothing in it is tracked any more.
    pub(super) fn trim(&mut self, id: u32) {
        if let Some(chunk) = self.chunks.get_mut((id >> CHUNK_SHIFT) as usize)
            && chunk.tracked == 0
            && chunk.words.take().is_some()
        {
            chunk.head = 0;
            self.allocated_chunks -= 1;
        }
    }

    /// The words from page `first` to the end of its chunk or to `end`, whichever is nearer, and the
    /// page at which to go on.
    pub(super) fn run_mut(&mut self, first: u32, end: u32) -> (&mut [u32], u32) {
        let next = ((first >> CHUNK_SHIFT) + 1)
            .saturating_mul(CHUNK as u32)
            .min(end);
        let chunk = &mut self.chunks[(first >> CHUNK_SHIFT) as usize];
        if chunk.tracked == 0 {
            return (&mut [], next);
        }
        let offset = first as usize % CHUNK;
        let words = chunk.words_mut();
        let last = (offset + (next - first) as usize).min(words.len());
        (&mut words[offset.min(last)..last], next)
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

    fn cold_in_chunk(&self, number: usize, offset: usize) -> Option<u32> {
        let chunk = &self.chunks[number];
        if chunk.cold == 0 {
            return None;
        }
        let found = chunk
            .words()
            .iter()
            .skip(offset)
            .position(|&w| w == Slot::FastNever.word())?;
        Some((number * CHUNK + offset + found) as u32)
    }

    fn cold_chunk(&self, from: usize) -> Option<usize> {
        let first = *self.cold_chunks.get(from / 64)? & (u64::MAX << (from % 64));
        let rest = self.cold_chunks[from / 64 + 1..].iter().copied();
        std::iter::once(first)
            .chain(rest)
            .position(|bits| bits != 0)
            .map(|word| {
                (
                    from / 64 + word,
                    if word == 0 {
                        first
                    } else {
                        self.cold_chunks[from / 64 + word]
                    },
                )
            })
            .map(|(word, bits)| word * 64 + bits.trailing_zeros() as usize)
    }

    /// All tracked pages in rising order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        self.iter_in(0..self.pages)
    }

    /// The tracked pages among `ids` in rising order.
    pub(super) fn iter_in(&self, ids: Range<u32>) -> impl Iterator<Item = (u32, Slot)> + '_ {
        let first = (ids.start >> CHUNK_SHIFT) as usize;
        let end = (ids.end as usize).div_ceil(CHUNK);
        self.chunks
            .iter()
            .enumerate()
            .take(end)
            .skip(first)
            .filter(|(_, chunk)| chunk.tracked > 0)
            .flat_map(|(number, chunk)| {
                let first = (number * CHUNK) as u32;
                let slots = chunk.words().iter().map(|&word| Slot::of(word));
                (first..).zip(slots)
            })
            .filter(move |(id, slot)| ids.contains(id) && *slot != Slot::Untracked)
    }

    /// Puts every key in a `Fast` word through `change`; the pages whose key became 0 are set to
    /// `FastNever` and their number is returned.
    pub(super) fn rescale(&mut self, change: impl Fn(f32) -> f32) -> u32 {
        let mut forgotten = 0;
        for (number, chunk) in self
            .chunks
            .iter_mut()
            .enumerate()
            .filter(|(_, c)| c.tracked > 0)
        {
            let mut cold = 0;
            for word in chunk.words_mut() {
                if let Slot::Fast(key) = Slot::of(*word) {
                    let key = change(key);
                    cold += u16::from(key == 0.0);
                    *word = if key == 0.0 {
                        Slot::FastNever
                    } else {
                        Slot::Fast(key)
                    }
                    .word();
                }
            }
            if cold > 0 {
                chunk.cold += cold;
                forgotten += u32::from(cold);
                self.cold_chunks[number / 64] |= 1 << (number % 64);
            }
        }
        self.cold += forgotten;
        forgotten
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Chunk>()
            + self.cold_chunks.capacity() * size_of::<u64>()
            + self.allocated_chunks * size_of::<[u32; CHUNK]>()
    }

    /// Whether all counts and bits agree with the words.
    pub(super) fn check(&self) -> Result<(), String> {
        let (mut tracked, mut cold, mut allocated) = (0, 0, 0);
        for (number, chunk) in self.chunks.iter().enumerate() {
            let slots = || chunk.words().iter().map(|&word| Slot::of(word));
            let chunk_tracked = slots().filter(|&slot| slot != Slot::Untracked).count();
            let chunk_cold = slots().filter(|&slot| slot == Slot::FastNever).count();
            if chunk_tracked != usize::from(chunk.tracked) || chunk_cold != usize::from(chunk.cold)
            {
                return Err(format!("chunk {number}: its counts differ from its words"));
            }
            if (self.cold_chunks[number / 64] >> (number % 64) & 1 == 1) != (chunk_cold > 0) {
                return Err(format!(
                    "chunk {number}: its cold bit differs from its words"
                ));
            }
            tracked += chunk_tracked;
            cold += chunk_cold;
            allocated += usize::from(chunk.words.is_some());
        }
        if (tracked, cold, allocated)
            != (
                self.tracked as usize,
                self.cold as usize,
                self.allocated_chunks,
            )
        {
            return Err("page counts differ from the chunks".to_owned());
        }
        Ok(())
    }
}
