//! The time that may go into reading pages again. Pure.
//!
//! The budget is small while all is well. It is larger when more of the samples than usual belong to no
//! known page: the kernel has moved pages, or the guest uses new ones. Once all pages were read, the
//! share that is left counts as usual: those addresses are the host's own. That share changes with what
//! the host does. So where reading everything brought hardly anything new, the next reading waits for
//! longer and longer.
//!
//! A replay can't tell what this is worth: there nobody else moves pages. It is bounded: a thousandth of
//! a core, a tenth of that while the guest is at rest, and a twentieth of a core while many samples
//! miss.

use std::time::Duration;

use super::Reread;

/// The share of a core for reading while all is well.
const CALM: f64 = 0.001;
/// The same while the guest is at rest: an agent may take a thousandth of a core then, all in all. Pages
/// that the agent moves are read at once in any case.
const AT_REST: f64 = 0.000_1;
/// The share while many samples miss.
const URGENT: f64 = 0.05;
/// By how much the share of misses must exceed the usual one.
const EXCESS: f64 = 0.05;
/// Samples that one judgement takes.
const ENOUGH: u64 = 200;
/// Reading was in vain if less than one entry in 1000 was new.
const WORTHWHILE: u64 = 1000;
/// How long it is not urgent after reading in vain; doubled each time up to the second.
const WAIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Seconds that may be saved up while nobody asks.
const MOST_SAVED: f64 = 0.05;

/// The time for reading, and what decides how much it is.
#[derive(Clone, Debug)]
pub struct RereadBudget {
    hits: u64,
    misses: u64,
    /// The usual share of misses; `None` until all pages were read with samples flowing.
    usual: Option<f64>,
    at_rest: bool,
    urgent: bool,
    /// Ends of passes until all pages were read since it became urgent.
    passes: u32,
    /// All pages were read since it became urgent: the next judgement says what is usual.
    settling: bool,
    /// What was read since it became urgent.
    read: Reread,
    /// For how long it can't become urgent, and for how long after the next reading in vain.
    wait: Duration,
    next_wait: Duration,
    /// Seconds; less than nothing after reading took longer than it might.
    saved: f64,
}

impl Default for RereadBudget {
    fn default() -> Self {
        Self {
            hits: 0,
            misses: 0,
            usual: None,
            at_rest: false,
            urgent: false,
            passes: 0,
            settling: true,
            read: Reread::default(),
            wait: Duration::ZERO,
            next_wait: WAIT.0,
            saved: 0.0,
        }
    }
}

impl RereadBudget {
    /// Takes note of samples that were found in the map and of those that were not.
    pub fn observe(&mut self, hits: u64, misses: u64) {
        self.hits = self.hits.saturating_add(hits);
        self.misses = self.misses.saturating_add(misses);
        let all = self.hits.saturating_add(self.misses);
        if all < ENOUGH {
            return;
        }
        let share = self.misses as f64 / all as f64;
        (self.hits, self.misses) = (0, 0);
        let usual = self.usual.unwrap_or(share);
        if self.settling {
            self.settling = false;
            self.urgent = false;
            self.usual = Some(share);
        } else if share > usual + EXCESS {
            if !self.urgent && self.wait.is_zero() {
                self.urgent = true;
                self.read = Reread::default();
                // The first end comes early: that pass began before.
                self.passes = 2;
            }
        } else {
            self.urgent = false;
            // Follows slowly upward, so that a slow rise is noticed too, and downward at once.
            self.usual = Some(share.min(usual + EXCESS / 50.0));
        }
    }

    /// Other pages are read from now on: what was learned of these is forgotten.
    pub fn start_over(&mut self) {
        *self = Self {
            at_rest: self.at_rest,
            ..Self::default()
        };
    }

    /// The guest is at rest, or no longer.
    pub const fn set_at_rest(&mut self, at_rest: bool) {
        self.at_rest = at_rest;
    }

    /// Whether many samples miss.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// How long may be read now, `elapsed` after the last call.
    pub fn allowance(&mut self, elapsed: Duration) -> Duration {
        self.wait = self.wait.saturating_sub(elapsed);
        let share = match (self.urgent, self.at_rest) {
            (true, _) => URGENT,
            (false, true) => AT_REST,
            (false, false) => CALM,
        };
        self.saved = (self.saved + elapsed.as_secs_f64() * share).min(MOST_SAVED);
        Duration::from_secs_f64(self.saved.max(0.0))
    }

