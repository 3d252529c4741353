//! What the daemon's socket offers: names, arguments, returns and meanings.
//!
//! The server checks arguments against this, answers `query-commands` and `query-qmp-schema` from it,
//! and docs/host-qmp.md is made of it.

use std::sync::LazyLock;

use qmp::server::{
    CommandSpec, EventSpec, MemberSpec, ObjectSpec,
    TypeSpec::{self, Array, Bool, Number, String, Uint},
};
use tier_core::arbiter::Mode;

use crate::{
    host::{
        events::{DeficitEvent, SharesEvent, VmEvent},
        recorder,
        report::{HostAdmission, HostDrain, HostInfo},
    },
    report_schema::{members, members_of, of},
};

/// See the [module](self).
pub(super) struct Spec {
    pub(super) commands: Vec<CommandSpec>,
    pub(super) events: Vec<EventSpec>,
}

/// Built once, as its parts are never given back.
pub(super) static SPEC: LazyLock<Spec> = LazyLock::new(|| Spec {
    commands: commands(),
    events: events(),
});

/// Pairs of numbers.
const PAIRS: TypeSpec = Array(&Array(&Number));

const fn needed(name: &'static str, kind: TypeSpec, doc: &'static str) -> MemberSpec {
    MemberSpec::needed(name, kind, doc)
}

const fn optional(name: &'static str, kind: TypeSpec, doc: &'static str) -> MemberSpec {
    MemberSpec::optional(name, kind, doc)
}

fn commands() -> Vec<CommandSpec> {
    let state = of::<HostInfo>();
    vec![
        CommandSpec {
            name: "query-host",
            doc: "The host's DRAM, who has how much of it, and how fair that is.",
            returns: state,
            ..CommandSpec::PLAIN
        },
        recorder::spec(),
        CommandSpec {
            name: "host-set-vm",
            doc: "Changes what a VM is granted, also one that is not there yet. What is left out does not \
                  change; with the name alone, the VM's terms return to what the configuration says. \
                  Refused if the guarantees of all VMs would exceed the pool. Kept over a restart of the \
                  daemon.",
            args: members(vec![
                needed("name", String, "the VM"),
                optional(
                    "weight",
                    Number,
                    "its part of what is above all guarantees, relative to other VMs' weights: 0.001 to 1000",
                ),
                optional(
                    "guarantee-bytes",
                    Uint,
                    "DRAM that is the VM's whenever it uses as much",
                ),
                optional(
                    "cap-bytes",
                    Uint,
                    "the most DRAM that the VM may have; it has no more than its memory in any case",
                ),
                optional(
                    "goal",
                    Number,
                    "the share of its accesses that DRAM shall serve, above 0 and up to 1, for the mode `goal`",
                ),
            ]),
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "host-set-mode",
            doc: "Changes what decides who has how much. What is left out does not change; without any \
                  argument both return to what the configuration says. Kept over a restart of the daemon.",
            args: members(vec![
                optional("mode", of::<Mode>(), "what decides"),
                optional(
                    "band",
                    Number,
                    "for the mode `utility`: which part of its fair share a VM can lose, 0 to 1",
                ),
            ]),
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "host-admit",
            doc: "Whether a VM with this guarantee would be admitted beside those that are there.",
            args: members(vec![
                optional(
                    "name",
                    String,
                    "the VM; one that is there is asked about as if its guarantee were this one",
                ),
                needed("guarantee-bytes", Uint, "what would be guaranteed to it"),
                optional("cap-bytes", Uint, "the most DRAM that it might have"),
                optional(
                    "page-bytes",
                    Uint,
                    "the size of its pages, 4096 if left out: guarantees are whole pages",
                ),
            ]),
            returns: of::<HostAdmission>(),
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "host-drain",
            doc: "Has all guests together leave DRAM down to a size, at the rate of `[moves] bytes-per-s`: \
                  the pool shrinks, and agents demote what is coldest. `HOST_DRAIN` reports the progress. The \
                  size stays the bound until the drain is cancelled. VMs without an agent stay where they \
                  are. Kept over a restart of the daemon.",
            args: members(vec![
                optional(
                    "bytes",
                    Uint,
                    "what guests may keep of DRAM; left out, nothing",
                ),
                optional(
                    "cancel",
                    Bool,
                    "end the drain: the pool is as configured again",
                ),
            ]),
            returns: state,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "host-register",
            doc: "For agents: this connection serves a VM from now on. The process is proven: it must run, \
                  have begun when the agent says, and be a QEMU. The user who connects must be root or the \
                  one that QEMU runs as.",
            args: members(vec![
                needed("name", String, "the VM's name"),
                needed("pid", Uint, "the process of its QEMU"),
                needed(
                    "pid-start",
                    Uint,
                    "when that process began, in clock ticks after the boot",
                ),
                needed("memory-bytes", Uint, "the guest's memory"),
                needed("page-bytes", Uint, "the size of most of its pages"),
                optional("limit-bytes", Uint, "the operator's limit of the VM"),
                optional(
                    "share-bytes",
                    Uint,
                    "the share that is in force from an earlier daemon",
                ),
                optional("control", String, "the agent's control socket"),
            ]),
            returns: LEASE,
            ..CommandSpec::PLAIN
        },
        CommandSpec {
            name: "host-report",
            doc: "For agents: what was measured, once a second. The reply is what was decided last.",
            args: members(vec![
                needed("number", Uint, "greater than that of the last report"),
                needed(
                    "made-ns",
                    Uint,
                    "when it was made, by CLOCK_MONOTONIC: at most 5 s ago",
                ),
                needed(
                    "curve",
                    PAIRS,
                    "bytes of DRAM, and the accesses a second that they would serve: 64 points at most",
                ),
                needed(
                    "ram",
                    PAIRS,
                    "where the guest's RAM lies in QEMU: first address and bytes, 64 ranges at most",
                ),
                needed("fast-bytes", Uint, "bytes of the guest in DRAM"),
                needed("present-bytes", Uint, "bytes of the guest in memory"),
                optional("limit-bytes", Uint, "the operator's limit"),
                optional("limit-in-force-bytes", Uint, "the limit in force"),
                needed("state", String, "the agent's state"),
                optional("source", String, "the source that it believes"),
                optional("waits-for", String, "what its moves wait for"),
                optional(
                    "hit-ratio",
                    Number,
                    "the share of accesses that DRAM served",
                ),
                needed(
                    "promoted-bytes",
                    Uint,
                    "bytes promoted since the agent's start",
                ),
                needed(
                    "demoted-bytes",
                    Uint,
                    "bytes demoted since the agent's start",
                ),
            ]),
            returns: LEASE,
            ..CommandSpec::PLAIN
        },
    ]
}

