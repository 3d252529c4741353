//! How often each page is used in each epoch: what the oracle knows.

use std::time::Duration;

use tier_core::time::Time;

use super::Slice;

/// The uses of pages in one epoch: pages by rising number, each with its accesses.
pub(crate) type EpochUses = Vec<(u32, u32)>;

/// Gathered in a first pass over the accesses. Its memory is bounded: when it is full, epochs are joined
/// two by two, so a long trace of a large guest is known in longer epochs.
#[derive(Clone, Debug)]
pub struct Profile {
    epoch: Duration,
    most_pairs: usize,
    most_epochs: usize,
    start: Option<Time>,
    end: Time,
    /// Accesses of the epoch under way, by page.
    current: Vec<u32>,
    current_index: u64,
    done: Vec<EpochUses>,
    pairs: usize,
    accesses: u64,
    outside: u64,
    is_short: bool,
}

impl Profile {
    /// A profile of a guest with `pages` pages, in epochs of this length at first, in about `bytes`
    /// bytes and four more a page.
    #[must_use]
    pub fn new(pages: u32, epoch: Duration, bytes: usize) -> Self {
        Self {
            epoch: epoch.max(Duration::from_millis(1)),
            most_pairs: bytes / size_of::<(u32, u32)>(),
            most_epochs: MOST_EPOCHS,
            start: None,
            end: Time(0),
            current: vec![0; pages as usize],
            current_index: 0,
            done: Vec::new(),
            pairs: 0,
            accesses: 0,
            outside: 0,
            is_short: false,
        }
    }

    /// Tells up to so many epochs apart, two at least.
    #[must_use]
    pub fn with_most_epochs(mut self, epochs: usize) -> Self {
        self.most_epochs = epochs.max(2);
        self
    }

    /// Takes note of a slice.
    pub fn add(&mut self, slice: &Slice) {
        let start = *self.start.get_or_insert(slice.start);
        let index = (slice.start.since(start).as_nanos() / self.epoch.as_nanos()) as u64;
        if index > self.current_index {
            self.close(index);
        }
        self.end = self.end.max(slice.end);
        self.outside += slice.outside;
        for touch in &slice.touched {
            if let Some(count) = self.current.get_mut(touch.page as usize) {
                *count = count.saturating_add(touch.accesses);
                self.accesses += u64::from(touch.accesses);
            }
        }
    }

    /// Ends the last epoch.
    #[must_use]
    pub fn finish(mut self) -> Self {
        self.close(self.current_index + 1);
        // Joining may have opened the last epoch again.
        let last = self.take_current();
        if !last.is_empty() {
            self.pairs += last.len();
            self.done.push(last);
        }
        self.current = Vec::new();
        self
    }

    /// The length of an epoch now.
    #[must_use]
    pub const fn epoch(&self) -> Duration {
        self.epoch
    }

    /// Whether epochs were joined because memory was short.
    #[must_use]
    pub const fn is_short_of_memory(&self) -> bool {
        self.is_short
    }

    /// When the first slice began.
    #[must_use]
    pub fn start(&self) -> Time {
        self.start.unwrap_or_default()
    }

