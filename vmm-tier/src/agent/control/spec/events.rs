//! The events.

use qmp::server::{
    EventSpec,
    TypeSpec::{self, Bool, Enum, String, Uint},
};
use tier_core::{
    engine::{DrainProgress, VmState},
    moves::{Direction, Outcome},
    sample::SourceKind,
};

use super::{
    needed, optional,
    types::{members, members_of, of},
};
use crate::agent::control::Pauser;

/// The outcomes of a page that did not move.
fn failures() -> TypeSpec {
    let failures = Outcome::ALL
        .into_iter()
        .filter(|outcome| !outcome.is_success());
    Enum(Vec::leak(failures.map(Outcome::name).collect()))
}

pub(super) fn events() -> Vec<EventSpec> {
    vec![
        EventSpec {
            name: "TIER_STATE",
            doc: "The agent's state changed.",
            data: members(vec![
                needed("from", of::<VmState>(), "what it was"),
                needed("to", of::<VmState>(), "what it is"),
                optional(
                    "paused-by",
                    of::<Vec<Pauser>>(),
                    "who wants moves to pause, when it is `paused`",
                ),
            ]),
        },
        EventSpec {
            name: "TIER_LIMIT",
            doc: "The limit of the fast tier that is in force changed. Shares of a host daemon change often: \
                  an event comes when the daemon's share begins or ends to be the limit, and when it differs \
                  by more than 5 % from the last event's, at most once in 10 s.",
            data: members(vec![
                optional("old", Uint, "what it was, in bytes, if there was one"),
                optional("new", Uint, "what it is, in bytes, if there is one"),
                needed(
                    "who",
                    Enum(&["operator", "state-file", "host"]),
                    "whose it is: a command's or the configuration's, what a command had set before the \
                     agent was started, or the host daemon's",
                ),
            ]),
        },
        EventSpec {
            name: "TIER_SOURCE",
            doc: "Another source is believed, no source is believed any more, or a source that is not believed failed.",
            data: members(vec![
                needed("kind", of::<SourceKind>(), "what it is"),
                needed("up", Bool, "whether it delivers"),
                needed("believed", Bool, "whether pages are moved by its samples"),
                optional(
                    "instead-of",
                    of::<SourceKind>(),
                    "what was believed before, if another was",
                ),
                needed("reason", String, "why"),
            ]),
        },
        EventSpec {
            name: "TIER_MOVE_FAILED",
            doc: "A page did not move. At most one such event is sent a second.",
            data: members(vec![
                optional(
                    "gpa",
                    Uint,
                    "the page's guest-physical address, if it is in the memory map still",
                ),
                needed("hva", Uint, "the page's first byte in QEMU"),
                needed("bytes", Uint, "the page's size"),
                needed("direction", of::<Direction>(), "where it was to go"),
                needed(
                    "class",
                    failures(),
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
                    "failures since the last such event for which no event was sent",
                ),
            ]),
        },
        EventSpec {
            name: "TIER_DRAIN",
            doc: "A drain advanced by 1 %, ended, got stuck, or goes on again.",
            data: members_of::<DrainProgress>(),
        },
    ]
}
