//! Why a page is where it is, and what would make it move.

use serde::Serialize;

use crate::engine::{
    VmEngine, VmState,
    exchange::{Evidence, LEAST_DEVIATIONS, LEAST_TIMES, Verdict},
    journal::history::PastMove,
    mover::plan::Candidate,
    pins::pin::PinStatus,
};
use crate::{
    addr::{Gpa, Hva, NodeId, gpa_number},
    dual_heap::{PageState, Placement},
    moves::{Direction, Outcome, Page},
    settings::Tier,
    time::Time,
};

/// Where a page stands in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageCondition {
    /// Not present, or on a node of neither tier.
    Untracked,
    /// In its tier's heap: may be taken for an exchange.
    InHeap,
    /// No access to it was seen, or none is remembered (with a sketch). On the fast tier it is the first to go, on the slow tier no candidate.
    NeverSampled,
    /// A move of it is under way, or waits for the room that another makes.
    InFlight,
    /// It was moved, or a move failed, a short while ago.
    Cooling,
    /// It can't be moved, so it is not tried.
    Excluded,
    /// It stays on the tier it is pinned to, whatever its heat.
    Pinned,
}

/// A move that ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PastMoveNote {
    /// Which way.
    pub direction: Direction,
    /// What became of it.
    pub outcome: Outcome,
    /// The node on which the page was found after it; `null` if it was on none.
    pub node: Option<NodeId>,
    /// How long ago.
    pub seconds_ago: f64,
}

/// What is known of the page at a guest-physical address.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// The guest-physical address.
    #[serde(with = "gpa_number")]
    pub gpa: Gpa,
    /// QEMU's name of the RAM block.
    pub block: String,
    /// Where in the block the address lies, in bytes.
    pub block_offset: u64,
    /// The address in QEMU.
    pub hva: Hva,
    /// The page's first byte in QEMU.
    pub page_hva: Hva,
    /// The page's size.
    pub page_bytes: u64,
    /// The page's node: its tier's only one, or where its last move left it; `null` if not known.
    pub node: Option<NodeId>,
    /// The tier on which it lies.
    pub placement: Placement,
    /// Accesses (or positive tests) seen, decayed.
    pub samples: f64,
    /// The share of what the source would see of the page if its tier were seen as well as the other: below 1 where the
    /// bias between tiers is corrected and this is the one that is seen worse.
    pub share_seen: f64,
    /// Estimated accesses a second to the whole page.
    pub accesses_per_s: f64,
    /// How many pages of its tier would be taken before it; `null` if it may not be taken.
    pub rank: Option<u32>,
    /// How many pages of its tier may be taken; `null` if it may not.
    pub heap_pages: Option<u32>,
    /// Whether `samples` and `rank` are estimates, because heat is kept in a sketch: an access that was seen
    /// may be forgotten, and with it that a page ranks before this one.
    pub estimated: bool,
    /// Where it stands.
    pub state: PageCondition,
    /// How long it cools down still, in milliseconds; `null` if it does not.
    pub cooling_ms: Option<u64>,
    /// The pin that it belongs to.
    pub pin: Option<PinStatus>,
    /// Its last move, if that is remembered: the last 4096 pages' are.
    pub last_move: Option<PastMoveNote>,
    /// Its last move that failed, if that is remembered.
    pub last_failure: Option<PastMoveNote>,
    /// What would make it move, for a person.
    pub would_move_if: String,
}

/// Why an address can't be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// No map yet.
    #[error("the guest's memory map is not known yet; try again when the state is running")]
    NoMap,
    /// The address is not guest RAM.
    #[error("guest address {0:#x} is not guest RAM")]
    NotRam(u64),
}

