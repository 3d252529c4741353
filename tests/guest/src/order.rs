//! What a guest can be told to do while it works: typed on its console, or planned from the start.

use core::fmt;

/// Orders in a plan.
const MOST: usize = 32;

/// An order to a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `go`: touch the working set and begin.
    Go,
    /// `hot AT [MIB [STRIDE]]`: the hot set is elsewhere, of another size, or scattered
    /// differently.
    Hot {
        /// Where it begins in the working set.
        at_mib: u64,
        /// Its size, if that changes.
        mib: Option<u64>,
        /// Distance between its pages, if that changes.
        stride: Option<u64>,
    },
    /// `grow MIB`: the working set is touched up to there.
    Grow {
        /// Its new size.
        mib: u64,
    },
    /// `idle`: access nothing and halt the CPU until woken.
    Idle,
    /// `busy`: work again.
    Busy,
    /// `finish`: compare the memory with all updates and end.
    Finish,
}

impl Order {
    /// Reads an order, its words divided by spaces or slashes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text
            .split([' ', '/'])
            .map(str::trim)
            .filter(|word| !word.is_empty());
        let name = words.next()?;
        let mut number = || words.next().map(|word| word.parse::<u64>().ok());
        let order = match name {
            "go" => Self::Go,
            "hot" => Self::Hot {
                at_mib: number()??,
                mib: optional(number())?,
                stride: optional(number())?,
            },
            "grow" => Self::Grow { mib: number()?? },
            "idle" => Self::Idle,
            "busy" => Self::Busy,
            "finish" => Self::Finish,
            _ => return None,
        };
        words.next().is_none().then_some(order)
    }
}

/// `None` for a word that is no number, `Some(None)` for none at all.
#[expect(clippy::option_option, reason = "a wrong word is not a missing one")]
fn optional(word: Option<Option<u64>>) -> Option<Option<u64>> {
    match word {
        Some(None) => None,
        Some(number) => Some(number),
        None => Some(None),
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Go => f.write_str("go"),
            Self::Hot {
                at_mib,
                mib,
                stride,
            } => {
                write!(f, "hot/{at_mib}")?;
                // A stride has its place behind a size; where only the stride changes the guest is
                // told both.
                if let Some(mib) = mib {
                    write!(f, "/{mib}")?;
                    if let Some(stride) = stride {
                        write!(f, "/{stride}")?;
                    }
                }
                Ok(())
            }
            Self::Grow { mib } => write!(f, "grow/{mib}"),
            Self::Idle => f.write_str("idle"),
            Self::Busy => f.write_str("busy"),
            Self::Finish => f.write_str("finish"),
        }
    }
}

/// An order and when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Seconds since the working set was touched.
    pub at_s: u64,
    /// What to do then.
    pub order: Order,
}

impl Planned {
    /// Reads `SECONDS:ORDER` or `SECONDS ORDER`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (seconds, order) = text.trim().split_once([':', ' '])?;
        Some(Self {
            at_s: seconds.parse().ok()?,
            order: Order::parse(order)?,
        })
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.at_s, self.order)
    }
}

/// Orders in the order of their times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    orders: [Planned; MOST],
    count: usize,
}

impl Default for Plan {
    fn default() -> Self {
        let order = Order::Busy;
        Self {
            orders: [Planned { at_s: 0, order }; MOST],
            count: 0,
        }
    }
}

impl Plan {
    /// The orders.
    #[must_use]
    pub fn orders(&self) -> &[Planned] {
        &self.orders[..self.count]
    }

    /// Adds an order; false if the plan is full or an earlier order is due later.
    pub fn push(&mut self, planned: Planned) -> bool {
        let later = self
            .orders()
            .last()
            .is_none_or(|last| last.at_s <= planned.at_s);
        let fits = self.count < MOST && later;
        if fits {
            self.orders[self.count] = planned;
            self.count += 1;
        }
        fits
    }

    /// Reads orders divided by commas.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut plan = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            if !plan.push(Planned::parse(part)?) {
                return None;
            }
        }
        Some(plan)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, planned) in self.orders().iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{planned}")?;
        }
        Ok(())
    }
}

/// In a scenario a plan is a list of texts.
#[cfg(feature = "serde")]
mod text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::{Plan, Planned};

    impl Serialize for Plan {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(self.orders().iter().map(ToString::to_string))
        }
    }

    impl<'de> Deserialize<'de> for Plan {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let mut plan = Self::default();
            for text in Vec::<String>::deserialize(deserializer)? {
                let planned = Planned::parse(&text).ok_or_else(|| {
                    D::Error::custom(format!(
                        "'{text}' is no planned order such as '20 hot 0 16' or '40 idle'"
                    ))
                })?;
                if !plan.push(planned) {
                    return Err(D::Error::custom(format!(
                        "'{text}' is due before the order before it, or the plan has more than {} orders",
                        super::MOST
                    )));
                }
            }
            Ok(plan)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_when_written_reads_back_equal() {
        for text in [
            "go",
            "hot/3",
            "hot/3/16",
            "hot/3/16/8",
            "grow/200",
            "idle",
            "busy",
            "finish",
        ] {
            let order = Order::parse(text).unwrap();

            assert_eq!(order.to_string(), text);
            assert_eq!(Order::parse(&text.replace('/', " ")), Some(order));
        }
    }

    #[test]
    fn order_when_not_understood_is_refused() {
        for text in [
            "",
            "dance",
            "hot",
            "hot x",
            "hot 1 2 3 4",
            "hot 1 x",
            "grow",
            "idle 3",
        ] {
            assert_eq!(Order::parse(text), None, "{text}");
        }
    }

    #[test]
    fn plan_when_out_of_order_or_too_long_is_refused() {
        let plan = Plan::parse("5:hot/0/16,20:idle,20:busy").unwrap();
        assert_eq!(plan.orders().len(), 3);
        assert_eq!(Plan::parse(&plan.to_string()), Some(plan));

        assert_eq!(Plan::parse("20:idle,5:busy"), None);
        assert_eq!(Plan::parse(&"1:idle,".repeat(MOST + 1)), None);
        assert_eq!(Plan::parse("x:idle"), None);
    }
}
