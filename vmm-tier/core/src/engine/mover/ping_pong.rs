//! The guard against ping-pong: where pages that were moved come back, exchanges slow down.
//!
//! A page comes back if it moves the other way within half of the horizon: then it was not worth the
//! move. Each second the bytes that came back are compared with all that moved. While half of them or
//! more came back, the rate of exchanges halves, from what was moved in that second, down to a 1024th
//! of the rate that is set. It doubles where less than a quarter came back, and is free again when
//! nothing came back for a horizon. While exchanges are slow, pages come back later: then a horizon
//! counts. Traffic below a 64th of the rate that is set is left alone: it costs little, and the guest
//! may need the rate soon. Orders (limit, drain, pins) are not slowed, and what they moved does not come back: a
//! host that shrinks a guest's share and raises it again is no ping-pong.
//!
//! On a guest whose halves are used in turn for 6 s each, it moves 175 MiB instead of 640, for a
//! modelled slowdown of 2.6 instead of 4.6 (vmm-tier/replay/tests/ping_pong.rs). On the generated
//! workloads it does not act.
//!
//! Of pages of 4 KiB one in 32 is watched, of larger pages all. What is kept of them takes a byte for
//! each 4 KiB of the guest, 256 KiB at most.

use std::time::Duration;

use super::brake::{Brake, Slowed};
use crate::{
    addr::BASE_PAGE, dual_heap::PageId, moves::Direction, settings::EngineSettings,
    text::size::human, time::Time,
};

/// How often the bytes that came back are compared.
const REVIEW: Duration = Duration::from_secs(1);
/// One of so many pages of 4 KiB is watched.
const SAMPLED: u64 = 32;
/// Pages that are watched at most, a power of two.
const MOST_SLOTS: usize = 32 << 10;
/// The share that came back from which on exchanges slow down.
const HIGH: f64 = 0.5;
/// The share that came back below which they recover.
const LOW: f64 = 0.25;
/// Of the rate that is set the part that is left alone.
const HARMLESS: u64 = 64;
/// Of the rate that is set the part below which exchanges are not slowed.
const FLOOR: u64 = 1024;
/// By how much the rate recovers at a review.
const RECOVERY: u64 = 2;

/// The last move of a page that is watched.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The page's id and 1; 0 for none.
    page: u32,
    /// Milliseconds, shifted by one; the lowest bit says whether it was a promotion.
    stamp: u32,
}

/// Bytes, in the reviews' time.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    all: u64,
    returned: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct PingPong {
    /// Empty before the first move.
    slots: Vec<Slot>,
    /// Since the last review.
    moved: Moved,
    reviewed_at: Time,
    returned_at: Option<Time>,
    /// Bytes that came back since the start, estimated.
    pub(crate) returned_bytes: u64,
    slowed: Option<Slowed>,
    /// The share that came back, while exchanges are slowed.
    share: f64,
    /// Times that exchanges slowed down.
    pub(crate) slowdowns: u64,
}