impl VmEngine {
    /// Explains the page at a guest-physical address. Looks at every page.
    ///
    /// # Errors
    /// If the address is not guest RAM.
    pub fn explain(&self, now: Time, gpa: Gpa) -> Result<Explanation, ExplainError> {
        let map = self.map.as_ref().ok_or(ExplainError::NoMap)?;
        let not_ram = ExplainError::NotRam(gpa.0);
        let (hva, range) = map.gpa_to_hva(gpa).ok_or(not_ram)?;
        let id = self.index.id_at(hva).ok_or(not_ram)?;
        let page = self.index.page(id).ok_or(not_ram)?;
        let state = self.heap.state(id);
        let count = self.heap.count(id, now);
        let standing = self.heap.standing(id);
        let past = self.history.of(page.hva);
        let note = |past: &PastMove| PastMoveNote {
            direction: past.direction,
            outcome: past.outcome,
            node: past.node,
            seconds_ago: now.since(past.at).as_secs_f64(),
        };
        let subject = Candidate { id, page, count };
        Ok(Explanation {
            gpa,
            block: map.block(range.block).name.clone(),
            block_offset: range.offset + (gpa.0 - range.gpa.0),
            hva,
            page_hva: page.hva,
            page_bytes: page.bytes,
            node: self.node_of(state.placement, past.and_then(|past| past.last.node)),
            placement: state.placement,
            samples: count,
            share_seen: self.share_seen(id),
            accesses_per_s: self
                .tally
                .rate(count / self.share_seen(id), page.bytes, now),
            rank: standing.map(|(before, _)| before),
            heap_pages: standing.map(|(_, all)| all),
            estimated: self.heap.is_estimated(),
            state: condition(&state),
            cooling_ms: state
                .cooldown_until
                .map(|end| u64::try_from(end.since(now).as_millis()).unwrap_or(u64::MAX)),
            pin: self.pins.of(id).map(crate::engine::pins::Entry::status),
            last_move: past.map(|past| note(&past.last)),
            last_failure: past.and_then(|past| past.last_failure.as_ref().map(note)),
            would_move_if: self.would_move_if(now, subject, &state, standing.map_or(0, |s| s.0)),
        })
    }

    fn node_of(&self, placement: Placement, seen: Option<NodeId>) -> Option<NodeId> {
        let nodes = match placement {
            Placement::Untracked => return None,
            Placement::Fast => &self.tiers.fast,
            Placement::Slow => &self.tiers.slow,
        };
        let only = nodes.iter().next().filter(|_| nodes.len() == 1);
        only.or(seen.filter(|&node| nodes.contains(node)))
    }

    fn would_move_if(&self, now: Time, page: Candidate, state: &PageState, before: u32) -> String {
        if state.placement == Placement::Untracked {
            return "it is present on a node of one of the tiers: now it is absent or elsewhere"
                .to_owned();
        }
        if state.in_flight {
            return "nothing more: a move of it is under way".to_owned();
        }
        if state.excluded {
            return "its placement changes: other processes map it, so it is not tried again"
                .to_owned();
        }
        let engine_state = self.state();
        if engine_state != VmState::Running {
            return format!("tiering runs: the state is {}", engine_state.name());
        }
        if let Some(end) = state.cooldown_until {
            if self.bias.holds(page.id) {
                return "it is no longer held back, within seconds: by what is seen of it meanwhile the tiers \
                        are compared"
                    .to_owned();
            }
            return format!(
                "its cooldown is over, in {:.1} s",
                end.since(now).as_secs_f64()
            );
        }
        if let Some(pin) = self.pins.of(page.id).map(|entry| entry.pin) {
            return self.pinned_would_move_if(pin.tier, page.page, state.placement);
        }
        match state.placement {
            Placement::Fast => self.fast_would_move_if(now, page, before),
            _ => self.slow_would_move_if(now, page, before),
        }
    }

    fn pinned_would_move_if(&self, tier: Tier, page: Page, placement: Placement) -> String {
        if placement == crate::engine::pins::orders::placement_of(tier) {
            return format!("it is unpinned: it is pinned to the {tier} tier, where it is");
        }
        let room = match tier {
            Tier::Fast => u64::try_from(self.room()).unwrap_or(0),
            Tier::Slow => self.slow_room(),
        };
        if room < page.bytes {
            return format!(
                "the {tier} tier, to which it is pinned, has room for it: {room} of {} bytes",
                page.bytes
            );
        }
        format!("its turn comes: it is pinned to the {tier} tier, within the rate")
    }

    fn fast_would_move_if(&self, now: Time, page: Candidate, before: u32) -> String {
        let limit = self.settings.fast_limit_bytes.unwrap_or(u64::MAX);
        let excess = self.fast_bytes().saturating_sub(limit);
        if excess > 0 {
            return match self.slow_room() < page.page.bytes {
                true => "the slow tier has room: the fast tier is above its limit".to_owned(),
                false => format!(
                    "its turn comes: the fast tier is {excess} bytes above its limit, and {}{before} \
                     colder pages go first",
                    self.about()
                ),
            };
        }
        let hottest = self.heap.look_at_hottest_slow(now);
        let Some(hot) = hottest.and_then(|(id, count)| self.candidate(id, count)) else {
            return "an access to a slow page is seen: none is hotter".to_owned();
        };
        let room = self.room();
        if room >= i64::try_from(hot.page.bytes).unwrap_or(i64::MAX) {
            return format!("the fast tier is full: it has room for {room} bytes");
        }
        if let Some(reason) = self.exchange_waits_for(page) {
            return reason;
        }
        let verdict = self.judge(now, hot, &[page]);
        self.verdict_says(&verdict, "the hottest slow page is hotter", "it", || {
            format!(
                "its turn comes: {}{before} colder pages go first",
                self.about()
            )
        })
    }

