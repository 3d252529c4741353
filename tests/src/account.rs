//! What an agent says became of a source's records.

use std::fmt;

use serde_json::Value;

/// An account as `query-tier` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Came out of the source.
    pub arrived: u64,
    /// Became samples.
    pub accepted: u64,
    /// Did not, for whatever reason.
    pub dropped: u64,
    /// The source itself had no room for them.
    pub lost: u64,
}

impl Account {
    /// Reads an account; `None` if a part of it is not there or no number.
    #[must_use]
    pub fn read(value: &Value) -> Option<Self> {
        let dropped = value["dropped"].as_object()?;
        Some(Self {
            arrived: value["samples"].as_u64()?,
            accepted: value["accepted"].as_u64()?,
            dropped: dropped
                .values()
                .map(Value::as_u64)
                .try_fold(0, |sum: u64, count| sum.checked_add(count?))?,
            lost: value["lost"].as_u64()?,
        })
    }

    /// Whether every record that arrived became one or the other, and enough were accepted.
    #[must_use]
    pub fn holds(&self, min_accepted: u64) -> bool {
        self.accepted.checked_add(self.dropped) == Some(self.arrived)
            && self.accepted >= min_accepted
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            arrived,
            accepted,
            dropped,
            lost,
        } = self;
        write!(
            f,
            "{arrived} arrived, {accepted} accepted, {dropped} dropped, {lost} lost before"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(dropped: u64) -> Value {
        json!({
            "kind": "ibs", "samples": 100, "accepted": 60, "lost": 7,
            "dropped": { "unmapped": dropped, "no-address": 3 },
        })
    }

    #[test]
    fn account_when_records_are_missing_does_not_hold() {
        let account = |dropped| Account::read(&told(dropped)).unwrap();

        assert!(account(37).holds(60));
        assert_eq!(
            account(37).to_string(),
            "100 arrived, 60 accepted, 40 dropped, 7 lost before"
        );
        assert!(!account(36).holds(60));
        assert!(!account(38).holds(60));
        assert!(!account(37).holds(61));
    }

    #[test]
    fn account_when_a_part_is_not_told_is_none() {
        for part in ["samples", "accepted", "dropped", "lost"] {
            let mut told = told(37);
            told.as_object_mut().unwrap().remove(part);
            assert_eq!(Account::read(&told), None, "{part}");
        }
        assert_eq!(Account::read(&Value::Null), None);
    }
}
