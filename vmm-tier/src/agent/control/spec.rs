//! What the control socket offers: names, arguments, returns and meanings, in one place.
//!
//! The server checks arguments against this, answers `query-commands` and `query-qmp-schema` from it, and
//! docs/qmp.md is made of it. A member that a command returns and that may be left out may be `null` too.

mod events;
mod explain;
mod query_tier;
mod sources;

use qmp::server::{
    CommandSpec, MemberSpec, ObjectSpec,
    TypeSpec::{self, Enum, Number, Object, Uint},
};

pub(super) use self::events::EVENTS;
use self::{
    explain::{EXPLANATION, HEATMAP},
    query_tier::{DRAIN_PROGRESS, TIER_INFO},
};

const TIERS: TypeSpec = Enum(&["fast", "slow"]);
const DIRECTIONS: TypeSpec = Enum(&["promote", "demote"]);
const WHEN_FULL: TypeSpec = Enum(&["refuse", "demote", "fill"]);
const STATES: TypeSpec = Enum(&[
    "starting",
    "running",
    "paused",
    "guest-stopped",
    "blind",
    "detached",
]);
const PAUSERS: TypeSpec = Enum(&["operator", "migration"]);

/// A member that is always there.
const fn needed(name: &'static str, kind: TypeSpec, doc: &'static str) -> MemberSpec {
    MemberSpec::needed(name, kind, doc)
}

/// A member that may be left out.
const fn optional(name: &'static str, kind: TypeSpec, doc: &'static str) -> MemberSpec {
    MemberSpec::optional(name, kind, doc)
}

const START: &str = "the first guest-physical address, a multiple of 4096";
const BYTES: &str = "the length in bytes, a multiple of 4096";
const STATE: TypeSpec = Object(&TIER_INFO);

const PIN_REPORT: ObjectSpec = ObjectSpec {
    name: "TierPinReport",
    doc: "What was pinned, or taken back. Bytes are those of whole pages, also where a page lies only \
          partly in a pin.",
    members: &[
        needed("pins", Uint, "pins made or taken back"),
        needed("bytes", Uint, "the length of their ranges"),
        needed(
            "placed-bytes",
            Uint,
            "present pages that lie on the pin's tier",
        ),
        needed(
            "elsewhere-bytes",
            Uint,
            "present pages that lie on the other; after `tier-pin`, what is going to be moved",
        ),
    ],
};

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "query-tier",
        doc: "What the agent does and how that goes: state, source, tiers, moves, failures.",
        returns: STATE,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-set-policy",
        doc: "Changes how pages are chosen and how fast they move. What is left out stays as it is; \
              without any argument everything goes back to what the command line and the \
              configuration say. Kept over a restart of the agent.",
        args: &[
            optional(
                "policy",
                Enum(&["dual-heap"]),
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
        ],
        returns: STATE,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-set-limit",
        doc: "Sets the most bytes of the fast tier that the guest may hold. What is above it is \
              demoted at once, coldest first. Ends a drain. Kept over a restart of the agent.",
        args: &[optional(
            "bytes",
            Uint,
            "the limit; left out, there is none",
        )],
        returns: STATE,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-pause",
        doc: "Stops moving pages until `tier-resume`. Kept over a restart of the agent.",
        returns: STATE,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-resume",
        doc: "Moves pages again after `tier-pause`, unless something else wants moves to pause.",
        returns: STATE,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-pin",
        doc: "Keeps a range of guest memory on one tier, whatever its heat. Its pages that lie \
              elsewhere are moved there first of all, within rate and headroom. Kept over a restart \
              of the agent: what is in its place then stays, what is not goes there as room allows. \
              Where the guest has no such memory then, the pin waits.",
        args: &[
            needed("start", Uint, START),
            needed("bytes", Uint, BYTES),
            needed("tier", TIERS, "where the range is to be"),
            optional(
                "when-full",
                WHEN_FULL,
                "what to do when the range does not fit there: refuse the pin (also when left out); \
                 demote the coldest pages that are not pinned; or fill what room there is, and the \
                 rest when there is more",
            ),
        ],
        returns: Object(&PIN_REPORT),
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-unpin",
        doc: "Takes back the pins that lie wholly in a range. Their pages stay where they are and \
              take part in tiering again.",
        args: &[
            optional("start", Uint, START),
            optional(
                "bytes",
                Uint,
                "the length in bytes; without `start` and `bytes` all pins are taken back",
            ),
        ],
        returns: Object(&PIN_REPORT),
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-drain",
        doc: "Leaves the fast tier down to a size, coldest pages first, whatever it costs. The size \
              stays the limit afterwards; `tier-set-limit` ends the drain. `TIER_DRAIN` tells how it \
              comes on.",
        args: &[optional(
            "bytes",
            Uint,
            "what may stay in the fast tier; left out, nothing",
        )],
        returns: Object(&DRAIN_PROGRESS),
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-explain",
        doc: "Why the page at a guest-physical address lies where it lies, and what would move it. \
              It looks at every page: for people, not for polling.",
        args: &[needed(
            "address",
            Uint,
            "the guest-physical address of any byte of the page",
        )],
        returns: Object(&EXPLANATION),
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "query-tier-heatmap",
        doc: "Heat over the guest's memory, in guest-physical order. It looks at every page.",
        args: &[
            optional("rows", Uint, "rows; left out, 16"),
            optional(
                "columns",
                Uint,
                "cells of a row; left out, 64; there may be 16384 cells",
            ),
        ],
        returns: Object(&HEATMAP),
        ..CommandSpec::PLAIN
    },
];
