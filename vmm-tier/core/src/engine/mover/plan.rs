//! What is moved next: pairs of the slow tier's hottest and the fast tier's coldest pages.
//!
//! One exchange is under way at a time. Its demotions go first; what they freed, verified by the
//! kernel, is then promoted, page for page. Room that is free anyway is filled without a demotion.

use crate::engine::{
    Action, Planned, VmEngine, VmState,
    evidence::bias::{self, Lot},
    mover::in_flight::{Exchange, FlyingPage},
    pins::Way,
};
use crate::{
    addr::{self, NodeId, NodeSet},
    dual_heap::{PageId, Placement},
    moves::{Direction, MoveBatch, Page},
    settings::Tier,
    time::Time,
};

/// A page that was taken from a heap, and its count of observed accesses (decayed, a 4 KiB frame).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: PageId,
    pub(crate) page: Page,
    pub(crate) count: f64,
}

impl Candidate {
    /// Accesses observed at all of the page (decayed).
    pub(crate) fn accesses(&self) -> f64 {
        self.count * addr::frames(self.page.bytes)
    }
}

fn bytes_of(pages: &[Candidate]) -> i64 {
    let bytes = pages.iter().map(|c| c.page.bytes).sum::<u64>();
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Why nothing could be demoted below the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    NoSlowRoom,
    /// No fast page may be taken.
    NothingOffered,
}

/// The pages of the next step.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) demote: Vec<Candidate>,
    /// Promoted at once: there is room.
    pub(crate) promote: Vec<Candidate>,
    /// Promoted when the demotions have made room.
    pub(crate) then_promote: Vec<Candidate>,
    pub(crate) bytes: u64,
}

impl Draft {
    pub(crate) fn add(&mut self, to: fn(&mut Self) -> &mut Vec<Candidate>, candidate: Candidate) {
        self.bytes += candidate.page.bytes;
        to(self).push(candidate);
    }
}

impl VmEngine {
    /// Whether moves may be planned: tiering runs, and nothing is under way.
    pub(crate) fn may_plan(&self) -> bool {
        self.flights.is_empty() && self.state() == VmState::Running
    }

    /// Plans one step if nothing is under way.
    pub(crate) fn plan(&mut self, now: Time) -> Vec<Action> {
        if !self.may_plan() {
            return Vec::new();
        }
        let Some(budget) = self.throttle.budget(now) else {
            return Vec::new();
        };
        let mut draft = Draft::default();
        self.shrink_to_limit(now, budget, &mut draft);
        if draft.demote.is_empty() {
            let waits = self.draft_pins(now, budget, &mut draft);
            if draft.bytes == 0 && self.settled {
                // Room that a pinned page waits for is not filled by others.
                let room = self.room().min(if waits { 0 } else { i64::MAX });
                self.draft_exchange(now, budget, room, &mut draft);
            }
        }
        if draft.bytes == 0 {
            return Vec::new();
        }
        self.throttle.take(now, draft.bytes);
        self.launch(now, draft)
    }

    /// Demotes what the guest holds above its limit, coldest first, whatever it costs: the limit is
    /// an order.
    fn shrink_to_limit(&mut self, now: Time, budget: u64, draft: &mut Draft) {
        self.shrink_stall = None;
        let Some(limit) = self.settings.fast_limit_bytes else {
            return;
        };
        let excess = self.fast_bytes().saturating_sub(limit);
        let slow_room = self.slow_room();
        while draft.bytes < excess.min(budget) {
            // Pages pinned to the slow tier leave anyway.
            let next = self.take_misplaced(now, Way::Down);
            let Some(cold) = next.or_else(|| self.take_coldest_fast(now)) else {
                self.shrink_stall = Some(Stall::NothingOffered);
                break;
            };
            if draft.bytes + cold.page.bytes > slow_room {
                self.put_back(cold, Placement::Fast);
                self.shrink_stall = Some(Stall::NoSlowRoom);
                break;
            }
            draft.add(|d| &mut d.demote, cold);
        }
        if draft.bytes > 0 {
            self.shrink_stall = None;
        }
    }

