//! Trouble that stays or comes back, said once.

use std::time::{Duration, Instant};

/// After this time the same trouble is worth another line in the journal.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// Trouble that stays or comes back: said when it is new or was long not said, not each time.
#[derive(Default)]
pub(super) struct LogOnce {
    /// The reason, while there is trouble.
    pub(super) now: Option<String>,
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

impl LogOnce {
    /// Takes note of the reason. Returns whether it is to be said.
    pub(super) fn is_news(&mut self, reason: &str) -> bool {
        self.now = Some(reason.to_owned());
        let is_news = self
            .said
            .as_ref()
            .is_none_or(|(said, at)| said != reason || at.elapsed() >= SAY_AGAIN);
        if is_news {
            self.said = Some((reason.to_owned(), Instant::now()));
        }
        is_news
    }

    /// The trouble is over. Returns whether there was any.
    pub(super) fn end(&mut self) -> bool {
        self.now.take().is_some()
    }
}
