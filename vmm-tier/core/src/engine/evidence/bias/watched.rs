//! The pages of the trial: which they are, how many bytes are held back, and a filter that tells them
//! from others.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, DefaultHasher},
    time::Duration,
};

use crate::{dual_heap::PageId, random::spread, time::Time};

/// A page of the trial.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    /// Whether it is held back.
    pub(super) stays: bool,
    pub(super) bytes: u64,
    /// Records expected a second.
    pub(super) per_s: f64,
    /// For how long it is watched.
    pub(super) time: Duration,
    pub(super) drawn: Time,
    /// Since when it is where it is to be watched; a moved page at first is not.
    pub(super) there: Option<Time>,
    /// When the first batch began that is all of that time.
    pub(super) began: Option<Time>,
    pub(super) seen: f64,
}

/// Which pages may be watched: a bit for each of 4096 classes of pages, so that other samples cost next
/// to nothing.
#[derive(Debug)]
struct Filter([u64; 64]);

impl Filter {
    const fn place(page: u32) -> (usize, u64) {
        let class = spread(page) >> 20;
        ((class >> 6) as usize, 1 << (class & 63))
    }

    const fn add(&mut self, page: u32) {
        let (word, bit) = Self::place(page);
        self.0[word] |= bit;
    }

    #[inline]
    const fn may_have(&self, page: u32) -> bool {
        let (word, bit) = Self::place(page);
        self.0[word] & bit != 0
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Watched {
    /// Hashed alike in each run: the same records bring the same estimate.
    pages: HashMap<u32, Watch, BuildHasherDefault<DefaultHasher>>,
    filter: Filter,
    held: u64,
    held_bytes: u64,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            pages: HashMap::default(),
            filter: Filter([0; 64]),
            held: 0,
            held_bytes: 0,
        }
    }
}

impl Watched {
    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Pages that are held back.
    pub(super) const fn held(&self) -> u64 {
        self.held
    }

    /// Their bytes.
    pub(super) const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    pub(super) fn get(&self, page: PageId) -> Option<&Watch> {
        self.pages.get(&page.0)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, page: PageId) -> Option<&mut Watch> {
        match self.filter.may_have(page.0) {
            true => self.pages.get_mut(&page.0),
            false => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PageId, &Watch)> {
        self.pages
            .iter()
            .map(|(&page, watch)| (PageId(page), watch))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Watch> {
        self.pages.values_mut()
    }

    /// Adds a page that is not among them.
    pub(super) fn insert(&mut self, page: PageId, watch: Watch) {
        if watch.stays {
            self.held += 1;
            self.held_bytes += watch.bytes;
        }
        self.pages.insert(page.0, watch);
        self.filter.add(page.0);
    }

    /// Its bit of the filter stays, as it may be another's too. It costs a look, until
    /// [`Self::refilter`].
    pub(super) fn remove(&mut self, page: PageId) -> Option<Watch> {
        if self.pages.is_empty() {
            return None;
        }
        let watch = self.pages.remove(&page.0)?;
        if watch.stays {
            self.held -= 1;
            self.held_bytes -= watch.bytes;
        }
        Some(watch)
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
        self.filter = Filter([0; 64]);
        (self.held, self.held_bytes) = (0, 0);
    }

    /// Makes the filter that of the pages that are left.
    pub(super) fn refilter(&mut self) {
        self.filter = Filter([0; 64]);
        for &page in self.pages.keys() {
            self.filter.add(page);
        }
    }
}