    /// From the first slice's begin to the last one's end.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.end.since(self.start())
    }

    /// Accesses in all.
    #[must_use]
    pub const fn accesses(&self) -> u64 {
        self.accesses
    }

    /// Accesses outside the guest's memory.
    #[must_use]
    pub const fn outside(&self) -> u64 {
        self.outside
    }

    /// The epochs, in order.
    pub(crate) fn epochs(&self) -> &[EpochUses] {
        &self.done
    }

    fn close(&mut self, next: u64) {
        let used = self.take_current();
        self.pairs += used.len();
        self.done.push(used);
        // Epochs of which nothing is known say nothing; only their number matters.
        let empty = next.saturating_sub(self.current_index + 1);
        self.done
            .resize_with(self.done.len() + empty.min(1 << 20) as usize, Vec::new);
        self.current_index = next;
        while (self.pairs > self.most_pairs || self.done.len() > self.most_epochs)
            && self.done.len() > 1
        {
            self.is_short |= self.pairs > self.most_pairs;
            self.join();
        }
    }

    fn take_current(&mut self) -> EpochUses {
        let pages = (0..).zip(&mut self.current);
        pages
            .filter(|(_, count)| **count > 0)
            .map(|(page, count)| (page, std::mem::take(count)))
            .collect()
    }

    /// Joins epochs two by two.
    fn join(&mut self) {
        // The epoch that begins now must begin at an even one.
        if self.done.len() % 2 == 1 {
            // It becomes the second half of the last pair: reopen that one.
            let last = self.done.pop().unwrap_or_default();
            self.pairs -= last.len();
            for (page, count) in last {
                self.current[page as usize] = self.current[page as usize].saturating_add(count);
            }
        }
        let old = std::mem::take(&mut self.done);
        let mut pairs = old.into_iter();
        while let (Some(a), Some(b)) = (pairs.next(), pairs.next()) {
            self.done.push(merged(&a, &b));
        }
        self.pairs = self.done.iter().map(Vec::len).sum();
        self.epoch *= 2;
        self.current_index = self.done.len() as u64;
    }
}

/// Epochs that are told apart unless said: the oracle's work grows with them.
const MOST_EPOCHS: usize = 256;

fn merged(a: &EpochUses, b: &EpochUses) -> EpochUses {
    let mut all = Vec::with_capacity(a.len().max(b.len()));
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(&&(p, m)), Some(&&(q, n))) if p == q => {
                a.next();
                b.next();
                (p, m.saturating_add(n))
            }
            (Some(&&first), Some(&&second)) if first.0 < second.0 => {
                a.next();
                first
            }
            (Some(_), Some(&&second)) => {
                b.next();
                second
            }
            (Some(&&first), None) => {
                a.next();
                first
            }
            (None, Some(&&second)) => {
                b.next();
                second
            }
            (None, None) => return all,
        };
        all.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_when_memory_suffices_keeps_every_epoch() {
        let mut profile = Profile::new(4, Duration::from_secs(1), 1 << 20);
        profile.add(&Slice::second(0, &[(1, 5)]));
        profile.add(&Slice::second(2, &[(0, 1), (3, 2)]));
        let profile = profile.finish();
        assert_eq!(
            profile.epochs(),
            [vec![(1, 5)], vec![], vec![(0, 1), (3, 2)]]
        );
        assert!(!profile.is_short_of_memory());
        assert_eq!(profile.accesses(), 8);
        assert_eq!(profile.duration(), Duration::from_secs(3));
    }

    #[test]
    fn profile_when_memory_is_short_joins_epochs_and_loses_no_access() {
        for seconds in 1..40 {
            // Room for twelve pairs, two in each epoch.
            let mut profile = Profile::new(8, Duration::from_secs(1), 96);
            for second in 0..seconds {
                profile.add(&Slice::second(second, &[(second as u32 % 4, 1), (7, 3)]));
            }
            let profile = profile.finish();
            let all: u64 = profile
                .epochs()
                .iter()
                .flatten()
                .map(|u| u64::from(u.1))
                .sum();
            assert_eq!(all, seconds * 4);
            let pairs: usize = profile.epochs().iter().map(Vec::len).sum();
            assert!(
                pairs <= 12 + 5,
                "{pairs}: the last epoch may be opened again"
            );
            assert_eq!(profile.is_short_of_memory(), seconds > 6);
            let length = profile.epoch().as_secs();
            assert_eq!(profile.epochs().len() as u64, seconds.div_ceil(length));
            let first: u64 = profile.epochs()[0].iter().map(|u| u64::from(u.1)).sum();
            assert_eq!(
                first,
                4 * length.min(seconds),
                "the first epoch is a whole one"
            );
        }
    }
}
