//! What moves wait for, in one word and one sentence.

use crate::{
    addr::BASE_PAGE,
    engine::{VmEngine, VmState, mover::room::FastBounds},
    settings::Tier,
    time::Time,
};

crate::words! {
    /// What moves wait for.
    pub enum Wait {
        /// QEMU's monitor, which is lost.
        Monitor = "monitor",
        /// Whoever wants moves to pause.
        Pause = "pause",
        /// The guest's CPUs, which are stopped.
        Guest = "guest",
        /// The first look-up of where the guest's pages lie.
        LookUp = "look-up",
        /// A source that delivers.
        Source = "source",
        /// The time that the source must have watched the guest.
        WarmUp = "warm-up",
        /// The source's pace.
        Pace = "pace",
        /// A cpuset that leaves out the fast nodes.
        Cpuset = "cpuset",
        /// The rest after batches of which nothing moved.
        Rest = "rest",
        /// An access to a page on the slow tier.
        Access = "access",
        /// Room on the slow tier, or in a hugetlb pool.
        Room = "room",
        /// A page of the fast tier that may go.
        ColdPage = "cold-page",
        /// An exchange that pays.
        Gain = "gain",
        /// The brake on exchanges, whatever the reason.
        Brake = "brake",
        /// The rate at which pages may be moved.
        Rate = "rate",
    }
}

impl Wait {
    /// The same in a sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Monitor => {
                "QEMU's monitor was lost: nothing moves until it is back, as the guest may migrate meanwhile."
            }
            Self::Pause => "Moves pause: `paused-by` says for whom.",
            Self::Guest => "The guest's CPUs are stopped: nothing is accessed, so nothing moves.",
            Self::LookUp => "The agent looks up for the first time where the guest's pages lie.",
            Self::Source => {
                "No source has delivered a usable sample of the guest yet, or the source fell silent: `sources` says \
                 how each does."
            }
            Self::WarmUp => {
                "The source must watch the guest for a while (`policy.warm-up-s`) before its samples move pages."
            }
            Self::Pace => {
                "The source adapts its pace: at the pace so far it can't tell hot from warm pages."
            }
            Self::Cpuset => {
                "A cpuset leaves out all fast nodes: `closed` of the fast tier says whose, and what opens them."
            }
            Self::Rest => {
                "Nothing of the last batches moved, so the agent tries again after a rest of up to 10 s: `failed` and \
                 `refused` say why."
            }
            Self::Access => {
                "No page of the slow tier that may be taken now was seen in use: hot pages are in their place, rest after \
                 a move, or can't be moved (`failed`)."
            }
            Self::Room => {
                "The hottest slow page finds no room: the fast tier is full or at its limit, and the slow tier or the \
                 hugetlb pool has no page for an exchange."
            }
            Self::ColdPage => {
                "The hottest slow page finds no page to change places with: fast pages are pinned, rest after a move, or \
                 are not watched."
            }
            Self::Gain => {
                "The hottest slow page is not hotter than the coldest fast page with certainty, or the gain within \
                 `horizon-s` does not reach what the moves cost."
            }
            Self::Brake => "Exchanges are slowed down: `brake` says how much, and why.",
            Self::Rate => "Moves wait for their rate: `rate-bytes-per-s` bounds it.",
        }
    }
}

/// What moves wait for; `None` while pages move, or could move at once.
pub(crate) fn of(engine: &VmEngine, now: Time) -> Option<Wait> {
    let VmEngine {
        pages,
        evidence,
        mover,
        orders,
        ..
    } = engine;
    let settings = &orders.settings;
    match engine.state() {
        VmState::Detached => return Some(Wait::Monitor),
        VmState::Paused => return Some(Wait::Pause),
        VmState::GuestStopped => return Some(Wait::Guest),
        VmState::Blind => return Some(Wait::Source),
        VmState::Starting if !pages.scanner.has_seen_all() => return Some(Wait::LookUp),
        VmState::Starting => return Some(Wait::WarmUp),
        VmState::Running => {}
    }
    let held = pages.bytes().of(Tier::Fast);
    let owes = FastBounds::of(settings).beyond_limit(held) > 0;
    if !mover.in_flight.is_empty() || owes {
        return None;
    }
    if !evidence.is_settled() {
        return Some(Wait::Pace);
    }
    if mover.rooms.all_closed(&mover.tiers.fast).is_some() {
        return Some(Wait::Cpuset);
    }
    if mover.rests(now) {
        return Some(Wait::Rest);
    }
    let hottest = pages.heap.hottest_slow(now);
    let Some(hot) = hottest.and_then(|hottest| pages.candidate(hottest)) else {
        return Some(Wait::Access);
    };
    let brake = mover.brake(settings).map(|_| Wait::Brake);
    let slowed = brake.or(mover.wakes_at().map(|_| Wait::Rate));
    let pays = |cold: &[_]| engine.judge(now).verdict(hot, cold).pays();
    if mover
        .fast_room(pages, settings, hot.frame_bytes)
        .fits(hot.page.bytes)
    {
        return if pays(&[]) { slowed } else { Some(Wait::Gain) };
    }
    let pair_room = match hot.frame_bytes {
        BASE_PAGE => None,
        frame_bytes => Some(mover.pair_room(settings, frame_bytes)),
    };
    let slow_room = mover.slow_room(hot.frame_bytes);
    if !slow_room
        .max(pair_room.unwrap_or(slow_room))
        .fits(hot.frame_bytes)
    {
        return Some(Wait::Room);
    }
    let coldest = pages.heap.look_at_coldest_fast(now);
    let cold = coldest.and_then(|coldest| pages.candidate(coldest));
    match cold.filter(|&cold| engine.judge(now).knows_cold(cold)) {
        None => Some(Wait::ColdPage),
        Some(cold) if pays(&[cold]) => slowed,
        Some(_) => Some(Wait::Gain),
    }
}