/// What agents get.
const LEASE: TypeSpec = TypeSpec::Object(&ObjectSpec {
    name: "HostLease",
    doc: "A share of DRAM, and how long it holds.",
    members: &[
        optional(
            "share-bytes",
            Uint,
            "the DRAM that the VM may have; absent until the daemon has dealt with the VM in it",
        ),
        needed("lease-ms", Uint, "how long that holds"),
        needed("report-ms", Uint, "when the next report is due"),
        needed(
            "move-bytes-per-s",
            Uint,
            "the most bytes that the agent may promote and demote a second",
        ),
    ],
});

fn events() -> Vec<EventSpec> {
    vec![
        EventSpec {
            name: "HOST_VM",
            doc: "A VM came, is gone, was refused, or its agent fell silent or is back.",
            data: members_of::<VmEvent>(),
        },
        EventSpec {
            name: "HOST_SHARES",
            doc: "More than 5 % of the pool changed hands since the last such event. One is sent in five \
                  seconds at most.",
            data: members_of::<SharesEvent>(),
        },
        EventSpec {
            name: "HOST_DEFICIT",
            doc: "A VM has had less than it uses of its guarantee for longer than `guarantee-back-s`, or \
                  has it again.",
            data: members_of::<DeficitEvent>(),
        },
        EventSpec {
            name: "HOST_DRAIN",
            doc: "A drain advanced by 1 %, is done, or is no more.",
            data: members_of::<HostDrain>(),
        },
    ]
}
