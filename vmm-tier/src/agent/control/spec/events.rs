//! The events.

use qmp::server::{
    EventSpec,
    TypeSpec::{Array, Bool, Enum, String, Uint},
};

use super::{
    DIRECTIONS, PAUSERS, STATES, needed, optional, query_tier::DRAIN_PROGRESS, sources::KINDS,
};

pub(in crate::agent::control) const EVENTS: &[EventSpec] = &[
    EventSpec {
        name: "TIER_STATE",
        doc: "The agent's state is another one.",
        data: &[
            needed("from", STATES, "what it was"),
            needed("to", STATES, "what it is"),
            optional(
                "paused-by",
                Array(&PAUSERS),
                "who wants moves to pause, when it is `paused`",
            ),
        ],
    },
    EventSpec {
        name: "TIER_LIMIT",
        doc: "The limit of the fast tier is another one.",
        data: &[
            optional("old", Uint, "what it was, in bytes, if there was one"),
            optional("new", Uint, "what it is, in bytes, if there is one"),
            needed(
                "who",
                Enum(&["operator", "state-file"]),
                "who set it: a command, or what a command had set before the agent was started",
            ),
        ],
    },
    EventSpec {
        name: "TIER_SOURCE",
        doc: "Another source is believed, none is any more, or one beside it no longer delivers.",
        data: &[
            needed("kind", KINDS, "what it is"),
            needed("up", Bool, "whether it delivers"),
            needed("believed", Bool, "whether pages are moved on its word"),
            optional(
                "instead-of",
                KINDS,
                "what was believed before, if another was",
            ),
            needed("reason", String, "why"),
        ],
    },
    EventSpec {
        name: "TIER_MOVE_FAILED",
        doc: "A page did not move. At most one is told a second.",
        data: &[
            optional(
                "gpa",
                Uint,
                "the page's guest-physical address, if it is in the memory map still",
            ),
            needed("hva", Uint, "the page's first byte in QEMU"),
            needed("bytes", Uint, "the page's size"),
            needed("direction", DIRECTIONS, "where it was to go"),
            needed(
                "class",
                Enum(&[
                    "busy",
                    "pinned",
                    "shared",
                    "absent",
                    "no-memory",
                    "split",
                    "wrong-node",
                    "gone",
                ]),
                "why it did not; see the operating guide",
            ),
            optional(
                "reason",
                String,
                "what the kernel says, if it refuses all moves",
            ),
            needed(
                "left-out",
                Uint,
                "failures since the last of these events that none was sent for",
            ),
        ],
    },
    EventSpec {
        name: "TIER_DRAIN",
        doc: "A drain came on by a hundredth of its way, is done, or is stuck or no longer.",
        data: DRAIN_PROGRESS.members,
    },
];
