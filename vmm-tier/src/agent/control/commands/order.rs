//! What a client asks of the agent, as the agent's thread carries it out.

use qmp::QmpError;
use serde::Deserialize;
use serde_json::{Map, Value};
use tier_core::{
    addr::Gpa,
    engine::{MAX_CELLS, Pin, WhenFull},
    settings::Tier,
};

use crate::{
    agent::state_file::PolicyOverride,
    reply::{sentence, typed},
};

/// A command, its arguments checked as far as they can be without the guest.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::agent) enum Order {
    Query,
    /// With nothing set, back to what the command line and the configuration say.
    SetPolicy(PolicyOverride),
    SetLimit(Option<u64>),
    Pause,
    Resume,
    Pin(Pin),
    Unpin(UnpinArguments),
    /// Leave the fast tier down to this many bytes.
    Drain(u64),
    /// Why a page lies where it lies.
    Explain(Gpa),
    Heatmap {
        rows: u32,
        columns: u32,
    },
    /// The last moves of so many pages.
    Moves(u64),
    /// How much DRAM the guest asks for.
    Demand,
}

#[derive(Deserialize)]
struct LimitArguments {
    bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PinArguments {
    start: u64,
    bytes: u64,
    tier: Tier,
    when_full: Option<WhenFull>,
}

/// Which pins are to go; without either, all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::agent) struct UnpinArguments {
    pub(in crate::agent) start: Option<u64>,
    pub(in crate::agent) bytes: Option<u64>,
}

#[derive(Deserialize)]
struct ExplainArguments {
    address: u64,
}

#[derive(Deserialize)]
struct HeatmapArguments {
    rows: Option<u64>,
    columns: Option<u64>,
}

#[derive(Deserialize)]
struct MovesArguments {
    count: Option<u64>,
}

impl Order {
    /// The order that a command gives. Its arguments have been checked against its specification.
    pub(in crate::agent::control) fn parse(
        name: &str,
        arguments: Map<String, Value>,
    ) -> Result<Self, QmpError> {
        Ok(match name {
            "query-tier" => Self::Query,
            "tier-pause" => Self::Pause,
            "tier-resume" => Self::Resume,
            "tier-set-limit" => Self::SetLimit(typed::<LimitArguments>(arguments)?.bytes),
            "tier-set-policy" => {
                let wish: PolicyOverride = typed(arguments)?;
                wish.change()
                    .map_err(|error| QmpError::generic(sentence(&error)))?;
                Self::SetPolicy(wish)
            }
            "tier-pin" => {
                let PinArguments {
                    start,
                    bytes,
                    tier,
                    when_full,
                } = typed(arguments)?;
                Self::Pin(Pin {
                    start: Gpa(start),
                    bytes,
                    tier,
                    when_full: when_full.unwrap_or(WhenFull::Refuse),
                })
            }
            "tier-unpin" => {
                let unpin: UnpinArguments = typed(arguments)?;
                if unpin.start.is_some() != unpin.bytes.is_some() {
                    return Err(QmpError::generic(
                        "Parameters 'start' and 'bytes' go together: give both, or neither to unpin all",
                    ));
                }
                Self::Unpin(unpin)
            }
            "tier-drain" => Self::Drain(typed::<LimitArguments>(arguments)?.bytes.unwrap_or(0)),
            "tier-explain" => Self::Explain(Gpa(typed::<ExplainArguments>(arguments)?.address)),
            "query-tier-heatmap" => heatmap(&typed(arguments)?)?,
            "query-tier-demand" => Self::Demand,
            "query-tier-moves" => {
                let MovesArguments { count } = typed(arguments)?;
                Self::Moves(count.unwrap_or(100))
            }
            other => return Err(QmpError::command_not_found(other)),
        })
    }
}

fn heatmap(size: &HeatmapArguments) -> Result<Order, QmpError> {
    let (rows, columns) = (size.rows.unwrap_or(16), size.columns.unwrap_or(64));
    let cells = rows.saturating_mul(columns);
    match (u32::try_from(rows), u32::try_from(columns)) {
        (Ok(rows), Ok(columns)) if (1..=MAX_CELLS).contains(&cells) => {
            Ok(Order::Heatmap { rows, columns })
        }
        _ => Err(QmpError::generic(format!(
            "Parameters 'rows' and 'columns' must be at least 1, and their product at most {MAX_CELLS}"
        ))),
    }
}
