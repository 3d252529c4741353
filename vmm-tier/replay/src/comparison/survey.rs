//! A first look at a trace that does not name its memory: which pages it touches, in which order, how
//! long it is.

use std::collections::HashMap;

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    text::size::human,
    time::Time,
};

use crate::machine::{Access, Guest, guest::GuestError};

/// Pages that a trace may touch: 256 GiB of 4 KiB. The list of them takes 8 bytes each.
const MOST_PAGES: usize = 1 << 26;
/// Pages that share an entry: a huge page's.
const CHUNK: u64 = HUGE_PAGE / BASE_PAGE;

/// Why a trace can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// It touches more pages than a guest can have.
    #[error(
        "it touches more than {pages} pages, which is more than {}: record it with `vmm-tier record`, which names \
         the guest's memory",
        human(*pages as u64 * BASE_PAGE)
    )]
    TooLarge {
        /// How many pages it may touch.
        pages: usize,
    },
    /// There is no guest to replay.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Survey {
    most_pages: usize,
    first: Option<Time>,
    last: Time,
    /// One bit for each page that was touched, in chunks.
    seen: HashMap<u64, [u64; (CHUNK / 64) as usize]>,
    /// The addresses of pages, in the order of their first touch.
    touched: Vec<u64>,
    /// The page of the last access: most accesses touch the same page as the one before.
    latest: Option<u64>,
}

impl Survey {
    /// A survey of nothing, of so many pages at most.
    pub(super) fn new(most_pages: u32) -> Self {
        Self {
            most_pages: MOST_PAGES.min(most_pages as usize),
            first: None,
            last: Time::default(),
            seen: HashMap::new(),
            touched: Vec::new(),
            latest: None,
        }
    }

    /// Takes note of accesses.
    ///
    /// # Errors
    /// If they touch more pages than can be listed.
    pub(super) fn add(&mut self, accesses: &[Access]) -> Result<(), SurveyError> {
        for access in accesses {
            self.first.get_or_insert(access.at);
            self.last = access.at;
            let first = access.address / BASE_PAGE;
            let last = access.address.saturating_add(access.len.saturating_sub(1)) / BASE_PAGE;
            let pages = last - first + 1;
            if first == last && self.latest == Some(first) {
                continue;
            }
            if pages > self.most_pages as u64 {
                return Err(self.too_large());
            }
            for page in first..=last {
                self.touch(page)?;
            }
            self.latest = Some(last);
        }
        Ok(())
    }

    fn touch(&mut self, page: u64) -> Result<(), SurveyError> {
        let bits = self.seen.entry(page / CHUNK).or_default();
        let (word, bit) = ((page % CHUNK / 64) as usize, 1 << (page % 64));
        if bits[word] & bit == 0 {
            bits[word] |= bit;
            if self.touched.len() >= self.most_pages {
                return Err(self.too_large());
            }
            self.touched.push(page * BASE_PAGE);
        }
        Ok(())
    }

    fn too_large(&self) -> SurveyError {
        SurveyError::TooLarge {
            pages: self.most_pages,
        }
    }

    /// The time of the first access.
    pub(super) fn first(&self) -> Time {
        self.first.unwrap_or_default()
    }

    /// The time from the first access to the last.
    pub(super) fn duration(&self) -> std::time::Duration {
        self.last.since(self.first())
    }

    /// The guest that has all pages that were touched.
    ///
    /// # Errors
    /// If none was.
    pub(super) fn guest(&self, page_bytes: u64) -> Result<Guest, SurveyError> {
        Ok(Guest::from_touched(&self.touched, page_bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use tier_core::sample::AccessKind;

    use super::*;

    fn access(at: u64, address: u64, len: u64) -> Access {
        Access {
            at: Time(at),
            address,
            len,
            weight: 2,
            kind: AccessKind::Load,
        }
    }

    #[test]
    fn survey_when_accesses_span_pages_lists_each_page_once_in_order() {
        let mut survey = Survey::new(u32::MAX);
        survey
            .add(&[
                access(5, 0x5000, 1),
                access(6, 0x5fff, 2),
                access(9, 0x1234, 1),
            ])
            .unwrap();
        let guest = survey.guest(BASE_PAGE).unwrap();
        let order: Vec<u64> = guest.first_touch().map(|p| guest.address(p)).collect();
        assert_eq!(order, [0x5000, 0x6000, 0x1000]);
        assert_eq!(survey.duration().as_nanos(), 4);
        assert_eq!(survey.guest(HUGE_PAGE).unwrap().pages(), 1);
    }

    #[test]
    fn survey_when_nothing_or_too_much_is_touched_says_so() {
        assert!(Survey::new(u32::MAX).guest(BASE_PAGE).is_err());
        let whole = access(0, 0, u64::MAX);
        let error = Survey::new(u32::MAX).add(&[whole]).unwrap_err();
        assert!(error.to_string().contains("256 GiB"));
        // The last byte that can be named.
        Survey::new(u32::MAX)
            .add(&[access(0, u64::MAX, 10)])
            .unwrap();
    }
}
