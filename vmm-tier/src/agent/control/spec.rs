//! What the control socket offers: names, arguments, returns and meanings, in one place.
//!
//! The server checks arguments against this, answers `query-commands` and `query-qmp-schema` from it, and
//! docs/qmp.md is made of it.

use qmp::server::{ArgSpec, ArgType, CommandSpec};

const STATE: &str =
    "What query-tier returns: name, state, source, tiers, moves and failures; sizes in bytes.";

const fn optional(name: &'static str, kind: ArgType, doc: &'static str) -> ArgSpec {
    ArgSpec {
        name,
        kind,
        optional: true,
        doc,
    }
}

const fn needed(name: &'static str, kind: ArgType, doc: &'static str) -> ArgSpec {
    ArgSpec {
        name,
        kind,
        optional: false,
        doc,
    }
}

const START: &str = "The first guest-physical address, a multiple of 4096.";
const BYTES: &str = "The length in bytes, a multiple of 4096.";

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "query-tier",
        doc: "What the agent does: state, source, tiers, moves, failures.",
        args: &[],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-set-policy",
        doc: "Changes how pages are chosen and how fast they move. What is left out stays as it is; \
              without any argument everything goes back to what the command line and the \
              configuration say. Kept over a restart of the agent.",
        args: &[
            optional(
                "policy",
                ArgType::Enum(&["dual-heap"]),
                "The policy. dual-heap exchanges the hottest pages of the slow tier with the coldest \
                 of the fast tier.",
            ),
            optional(
                "half-life",
                ArgType::Number,
                "Time in seconds in which an observation loses half of its weight.",
            ),
            optional(
                "horizon",
                ArgType::Number,
                "Time in seconds over which a move must pay back.",
            ),
            optional(
                "rate",
                ArgType::Uint,
                "Most bytes moved a second, promotions and demotions together.",
            ),
        ],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-set-limit",
        doc: "Sets the most bytes of the fast tier that the guest may hold. What is above it is \
              demoted at once, coldest first. Ends a drain. Kept over a restart of the agent.",
        args: &[optional(
            "bytes",
            ArgType::Uint,
            "The limit in bytes; left out: no limit.",
        )],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-pause",
        doc: "Stops moving pages until tier-resume. Kept over a restart of the agent.",
        args: &[],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-resume",
        doc: "Moves pages again after tier-pause, unless something else wants moves to pause.",
        args: &[],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-pin",
        doc: "Keeps a range of guest memory on one tier, whatever its heat. Its pages that lie \
              elsewhere are moved there first of all, within rate and headroom. Kept over a restart \
              of the agent; where the guest's memory then has no place for the range, the pin waits.",
        args: &[
            needed("start", ArgType::Uint, START),
            needed("bytes", ArgType::Uint, BYTES),
            needed(
                "tier",
                ArgType::Enum(&["fast", "slow"]),
                "Where the range is to be.",
            ),
            optional(
                "when-full",
                ArgType::Enum(&["refuse", "demote", "fill"]),
                "What to do when the range does not fit there: refuse the pin (also when left out); \
                 demote the coldest pages that are not pinned; or fill what room there is, and the \
                 rest when there is more.",
            ),
        ],
        returns: "pins, bytes, placed-bytes (there already) and elsewhere-bytes (to be moved).",
    },
    CommandSpec {
        name: "tier-unpin",
        doc: "Takes pins back that lie wholly in a range. Their pages stay where they are and take \
              part in tiering again.",
        args: &[
            optional("start", ArgType::Uint, START),
            optional(
                "bytes",
                ArgType::Uint,
                "The length in bytes; without start and bytes all pins are taken back.",
            ),
        ],
        returns: "pins, bytes, placed-bytes and elsewhere-bytes of what was taken back.",
    },
    CommandSpec {
        name: "tier-drain",
        doc: "Leaves the fast tier down to a size, coldest pages first, whatever it costs. The size \
              stays the limit afterwards; tier-set-limit ends the drain. TIER_DRAIN tells how it \
              comes on.",
        args: &[optional(
            "bytes",
            ArgType::Uint,
            "What may stay in the fast tier, in bytes; left out: nothing.",
        )],
        returns: "target-bytes, start-bytes, fast-bytes, pinned-bytes, done, stuck, stuck-because.",
    },
];