    fn draft_exchange(&mut self, now: Time, budget: u64, mut room: i64, draft: &mut Draft) {
        if !self.throttle.may_look(now) {
            return;
        }
        let mut slow_room = self.slow_room();
        while draft.bytes < budget {
            // Looked at and not taken before it pays: most looks find nothing, and must cost the heaps nothing.
            let hottest = self.heap.hottest_slow(now);
            let Some(hot) = hottest.and_then(|(id, count)| self.candidate(id, count)) else {
                return;
            };
            let size = i64::try_from(hot.page.bytes).unwrap_or(i64::MAX);
            let victims = match room >= size {
                true => self.pays(now, hot, &[]).then(Vec::new),
                false => self.make_room_for(now, hot, size - room, slow_room),
            };
            let Some(victims) = victims else {
                return;
            };
            let made = bytes_of(&victims);
            let fits = room + made >= size;
            if fits {
                self.heap.take_hottest_slow(now);
                if self.stays(now, hot) {
                    self.put_victims_back(victims);
                    continue;
                }
            }
            room += made;
            for cold in victims {
                slow_room -= cold.page.bytes;
                draft.add(|d| &mut d.demote, cold);
            }
            // With headroom to restore first, the page waits for the next step.
            if !fits {
                return;
            }
            room -= size;
            // Room that the draft's own demotions make is not there before they are done.
            match draft.demote.is_empty() {
                true => draft.add(|d| &mut d.promote, hot),
                false => draft.add(|d| &mut d.then_promote, hot),
            }
        }
    }

    /// Takes the coldest fast pages until they hold `need` bytes, or a batch where the headroom lacks
    /// more than that. `None`, with the heaps as they were, if there are not enough that pay and fit
    /// into the slow tier's room.
    fn make_room_for(
        &mut self,
        now: Time,
        hot: Candidate,
        need: i64,
        slow_room: u64,
    ) -> Option<Vec<Candidate>> {
        let need = u64::try_from(need)
            .unwrap_or(0)
            .min(self.settings.batch_bytes);
        let mut victims: Vec<Candidate> = Vec::new();
        let mut bytes = 0;
        while bytes < need {
            // Restoring headroom is owed to nobody in particular: each victim must be one that the
            // hot page would be exchanged with.
            let coldest = self.heap.coldest_fast(now);
            let cold = coldest.and_then(|(id, count)| self.candidate(id, count));
            let cold = cold.filter(|&cold| {
                bytes + cold.page.bytes <= slow_room
                    && self.knows_cold(cold)
                    && self.pays(now, hot, &[cold])
            });
            let Some(cold) = cold else {
                self.spare(now, victims);
                return None;
            };
            self.heap.take_coldest_fast(now);
            bytes += cold.page.bytes;
            victims.push(cold);
        }
        // Each is colder than the hot page; together, as many as change places with it, they may not be.
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
        if !self.pays(now, hot, &rivals) {
            let are_smaller = rivals.iter().any(|cold| cold.page.bytes < hot.page.bytes);
            match are_smaller && !self.tally.counts_accesses() {
                true => self.rest(now, victims),
                false => self.spare(now, victims),
            }
            return None;
        }
        Some(victims)
    }

    /// Puts back fast pages that were taken for an exchange that does not pay. One more was looked at, or the hot page.
    fn spare(&mut self, now: Time, victims: Vec<Candidate>) {
        self.throttle.looked_in_vain(now, victims.len() + 1);
        self.put_victims_back(victims);
    }

    /// Puts back small fast pages that would cost more together than a huge page gains, and leaves them alone for a
    /// while. A source that tests pages finds a page used or not, whatever its size: small pages come before huge
    /// ones as the coldest, and would otherwise keep every huge page behind them from being exchanged.
    fn rest(&mut self, now: Time, victims: Vec<Candidate>) {
        self.throttle.looked_in_vain(now, victims.len() + 1);
        let available_at = Some(now + self.settings.cooldown);
        for cold in victims {
            self.heap.settle(cold.id, Placement::Fast, available_at);
        }
    }

    /// Whether promoting `hot` at the price of demoting `cold` is significant and pays back.
    fn pays(&self, now: Time, hot: Candidate, cold: &[Candidate]) -> bool {
        self.judge(now, hot, cold).pays()
    }

    /// Draws whether a page that is about to be promoted takes part in the trial that tells how differently the source
    /// sees the tiers. Returns whether it is held back for it: then it is put back, to be left alone meanwhile.
    fn stays(&mut self, now: Time, hot: Candidate) -> bool {
        let can_tell = self.tally.counts_accesses() && self.settings.cooldown >= bias::WATCH;
        if !can_tell || self.settings.dry_run {
            return false;
        }
        let bytes = hot.page.bytes;
        let lot = self.bias.draw(bytes, self.bytes.of(Tier::Fast));
        if lot == Lot::Go {
            return false;
        }
        let expected = self.expected_count(&hot, now) * addr::frames(bytes);
        if expected > self.tally.counts(now) * bias::MOST_SHARE {
            return false;
        }
        let time = self.bias.watch(
            now,
            hot.id,
            bytes,
            lot,
            self.tally.counts_a_s(expected, now),
        );
        let is_held = lot == Lot::Stay;
        if is_held {
            self.heap
                .settle(hot.id, Placement::Slow, Some(now + time + bias::GRACE));
        }
        is_held
    }

