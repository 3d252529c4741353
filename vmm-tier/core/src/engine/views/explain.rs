//! The explanation of a page: why it is where it is, and what would make it move.

use crate::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId, gpa_number},
    dual_heap::{PageState, Placement},
    engine::{
        VmEngine, VmState,
        exchange::{Certainty, Judge, LEAST_DEVIATIONS, LEAST_TIMES, Verdict},
        guest_pages::Candidate,
        journal::history::PastMove,
        mover::room::{FastBounds, Room},
        pins::{Entry, pin::PinStatus, placement_of},
    },
    map::RamBlock,
    moves::{Direction, Outcome, Page},
    settings::Tier,
    time::Time,
};

crate::words! {
    /// Where a page stands in the engine.
    pub enum PageCondition {
        /// Not present, or on a node of neither tier.
        Untracked = "untracked",
        /// In its tier's heap: may be taken for an exchange.
        InHeap = "in-heap",
        /// No access to it was seen, or none is remembered (with a sketch). On the fast tier it is the
        /// first to go, on the slow tier no candidate.
        NeverSampled = "never-sampled",
        /// A move of it is under way, or waits for the room that another move makes.
        InFlight = "in-flight",
        /// It was moved, or a move failed, a short while ago.
        Cooling = "cooling",
        /// It can't be moved, so it is not tried.
        Excluded = "excluded",
        /// It stays on the tier it is pinned to, whatever its heat.
        Pinned = "pinned",
    }
}

crate::report! {
    /// A move that ended.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct PastMoveNote = "TierPastMove" {
        /// Which way.
        pub direction: Direction,
        /// What became of it.
        pub outcome: Outcome,
        /// The node on which the page was found after it.
        pub node: Option<NodeId>,
        /// How long ago.
        pub seconds_ago: f64,
    }
}

crate::report! {
    /// What is known of a page.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Explanation = "TierExplanation" {
        /// The guest-physical address asked for.
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
        /// The page's node: its tier's only node, or where its last move left it.
        pub node: Option<NodeId>,
        /// The tier on which it lies; `untracked` if it is not present, or on neither.
        pub placement: Placement,
        /// Accesses seen, decayed.
        pub samples: f64,
        /// Estimated accesses a second to the whole page.
        pub accesses_per_s: f64,
        /// Of a page of 2 MiB: how many of its last sampled accesses are remembered; absent for other
        /// pages, and for a source that tests pages.
        pub recent_samples: Option<u32>,
        /// How many of its frames of 4 KiB they fell on, at most 512.
        pub recent_frames: Option<u32>,
        /// How many pages of its tier would be taken before it; absent if it may not be taken.
        pub rank: Option<u32>,
        /// How many pages of its tier may be taken; absent if it may not.
        pub heap_pages: Option<u32>,
        /// Where it stands: a candidate for an exchange (`in-heap`), without any access seen, under way,
        /// just moved, impossible to move, or pinned.
        pub state: PageCondition,
        /// How much longer it is left alone, in milliseconds.
        pub cooling_ms: Option<u64>,
        /// The pin that it belongs to.
        pub pin: Option<PinStatus>,
        /// Its last move, if the move is remembered: the moves of the last 4096 pages are.
        pub last_move: Option<PastMoveNote>,
        /// Its last move that failed, if the move is remembered.
        pub last_failure: Option<PastMoveNote>,
        /// What would make it move, in words.
        pub would_move_if: String,
        /// All of it in sentences.
        pub sentences: Vec<String>,
    }
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

