//! The mover: what is moved when, and what became of it.
//!
//! ```text
//!  room, throttle ─► plan ─► batches under way ─► kernel
//!        ▲                                          │ report, page by page
//!        └────────── totals, placements ◄───────────┘
//! ```

pub(crate) mod brake;
pub(crate) mod in_flight;
pub(crate) mod ping_pong;
mod plan;
pub(crate) mod room;
pub(crate) mod strain;
mod throttle;
pub(crate) mod totals;

use std::{collections::BTreeMap, sync::Arc};

use self::{
    brake::{Brake, BrakeReason},
    in_flight::{InFlight, MovingPage, WaitingExchange},
    ping_pong::PingPong,
    plan::{Draft, Planner},
    room::{FastBounds, Room, Rooms},
    strain::{Strain, StrainBrake},
    throttle::Throttle,
    totals::{MoveTotals, Planned},
};
use super::{
    Action,
    evidence::Evidence,
    guest_pages::{Candidate, GuestPages, placement_on},
    pins::pin::{Pin, PinError, WhenFull},
    reshape::Reshaper,
};
use crate::{
    addr::BASE_PAGE,
    dual_heap::Placement,
    moves::{Direction, MoveBatch, MoveReport, Outcome, PageResult, PairedBatch},
    nearness::{Nearness, Targets},
    settings::{EngineSettings, Tier},
    tiers::Tiers,
    time::Time,
};

/// Why nothing could be demoted below the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stall {
    NoSlowRoom,
    /// No fast page may be taken.
    NothingOffered,
}

/// A batch that ended.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) direction: Direction,
    /// What became of its pages, each once.
    pub(super) results: Vec<PageResult>,
    pub(super) actions: Vec<Action>,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Mover {
    pub(super) tiers: Tiers,
    pub(super) rooms: Rooms,
    pub(super) in_flight: InFlight,
    pub(super) totals: MoveTotals,
    pub(super) ping_pong: PingPong,
    pub(super) reshaper: Reshaper,
    pub(super) strain: StrainBrake,
    /// How far nodes are from each other, where a tier has several.
    pub(super) nearness: Arc<Nearness>,
    /// Why the limit could not be obeyed at the last attempt.
    pub(super) stall: Option<Stall>,
    throttle: Throttle,
}

impl Mover {
    pub(super) fn new(settings: &EngineSettings, tiers: Tiers, now: Time) -> Self {
        Self {
            tiers,
            rooms: Rooms::default(),
            in_flight: InFlight::default(),
            totals: MoveTotals::default(),
            ping_pong: PingPong::new(now),
            reshaper: Reshaper::default(),
            strain: StrainBrake::new(now),
            nearness: Arc::default(),
            stall: None,
            throttle: Throttle::new(settings, now),
        }
    }

    /// When the next batch may go that waits for its rate; `None` if none waits.
    pub(super) const fn wakes_at(&self) -> Option<Time> {
        self.throttle.wakes_at()
    }

    /// Whether nothing is tried just now, as nothing of the last batches moved.
    pub(super) fn rests(&self, now: Time) -> bool {
        self.throttle.rests(now)
    }

    /// Changes the rate from `now` on.
    pub(super) fn set_rate(&mut self, now: Time, settings: &EngineSettings) {
        self.throttle
            .set_rate(now, settings.rate_bytes_per_s, settings.batch_bytes);
    }

    /// Takes how the host and the guest do.
    pub(super) fn take_strain(&mut self, now: Time, strain: Strain, settings: &EngineSettings) {
        let moved = self.totals.promoted_bytes + self.totals.demoted_bytes;
        self.strain.review(now, strain, moved, settings);
    }

    /// How exchanges are slowed; `None` if they are not.
    pub(super) fn brake(&self, settings: &EngineSettings) -> Option<Brake> {
        let strained = self.strain.brake(settings);
        match self.ping_pong.brake(settings) {
            Some(brake) => Some(brake.with(strained)),
            None => strained,
        }
    }

    /// Times that exchanges slowed down, by reason.
    pub(super) fn slowdowns(&self) -> BTreeMap<BrakeReason, u64> {
        let mut all = self.strain.slowdowns.clone();
        if self.ping_pong.slowdowns > 0 {
            all.insert(BrakeReason::PingPong, self.ping_pong.slowdowns);
        }
        all
    }

    /// Of `budget` bytes what exchanges may have now; `None` if it is too early for any.
    fn exchange_budget(&mut self, now: Time, budget: u64) -> Option<u64> {
        let budget = self.ping_pong.budget(now, budget)?;
        self.strain.budget(now, budget)
    }

