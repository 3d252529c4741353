//! The metric that a figure of a report is, as its field says.
//!
//! A field of [`report!`](crate::report!) says so in an attribute, such as
//! `#[metric(counter = "promoted_bytes", since = "the agent's start")]`:
//!
//! | attribute | the figure is |
//! |---|---|
//! | `counter = "NAME", since = "…"` | a counter, and when it was 0 |
//! | `gauge = "NAME"` | a gauge; `true` is 1 and `false` 0 |
//! | `states = "NAME"` | a state set: for each word of the enumeration, whether it holds |
//! | `presence = "NAME", help = "…"` | a gauge: 1 if the figure is not `null`, else 0 |
//! | `count = "NAME"` | a gauge: the number of items in the list |
//! | `info = "NAME"` | a label of the info family of this name |
//! | `label = "NAME"` | the label that tells the items of its list apart |
//! | `exempt = "…"` | no metric, and why |
//!
//! `by = "LABEL"` names the label that tells the values of a map apart. Each word that the map may have
//! gives a sample, 0 if the map lacks it, but for the word of `except = "WORD"`. `help = "…"` replaces
//! the figure's help text. An object, or a list of objects, needs no attribute: its own figures have
//! theirs.
//!
//! Names follow OpenMetrics: a name ends in its unit, and units are base units. A field in `-ms` or
//! `-ns` is converted to seconds.

/// The metric that a figure is. [`report!`](crate::report!) makes it of an attribute; see the
/// [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// Nothing is said: for objects, for lists of objects, and in reports that are no metrics.
    Unsaid,
    /// None, and why.
    Exempt(&'static str),
    /// The label of this name, for all families of its list.
    Label(&'static str),
    /// A label of the info family of this name.
    Info(&'static str),
    /// A family.
    Family(Spec),
}

/// A family as a figure describes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    pub(super) name: &'static str,
    pub(super) reading: Reading,
    pub(super) since: Option<&'static str>,
    pub(super) by: Option<&'static str>,
    pub(super) except: Option<&'static str>,
    pub(super) help: Option<&'static str>,
}

/// What of a figure is exposed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reading {
    /// What it counts.
    Counter,
    /// Its value.
    Gauge,
    /// Which words hold.
    States,
    /// Whether it is there.
    Presence,
    /// How many items it has.
    Count,
}

impl Metric {
    /// No metric, and why.
    #[must_use]
    pub const fn exempt(why: &'static str) -> Self {
        Self::Exempt(why)
    }

    /// The label that tells the items of its list apart.
    #[must_use]
    pub const fn label(name: &'static str) -> Self {
        Self::Label(name)
    }

    /// A label of an info family.
    #[must_use]
    pub const fn info(name: &'static str) -> Self {
        Self::Info(name)
    }

    /// A counter.
    #[must_use]
    pub const fn counter(name: &'static str) -> Self {
        Self::family(name, Reading::Counter)
    }

    /// A gauge.
    #[must_use]
    pub const fn gauge(name: &'static str) -> Self {
        Self::family(name, Reading::Gauge)
    }

    /// A state set.
    #[must_use]
    pub const fn states(name: &'static str) -> Self {
        Self::family(name, Reading::States)
    }

    /// A gauge that says whether the figure is there.
    #[must_use]
    pub const fn presence(name: &'static str) -> Self {
        Self::family(name, Reading::Presence)
    }

    /// A gauge that says how many items the figure has.
    #[must_use]
    pub const fn count(name: &'static str) -> Self {
        Self::family(name, Reading::Count)
    }

    /// When the counter was 0.
    #[must_use]
    pub const fn since(self, since: &'static str) -> Self {
        let spec = self.spec();
        Self::Family(Spec {
            since: Some(since),
            ..spec
        })
    }

    /// The label that tells a map's values apart.
    #[must_use]
    pub const fn by(self, label: &'static str) -> Self {
        let spec = self.spec();
        Self::Family(Spec {
            by: Some(label),
            ..spec
        })
    }

    /// A word of the map's enumeration that the map never has.
    #[must_use]
    pub const fn except(self, word: &'static str) -> Self {
        let spec = self.spec();
        Self::Family(Spec {
            except: Some(word),
            ..spec
        })
    }

    /// What the family means, where that differs from the figure's meaning.
    #[must_use]
    pub const fn help(self, help: &'static str) -> Self {
        let spec = self.spec();
        Self::Family(Spec {
            help: Some(help),
            ..spec
        })
    }

    /// Since when a counter counts.
    pub(super) const fn counts_since(&self) -> Option<&'static str> {
        match self {
            Self::Family(spec) => spec.since,
            _ => None,
        }
    }

    const fn family(name: &'static str, reading: Reading) -> Self {
        Self::Family(Spec {
            name,
            reading,
            since: None,
            by: None,
            except: None,
            help: None,
        })
    }

    const fn spec(self) -> Spec {
        match self {
            Self::Family(spec) => spec,
            _ => panic!("only a metric family has such details"),
        }
    }
}
