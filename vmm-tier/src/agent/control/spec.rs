//! What the control socket offers: names, arguments, returns and meanings.
//!
//! The server checks arguments against this, answers `query-commands` and `query-qmp-schema` from it,
//! and docs/qmp.md is made of it. What commands return is described where its struct is defined, by
//! [`report!`](tier_core::report!). A member that a command returns and that may be left out may be
//! `null` too.

mod commands;
mod events;

use std::sync::LazyLock;

use qmp::server::{CommandSpec, EventSpec, MemberSpec, TypeSpec};

use crate::report_schema as types;

/// See the [module](self).
pub(super) struct Spec {
    pub(super) commands: Vec<CommandSpec>,
    pub(super) events: Vec<EventSpec>,
}

/// Built once, as its parts are never given back.
pub(super) static SPEC: LazyLock<Spec> = LazyLock::new(|| Spec {
    commands: commands::commands(),
    events: events::events(),
});

/// A member that is always there.
const fn needed(name: &'static str, kind: TypeSpec, doc: &'static str) -> MemberSpec {
    MemberSpec::needed(name, kind, doc)
}

/// A member that may be left out.
const fn optional(name: &'static str, kind: TypeSpec, doc: &'static str) -> MemberSpec {
    MemberSpec::optional(name, kind, doc)
}
