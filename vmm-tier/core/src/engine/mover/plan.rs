//! The plan of the next step: pairs of the slow tier's hottest and the fast tier's coldest pages.
//!
//! Orders come first: the limit, then pins. One exchange is under way at a time. Its demotions go first;
//! what they freed, verified by the kernel, is then promoted, page for page. Room that is free anyway is
//! filled without a demotion.
//!
//! Pages of a hugetlb pool change places in one piece of work, so that nobody else takes the page that
//! became free.
//!
//! All pages of a step have frames of one size, since a frame of a hugetlb pool makes no room for a small page,
//! nor the reverse. In a guest with frames of several sizes a page that can't be moved rests, so that the
//! pages behind it get their turn.

use std::time::Duration;

use super::{
    Mover, Stall,
    room::{FastBounds, Room},
};
use crate::{
    addr::{self, BASE_PAGE, HUGE_PAGE},
    dual_heap::Placement,
    engine::{
        evidence::{
            Evidence,
            bias::{self, Lot},
        },
        exchange::Judge,
        guest_pages::{Candidate, GuestPages},
        pins::Way,
    },
    settings::{EngineSettings, Tier},
    time::Time,
};

/// Pages of other frames that a step passes over at most.
const MOST_OTHERS: usize = 512;

/// How long a huge page rests that is to be split, while many others wait for that.
const SPLITS_WAIT: Duration = Duration::from_secs(1);

/// The pages of the next step.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) demote: Vec<Candidate>,
    /// Promoted at once: there is room.
    pub(super) promote: Vec<Candidate>,
    /// Promoted when the demotions have made room.
    pub(super) then_promote: Vec<Candidate>,
    /// Bytes of all of them.
    pub(super) bytes: u64,
    /// Bytes of the frames of each of them: a batch goes to a node that has such frames.
    pub(super) frame_bytes: Option<u64>,
    /// Whether the pages change places in pairs: as many are demoted as are promoted then.
    pub(super) is_paired: bool,
    /// Whether an order moves them: the limit, or pins.
    pub(super) is_ordered: bool,
}

impl Draft {
    fn add(&mut self, to: fn(&mut Self) -> &mut Vec<Candidate>, candidate: Candidate) {
        self.bytes += candidate.page.bytes;
        self.frame_bytes = Some(candidate.frame_bytes);
        to(self).push(candidate);
    }

    /// Whether a page has the frames that the step is for.
    fn suits(&self, candidate: &Candidate) -> bool {
        self.frame_bytes
            .is_none_or(|bytes| bytes == candidate.frame_bytes)
    }
}

/// A step that is being planned.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    pub(super) now: Time,
    /// Bytes that the step may have.
    pub(super) budget: u64,
    pub(super) settings: &'a EngineSettings,
    pub(super) pages: &'a mut GuestPages,
    pub(super) evidence: &'a mut Evidence,
    pub(super) mover: &'a mut Mover,
    pub(super) draft: Draft,
}