/// Explains the page at a guest-physical address, without sentences. Returns its block too.
pub(super) fn explain(
    engine: &VmEngine,
    now: Time,
    gpa: Gpa,
) -> Result<(Explanation, &RamBlock), ExplainError> {
    let VmEngine {
        pages,
        evidence,
        journal,
        ..
    } = engine;
    let map = engine.map().ok_or(ExplainError::NoMap)?;
    let not_ram = ExplainError::NotRam(gpa.0);
    let (hva, range) = map.gpa_to_hva(gpa).ok_or(not_ram)?;
    let id = pages.index.id_at(hva).ok_or(not_ram)?;
    let (page, frame_bytes) = pages.index.framed(id).ok_or(not_ram)?;
    let state = pages.heap.state(id);
    let count = pages.heap.count(id, now);
    let standing = pages.heap.standing(id);
    let past = journal.history.of(page.hva);
    let note = |past: &PastMove| PastMoveNote {
        direction: past.direction,
        outcome: past.outcome,
        node: past.node,
        seconds_ago: now.since(past.at).as_secs_f64(),
    };
    let subject = Subject {
        engine,
        now,
        page: Candidate {
            id,
            page,
            frame_bytes,
            count,
        },
        state,
        before: standing.map_or(0, |(before, _)| before),
    };
    let block = map.block(range.block);
    let spread = (page.bytes == HUGE_PAGE).then(|| evidence.skew.of(id));
    let spread = spread.flatten();
    let explanation = Explanation {
        gpa,
        block: block.name.clone(),
        block_offset: range.offset + (gpa.0 - range.gpa.0),
        hva,
        page_hva: page.hva,
        page_bytes: page.bytes,
        node: node_of(
            engine,
            state.placement,
            past.and_then(|past| past.last.node),
        ),
        placement: state.placement,
        samples: count,
        accesses_per_s: evidence.stats.rate(count, page.bytes, now),
        recent_samples: spread.map(|spread| spread.samples),
        recent_frames: spread.map(|spread| spread.hit()),
        rank: standing.map(|(before, _)| before),
        heap_pages: standing.map(|(_, all)| all),
        state: condition(&state),
        cooling_ms: state
            .cooldown_until
            .map(|end| u64::try_from(end.since(now).as_millis()).unwrap_or(u64::MAX)),
        pin: pages.pins().of(id).map(Entry::status),
        last_move: past.map(|past| note(&past.last)),
        last_failure: past.and_then(|past| past.last_failure.as_ref().map(note)),
        would_move_if: subject.would_move_if(),
        sentences: Vec::new(),
    };
    Ok((explanation, block))
}

fn node_of(engine: &VmEngine, placement: Placement, seen: Option<NodeId>) -> Option<NodeId> {
    let nodes = match placement {
        Placement::Untracked => return None,
        Placement::Fast => &engine.mover.tiers.fast,
        Placement::Slow => &engine.mover.tiers.slow,
    };
    let only = nodes.iter().next().filter(|_| nodes.len() == 1);
    only.or(seen.filter(|&node| nodes.contains(node)))
}

/// The page that is explained.
struct Subject<'a> {
    engine: &'a VmEngine,
    now: Time,
    page: Candidate,
    state: PageState,
    /// Pages of its tier that are taken before it.
    before: u32,
}

