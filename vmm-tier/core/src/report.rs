//! Reports: what users read, each figure defined once.
//!
//! [`report!`](crate::report!) defines a struct together with the description of its figures: a field's
//! documentation is the help text that users read, and its type is the value's shape. From this
//! description come the types of the control socket's schema and docs/qmp.md. [`words!`](crate::words!)
//! does the same for enumerations: the words that users read stand at the variants.
//!
//! A field's `#[metric(…)]` says which [metric] the figure is. From these come the [families](family) of
//! docs/metrics.md and the [text](open_metrics) that Prometheus reads.
//!
//! Units stand in names: `-bytes`, `-s`, `-ms`, `-ns`, `-per-s`, `-pages`.

pub mod family;
pub mod metric;
pub mod open_metrics;

use std::{borrow::Cow, collections::BTreeMap};

use self::metric::Metric;
use crate::addr::{Gpa, Hva, NodeId, NodeSet};

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// A whole number from 0 to 2⁶⁴ − 1.
    Uint,
    /// Any number.
    Number,
    /// A string.
    Text,
    /// One of these words.
    Words(&'static [&'static str]),
    /// Values of one shape.
    List(&'static Self),
    /// Values of one shape by name.
    Map(&'static Self),
    /// Named figures.
    Object(&'static Object),
}

/// A figure of a report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The name of the field.
    pub field: &'static str,
    /// What it means, as written: a blank before each line.
    pub doc: &'static str,
    /// Its value.
    pub shape: Shape,
    /// Whether it may be `null`.
    pub optional: bool,
    /// The words that the names of a map's values are; empty if the names are no words of an
    /// enumeration.
    pub keys: &'static [&'static str],
    /// Whether the figures of the object that it holds stand in its place.
    pub is_inline: bool,
    /// The metric that it is.
    pub metric: Metric,
}

impl Figure {
    /// The name that users read: that of the field with `-` for `_`.
    #[must_use]
    pub fn name(&self) -> String {
        self.field.replace('_', "-")
    }

    /// What it means, on one line and without the full stop at its end. For a counter, also since when
    /// it counts.
    #[must_use]
    pub fn help(&self) -> String {
        match self.metric.counts_since() {
            Some(since) => format!("{}; counted since {since}", self.meaning()),
            None => self.meaning(),
        }
    }

    /// What it means, on one line and without the full stop at its end.
    fn meaning(&self) -> String {
        one_line(self.doc)
    }
}

/// An object of figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// The name of its type in the control socket's schema.
    pub name: &'static str,
    /// What it is, as written: a blank before each line.
    pub doc: &'static str,
    fields: &'static [Figure],
}

impl Object {
    /// An object of these fields. [`report!`](crate::report!) makes them.
    #[must_use]
    pub const fn new(name: &'static str, doc: &'static str, fields: &'static [Figure]) -> Self {
        Self { name, doc, fields }
    }

    /// The description of a struct that [`report!`](crate::report!) defines.
    #[must_use]
    pub const fn of<T: Reported>() -> &'static Self {
        match T::SHAPE {
            Shape::Object(object) => object,
            _ => panic!("only a report is an object of figures"),
        }
    }

    /// What it is, on one line.
    #[must_use]
    pub fn help(&self) -> String {
        format!("{}.", one_line(self.doc))
    }

    /// Its figures, those of inline objects in their place.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for figure in self.fields {
            match figure.shape {
                Shape::Object(object) if figure.is_inline => figures.extend(object.figures()),
                _ => figures.push(*figure),
            }
        }
        figures
    }
}

fn one_line(doc: &str) -> String {
    let line = doc.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_suffix('.').map(str::to_owned).unwrap_or(line)
}

/// A type whose values users read.
pub trait Reported {
    /// What they look like.
    const SHAPE: Shape;
    /// Whether they may be `null`.
    const OPTIONAL: bool = false;
    /// The words that the names of a map's values are, if they are words.
    const KEYS: &'static [&'static str] = &[];
}

macro_rules! reported {
    ($($shape:ident: $($type:ty),+;)+) => {
        $($(impl Reported for $type {
            const SHAPE: Shape = Shape::$shape;
        })+)+
    };
}

reported! {
    Bool: bool;
    Uint: u8, u16, u32, u64, usize, Gpa, Hva, NodeId;
    Number: f32, f64;
    Text: String, &str, Cow<'_, str>;
}

impl<T: Reported> Reported for Option<T> {
    const SHAPE: Shape = T::SHAPE;
    const OPTIONAL: bool = true;
}

