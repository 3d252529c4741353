//! The last moves of pages, for people who watch.

use crate::{
    addr::NodeId,
    engine::VmEngine,
    moves::{Direction, Outcome},
    time::Time,
};

/// The most moves that are told.
pub const MAX_MOVES: u64 = 1000;

crate::report! {
    /// The last move of a page.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct PageMove = "TierPageMove" {
        /// The page's guest-physical address; absent if it is in the memory map no more.
        pub gpa: Option<u64>,
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
    /// The pages that were to move last, each with its last move, the newest first.
    #[derive(Clone, Debug, PartialEq)]
    pub struct LastMoves = "TierMoves" {
        /// The moves.
        pub moves: Vec<PageMove>,
    }
}

/// The last moves of `most` pages, at most [`MAX_MOVES`].
pub(crate) fn of(engine: &VmEngine, now: Time, most: u64) -> LastMoves {
    let most = usize::try_from(most.min(MAX_MOVES)).unwrap_or(usize::MAX);
    let map = engine.map();
    let moves = engine
        .journal
        .history
        .newest()
        .take(most)
        .map(|(hva, past)| {
            let at = map.and_then(|map| map.hva_to_gpa(hva));
            PageMove {
                gpa: at.map(|(gpa, _)| gpa.0),
                direction: past.direction,
                outcome: past.outcome,
                node: past.node,
                seconds_ago: now.since(past.at).as_secs_f64(),
            }
        });
    LastMoves {
        moves: moves.collect(),
    }
}
