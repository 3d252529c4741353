//! The host's figures in short pieces, and its alarms in words.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    super::{
        columns::Severity,
        figures::{list, number, shown, text},
        text::{bytes, harmless, time},
    },
    said,
};

/// The host's figures, each in a short piece.
pub(in super::super) fn pieces(host: &Value) -> Vec<String> {
    let bytes_of = |name| shown(host, name);
    let mut pieces = Vec::new();
    pieces.extend(said(host, "mode"));
    pieces.push(format!("DRAM {}", bytes_of("pool-bytes")));
    if let (Some(pool), Some(free)) = (number(host, "pool-bytes"), number(host, "free-bytes")) {
        pieces.push(format!("shared out {}", bytes(pool - free)));
    }
    pieces.push(format!("free {}", bytes_of("free-bytes")));
    if number(host, "charged-bytes") != Some(0.0) {
        pieces.push(format!("others hold {}", bytes_of("charged-bytes")));
    }
    if number(host, "shortfall-bytes").is_some_and(|lacking| lacking > 0.0) {
        pieces.push(format!("guarantees lack {}", bytes_of("shortfall-bytes")));
    }
    if let Some(moves) = host.get("moves") {
        pieces.push(format!(
            "moves {} of {}",
            shown(moves, "bytes-per-s"),
            shown(moves, "budget-bytes-per-s")
        ));
    }
    if let Some(fairness) = host.get("fairness") {
        let index = number(fairness, "jain").map_or("–".to_owned(), |jain| format!("{jain:.3}"));
        pieces.push(format!("fairness {index}"));
        if let Some(worst) = said(fairness, "worst-vm") {
            let part =
                number(fairness, "worst-ratio").map_or(String::new(), |part| format!(" {part:.2}"));
            pieces.push(format!("worst {}{part}", super::cut(&worst, 20)));
        }
        if number(fairness, "envy").is_some_and(|envy| envy > 0.0) {
            pieces.push(format!("envy {}", shown(fairness, "envy")));
        }
    }
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    let vms = list(host, "vms");
    for vm in vms {
        *states
            .entry(text(vm, "state").unwrap_or("unknown"))
            .or_default() += 1;
    }
    let states = states.into_iter().take(6);
    let states =
        states.map(|(state, count)| format!("{count} {}", super::cut(&harmless(state), 12)));
    let states: Vec<String> = states.collect();
    match states.is_empty() {
        true => pieces.push("no VMs".to_owned()),
        false => pieces.push(format!("VMs {}: {}", vms.len(), states.join(", "))),
    }
    if let Some(drain) = host.get("drain").filter(|drain| drain.is_object()) {
        pieces.push(match drain.get("done").and_then(Value::as_bool) {
            Some(true) => format!("drained to {}", shown(drain, "to-bytes")),
            _ => format!("draining, {} left", shown(drain, "left-bytes")),
        });
    }
    if host.get("starting").and_then(Value::as_bool) == Some(true) {
        pieces.push("starting".to_owned());
    }
    if host
        .get("state-file-error")
        .is_some_and(|error| !error.is_null())
    {
        pieces.push("! the state file can't be written".to_owned());
    }
    pieces
}

/// The alarms of the host, or of one VM, the gravest first.
pub(in super::super) fn alarms(host: &Value, vm: Option<&str>) -> Vec<(Severity, String)> {
    let alarms = list(host, "alarms").iter();
    let alarms = alarms.filter(|alarm| vm.is_none() || text(alarm, "vm") == vm);
    let mut alarms: Vec<_> = alarms
        .map(|alarm| {
            let since = number(alarm, "since-s")
                .map_or(String::new(), |since| format!(" ({})", time(since)));
            let text = said(alarm, "text").unwrap_or_else(|| "an alarm without words".to_owned());
            // The sentence may tell the time itself.
            let since = if text.contains(" for ") {
                String::new()
            } else {
                since
            };
            (Severity::of(alarm), text + &since)
        })
        .collect();
    alarms.sort_by_key(|alarm| std::cmp::Reverse(alarm.0));
    alarms
}