impl Reported for NodeSet {
    const SHAPE: Shape = <Vec<NodeId>>::SHAPE;
}

impl<T: Reported> Reported for Vec<T> {
    const SHAPE: Shape = Shape::List(&T::SHAPE);
}

impl<K: Reported, V: Reported> Reported for BTreeMap<K, V> {
    const SHAPE: Shape = Shape::Map(&V::SHAPE);
    const KEYS: &'static [&'static str] = match K::SHAPE {
        Shape::Words(words) => words,
        _ => &[],
    };
}

/// Defines a struct and describes its figures; see the [module](mod@crate::report).
///
/// `= "Name"` behind the struct's name is the name of its type in the schema. `#[metric(…)]` says which
/// [metric](crate::report::metric) a field is. `#[serde(flatten)]` puts the figures of the object that a
/// field holds in the field's place. `#[serde(with = "module")]` is handed on.
///
/// ```
/// use tier_core::report::Object;
///
/// tier_core::report! {
///     /// What a source has delivered.
///     #[derive(Clone, Debug)]
///     pub struct Delivered = "TierDelivered" {
///         /// Records that arrived.
///         #[metric(counter = "source_records", since = "the agent's start")]
///         pub samples: u64,
///         /// Why none arrives; absent while some do.
///         pub down: Option<String>,
///     }
/// }
///
/// let figures = Object::of::<Delivered>().figures();
/// assert_eq!(figures[0].help(), "Records that arrived; counted since the agent's start");
/// assert!(figures[1].optional);
/// let delivered = Delivered { samples: 7, down: None };
/// assert_eq!(serde_json::to_string(&delivered).unwrap(), r#"{"samples":7,"down":null}"#);
/// ```
#[macro_export]
macro_rules! report {
    ($(#[doc = $doc:literal])+ $(#[derive($($derive:tt)*)])? $visibility:vis struct $name:ident = $type_name:literal {
        $($(#[doc = $field_doc:literal])+
            $(#[metric($metric:ident = $metric_name:literal $(, $detail:ident = $value:literal)*)])?
            $(#[serde($serde:ident $(= $with:literal)?)])?
            $field_visibility:vis $field:ident: $type:ty,)+
    }) => {
        $(#[doc = $doc])+
        $(#[derive($($derive)*)])?
        #[derive(::serde::Serialize)]
        #[serde(rename_all = "kebab-case")]
        $visibility struct $name {
            $($(#[doc = $field_doc])+ $(#[serde($serde $(= $with)?)])? $field_visibility $field: $type,)+
        }

        impl $crate::report::Reported for $name {
            const SHAPE: $crate::report::Shape = $crate::report::Shape::Object(
                &$crate::report::Object::new($type_name, concat!($($doc),+), &[$(
                    $crate::report::Figure {
                        field: stringify!($field),
                        doc: concat!($($field_doc),+),
                        shape: <$type as $crate::report::Reported>::SHAPE,
                        optional: <$type as $crate::report::Reported>::OPTIONAL,
                        keys: <$type as $crate::report::Reported>::KEYS,
                        is_inline: $crate::report!(@inline $($serde)?),
                        metric: $crate::report!(@metric $($metric = $metric_name $(, $detail = $value)*)?),
                    },
                )+]),
            );
        }
    };
    (@metric) => { $crate::report::metric::Metric::Unsaid };
    (@metric $metric:ident = $name:literal $(, $detail:ident = $value:literal)*) => {
        $crate::report::metric::Metric::$metric($name)$(.$detail($value))*
    };
    (@inline) => { false };
    (@inline flatten) => { true };
    (@inline with) => { false };
}

/// Defines an enumeration by the words that users read and write; see the [module](mod@crate::report).
///
/// ```
/// use tier_core::report::{Reported, Shape};
///
/// tier_core::words! {
///     /// Which way a page goes.
///     pub enum Way {
///         /// To the fast tier.
///         Up = "promote",
///         /// To the slow tier.
///         Down = "demote",
///     }
/// }
///
/// assert_eq!(Way::ALL.map(Way::name), ["promote", "demote"]);
/// assert_eq!(Way::SHAPE, Shape::Words(&["promote", "demote"]));
/// assert_eq!(serde_json::to_string(&Way::Down).unwrap(), r#""demote""#);
/// ```
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ::serde::Serialize, ::serde::Deserialize)]
        $visibility enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All of them, in the order in which tables show them.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The word that users read and write.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl $crate::report::Reported for $name {
            const SHAPE: $crate::report::Shape = $crate::report::Shape::Words(&[$($word),+]);
        }
    };
}