/// A number in which all bits of the id have mixed (the finalizer of MurmurHash3): neighbours that were
/// chosen by its lowest bits must spread over all slots.
fn mixed(id: PageId) -> u64 {
    let mut hash = u64::from(id.0).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

impl PingPong {
    pub(super) const fn new(now: Time) -> Self {
        Self {
            slots: Vec::new(),
            moved: Moved {
                all: 0,
                returned: 0,
            },
            reviewed_at: now,
            returned_at: None,
            returned_bytes: 0,
            slowed: None,
            share: 0.0,
            slowdowns: 0,
        }
    }

    /// Bytes that what is kept of pages takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>()
    }

    /// Forgets all pages: their numbers mean others now.
    pub(crate) fn forget_pages(&mut self) {
        self.slots = Vec::new();
    }

    /// Takes note that a page was moved, in a guest of `frames` pages.
    pub(super) fn moved(
        &mut self,
        now: Time,
        (id, bytes): (PageId, u64),
        direction: Direction,
        frames: u32,
        horizon: Duration,
    ) {
        let hash = mixed(id);
        let stands_for = if bytes > BASE_PAGE { 1 } else { SAMPLED };
        if !hash.is_multiple_of(stands_for) {
            return;
        }
        if self.slots.is_empty() {
            // Four for each watched page, so that few pages push others out.
            let pages = frames as usize / SAMPLED as usize * 4;
            let slots = pages.clamp(1024, MOST_SLOTS).next_power_of_two();
            self.slots = vec![Slot::default(); slots];
        }
        let bytes = bytes * stands_for;
        // Where exchanges are slow, pages come back later.
        let within = match self.slowed {
            Some(_) => horizon,
            None => horizon / 2,
        };
        self.moved.all += bytes;
        let is_promotion = direction == Direction::Promote;
        let index = self.index(hash);
        // Half of what 32 bits hold, 24 days, is longer than any horizon that can't be told from a
        // later one.
        let now_ms = (now.0 / 1_000_000) as u32 & (u32::MAX >> 1);
        let slot = &mut self.slots[index];
        let age_ms = now_ms.wrapping_sub(slot.stamp >> 1) & (u32::MAX >> 1);
        let was_promotion = slot.stamp & 1 == 1;
        if slot.page == id.0 + 1
            && was_promotion != is_promotion
            && Duration::from_millis(u64::from(age_ms)) < within
        {
            self.moved.returned += bytes;
            self.returned_bytes += bytes;
            self.returned_at = Some(now);
        }
        *slot = Slot {
            page: id.0 + 1,
            stamp: now_ms << 1 | u32::from(is_promotion),
        };
    }

    /// Takes note that an order moved a page: its last move says nothing of what it is worth.
    pub(super) fn ordered(&mut self, id: PageId) {
        if self.slots.is_empty() {
            return;
        }
        let index = self.index(mixed(id));
        let slot = &mut self.slots[index];
        if slot.page == id.0 + 1 {
            *slot = Slot::default();
        }
    }

    /// Where what is kept of a page lies. The bits are those above the ones that chose it.
    const fn index(&self, hash: u64) -> usize {
        (hash >> 5) as usize & (self.slots.len() - 1)
    }

    /// Slows exchanges down or lets them recover, once a second.
    pub(super) fn review(&mut self, now: Time, settings: &EngineSettings) {
        let since = now.since(self.reviewed_at);
        if since < REVIEW {
            return;
        }
        self.reviewed_at = now;
        let Moved { all, returned } = std::mem::take(&mut self.moved);
        let a_second = |bytes: u64| (bytes as f64 / since.as_secs_f64()) as u64;
        let set = settings.rate_bytes_per_s;
        let share = returned as f64 / all.max(1) as f64;
        let is_quiet = (self.returned_at).is_none_or(|at| now.since(at) >= settings.horizon);
        let before = self.slowed.as_ref().map(|slowed| slowed.rate_bytes_per_s);
        let rate = match before {
            None if share >= HIGH && a_second(returned) >= (set / HARMLESS).max(1) => {
                Some(a_second(all) / 2)
            }
            None => None,
            Some(_) if is_quiet => None,
            // Too little moved to tell anything.
            Some(rate) if all < settings.batch_bytes / 4 => Some(rate),
            Some(rate) if share >= HIGH => Some(rate / 2),
            Some(rate) if share < LOW => Some(rate.saturating_mul(RECOVERY)),
            Some(rate) => Some(rate),
        };
        let rate = rate.map(|rate| rate.max(set / FLOOR).max(1));
        self.slowdowns += u64::from(rate.is_some_and(|rate| rate < before.unwrap_or(set)));
        if before.is_none() || all > 0 {
            self.share = share;
        }
        Slowed::set(&mut self.slowed, now, rate, settings);
    }

    /// Of `budget` bytes what exchanges may have now; `None` if it is too early for any.
    pub(super) fn budget(&mut self, now: Time, budget: u64) -> Option<u64> {
        Slowed::budget(&mut self.slowed, now, budget)
    }

    /// Takes the bytes of an exchange.
    pub(super) fn take(&mut self, now: Time, bytes: u64) {
        Slowed::take(&mut self.slowed, now, bytes);
    }

    /// How exchanges are slowed; `None` if they are not.
    pub(super) fn brake(&self, settings: &EngineSettings) -> Option<Brake> {
        let slowed = self.slowed.as_ref()?;
        Some(Brake {
            rate_bytes_per_s: slowed.rate_bytes_per_s,
            returned_share: self.share,
            reason: format!(
                "{:.0} % of what was moved came back within {:.0} s, so exchanges go at {} a second instead of {}",
                self.share * 100.0,
                settings.horizon.as_secs_f64(),
                human(slowed.rate_bytes_per_s),
                human(settings.rate_bytes_per_s)
            ),
        })
    }

    /// Whether its parts are bounded.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(super) fn check(&self) -> Result<(), String> {
        let slots = self.slots.len();
        if slots > MOST_SLOTS || !(slots == 0 || slots.is_power_of_two()) {
            return Err(format!("{slots} pages are watched"));
        }
        match self.moved.returned <= self.moved.all {
            true => Ok(()),
            false => Err(format!("more came back than moved: {:?}", self.moved)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const HUGE: u64 = 2 * MIB;

    fn settings() -> EngineSettings {
        EngineSettings::default()
    }

    /// Moves this many huge pages, then lets a second pass.
    fn second(guard: &mut PingPong, now: &mut Time, pages: u32, direction: Direction) {
        let EngineSettings { horizon, .. } = settings();
        for page in 0..pages {
            guard.moved(
                *now,
                (PageId(page * 512), HUGE),
                direction,
                1 << 20,
                horizon,
            );
        }
        *now = *now + REVIEW;
        guard.review(*now, &settings());
        assert_eq!(guard.check(), Ok(()));
    }

    fn rate(guard: &PingPong) -> Option<u64> {
        Some(guard.brake(&settings())?.rate_bytes_per_s / MIB)
    }

    #[test]
    fn exchanges_when_pages_come_back_are_halved_down_to_a_floor_and_recover() {
        let mut guard = PingPong::new(Time(0));
        let mut now = Time(0);
        second(&mut guard, &mut now, 32, Direction::Promote);
        assert_eq!(rate(&guard), None, "the first move of each");
        second(&mut guard, &mut now, 32, Direction::Demote);
        assert_eq!(rate(&guard), Some(32), "half of 64 MiB a second");
        assert_eq!(guard.returned_bytes, 64 * MIB);
        let told = guard.brake(&settings()).unwrap();
        assert_eq!(
            told.reason,
            "100 % of what was moved came back within 30 s, so exchanges go at 32 MiB a second instead of 256 MiB"
        );
        for expected in [16, 8, 4] {
            let direction = if expected == 8 {
                Direction::Demote
            } else {
                Direction::Promote
            };
            second(&mut guard, &mut now, 8, direction);
            assert_eq!(rate(&guard), Some(expected));
        }
        for direction in [Direction::Demote, Direction::Promote]
            .into_iter()
            .cycle()
            .take(20)
        {
            second(&mut guard, &mut now, 8, direction);
        }
        // A 1024th of 256 MiB.
        assert_eq!(guard.brake(&settings()).unwrap().rate_bytes_per_s, MIB / 4);
        // The same way again: none comes back.
        second(&mut guard, &mut now, 8, Direction::Promote);
        for expected in [1, 2, 4, 8, 16, 32, 64, 128] {
            second(&mut guard, &mut now, 8, Direction::Promote);
            assert_eq!(rate(&guard), Some(expected));
        }
        second(&mut guard, &mut now, 8, Direction::Promote);
        assert_eq!(rate(&guard), None);
    }

    #[test]
    fn exchanges_when_little_comes_back_or_late_are_left_alone() {
        let mut guard = PingPong::new(Time(0));
        let mut now = Time(0);
        // 2 MiB a second: less than a 64th of 256.
        for direction in [Direction::Demote, Direction::Promote]
            .into_iter()
            .cycle()
            .take(20)
        {
            second(&mut guard, &mut now, 1, direction);
            assert_eq!(rate(&guard), None);
        }
        second(&mut guard, &mut now, 32, Direction::Promote);
        now = now + settings().horizon / 2;
        second(&mut guard, &mut now, 32, Direction::Demote);
        assert_eq!(rate(&guard), None, "they had paid back");
    }

    #[test]
    fn brake_when_nothing_comes_back_for_a_horizon_is_released() {
        let mut guard = PingPong::new(Time(0));
        let mut now = Time(0);
        second(&mut guard, &mut now, 32, Direction::Promote);
        second(&mut guard, &mut now, 32, Direction::Demote);
        assert!(guard.brake(&settings()).is_some());
        assert_eq!(guard.budget(now, MIB), None, "without a burst");
        for _ in 0..28 {
            second(&mut guard, &mut now, 0, Direction::Promote);
        }
        assert_eq!(rate(&guard), Some(32));
        assert_eq!(guard.budget(now, MIB), Some(MIB));
        second(&mut guard, &mut now, 0, Direction::Promote);
        assert_eq!(rate(&guard), None);
    }

    #[test]
    fn pages_of_4_kib_when_sampled_stand_for_all() {
        let mut guard = PingPong::new(Time(0));
        let EngineSettings { horizon, .. } = settings();
        let pages = 64 << 10;
        for (ms, direction) in [(0, Direction::Promote), (500, Direction::Demote)] {
            for page in 0..pages {
                let now = Time(ms * 1_000_000);
                guard.moved(now, (PageId(page), BASE_PAGE), direction, pages, horizon);
            }
        }
        assert_eq!(guard.memory_bytes(), pages as usize);
        let all = u64::from(pages) * BASE_PAGE;
        // A page that another pushed out of its slot is not known to come back.
        let found = guard.returned_bytes as f64 / all as f64;
        assert!((0.7..1.1).contains(&found), "{found}");
        guard.forget_pages();
        assert_eq!(guard.memory_bytes(), 0);
    }
}
