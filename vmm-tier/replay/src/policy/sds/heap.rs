//! An indexable heap: a binary heap of pages that finds each of them by its number.

/// Not in the heap.
const NOWHERE: u32 = u32::MAX;

/// Pages with keys, the best on top.
#[derive(Clone, Debug)]
pub(super) struct IndexableHeap {
    /// Pages and keys. Nobody below an entry is better.
    entries: Vec<(u32, f32)>,
    /// Where in `entries` each page stands.
    positions: Vec<u32>,
    /// Whether the first key is better than the second.
    is_better: fn(&f32, &f32) -> bool,
}

impl IndexableHeap {
    /// An empty heap for pages below `pages`.
    pub(super) fn new(pages: u32, is_better: fn(&f32, &f32) -> bool) -> Self {
        Self {
            entries: Vec::new(),
            positions: vec![NOWHERE; pages as usize],
            is_better,
        }
    }

    /// The page on top and its key.
    pub(super) fn top(&self) -> Option<(u32, f32)> {
        self.entries.first().copied()
    }

    /// Puts a page in, or gives it another key.
    pub(super) fn put(&mut self, page: u32, key: f32) {
        let mut index = self.positions[page as usize] as usize;
        if index == NOWHERE as usize {
            index = self.entries.len();
            self.entries.push((page, key));
        } else {
            self.entries[index].1 = key;
        }
        self.positions[page as usize] = index as u32;
        self.settle(index);
    }

    /// Takes the page on top out.
    pub(super) fn pop(&mut self) -> Option<(u32, f32)> {
        let top = self.top()?;
        self.entries.swap_remove(0);
        self.positions[top.0 as usize] = NOWHERE;
        if let Some(&(page, _)) = self.entries.first() {
            self.positions[page as usize] = 0;
            self.settle(0);
        }
        Some(top)
    }

    /// Puts every key through `change`, which must keep order.
    pub(super) fn rescale(&mut self, change: impl Fn(f32) -> f32) {
        for (_, key) in &mut self.entries {
            *key = change(*key);
        }
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<(u32, f32)>()
            + self.positions.capacity() * size_of::<u32>()
    }

    /// All pages, in no order.
    #[cfg(test)]
    pub(super) fn pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().map(|&(page, _)| page)
    }

    /// Moves an entry up or down to where order wants it.
    fn settle(&mut self, mut index: usize) {
        while index > 0 && self.beats(index, (index - 1) / 2) {
            index = self.swap(index, (index - 1) / 2);
        }
        loop {
            let children = (2 * index + 1)..(2 * index + 3).min(self.entries.len());
            let best = children.reduce(|a, b| if self.beats(b, a) { b } else { a });
            match best {
                Some(child) if self.beats(child, index) => index = self.swap(index, child),
                _ => break,
            }
        }
    }

    fn beats(&self, a: usize, b: usize) -> bool {
        (self.is_better)(&self.entries[a].1, &self.entries[b].1)
    }

    /// Lets two entries change places; returns the second place.
    fn swap(&mut self, a: usize, b: usize) -> usize {
        self.entries.swap(a, b);
        for index in [a, b] {
            let (page, _) = self.entries[index];
            self.positions[page as usize] = index as u32;
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const PAGES: u32 = 50;

    proptest! {
        #[test]
        fn heap_when_driven_at_random_has_the_best_key_on_top(
            ops in vec((0..PAGES, 0..20_u8, prop::bool::weighted(0.3)), 1..300),
            greatest in any::<bool>(),
        ) {
            let mut heap = IndexableHeap::new(PAGES, if greatest { f32::gt } else { f32::lt });
            let mut model = BTreeMap::new();
            for (page, key, pop) in ops {
                if pop {
                    let popped = heap.pop();
                    prop_assert_eq!(popped.map(|(page, _)| model.remove(&page)), popped.map(|(_, key)| Some(key)));
                } else {
                    heap.put(page, f32::from(key));
                    model.insert(page, f32::from(key));
                }
                let keys = model.values().copied();
                let best = if greatest { keys.reduce(f32::max) } else { keys.reduce(f32::min) };
                prop_assert_eq!(heap.top().map(|(_, key)| key), best);
                prop_assert_eq!(heap.pages().count(), model.len());
                for (index, &(page, key)) in heap.entries.iter().enumerate() {
                    prop_assert_eq!(heap.positions[page as usize] as usize, index);
                    prop_assert_eq!(model.get(&page), Some(&key));
                }
            }
        }
    }
}
