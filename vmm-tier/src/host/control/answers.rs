//! Compares answers with their descriptions, of which docs/host-qmp.md is made.

use std::collections::BTreeSet;

use qmp::server::{
    MemberSpec,
    TypeSpec::{self, Array, Enum, Map, Number, Object},
};
use serde_json::Value;

/// What a command returns.
pub(in crate::host) fn returned_by(command: &str) -> TypeSpec {
    let mut commands = super::spec::SPEC.commands.iter();
    let command = commands.find(|it| it.name == command);
    command.unwrap().returns
}

/// What an event has.
pub(in crate::host) fn data_of(event: &str) -> &'static [MemberSpec] {
    let mut events = super::spec::SPEC.events.iter();
    events.find(|it| it.name == event).unwrap().data
}

/// Compares an answer with its description: it has each member that it must have, and no other. Members
/// that are there are added to `seen`.
pub(in crate::host) fn compare(
    kind: TypeSpec,
    value: &Value,
    at: &str,
    seen: &mut BTreeSet<String>,
) {
    match (kind, value) {
        (Object(object), _) => compare_members(object.members, value, at, seen),
        (Array(item), Value::Array(values)) => {
            // A figure of the history that was not known is null.
            let is_unknown = |it: &Value| it.is_null() && matches!(item, Number);
            for value in values.iter().filter(|it| !is_unknown(it)) {
                compare(*item, value, at, seen);
            }
        }
        (Map(item), Value::Object(members)) => {
            let values = members.values();
            values.for_each(|value| compare(*item, value, at, seen));
        }
        (Enum(words), Value::String(word)) => {
            assert!(words.contains(&word.as_str()), "{at} is {word}");
        }
        (TypeSpec::String, Value::String(_))
        | (TypeSpec::Bool, Value::Bool(_))
        | (Number, Value::Number(_)) => {}
        (TypeSpec::Uint, Value::Number(number)) => assert!(number.is_u64(), "{at} is {number}"),
        _ => panic!("{at} is {value}, and described as {kind:?}"),
    }
}

/// As [`compare`], for the members of an object.
pub(in crate::host) fn compare_members(
    members: &[MemberSpec],
    value: &Value,
    at: &str,
    seen: &mut BTreeSet<String>,
) {
    let object = value.as_object().unwrap();
    for name in object.keys() {
        let is_described = members.iter().any(|member| member.name == name);
        assert!(is_described, "{at}.{name} is not described");
    }
    for member in members {
        let at = format!("{at}.{}", member.name);
        match object.get(member.name).filter(|value| !value.is_null()) {
            Some(value) => {
                compare(member.kind, value, &at, seen);
                seen.insert(at);
            }
            None => assert!(member.optional, "{at} is missing"),
        }
    }
}

/// All members that are described.
pub(in crate::host) fn described(members: &[MemberSpec], at: &str, all: &mut BTreeSet<String>) {
    for member in members {
        let at = format!("{at}.{}", member.name);
        let mut kind = member.kind;
        while let Array(item) | Map(item) = kind {
            kind = *item;
        }
        if let Object(object) = kind {
            described(object.members, &at, all);
        }
        all.insert(at);
    }
}
