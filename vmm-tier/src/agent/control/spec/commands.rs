//! The commands.

use qmp::server::{
    CommandSpec,
    TypeSpec::{Number, Uint},
};
use tier_core::{
    engine::{
        DemandReport, DrainProgress, Explanation, Heatmap, LastMoves, MAX_CELLS, MAX_MOVES,
        PinReport, WhenFull,
    },
    settings::{PolicyName, Tier},
};

use super::{
    needed, optional,
    types::{members, of},
};
use crate::agent::control::commands::query_tier::TierInfo;

const START: &str = "the first guest-physical address, a multiple of 4096";
const BYTES: &str = "the length in bytes, a multiple of 4096";

pub(super) fn commands() -> Vec<CommandSpec> {
    let state = of::<TierInfo>();
    vec![
        CommandSpec {
            name: "query-tier",
            doc: "The agent's state, source, tiers, moves and failures.",
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-set-policy",
            doc: "Changes how pages are chosen and how fast they move. Settings left out do not \
                  change; without any argument all return to what the command line and the \
                  configuration say. Kept over a restart of the agent.",
            args: members(vec![
                optional(
                    "policy",
                    of::<PolicyName>(),
                    "the policy; `dual-heap` exchanges the hottest pages of the slow tier with the \
                     coldest of the fast tier",
                ),
                optional(
                    "half-life",
                    Number,
                    "time in seconds in which an observation loses half of its weight",
                ),
                optional(
                    "horizon",
                    Number,
                    "time in seconds over which a move must pay back",
                ),
                optional(
                    "rate",
                    Uint,
                    "most bytes moved a second, promotions and demotions together",
                ),
            ]),
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-set-limit",
            doc: "Sets the most bytes of the fast tier that the guest may hold. What is above it is \
                  demoted at once, coldest first. Ends a drain. Kept over a restart of the agent.",
            args: members(vec![optional(
                "bytes",
                Uint,
                "the limit; left out, there is none",
            )]),
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-pause",
            doc: "Stops moving pages until `tier-resume`. Kept over a restart of the agent.",
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-resume",
            doc: "Moves pages again after `tier-pause`, unless a migration holds moves back.",
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-pin",
            doc: "Keeps a range of guest memory on one tier, whatever its heat. Its pages that lie \
                  elsewhere are moved there first of all, within rate and headroom. Kept over a restart \
                  of the agent: pages already there then stay, the others go there as room allows. \
                  While the guest has no such memory, the pin waits.",
            args: members(vec![
                needed("start", Uint, START),
                needed("bytes", Uint, BYTES),
                needed("tier", of::<Tier>(), "where the range is to be"),
                optional(
                    "when-full",
                    of::<WhenFull>(),
                    "what to do when the range does not fit there: refuse the pin (also when left out); \
                     demote the coldest pages that are not pinned; or fill what room there is, and the \
                     rest when there is more",
                ),
            ]),
            returns: of::<PinReport>(),
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-unpin",
            doc: "Takes back the pins that lie wholly in a range. Their pages stay where they are and \
                  take part in tiering again.",
            args: members(vec![
                optional("start", Uint, START),
                optional(
                    "bytes",
                    Uint,
                    "the length in bytes; without `start` and `bytes` all pins are taken back",
                ),
            ]),
            returns: of::<PinReport>(),
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-drain",
            doc: "Leaves the fast tier down to a size, coldest pages first, whatever it costs. The size \
                  stays the limit afterwards; `tier-set-limit` ends the drain. `TIER_DRAIN` reports \
                  its progress.",
            args: members(vec![optional(
                "bytes",
                Uint,
                "what may stay in the fast tier; left out, nothing",
            )]),
            returns: of::<DrainProgress>(),
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "tier-explain",
            doc: "Why the page at a guest-physical address lies where it lies, and what would move it. \
                  It looks at every page: for people, not for polling.",
            args: members(vec![needed(
                "address",
                Uint,
                "the guest-physical address of any byte of the page",
            )]),
            returns: of::<Explanation>(),
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "query-tier-heatmap",
            doc: "Heat over the guest's memory, in guest-physical order. It looks at every page.",
            args: members(vec![
                optional("rows", Uint, "rows; left out, 16"),
                optional(
                    "columns",
                    Uint,
                    String::leak(format!(
                        "cells of a row; left out, 64; there may be {MAX_CELLS} cells"
                    )),
                ),
            ]),
            returns: of::<Heatmap>(),
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "query-tier-moves",
            doc: "The pages that were to move last, each with its last move and what became of it, the \
                  newest first. The moves of the last 4096 pages are remembered.",
            args: members(vec![optional(
                "count",
                Uint,
                String::leak(format!(
                    "of how many pages; left out, 100; at most {MAX_MOVES}"
                )),
            )]),
            returns: of::<LastMoves>(),
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "query-tier-demand",
            doc: "How many accesses a second DRAM would serve, by how much of it there is. It is measured \
                  while the agent serves a host daemon.",
            returns: of::<DemandReport>(),
            ..CommandSpec::PLAIN
        },
    ]
}