    /// Bytes that may be promoted now; negative where headroom is lacking. A batch goes to one node, so
    /// the room is that of the fast node that has the most.
    pub(crate) fn room(&self) -> i64 {
        let free = self
            .nodes_of(&self.tiers.fast)
            .map(|node| node.room_bytes(self.settings.headroom_bytes))
            .max()
            .unwrap_or(0);
        let limit = self.settings.fast_limit_bytes.map_or(i64::MAX, |limit| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            limit - i64::try_from(self.fast_bytes()).unwrap_or(i64::MAX)
        });
        free.min(limit)
    }

    /// Bytes that may be demoted now: beyond them the kernel would reclaim memory of the slow node, which
    /// may be the guest's own.
    pub(crate) fn slow_room(&self) -> u64 {
        let rooms = self
            .nodes_of(&self.tiers.slow)
            .map(|node| node.room_bytes(0));
        u64::try_from(rooms.max().unwrap_or(0)).unwrap_or(0)
    }

    /// Bytes of the guest in the fast tier; in a dry run, as if what was planned had happened.
    pub(crate) fn fast_bytes(&self) -> u64 {
        let bytes = self.bytes.of(Tier::Fast);
        if !self.settings.dry_run {
            return bytes;
        }
        let Planned {
            promote_bytes,
            demote_bytes,
        } = self.totals.planned;
        bytes
            .saturating_add(promote_bytes)
            .saturating_sub(demote_bytes)
    }

    pub(crate) fn take_coldest_fast(&mut self, now: Time) -> Option<Candidate> {
        let (id, count) = self.heap.take_coldest_fast(now)?;
        self.candidate(id, count)
    }

    pub(crate) fn candidate(&self, id: PageId, count: f64) -> Option<Candidate> {
        let page = self.index.page(id)?;
        Some(Candidate { id, page, count })
    }

    pub(crate) fn put_back(&mut self, candidate: Candidate, placement: Placement) {
        self.heap.settle(candidate.id, placement, None);
    }

    fn put_victims_back(&mut self, victims: Vec<Candidate>) {
        for cold in victims {
            self.put_back(cold, Placement::Fast);
        }
    }

    /// Sends a draft on its way, or only counts it in a dry run.
    fn launch(&mut self, now: Time, draft: Draft) -> Vec<Action> {
        let Draft {
            demote,
            promote,
            then_promote,
            ..
        } = draft;
        if self.settings.dry_run {
            self.count_planned(now, &demote, &[promote, then_promote].concat());
            return Vec::new();
        }
        let mut actions = Vec::new();
        let exchange = self.batch(Direction::Demote, demote).map(|batch| {
            let id = batch.id;
            actions.push(Action::Move(batch));
            id
        });
        if let Some(batch) = self.batch(Direction::Promote, promote) {
            actions.push(Action::Move(batch));
        }
        if let Some(demotion) = exchange {
            let waiting = then_promote.into_iter().map(|c| (c.id, c.page)).collect();
            self.flights.exchange = Some(Exchange { demotion, waiting });
        }
        actions
    }

    fn count_planned(&mut self, now: Time, demote: &[Candidate], promote: &[Candidate]) {
        let bytes = |pages: &[Candidate]| pages.iter().map(|c| c.page.bytes).sum::<u64>();
        self.totals.planned.demote_bytes += bytes(demote);
        self.totals.planned.promote_bytes += bytes(promote);
        // Nothing moved: without a rest the same pages would be planned again at once.
        let rest = Some(now + self.settings.horizon);
        for (pages, placement) in [(demote, Placement::Fast), (promote, Placement::Slow)] {
            for c in pages {
                self.heap.settle(c.id, placement, rest);
            }
        }
    }

    fn batch(&mut self, direction: Direction, pages: Vec<Candidate>) -> Option<MoveBatch> {
        self.batch_of(
            direction,
            pages.into_iter().map(|c| (c.id, c.page)).collect(),
        )
    }

    /// Makes a batch of pages that are in flight, towards the target tier's node with the most room.
    pub(crate) fn batch_of(
        &mut self,
        direction: Direction,
        flying: Vec<FlyingPage>,
    ) -> Option<MoveBatch> {
        if flying.is_empty() {
            return None;
        }
        let nodes = match direction {
            Direction::Promote => &self.tiers.fast,
            Direction::Demote => &self.tiers.slow,
        };
        let target = self.roomiest(nodes)?;
        let pages = flying.iter().map(|&(_, page)| page).collect();
        let id = self.flights.launch(direction, flying);
        Some(MoveBatch {
            id,
            direction,
            target,
            pages,
        })
    }

    fn roomiest(&self, nodes: &NodeSet) -> Option<NodeId> {
        nodes.iter().max_by_key(|node| {
            self.nodes
                .get(node)
                .map_or(i64::MIN, |memory| memory.room_bytes(0))
        })
    }
}