    /// Takes the bytes of exchanges.
    fn take_exchange(&mut self, now: Time, bytes: u64) {
        self.ping_pong.take(now, bytes);
        self.strain.take(now, bytes);
    }

    /// Bytes of the guest in the fast tier; in a dry run, as if what was planned had happened.
    pub(super) fn fast_bytes(&self, pages: &GuestPages, settings: &EngineSettings) -> u64 {
        let bytes = pages.bytes().of(Tier::Fast);
        if !settings.dry_run {
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

    /// Bytes that may be promoted now into frames of `frame_bytes`.
    pub(super) fn fast_room(
        &self,
        pages: &GuestPages,
        settings: &EngineSettings,
        frame_bytes: u64,
    ) -> Room {
        let held = self.fast_bytes(pages, settings);
        let bounds = FastBounds::of(settings);
        self.rooms.fast(&self.tiers, bounds, held, frame_bytes)
    }

    /// Bytes that may be demoted now into frames of `frame_bytes`.
    pub(super) fn slow_room(&self, frame_bytes: u64) -> Room {
        self.rooms.slow(&self.tiers, frame_bytes)
    }

    /// Bytes that may change places now between pages with frames of `frame_bytes`, where neither tier
    /// has room for one.
    pub(super) fn pair_room(&self, settings: &EngineSettings, frame_bytes: u64) -> Room {
        self.rooms
            .pairs(&self.tiers, FastBounds::of(settings), frame_bytes)
    }

    /// Whether the tier can take what of the pin's range is not there yet, if the pin asks for that.
    ///
    /// # Errors
    /// [`PinError::NoRoom`] if it can't.
    pub(super) fn check_room(
        &self,
        now: Time,
        pin: &Pin,
        pages: &GuestPages,
        settings: &EngineSettings,
    ) -> Result<(), PinError> {
        if pin.when_full == WhenFull::Fill {
            return Ok(());
        }
        let placed_bytes = pages.placed_bytes(now, pin);
        let need_bytes = pin.bytes - placed_bytes;
        let bounds = FastBounds::of(settings);
        let frame_bytes = pages.frame_bytes_of(pin);
        let free = self
            .rooms
            .all_nodes_bytes(&self.tiers, pin.tier, bounds, frame_bytes);
        let fast = pages.bytes().of(Tier::Fast);
        let room = match pin.tier {
            Tier::Slow => free,
            Tier::Fast => free.min(bounds.below_limit(fast).bytes()),
        };
        let claimed_bytes = pages.pins().claimed_bytes(pin.tier);
        let mut room_bytes = room.saturating_sub(claimed_bytes);
        let is_closed = self.rooms.all_closed(&self.tiers.fast).is_some();
        let may_demote = pin.tier == Tier::Fast && pin.when_full == WhenFull::Demote && !is_closed;
        if need_bytes > room_bytes && may_demote && self.slow_room(frame_bytes).fits(frame_bytes) {
            // All that is not pinned may be demoted.
            let kept = pages.pins().fast_bytes() + placed_bytes;
            room_bytes = free
                .saturating_add(fast.saturating_sub(kept))
                .min(bounds.below_limit(kept).bytes())
                .saturating_sub(claimed_bytes);
        }
        if need_bytes > room_bytes {
            return Err(PinError::NoRoom {
                tier: pin.tier,
                need_bytes,
                room_bytes,
            });
        }
        Ok(())
    }

    /// Plans one step, if the rate allows one. Nothing may be under way.
    pub(super) fn plan(
        &mut self,
        now: Time,
        pages: &mut GuestPages,
        evidence: &mut Evidence,
        settings: &EngineSettings,
    ) -> Vec<Action> {
        self.ping_pong.review(now, settings);
        let Some(budget) = self.throttle.budget(now) else {
            return Vec::new();
        };
        let planner = Planner {
            now,
            budget,
            settings,
            pages,
            evidence,
            mover: self,
            draft: Draft::default(),
        };
        let draft = planner.draft();
        if draft.bytes == 0 {
            return Vec::new();
        }
        self.throttle.take(now, draft.bytes);
        self.begin(now, draft, pages, settings)
    }

    /// Begins the moves of a draft, or only counts them in a dry run.
    fn begin(
        &mut self,
        now: Time,
        draft: Draft,
        pages: &mut GuestPages,
        settings: &EngineSettings,
    ) -> Vec<Action> {
        let Draft {
            demote,
            promote,
            then_promote,
            frame_bytes,
            is_paired,
            is_ordered,
            ..
        } = draft;
        let frame_bytes = frame_bytes.unwrap_or(BASE_PAGE);
        if settings.dry_run {
            // Nothing moved: without a rest the same pages would be planned again at once.
            let rest = Some(now + settings.horizon);
            self.count_planned(rest, &demote, &[promote, then_promote].concat(), pages);
            return Vec::new();
        }
        let moving = |pages: Vec<Candidate>| -> Vec<MovingPage> {
            pages.into_iter().map(|c| (c.id, c.page)).collect()
        };
        let demotion = self.batch(Direction::Demote, frame_bytes, moving(demote), settings);
        let promotion = self.batch(Direction::Promote, frame_bytes, moving(promote), settings);
        if is_ordered {
            self.in_flight.are_ordered();
        }
        if is_paired {
            let partner = self.batch(
                Direction::Promote,
                frame_bytes,
                moving(then_promote),
                settings,
            );
            let demotion = match (demotion, partner) {
                (Some(demote), Some(promote)) => {
                    Some(Action::MovePaired(PairedBatch { demote, promote }))
                }
                (demotion, _) => demotion.map(Action::Move),
            };
            let promotion = promotion.map(Action::Move);
            return promotion.into_iter().chain(demotion).collect();
        }
        if let Some(demotion) = &demotion {
            self.in_flight.exchange = Some(WaitingExchange {
                demotion: demotion.id,
                frame_bytes,
                promote: moving(then_promote),
            });
        }
        demotion
            .into_iter()
            .chain(promotion)
            .map(Action::Move)
            .collect()
    }

    fn count_planned(
        &mut self,
        rest: Option<Time>,
        demote: &[Candidate],
        promote: &[Candidate],
        pages: &mut GuestPages,
    ) {
        let bytes = |pages: &[Candidate]| pages.iter().map(|c| c.page.bytes).sum::<u64>();
        self.totals.planned.demote_bytes += bytes(demote);
        self.totals.planned.promote_bytes += bytes(promote);
        for (planned, placement) in [(demote, Placement::Fast), (promote, Placement::Slow)] {
            for &page in planned {
                pages.put_back(page, placement, rest);
            }
        }
    }

    /// Makes a batch of pages that are in flight, all of frames of `frame_bytes`, towards the nodes of
    /// the target tier that have room. The pages together must fit on one of them.
    fn batch(
        &mut self,
        direction: Direction,
        frame_bytes: u64,
        moving: Vec<MovingPage>,
        settings: &EngineSettings,
    ) -> Option<MoveBatch> {
        if moving.is_empty() {
            return None;
        }
        let (nodes, others, headroom_bytes) = match direction {
            Direction::Promote => (&self.tiers.fast, &self.tiers.slow, settings.headroom_bytes),
            Direction::Demote => (&self.tiers.slow, &self.tiers.fast, 0),
        };
        let mut target = self.rooms.target(nodes, frame_bytes)?;
        let nearest = (nodes.len() > 1).then(|| {
            let rooms = self.rooms.each(nodes, frame_bytes, headroom_bytes);
            Targets::new(direction, nodes.clone(), rooms, Arc::clone(&self.nearness))
        });
        if let Some(nearest) = &nearest {
            let from = others.iter().next().filter(|_| others.len() == 1);
            let bytes = moving.iter().map(|(_, page)| page.bytes).sum();
            target = nearest.for_all(from, bytes).unwrap_or(target);
        }
        let pages = moving.iter().map(|&(_, page)| page).collect();
        let id = self.in_flight.begin(direction, moving);
        Some(MoveBatch {
            id,
            direction,
            target,
            nearest,
            frame_bytes,
            pages,
        })
    }

    /// Settles every page of a finished batch and begins what waited for it, if tiering `runs`. A page
    /// that the report does not name counts as busy. `None` if the batch is not under way.
    pub(super) fn take_report(
        &mut self,
        now: Time,
        report: &MoveReport,
        runs: bool,
        pages: &mut GuestPages,
        evidence: &mut Evidence,
        settings: &EngineSettings,
    ) -> Option<Landed> {
        let batch = self.in_flight.end(report.id)?;
        let direction = batch.direction;
        let mut reported = report.results.iter();
        let mut results = Vec::with_capacity(batch.pages.len());
        let mut freed = 0;
        for &(id, page) in &batch.pages {
            let result = reported.next().filter(|result| result.page == page);
            let result = result.copied().unwrap_or(PageResult {
                page,
                outcome: Outcome::Busy,
                node: None,
            });
            if result.outcome == Outcome::Moved {
                let frames = pages.index.frames();
                let moved = (id, page.bytes);
                match batch.is_ordered {
                    true => self.ping_pong.ordered(id),
                    false => self
                        .ping_pong
                        .moved(now, moved, direction, frames, settings.horizon),
                }
                if direction == Direction::Demote {
                    freed += page.bytes;
                }
            }
            self.settle(now, (id, page), &result, pages, evidence, settings);
            results.push(result);
        }
        self.totals.add(direction, &results, report.cpu_time);
        if direction == Direction::Promote {
            let moved = results.iter();
            let moved = moved.filter(|result| result.outcome == Outcome::Moved);
            self.reshaper
                .promoted(moved.map(|result| result.page), settings);
        }
        let mut outcomes = results.iter().map(|result| result.outcome);
        self.throttle
            .finished(now, outcomes.any(Outcome::is_success));
        let mut actions = Vec::new();
        // The map, or what the cpusets allow, has changed.
        let is_news =
            |result: &PageResult| matches!(result.outcome, Outcome::Gone | Outcome::Cpuset);
        if results.iter().any(is_news) {
            actions.push(Action::RefreshMap);
        }
        if let Some(exchange) = self.in_flight.exchange_after(report.id) {
            let freed = if runs { freed } else { 0 };
            let frame_bytes = exchange.frame_bytes;
            // A page of a pool that was freed may be another's by now. Of several nodes it is not known
            // which the demoted pages left: what is free there now counts.
            let is_closed = self.rooms.all_closed(&self.tiers.fast).is_some();
            let there = match frame_bytes {
                BASE_PAGE if self.tiers.fast.len() == 1 && !is_closed => freed,
                _ => freed.min(self.fast_room(pages, settings, frame_bytes).bytes()),
            };
            let promote = self.admit(exchange.promote, there, pages, evidence, settings);
            let promotion = self.batch(Direction::Promote, frame_bytes, promote, settings);
            actions.extend(promotion.map(Action::Move));
        }
        Some(Landed {
            direction,
            results,
            actions,
        })
    }

    fn settle(
        &self,
        now: Time,
        (id, page): MovingPage,
        result: &PageResult,
        pages: &mut GuestPages,
        evidence: &mut Evidence,
        settings: &EngineSettings,
    ) {
        let new = match (result.node, result.outcome) {
            (Some(_), _) => placement_on(&self.tiers, result.node),
            (None, Outcome::Absent | Outcome::Gone) => Placement::Untracked,
            (None, _) => pages.heap.placement(id),
        };
        let rest = match result.outcome {
            Outcome::Moved => Some(settings.cooldown),
            failed => failed
                .retry_after()
                .map(|wait| wait.max(settings.cooldown / 4)),
        };
        let was_promoted = result.outcome == Outcome::Moved && new == Placement::Fast;
        evidence.bias.settled(now, id, was_promoted);
        let available_at = rest.map(|rest| now + rest);
        pages.settle((id, page), new, available_at);
        match result.outcome {
            Outcome::Shared => {
                pages.heap.exclude(id);
            }
            Outcome::Split | Outcome::Resized | Outcome::WrongNode => {
                pages.scanner.ask_urgently(page.hva);
            }
            _ => {}
        }
    }

    /// The waiting pages that fit into `freed` bytes and may still be promoted: the limit may have been
    /// lowered, or a page pinned. The others wait for another exchange.
    fn admit(
        &self,
        waiting: Vec<MovingPage>,
        freed: u64,
        pages: &mut GuestPages,
        evidence: &mut Evidence,
        settings: &EngineSettings,
    ) -> Vec<MovingPage> {
        let held = pages.bytes().of(Tier::Fast) + self.in_flight.promoting_bytes();
        let below_limit = FastBounds::of(settings).below_limit(held);
        let mut room = freed.min(below_limit.bytes());
        let mut admitted = Vec::new();
        for (id, page) in waiting {
            let pin = pages.pins().of(id).map(|entry| entry.pin.tier);
            if page.bytes <= room && pin != Some(Tier::Slow) {
                room -= page.bytes;
                admitted.push((id, page));
            } else {
                evidence.bias.forget(id);
                pages.heap.settle(id, Placement::Slow, None);
            }
        }
        admitted
    }

    /// Says which invariant is broken, if any is.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(super) fn check(&self, pages: &GuestPages) -> Result<(), String> {
        self.in_flight.check(pages)?;
        self.ping_pong.check()?;
        match self.throttle.is_valid() {
            true => Ok(()),
            false => Err(format!("the rate is not kept: {:?}", self.throttle)),
        }
    }
}
