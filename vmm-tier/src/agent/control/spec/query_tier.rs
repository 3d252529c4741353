//! What `query-tier` returns.

use qmp::server::{
    ObjectSpec,
    TypeSpec::{Array, Bool, Enum, Map, Number, Object, String, Uint},
};

use super::{
    PAUSERS, STATES, TIERS, WHEN_FULL, needed, optional,
    sources::{SOURCE, SOURCE_HEALTH},
};

pub(super) const TIER_INFO: ObjectSpec = ObjectSpec {
    name: "TierInfo",
    doc: "One VM's tiering. Sizes are in bytes.",
    members: &[
        needed("name", String, "the VM's name"),
        needed("pid", Uint, "QEMU's process"),
        needed("uptime-s", Uint, "for how many seconds the agent runs"),
        needed("state", STATES, "what the agent does, in one word"),
        needed(
            "paused-by",
            Array(&PAUSERS),
            "who wants moves to pause: an operator (`tier-pause`), or a migration of the guest",
        ),
        optional(
            "migration",
            String,
            "QEMU's word for how the migration stands, while one is under way",
        ),
        optional(
            "refused",
            String,
            "why the kernel refuses to move or look up pages, if it does",
        ),
        needed("policy", Enum(&["dual-heap"]), "the policy in force"),
        needed(
            "half-life-s",
            Number,
            "time in seconds in which an observation loses half of its weight",
        ),
        needed(
            "horizon-s",
            Number,
            "time in seconds over which a move must pay back",
        ),
        needed("rate-bytes-per-s", Uint, "most bytes moved a second"),
        needed(
            "source",
            Object(&SOURCE),
            "the source that is believed; where none is, the first that may be",
        ),
        needed("sources", Array(&Object(&SOURCE_HEALTH)), "all that may be"),
        needed("tiers", Array(&Object(&TIER)), "fastest first"),
        optional(
            "hit-ratio",
            Number,
            "share of observed accesses that went to the fast tier, decayed; absent before any",
        ),
        optional(
            "tier-bias",
            Object(&TIER_BIAS),
            "how differently the source sees the tiers; absent for one that reads page tables, which sees \
             them alike",
        ),
        needed(
            "promoted-bytes",
            Uint,
            "promoted since the agent's start, verified",
        ),
        needed(
            "demoted-bytes",
            Uint,
            "demoted since the agent's start, verified",
        ),
        needed(
            "failed",
            Map(&Uint),
            "pages that did not move, by class; see the operating guide",
        ),
        needed(
            "page-sizes",
            Map(&Uint),
            "present guest memory, by the size of its pages in bytes",
        ),
        needed("absent-bytes", Uint, "guest memory that is not present"),
        needed(
            "elsewhere-bytes",
            Uint,
            "guest memory on nodes of neither tier",
        ),
        needed("in-flight-pages", Uint, "pages under way"),
        needed("engine-memory-bytes", Uint, "what index and heaps take"),
        needed(
            "move-cost-ns",
            Map(&Uint),
            "what a move costs on this host in nanoseconds, measured, by page size in bytes",
        ),
        needed(
            "map-generation",
            Uint,
            "grows when the guest's layout changes",
        ),
        needed("pins", Object(&PINS), "what is pinned"),
        optional(
            "drain",
            Object(&DRAIN_PROGRESS),
            "how far the drain has come, if one was asked for since the limit was set last",
        ),
        optional(
            "dry-run",
            Object(&PLANNED),
            "what would have been moved, in a dry run",
        ),
        needed(
            "sockets",
            Array(&Object(&SOCKET)),
            "where the agent is asked, and by how many",
        ),
        optional(
            "restored",
            Object(&RESTORED),
            "what the state file said at the agent's start, if it said anything",
        ),
        needed(
            "state-file",
            Object(&STATE_FILE),
            "where what commands set is kept over a restart of the agent",
        ),
    ],
};

const TIER_BIAS: ObjectSpec = ObjectSpec {
    name: "TierBias",
    doc: "How much more often the source reports an access to the fast tier than one to the slow tier, learned \
          from pages drawn by lot: some are promoted at once, some two seconds later.",
    members: &[
        optional(
            "fast-to-slow",
            Number,
            "records of the fast tier for each of the slow tier, for as many accesses; absent while that is \
             not known",
        ),
        optional(
            "deviation",
            Number,
            "the standard deviation of its logarithm: 0.1 is a tenth",
        ),
        needed("pages", Uint, "pages that it was learned from, decayed"),
        needed("held", Uint, "pages whose promotion waits for it now"),
        needed(
            "significant",
            Bool,
            "whether it differs from 1 by 4 deviations; counts are not corrected for it",
        ),
    ],
};