impl Planner<'_> {
    /// Drafts one step.
    pub(super) fn draft(mut self) -> Draft {
        self.shrink_to_limit();
        if self.draft.demote.is_empty() {
            let waits = self.draft_pins();
            self.draft.is_ordered = self.draft.bytes > 0;
            if self.draft.bytes == 0
                && self.evidence.is_settled()
                && let Some(budget) = self.mover.exchange_budget(self.now, self.budget)
            {
                self.budget = budget;
                self.draft_exchange(waits);
                self.mover.take_exchange(self.now, self.draft.bytes);
            }
        } else {
            self.draft.is_ordered = true;
        }
        self.draft
    }

    fn fast_room(&self, page: &Candidate) -> Room {
        self.mover
            .fast_room(self.pages, self.settings, page.frame_bytes)
    }

    fn slow_room(&self, page: &Candidate) -> Room {
        self.mover.slow_room(page.frame_bytes)
    }

    /// Whether no page can be moved onto the fast tier: demoting makes no room there.
    fn is_fast_closed(&self) -> bool {
        let Mover { rooms, tiers, .. } = &*self.mover;
        rooms.all_closed(&tiers.fast).is_some()
    }

    /// Puts back a page that can't be moved now. Where other pages have other frames it rests.
    fn leave(&mut self, page: Candidate, placement: Placement) {
        let rest = self.pages.are_mixed();
        let until = rest.then(|| self.now + self.settings.cooldown);
        self.pages.put_back(page, placement, until);
    }

    /// Demotes what the guest holds above its limit, coldest first, whatever it costs: the limit is
    /// an order.
    fn shrink_to_limit(&mut self) {
        self.mover.stall = None;
        let held = self.mover.fast_bytes(self.pages, self.settings);
        let excess = FastBounds::of(self.settings).beyond_limit(held);
        while self.draft.bytes < excess.min(self.budget) {
            // Pages pinned to the slow tier leave anyway.
            let next = self.pages.take_misplaced(self.now, Way::Down);
            let Some(cold) = next.or_else(|| self.pages.take_coldest_fast(self.now)) else {
                self.mover.stall = Some(Stall::NothingOffered);
                break;
            };
            if !self.draft.suits(&cold) {
                self.pages.put_back(cold, Placement::Fast, None);
                break;
            }
            let slow_room = self.slow_room(&cold);
            if !slow_room.fits(self.draft.bytes + cold.page.bytes) {
                self.leave(cold, Placement::Fast);
                self.mover.stall = Some(Stall::NoSlowRoom);
                break;
            }
            self.draft.add(|d| &mut d.demote, cold);
        }
        if self.draft.bytes > 0 {
            self.mover.stall = None;
        }
    }

    /// Drafts moves of pinned pages to their tier. Returns whether a page waits for room on the fast
    /// tier.
    fn draft_pins(&mut self) -> bool {
        if self.pages.pins().is_empty() {
            return false;
        }
        while self.draft.bytes < self.budget {
            let Some(page) = self.pages.take_misplaced(self.now, Way::Down) else {
                break;
            };
            let slow_room = self.slow_room(&page);
            if !self.draft.suits(&page) || !slow_room.fits(self.draft.bytes + page.page.bytes) {
                self.pages.put_back(page, Placement::Fast, None);
                break;
            }
            self.draft.add(|d| &mut d.demote, page);
        }
        self.draft_pins_up()
    }

    fn draft_pins_up(&mut self) -> bool {
        if self.is_fast_closed() {
            return true;
        }
        // Rooms of the fast and the slow tier, for the frames that the step is for.
        let mut rooms = None;
        let mut waits = false;
        // Bytes that victims of this draft free: there when they are gone, for pages promoted then.
        let mut freed = 0;
        for way in [Way::UpAtAnyPrice, Way::UpAsFits] {
            while self.draft.bytes < self.budget {
                let Some(page) = self.pages.take_misplaced(self.now, way) else {
                    break;
                };
                if !self.draft.suits(&page) {
                    self.pages.put_back(page, Placement::Slow, None);
                    break;
                }
                let (room, slow_room) = rooms.get_or_insert_with(|| {
                    let mut slow_room = self.slow_room(&page);
                    slow_room.take(self.draft.bytes);
                    (self.fast_room(&page), slow_room)
                });
                let bytes = page.page.bytes;
                if room.fits(bytes) {
                    room.take(bytes);
                    self.draft.add(|d| &mut d.promote, page);
                    continue;
                }
                if way == Way::UpAtAnyPrice && freed < bytes {
                    // Headroom that lacks is owed first.
                    let need = bytes - freed + room.lacking();
                    for cold in self.take_coldest(need, page.frame_bytes, *slow_room) {
                        slow_room.take(cold.page.bytes);
                        freed += cold.page.bytes;
                        self.draft.add(|d| &mut d.demote, cold);
                    }
                    let owed = room.lacking().min(freed);
                    room.give(owed);
                    freed -= owed;
                }
                if freed >= bytes {
                    freed -= bytes;
                    self.draft.add(|d| &mut d.then_promote, page);
                } else {
                    self.pages.put_back(page, Placement::Slow, None);
                    waits = true;
                    break;
                }
            }
        }
        waits
    }

    /// Takes the coldest fast pages of frames of `frame_bytes` until they hold `need` bytes, or a batch, or
    /// as much as the slow tier has room for.
    fn take_coldest(&mut self, need: u64, frame_bytes: u64, slow_room: Room) -> Vec<Candidate> {
        let need = need.min(self.settings.batch_bytes.max(HUGE_PAGE));
        let mut taken = Vec::new();
        let mut bytes = 0;
        let mut others = 0;
        while bytes < need {
            let Some(cold) = self.pages.take_coldest_fast(self.now) else {
                break;
            };
            if cold.frame_bytes != frame_bytes {
                self.leave(cold, Placement::Fast);
                others += 1;
                if others == MOST_OTHERS {
                    break;
                }
                continue;
            }
            if !slow_room.fits(bytes + cold.page.bytes) {
                self.pages.put_back(cold, Placement::Fast, None);
                break;
            }
            bytes += cold.page.bytes;
            taken.push(cold);
        }
        taken
    }

    /// Drafts exchanges. Where a pinned page `waits` for room, no other page fills it.
    fn draft_exchange(&mut self, waits: bool) {
        if self.is_fast_closed() || !self.mover.throttle.may_look(self.now) {
            return;
        }
        let mut rooms = None;
        while self.draft.bytes < self.budget {
            // Looked at and not taken before it pays: most looks find nothing, and must cost the heaps
            // nothing.
            let Some(hot) = self.pages.hottest_slow(self.now) else {
                return;
            };
            if !self.draft.suits(&hot) {
                return;
            }
            let (room, slow_room) = rooms.get_or_insert_with(|| {
                let room = self.fast_room(&hot);
                let room = if waits { room.min(Room::NONE) } else { room };
                let mut slow_room = self.slow_room(&hot);
                let is_full = !room.fits(hot.frame_bytes) && !slow_room.fits(hot.frame_bytes);
                let mut room = room;
                if is_full {
                    slow_room = self.mover.pair_room(self.settings, hot.frame_bytes);
                    // A pair leaves the guest what it holds. What it holds above its limit can't be
                    // demoted.
                    room = room.max(Room::NONE);
                }
                self.draft.is_paired = hot.frame_bytes != BASE_PAGE;
                (room, slow_room)
            });
            if self.is_to_be_split(&hot) && self.pays_in_part(hot, *room, *slow_room) {
                self.pages.heap.take_hottest_slow(self.now);
                let wait = match self.mover.reshaper.split(hot.page) {
                    true => self.settings.cooldown,
                    false => SPLITS_WAIT,
                };
                let until = Some(self.now + wait);
                self.pages.put_back(hot, Placement::Slow, until);
                continue;
            }
            let victims = match room.fits(hot.page.bytes) {
                true => self.pays(hot, &[]).then(Vec::new),
                false => self.make_room_for(hot, room.must_free(hot.page.bytes), *slow_room),
            };
            let Some(victims) = victims else {
                let no_room = !room.fits(hot.page.bytes) && !slow_room.fits(hot.frame_bytes);
                if self.pages.are_mixed() && (no_room || self.has_no_rival(&hot)) {
                    self.pages.heap.take_hottest_slow(self.now);
                    self.leave(hot, Placement::Slow);
                }
                return;
            };
            let mut room_then = *room;
            room_then.give(victims.iter().map(|cold| cold.page.bytes).sum());
            let fits = room_then.fits(hot.page.bytes);
            if fits {
                self.pages.heap.take_hottest_slow(self.now);
                if self.stays(hot) {
                    self.put_victims_back(victims, None);
                    continue;
                }
            }
            *room = room_then;
            for cold in victims {
                slow_room.take(cold.page.bytes);
                self.draft.add(|d| &mut d.demote, cold);
            }
            // With headroom to restore first, the page waits for the next step.
            if !fits {
                return;
            }
            room.take(hot.page.bytes);
            // Room that the draft's own demotions make is not there before they are done.
            match self.draft.demote.is_empty() {
                true => self.draft.add(|d| &mut d.promote, hot),
                false => self.draft.add(|d| &mut d.then_promote, hot),
            }
        }
    }

    /// Whether few frames make a huge page hot that the kernel can split: then these go up only.
    fn is_to_be_split(&self, hot: &Candidate) -> bool {
        self.mover.reshaper.splits(hot.page, self.settings)
            && hot.page.bytes == HUGE_PAGE
            && hot.frame_bytes == BASE_PAGE
            && self.evidence.stats.counts_accesses()
            && self
                .evidence
                .skew
                .of(hot.id)
                .is_some_and(|spread| spread.is_skewed())
    }

    /// Whether a part of a huge page would be promoted: its hot frames displace as many pages, not 512. The
    /// coldest fast page tells, and is not taken.
    fn pays_in_part(&mut self, hot: Candidate, room: Room, slow_room: Room) -> bool {
        if room.fits(hot.page.bytes) {
            return self.pays(hot, &[]);
        }
        self.pass_over_others(hot.frame_bytes);
        self.rival(hot, 0, slow_room).is_some()
    }

    /// The coldest fast page, if `hot` may displace it after others of `taken` bytes.
    fn rival(&mut self, hot: Candidate, taken: u64, slow_room: Room) -> Option<Candidate> {
        self.pages.coldest_fast(self.now).filter(|&cold| {
            cold.frame_bytes == hot.frame_bytes
                && slow_room.fits(taken + cold.page.bytes)
                && self.judge().knows_cold(cold)
                && self.pays(hot, &[cold])
        })
    }

    /// Takes the coldest fast pages until they hold `need` bytes, or a batch where the headroom lacks
    /// more than that. `None`, with the heaps unchanged, if there are not enough that pay and fit
    /// into the slow tier's room.
    fn make_room_for(
        &mut self,
        hot: Candidate,
        need: u64,
        slow_room: Room,
    ) -> Option<Vec<Candidate>> {
        let need = need.min(self.settings.batch_bytes);
        let mut victims: Vec<Candidate> = Vec::new();
        let mut bytes = 0;
        self.pass_over_others(hot.frame_bytes);
        while bytes < need {
            // Restoring headroom is owed to nobody in particular: each victim must be a page that the
            // hot page would be exchanged with.
            let Some(cold) = self.rival(hot, bytes, slow_room) else {
                self.spare(victims, None);
                return None;
            };
            self.pages.heap.take_coldest_fast(self.now);
            bytes += cold.page.bytes;
            victims.push(cold);
        }
        // Each is colder than the hot page; those that change places with it may not be, together.
        let mut exchanged = 0;
        let rivals: Vec<Candidate> = victims
            .iter()
            .copied()
            .take_while(|cold| {
                let is_rival = exchanged < hot.page.bytes;
                exchanged += cold.page.bytes;
                is_rival
            })
            .collect();
        if !self.pays(hot, &rivals) {
            let are_smaller = rivals.iter().any(|cold| cold.page.bytes < hot.page.bytes);
            // A source that tests pages finds a page used or not, whatever its size: small pages come
            // before huge ones as the coldest. They rest, or they would keep every huge page behind them
            // from being exchanged.
            let rest = are_smaller && !self.evidence.stats.counts_accesses();
            self.spare(victims, rest.then(|| self.now + self.settings.cooldown));
            return None;
        }
        Some(victims)
    }

    /// Whether the coldest fast page has other frames than `hot`.
    fn has_no_rival(&mut self, hot: &Candidate) -> bool {
        let coldest = self.pages.coldest_fast(self.now);
        coldest.is_none_or(|cold| cold.frame_bytes != hot.frame_bytes)
    }

    /// Lets the coldest fast pages rest that are not of frames of `frame_bytes`: demoting them makes no room.
    fn pass_over_others(&mut self, frame_bytes: u64) {
        for _ in 0..MOST_OTHERS {
            let coldest = self.pages.coldest_fast(self.now);
            let Some(cold) = coldest.filter(|cold| cold.frame_bytes != frame_bytes) else {
                return;
            };
            self.pages.heap.take_coldest_fast(self.now);
            self.leave(cold, Placement::Fast);
        }
    }

    /// Puts back fast pages that were taken for an exchange that does not pay. One more was looked at,
    /// or the hot page. They are left alone until `until`.
    fn spare(&mut self, victims: Vec<Candidate>, until: Option<Time>) {
        let looked = victims.len() + 1;
        self.mover.throttle.looked_in_vain(self.now, looked);
        self.put_victims_back(victims, until);
    }

    fn put_victims_back(&mut self, victims: Vec<Candidate>, until: Option<Time>) {
        for cold in victims {
            self.pages.put_back(cold, Placement::Fast, until);
        }
    }

    fn judge(&self) -> Judge<'_> {
        Judge {
            now: self.now,
            pages: self.pages,
            evidence: self.evidence,
            tiers: &self.mover.tiers,
            costs: &self.mover.totals.costs,
            settings: self.settings,
        }
    }

    /// Whether promoting `hot` at the price of demoting `cold` is significant and pays back.
    fn pays(&self, hot: Candidate, cold: &[Candidate]) -> bool {
        self.judge().verdict(hot, cold).pays()
    }

    /// Draws whether a page that is about to be promoted takes part in the trial that measures the bias
    /// between tiers. Returns whether it is held back for the trial: then it is put back, to be left
    /// alone meanwhile.
    fn stays(&mut self, hot: Candidate) -> bool {
        let stats = &self.evidence.stats;
        let can_tell = stats.counts_accesses() && self.settings.cooldown >= bias::WATCH;
        if !can_tell || self.settings.dry_run {
            return false;
        }
        let bytes = hot.page.bytes;
        let held = self.pages.bytes().of(Tier::Fast);
        let lot = self.evidence.bias.draw(bytes, held);
        if lot == Lot::Go {
            return false;
        }
        let expected = self.judge().expected_count(&hot) * addr::frames(bytes);
        let stats = &self.evidence.stats;
        if expected > stats.counts(self.now) * bias::MOST_SHARE {
            return false;
        }
        let per_s = stats.counts_a_s(expected, self.now);
        let bias = &mut self.evidence.bias;
        let time = bias.watch(self.now, hot.id, bytes, lot, per_s);
        let is_held = lot == Lot::Stay;
        if is_held {
            let until = Some(self.now + time + bias::GRACE);
            self.pages.put_back(hot, Placement::Slow, until);
        }
        is_held
    }
}