impl Subject<'_> {
    fn would_move_if(&self) -> String {
        let state = &self.state;
        if state.placement == Placement::Untracked {
            return "it is present on a node of a tier: now it is absent or elsewhere".to_owned();
        }
        if state.in_flight {
            return "nothing more: its move is under way".to_owned();
        }
        if state.excluded {
            return "its placement changes: other processes map it, so it is not tried again"
                .to_owned();
        }
        let engine_state = self.engine.state();
        if engine_state != VmState::Running {
            return format!("tiering runs: the state is {}", engine_state.name());
        }
        if let Some(reason) = self.other_tier_is_closed() {
            return format!("the other tier is open to it: {reason}");
        }
        if let Some(reason) = self.pool_has_none() {
            return reason;
        }
        if let Some(end) = state.cooldown_until {
            if self.engine.evidence.bias.holds(self.page.id) {
                return "its hold of up to 2 s ends: meanwhile its samples measure the bias between the tiers"
                    .to_owned();
            }
            return format!(
                "its cooldown is over, in {:.1} s",
                end.since(self.now).as_secs_f64()
            );
        }
        let pins = self.engine.pages.pins();
        if let Some(pin) = pins.of(self.page.id).map(|entry| entry.pin) {
            return self.pinned_would_move_if(pin.tier);
        }
        match state.placement {
            Placement::Fast => self.fast_would_move_if(),
            _ => self.slow_would_move_if(),
        }
    }

    /// Why a page that is not pinned where it is can't be moved onto the other tier, if cpusets forbid
    /// it.
    fn other_tier_is_closed(&self) -> Option<&str> {
        let pin = self.engine.pages.pins().of(self.page.id);
        if pin.is_some_and(|entry| placement_of(entry.pin.tier) == self.state.placement) {
            return None;
        }
        let mover = &self.engine.mover;
        let onto = match self.state.placement {
            Placement::Fast => &mover.tiers.slow,
            _ => &mover.tiers.fast,
        };
        mover.rooms.all_closed(onto)
    }

    /// Neither tier has a page of the hugetlb pool to spare, so no page of it can be moved.
    fn pool_has_none(&self) -> Option<String> {
        let Candidate { frame_bytes, .. } = self.page;
        let is_full = |room: Room| !room.fits(frame_bytes);
        let none = frame_bytes != BASE_PAGE
            && is_full(self.fast_room(&self.page))
            && is_full(self.slow_room(&self.page))
            && is_full(self.pair_room(&self.page));
        none.then(|| {
            format!(
                "a slow node's pool of {frame_bytes} byte pages has a free page that is promised to nobody, and no \
                 pool of the tiers has surplus pages: an exchange needs one"
            )
        })
    }

    fn pinned_would_move_if(&self, tier: Tier) -> String {
        if self.state.placement == placement_of(tier) {
            return format!("it is unpinned: it is pinned to the {tier} tier, where it is");
        }
        let Page { bytes, .. } = self.page.page;
        let room = match tier {
            Tier::Fast => self.fast_room(&self.page),
            Tier::Slow => self.slow_room(&self.page),
        };
        if !room.fits(bytes) {
            return format!(
                "the {tier} tier, to which it is pinned, has room for it: {} of {bytes} bytes",
                room.bytes()
            );
        }
        format!("its turn comes: it is pinned to the {tier} tier, within the rate")
    }

    fn fast_would_move_if(&self) -> String {
        let before = self.before;
        let Page { bytes, .. } = self.page.page;
        let settings = self.engine.settings();
        let held = self.engine.mover.fast_bytes(&self.engine.pages, settings);
        let excess = FastBounds::of(settings).beyond_limit(held);
        if excess > 0 {
            return match self.slow_room(&self.page).fits(bytes) {
                false => "the slow tier has room: the fast tier is above its limit".to_owned(),
                true => format!(
                    "its turn comes: the fast tier is {excess} bytes above its limit, and {before} \
                     colder pages go first"
                ),
            };
        }
        let pages = &self.engine.pages;
        let hottest = pages.heap.hottest_slow(self.now);
        let Some(hot) = hottest.and_then(|hottest| pages.candidate(hottest)) else {
            return "an access to a slow page is seen: none is hotter".to_owned();
        };
        let room = self.fast_room(&hot);
        if room.fits(hot.page.bytes) {
            let room = room.bytes();
            return format!("the fast tier is full: it has room for {room} bytes");
        }
        if let Some(reason) = self.exchange_waits_for(self.page) {
            return reason;
        }
        let verdict = self.judge().verdict(hot, &[self.page]);
        self.lacks(&verdict, "the hottest slow page's", "this page's")
            .unwrap_or_else(|| format!("its turn comes: {before} colder pages go first"))
    }

    fn slow_would_move_if(&self) -> String {
        if self.page.count <= 0.0 {
            return "an access to it is seen: there was none".to_owned();
        }
        let Page { bytes, .. } = self.page.page;
        let before = self.before;
        let turn = || {
            let turn = format!("its turn comes: {before} hotter pages go first");
            let engine = self.engine;
            match engine.mover.brake(engine.settings()) {
                Some(brake) => format!("{turn}; {}", brake.reason),
                None => turn,
            }
        };
        let room = self.fast_room(&self.page);
        if room.fits(bytes) {
            if !self.engine.evidence.is_settled() {
                return PACE.to_owned();
            }
            let verdict = self.judge().verdict(self.page, &[]);
            return self
                .lacks(&verdict, "its", "that of a page without accesses")
                .unwrap_or_else(turn);
        }
        let pages = &self.engine.pages;
        let coldest = pages.heap.look_at_coldest_fast(self.now);
        let Some(cold) = coldest.and_then(|coldest| pages.candidate(coldest)) else {
            return "the fast tier has room: it has none, and no page of it may be demoted"
                .to_owned();
        };
        if let Some(reason) = self.exchange_waits_for(cold) {
            return reason;
        }
        let verdict = self.judge().verdict(self.page, &[cold]);
        let must_free = room.must_free(bytes);
        let short = self.short_of_room();
        match (
            self.lacks(&verdict, "its", "the coldest fast page's"),
            short,
        ) {
            (Some(lacks), Some(short)) => {
                format!("{lacks}, or {must_free} bytes are freed: {short}")
            }
            (Some(lacks), None) => lacks,
            // An exchange must demote more than it promotes.
            (None, Some(short)) if must_free > bytes => format!(
                "{must_free} bytes of the fast tier, all colder than it, are demoted first: {short}; {before} \
                 hotter pages go before it",
            ),
            (None, _) => turn(),
        }
    }

    /// What keeps a page from the fast node that has the most room, unless it is the limit.
    fn short_of_room(&self) -> Option<String> {
        let bounds = FastBounds::of(self.engine.settings());
        let mover = &self.engine.mover;
        let bound = mover
            .rooms
            .fast_bound(&mover.tiers, bounds, self.page.frame_bytes)?;
        (!bound.room().fits(self.page.page.bytes)).then(|| {
            if bound.frame_bytes == BASE_PAGE {
                return format!(
                    "node {} has {} bytes free and keeps {} (watermark and headroom)",
                    bound.node, bound.free_bytes, bound.kept_bytes
                );
            }
            format!(
                "the pool of {} byte pages on node {} has {} bytes of free pages that are promised to nobody",
                bound.frame_bytes, bound.node, bound.free_bytes
            )
        })
    }

    fn fast_room(&self, page: &Candidate) -> Room {
        let VmEngine { mover, pages, .. } = self.engine;
        mover.fast_room(pages, self.engine.settings(), page.frame_bytes)
    }

    fn slow_room(&self, page: &Candidate) -> Room {
        self.engine.mover.slow_room(page.frame_bytes)
    }

    fn pair_room(&self, page: &Candidate) -> Room {
        let VmEngine { mover, .. } = self.engine;
        mover.pair_room(self.engine.settings(), page.frame_bytes)
    }

    fn judge(&self) -> Judge<'_> {
        self.engine.judge(self.now)
    }

    /// What keeps any exchange from demoting this page.
    fn exchange_waits_for(&self, cold: Candidate) -> Option<String> {
        let evidence = &self.engine.evidence;
        if !evidence.is_settled() {
            return Some(PACE.to_owned());
        }
        if !self.judge().knows_cold(cold) {
            return Some(format!(
                "half of the guest is watched: {:.0} % is, so a page without samples may be hot",
                evidence.stats.coverage() * 100.0
            ));
        }
        let slow_room = self.slow_room(&cold).max(self.pair_room(&cold));
        (!slow_room.fits(cold.page.bytes)).then(|| {
            format!(
                "the slow tier has room: {} of {} bytes",
                slow_room.bytes(),
                cold.page.bytes
            )
        })
    }

    /// What an exchange lacks: `hot` and `cold` say whose rates are compared. `None` if it pays.
    fn lacks(&self, verdict: &Verdict, hot: &str, cold: &str) -> Option<String> {
        let Verdict {
            certainty,
            gain_ns,
            cost_ns,
            pays_back,
        } = *verdict;
        match certainty {
            _ if certainty.suffices() => {}
            Certainty::Tests { z, least_z } => {
                return Some(format!(
                    "{hot} rate must be above {cold} with z at least {least_z:.1} (now {z:.1})"
                ));
            }
            Certainty::Counts { times, z } => {
                return Some(format!(
                    "{hot} expected rate must be {LEAST_TIMES} times {cold} (now {times:.1}) and z at least \
                     {LEAST_DEVIATIONS} (now {z:.1})"
                ));
            }
        }
        (!pays_back).then(|| {
            format!(
                "the gain in {} s reaches the cost: gain {:.0} µs, cost {:.0} µs",
                self.engine.settings().horizon.as_secs_f64(),
                gain_ns / 1e3,
                cost_ns / 1e3
            )
        })
    }
}

const PACE: &str = "the source has settled: it can't tell hot from warm yet";

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
