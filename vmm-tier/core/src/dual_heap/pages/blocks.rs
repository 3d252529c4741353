//! Where the words of chunks lie, and how chunks come by a block and lose it.

use std::ops::Range;

use super::{CHUNK, GROUP_CHUNKS, NOWHERE, Pages};
use crate::dual_heap::word::Slot;

impl Pages {
    #[inline]
    pub(super) fn is_block(&self, place: u32) -> bool {
        place as usize > self.places.len()
    }

    pub(super) fn chunk_range(&self, chunk: usize) -> Range<usize> {
        let place = self.places[chunk];
        let len = if self.is_block(place) { CHUNK } else { 1 };
        place as usize..place as usize + len
    }

    pub(super) fn chunk_words(&self, chunk: usize) -> &[u32] {
        &self.words[self.chunk_range(chunk)]
    }

    /// Makes room for one more block. Not by doubling: words are most of the engine's memory.
    pub(super) fn reserve_block(&mut self) {
        if self.words.capacity() - self.words.len() < CHUNK {
            let more = (self.owners.len() / 16).max(1);
            self.words.reserve_exact(more * CHUNK);
            self.owners.reserve_exact(more);
        }
    }

    pub(super) fn add_block(&mut self, chunk: usize) {
        let place = self.words.len();
        self.words.resize(place + CHUNK, Slot::Untracked.word());
        self.words[place] = std::mem::take(&mut self.words[chunk + 1]);
        self.places[chunk] = place as u32;
        self.owners.push(chunk as u32);
        let last = chunk % GROUP_CHUNKS == GROUP_CHUNKS - 1;
        if last && let Some(start) = self.start_of_group(chunk / GROUP_CHUNKS) {
            self.groups[chunk / GROUP_CHUNKS] = start;
        }
    }

    /// Where the words of a group begin, if all its chunks have blocks in a row.
    pub(super) fn start_of_group(&self, group: usize) -> Option<u32> {
        let chunks = group * GROUP_CHUNKS..(group + 1) * GROUP_CHUNKS;
        let places = self.places.get(chunks)?;
        let in_a_row = (places[0]..).step_by(CHUNK).zip(places);
        (self.is_block(places[0]) && in_a_row.into_iter().all(|(wanted, &place)| wanted == place))
            .then_some(places[0])
    }

    /// Drops the block of a chunk, in which nothing is tracked: the last block takes its place.
    pub(super) fn remove_block(&mut self, chunk: usize) {
        let place = self.places[chunk] as usize;
        let last = self.words.len() - CHUNK;
        let moved = self.owners.pop();
        if let Some(moved) = moved
            && place != last
        {
            self.words.copy_within(last.., place);
            self.places[moved as usize] = place as u32;
            self.groups[moved as usize / GROUP_CHUNKS] = NOWHERE as u32;
            self.owners[(place - self.places.len() - 1) / CHUNK] = moved;
        }
        self.words.truncate(last);
        self.places[chunk] = chunk as u32 + 1;
        self.groups[chunk / GROUP_CHUNKS] = NOWHERE as u32;
        let blocks = self.owners.len();
        if (self.words.capacity() - last) / CHUNK > blocks / 8 {
            self.words.shrink_to(last + blocks / 16 * CHUNK);
            self.owners.shrink_to(blocks + blocks / 16);
        }
    }
}
