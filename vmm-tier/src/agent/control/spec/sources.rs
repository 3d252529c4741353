//! What `query-tier` says of sources.

use qmp::server::{
    MemberSpec, ObjectSpec,
    TypeSpec::{self, Bool, Enum, Map, Number, String, Uint},
};

use super::{needed, optional};

/// `SourceKind`.
pub(super) const KINDS: TypeSpec = Enum(&["damon", "ibs", "pebs", "guest", "replay"]);

const KIND: MemberSpec = needed("kind", KINDS, "what it is");
const SAMPLES: MemberSpec = needed("samples", Uint, "records that came out of it");
const ACCEPTED: MemberSpec = needed("accepted", Uint, "records that were of use");
const DROPPED: MemberSpec = needed(
    "dropped",
    Map(&Uint),
    "records that were of none, by reason; see the guide to sources",
);
const LOST: MemberSpec = needed(
    "lost",
    Uint,
    "records that there was no room for; they never arrived",
);
const THROTTLED: MemberSpec = needed("throttled", Uint, "times the kernel throttled it");

pub(super) const SOURCE: ObjectSpec = ObjectSpec {
    name: "TierSource",
    doc: "A source and what became of its records. `samples` is `accepted` plus all `dropped`.",
    members: &[
        KIND,
        SAMPLES,
        ACCEPTED,
        DROPPED,
        LOST,
        THROTTLED,
        optional("down", String, "why none is believed, if so"),
    ],
};

pub(super) const SOURCE_HEALTH: ObjectSpec = ObjectSpec {
    name: "TierSourceHealth",
    doc: "A source that may be believed: what it sees, how good it is, and what became of its records. \
          `samples` is `accepted` plus all `dropped`.",
    members: &[
        KIND,
        needed(
            "health",
            Enum(&[
                "resting", "opening", "on-trial", "good", "silent", "broken", "down",
            ]),
            "how it does; `resting` where another serves better",
        ),
        optional("reason", String, "what is wrong with it, if something is"),
        needed("believed", Bool, "whether pages are moved on its word"),
        optional(
            "sees",
            Enum(&["guest", "host-mode"]),
            "which accesses; absent before it was opened",
        ),
        needed("label", String, "what it is, for people"),
        optional(
            "quality",
            Number,
            "0 to 1, of its last trial; absent before one: the product of precision, coverage, freshness \
             and number of records",
        ),
        needed(
            "accepted-per-s",
            Number,
            "records of use a second, in its last trial",
        ),
        needed(
            "precision",
            Number,
            "how exact its addresses are: 1 for a page of 4 KiB, 1 / (1 + log2 n) for n of them",
        ),
        needed("coverage", Number, "the share of the guest that it watches"),
        needed(
            "staleness-ms",
            Number,
            "how old its word is when it comes, on average",
        ),
        SAMPLES,
        ACCEPTED,
        DROPPED,
        LOST,
        THROTTLED,
    ],
};