const TIER: ObjectSpec = ObjectSpec {
    name: "Tier",
    doc: "A tier's share of the VM.",
    members: &[
        needed("rank", Uint, "0 is the fastest"),
        needed("nodes", Array(&Uint), "its NUMA nodes"),
        needed("bytes", Uint, "guest memory on it"),
        optional(
            "limit-bytes",
            Uint,
            "the most that the guest may hold on it, if there is a limit",
        ),
        needed("free-bytes", Uint, "free memory of its nodes"),
    ],
};

const PINS: ObjectSpec = ObjectSpec {
    name: "TierPins",
    doc: "All pins.",
    members: &[
        needed("count", Uint, "pins in force"),
        needed("fast-bytes", Uint, "ranges pinned to the fast tier"),
        needed("slow-bytes", Uint, "ranges pinned to the slow tier"),
        needed(
            "placed-bytes",
            Uint,
            "present pinned pages that lie where they are pinned to",
        ),
        needed("elsewhere-bytes", Uint, "present pinned pages that don't"),
        needed(
            "ranges",
            Array(&Object(&PIN_STATUS)),
            "the pins in force, by address",
        ),
        needed(
            "waiting",
            Array(&Object(&PIN)),
            "pins that were set and that the guest has no memory for now",
        ),
    ],
};

const PIN: ObjectSpec = ObjectSpec {
    name: "TierPin",
    doc: "A pin as it was set.",
    members: &[
        needed("start", Uint, "the first guest-physical address"),
        needed("bytes", Uint, "the length"),
        needed("tier", TIERS, "where the range is to be"),
        needed(
            "when-full",
            WHEN_FULL,
            "what is done when it does not fit there",
        ),
    ],
};

pub(super) const PIN_STATUS: ObjectSpec = ObjectSpec {
    name: "TierPinStatus",
    doc: "A pin, and how far it is followed.",
    members: &[
        needed("start", Uint, "the first guest-physical address"),
        needed("bytes", Uint, "the length"),
        needed("tier", TIERS, "where the range is to be"),
        needed(
            "when-full",
            WHEN_FULL,
            "what is done when it does not fit there",
        ),
        needed(
            "placed-bytes",
            Uint,
            "present pages on that tier, in bytes of whole pages",
        ),
        needed("elsewhere-bytes", Uint, "present pages on the other"),
    ],
};

pub(super) const DRAIN_PROGRESS: ObjectSpec = ObjectSpec {
    name: "TierDrainProgress",
    doc: "How far a drain has come, in bytes.",
    members: &[
        needed("target-bytes", Uint, "what may stay in the fast tier"),
        needed(
            "start-bytes",
            Uint,
            "what was there when it began, or when all pages had been looked up",
        ),
        needed("fast-bytes", Uint, "what is there now"),
        needed(
            "pinned-bytes",
            Uint,
            "what is pinned there: it is not drained",
        ),
        needed("done", Bool, "whether the target was reached"),
        needed("stuck", Bool, "whether it does not come on"),
        optional(
            "stuck-because",
            Enum(&["no-slow-room", "pinned", "unmovable"]),
            "why it does not: the slow nodes have no room; more than the target is pinned; or what \
             is left can't be moved",
        ),
    ],
};

const PLANNED: ObjectSpec = ObjectSpec {
    name: "TierPlanned",
    doc: "Moves of a dry run.",
    members: &[
        needed("promote-bytes", Uint, "would have been promoted"),
        needed("demote-bytes", Uint, "would have been demoted"),
    ],
};

const SOCKET: ObjectSpec = ObjectSpec {
    name: "TierSocket",
    doc: "A socket that the agent serves.",
    members: &[
        needed(
            "kind",
            Enum(&["control", "proxy"]),
            "the agent's own, or QEMU's monitor with the agent's commands added",
        ),
        needed("path", String, "where it is"),
        needed("clients", Uint, "clients connected now"),
        needed("accepted", Uint, "clients taken since it is served"),
        needed(
            "rejected",
            Uint,
            "clients turned away because there were too many",
        ),
        needed(
            "too-slow",
            Uint,
            "clients disconnected because they did not read",
        ),
    ],
};

const RESTORED: ObjectSpec = ObjectSpec {
    name: "TierRestored",
    doc: "What was taken over from the state file.",
    members: &[
        needed(
            "what",
            Array(&Enum(&["paused", "limit", "policy", "pins"])),
            "what commands had set",
        ),
        needed("written", Uint, "when, in seconds since 1970"),
        needed(
            "same-qemu",
            Bool,
            "whether that was about this process of QEMU, or an earlier one of the VM's name",
        ),
    ],
};

const STATE_FILE: ObjectSpec = ObjectSpec {
    name: "TierStateFile",
    doc: "The state file.",
    members: &[
        needed("path", String, "where it is"),
        optional(
            "written",
            Uint,
            "when it was written last, in seconds since 1970; absent while commands have set nothing",
        ),
        optional("error", String, "why it can't be written, if it can't"),
    ],
};