    fn slow_would_move_if(&self, now: Time, page: Candidate, before: u32) -> String {
        if page.count <= 0.0 {
            return match self.heap.is_estimated() {
                true => "an access to it is seen: none is remembered".to_owned(),
                false => "an access to it is seen: there was none".to_owned(),
            };
        }
        let turn = || {
            format!(
                "its turn comes: {}{before} hotter pages go first",
                self.about()
            )
        };
        let hotter = "it is hotter";
        if self.room() >= i64::try_from(page.page.bytes).unwrap_or(i64::MAX) {
            if !self.settled {
                return PACE.to_owned();
            }
            let verdict = self.judge(now, page, &[]);
            return self.verdict_says(&verdict, hotter, "a page without accesses", turn);
        }
        let coldest = self.heap.look_at_coldest_fast(now);
        let Some(cold) = coldest.and_then(|(id, count)| self.candidate(id, count)) else {
            return "the fast tier has room: it has none, and no page of it may be demoted"
                .to_owned();
        };
        if let Some(reason) = self.exchange_waits_for(cold) {
            return reason;
        }
        let verdict = self.judge(now, page, &[cold]);
        self.verdict_says(&verdict, hotter, "the coldest fast page", turn)
    }

    /// What stands before a number that is an estimate.
    fn about(&self) -> &'static str {
        match self.heap.is_estimated() {
            true => "about ",
            false => "",
        }
    }

    /// What keeps any exchange from demoting this page.
    fn exchange_waits_for(&self, cold: Candidate) -> Option<String> {
        if !self.settled {
            return Some(PACE.to_owned());
        }
        if !self.knows_cold(cold) {
            return Some(format!(
                "half of the guest is watched: {:.0} % is, so a page without samples may be hot",
                self.tally.coverage() * 100.0
            ));
        }
        let slow_room = self.slow_room();
        (slow_room < cold.page.bytes).then(|| {
            format!(
                "the slow tier has room: {slow_room} of {} bytes",
                cold.page.bytes
            )
        })
    }

    fn verdict_says(
        &self,
        verdict: &Verdict,
        who_is_hotter: &str,
        than: &str,
        otherwise: impl Fn() -> String,
    ) -> String {
        let Verdict {
            evidence,
            gain_ns,
            cost_ns,
            pays_back,
        } = *verdict;
        match evidence {
            _ if evidence.suffices() => {}
            Evidence::Tests { z, least_z } => {
                return format!("{who_is_hotter} than {than} by z >= {least_z:.1}: now {z:.1}");
            }
            Evidence::Counts { times, z } => {
                return format!(
                    "{who_is_hotter} than {than}, {LEAST_TIMES} times as far as all pages' counts tell and by \
                     z >= {LEAST_DEVIATIONS}: now {times:.1} times, z {z:.1}"
                );
            }
        }
        if !pays_back {
            return format!(
                "the gain in {} s reaches the cost: gain {:.0} µs, cost {:.0} µs",
                self.settings.horizon.as_secs_f64(),
                gain_ns / 1e3,
                cost_ns / 1e3
            );
        }
        otherwise()
    }
}

const PACE: &str = "the source has found its pace: it can't tell hot from warm yet";

fn condition(state: &PageState) -> PageCondition {
    match *state {
        PageState {
            placement: Placement::Untracked,
            ..
        } => PageCondition::Untracked,
        PageState {
            in_flight: true, ..
        } => PageCondition::InFlight,
        PageState { excluded: true, .. } => PageCondition::Excluded,
        PageState {
            cooldown_until: Some(_),
            ..
        } => PageCondition::Cooling,
        PageState { pinned: true, .. } => PageCondition::Pinned,
        PageState { sampled: false, .. } => PageCondition::NeverSampled,
        _ => PageCondition::InHeap,
    }
}