    /// Takes note of what was read, and for how long.
    pub fn took(&mut self, read: Reread, time: Duration) {
        self.saved -= time.as_secs_f64();
        self.read.add(read);
        self.passes = self.passes.saturating_sub(u32::from(read.pass_done));
        if !self.urgent || self.settling || self.passes > 0 {
            return;
        }
        self.settling = true;
        (self.hits, self.misses) = (0, 0);
        if self.read.changed.saturating_mul(WORTHWHILE) < self.read.read {
            self.wait = self.next_wait;
            self.next_wait = (self.next_wait * 2).min(WAIT.1);
        } else {
            self.next_wait = WAIT.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time read in a hundred seconds, looked at ten times a second, in pieces of 30 ms.
    fn read_in_a_while(budget: &mut RereadBudget) -> Duration {
        let piece = Duration::from_millis(30);
        let mut read = Duration::ZERO;
        for _ in 0..1000 {
            if budget.allowance(Duration::from_millis(100)) > Duration::from_millis(1) {
                budget.took(Reread::default(), piece);
                read += piece;
            }
        }
        read
    }

    /// A pass of a thousand entries ends, and some of them were new.
    fn end_pass(budget: &mut RereadBudget, changed: u64) {
        let read = Reread {
            read: 1000,
            changed,
            pass_done: true,
        };
        budget.took(read, Duration::ZERO);
    }

    #[test]
    fn budget_when_all_is_well_reads_a_small_share_of_the_time_even_in_large_pieces() {
        let mut budget = RereadBudget::default();
        budget.observe(900, 100);
        let read = read_in_a_while(&mut budget).as_millis();
        assert!((70..=130).contains(&read), "{read} ms of 100 s");
    }

    #[test]
    fn budget_when_more_misses_than_usual_reads_more_until_all_is_read() {
        let mut budget = RereadBudget::default();
        budget.observe(900, 100);
        budget.observe(900, 120);
        assert!(!budget.is_urgent());

        budget.observe(700, 300);
        assert!(budget.is_urgent());
        let read = read_in_a_while(&mut budget).as_millis();
        assert!((4900..=5100).contains(&read), "{read} ms of 100 s");

        // The pass that had begun before ends, and then a whole one: as many still miss, so they are the
        // host's own.
        end_pass(&mut budget, 100);
        budget.observe(700, 300);
        assert!(budget.is_urgent());
        end_pass(&mut budget, 100);
        budget.observe(700, 300);
        assert!(!budget.is_urgent());
        budget.observe(700, 300);
        assert!(!budget.is_urgent());
        budget.observe(500, 500);
        assert!(budget.is_urgent());
    }

    #[test]
    fn budget_when_reading_is_in_vain_waits_longer_each_time_until_it_is_not() {
        let mut budget = RereadBudget::default();
        budget.observe(900, 100);
        // The host is busy and idle in turns of a second: its own accesses come and go.
        let mut urgent_at = Vec::new();
        for second in 0..600 {
            budget.observe(500, 500);
            if budget.is_urgent() {
                urgent_at.push(second);
                end_pass(&mut budget, 0);
                end_pass(&mut budget, 0);
                budget.observe(500, 500);
                assert!(!budget.is_urgent());
            }
            budget.observe(900, 100);
            budget.allowance(Duration::from_secs(1));
        }
        assert_eq!(urgent_at, [0, 10, 30, 70, 150, 310]);

        budget.allowance(WAIT.1);
        for _ in 0..2 {
            budget.observe(500, 500);
            assert!(budget.is_urgent());
            end_pass(&mut budget, 10);
            end_pass(&mut budget, 10);
            budget.observe(900, 100);
        }
    }

    #[test]
    fn budget_when_misses_become_fewer_is_calm_and_expects_as_few_from_then_on() {
        let mut budget = RereadBudget::default();
        budget.observe(500, 500);
        budget.observe(900, 100);
        assert!(!budget.is_urgent());
        budget.observe(700, 300);
        assert!(budget.is_urgent());
        budget.observe(900, 100);
        assert!(!budget.is_urgent());
    }

    #[test]
    fn budget_when_samples_are_few_waits_for_more() {
        let mut budget = RereadBudget::default();
        budget.observe(900, 100);
        for _ in 0..19 {
            budget.observe(0, 10);
            assert!(!budget.is_urgent());
        }
        budget.observe(0, 10);
        assert!(budget.is_urgent());
    }

    #[test]
    fn budget_when_nobody_asks_for_long_saves_up_little() {
        let mut budget = RereadBudget::default();
        let allowed = budget.allowance(Duration::from_secs(3600));
        assert_eq!(allowed, Duration::from_secs_f64(MOST_SAVED));
    }
}
