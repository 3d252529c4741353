//! What `tier-explain` and `query-tier-heatmap` return.

use qmp::server::{
    ObjectSpec,
    TypeSpec::{Array, Enum, Number, Object, String, Uint},
};

use super::{DIRECTIONS, needed, optional, query_tier::PIN_STATUS};

pub(super) const EXPLANATION: ObjectSpec = ObjectSpec {
    name: "TierExplanation",
    doc: "What is known of a page.",
    members: &[
        needed("gpa", Uint, "the guest-physical address asked for"),
        needed("block", String, "QEMU's name of the RAM block"),
        needed(
            "block-offset",
            Uint,
            "where in the block the address lies, in bytes",
        ),
        needed("hva", Uint, "the address in QEMU"),
        needed("page-hva", Uint, "the page's first byte in QEMU"),
        needed("page-bytes", Uint, "the page's size"),
        optional(
            "node",
            Uint,
            "the page's node: its tier's only one, or where its last move left it",
        ),
        needed(
            "placement",
            Enum(&["fast", "slow", "untracked"]),
            "the tier on which it lies; `untracked` if it is not present, or on neither",
        ),
        needed("samples", Number, "accesses seen, decayed"),
        needed(
            "accesses-per-s",
            Number,
            "estimated accesses a second to the whole page",
        ),
        optional(
            "rank",
            Uint,
            "how many pages of its tier would be taken before it; absent if it may not be taken",
        ),
        optional(
            "heap-pages",
            Uint,
            "how many pages of its tier may be taken",
        ),
        needed(
            "state",
            Enum(&[
                "untracked",
                "in-heap",
                "never-sampled",
                "in-flight",
                "cooling",
                "excluded",
                "pinned",
            ]),
            "where it stands: a candidate for an exchange (`in-heap`), without any access seen, under \
             way, just moved, impossible to move, or pinned",
        ),
        optional(
            "cooling-ms",
            Uint,
            "how long it is left alone still, in milliseconds",
        ),
        optional("pin", Object(&PIN_STATUS), "the pin that it belongs to"),
        optional(
            "last-move",
            Object(&PAST_MOVE),
            "its last move, if that is remembered",
        ),
        optional(
            "last-failure",
            Object(&PAST_MOVE),
            "its last move that failed, if that is remembered",
        ),
        needed(
            "would-move-if",
            String,
            "what would make it move, for a person",
        ),
    ],
};

const PAST_MOVE: ObjectSpec = ObjectSpec {
    name: "TierPastMove",
    doc: "A move that ended.",
    members: &[
        needed("direction", DIRECTIONS, "which way"),
        needed("outcome", OUTCOMES, "what became of it"),
        optional(
            "node",
            Uint,
            "the node on which the page was found after it",
        ),
        needed("seconds-ago", Number, "how long ago"),
    ],
};

const OUTCOMES: qmp::server::TypeSpec = Enum(&[
    "moved",
    "busy",
    "pinned",
    "shared",
    "absent",
    "no-memory",
    "split",
    "wrong-node",
    "gone",
]);

pub(super) const HEATMAP: ObjectSpec = ObjectSpec {
    name: "TierHeatmap",
    doc: "The guest's RAM cut into cells of equal size in rising guest-physical order. Holes between \
          RAM are passed over: a cell may reach over one.",
    members: &[
        needed("rows", Uint, "rows"),
        needed("columns", Uint, "cells in a row"),
        needed(
            "ram-bytes",
            Uint,
            "guest RAM, which the cells divide among them",
        ),
        needed("cells", Array(&Object(&CELL)), "all cells, row by row"),
    ],
};

const CELL: ObjectSpec = ObjectSpec {
    name: "TierHeatCell",
    doc: "An equal share of the guest's RAM.",
    members: &[
        needed("gpa", Uint, "its first guest-physical address"),
        needed(
            "rate",
            Number,
            "mean accesses a second for each 4 KiB of it, present or not",
        ),
        optional(
            "fast-share",
            Number,
            "share of its present bytes on the fast tier; absent if nothing is present",
        ),
    ],
};
