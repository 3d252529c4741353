//! The types of the schema, made of the descriptions that reports carry.
//!
//! What is made here lives as long as the program: call it from the specification of a socket only.

use qmp::server::{MemberSpec, ObjectSpec, TypeSpec};
use tier_core::report::{Figure, Object, Reported, Shape};

/// The type of a report or of a part of it.
pub(crate) fn of<T: Reported>() -> TypeSpec {
    type_of(T::SHAPE)
}

/// The members of a report.
pub(crate) fn members_of<T: Reported>() -> &'static [MemberSpec] {
    match T::SHAPE {
        Shape::Object(object) => figures_of(object),
        _ => &[],
    }
}

/// Members that are described by hand.
pub(crate) fn members(members: Vec<MemberSpec>) -> &'static [MemberSpec] {
    Vec::leak(members)
}

fn type_of(shape: Shape) -> TypeSpec {
    match shape {
        Shape::Bool => TypeSpec::Bool,
        Shape::Uint => TypeSpec::Uint,
        Shape::Number => TypeSpec::Number,
        Shape::Text => TypeSpec::String,
        Shape::Words(words) => TypeSpec::Enum(words),
        Shape::List(item) => TypeSpec::Array(Box::leak(Box::new(type_of(*item)))),
        Shape::Map(item) => TypeSpec::Map(Box::leak(Box::new(type_of(*item)))),
        Shape::Object(object) => TypeSpec::Object(Box::leak(Box::new(spec_of(object)))),
    }
}

fn spec_of(object: &'static Object) -> ObjectSpec {
    ObjectSpec {
        name: object.name,
        doc: String::leak(object.help()),
        members: figures_of(object),
    }
}

fn figures_of(object: &Object) -> &'static [MemberSpec] {
    members(object.figures().iter().map(member).collect())
}

fn member(figure: &Figure) -> MemberSpec {
    MemberSpec {
        name: String::leak(figure.name()),
        kind: type_of(figure.shape),
        optional: figure.optional,
        doc: String::leak(in_a_list(figure.help())),
    }
}

/// A help text behind a member's name: it begins small, unless with a word such as QEMU.
fn in_a_list(help: String) -> String {
    let mut letters = help.chars();
    match (letters.next(), letters.next()) {
        (Some(first), second) if second.is_none_or(|second| !second.is_uppercase()) => {
            first.to_lowercase().chain(help.chars().skip(1)).collect()
        }
        _ => help,
    }
}
