//! What a running agent replies and tells is what its own `query-qmp-schema` says.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::played::{Agent, FOR_EVER, MIB, Qemu};

/// `query-qmp-schema`, by name.
struct Schema(HashMap<String, Value>);

impl Schema {
    fn of(agent: &mut Agent) -> Self {
        let infos = agent.ask("query-qmp-schema", None);
        let infos = infos.as_array().unwrap().iter();
        Self(
            infos
                .map(|info| (info["name"].as_str().unwrap().to_owned(), info.clone()))
                .collect(),
        )
    }

    /// Panics where `value` is not of the type `name`; `path` says where it stands.
    fn check(&self, name: &Value, value: &Value, path: &str) {
        let info = &self.0[name.as_str().unwrap()];
        let fits = match (info["meta-type"].as_str(), info["json-type"].as_str()) {
            (Some("builtin"), Some("string")) => value.is_string(),
            (Some("builtin"), Some("boolean")) => value.is_boolean(),
            (Some("builtin"), Some("int")) => value.is_u64(),
            (Some("builtin"), Some("number")) => value.is_number(),
            (Some("builtin"), Some("value")) => true,
            (Some("enum"), _) => info["values"].as_array().unwrap().contains(value),
            (Some("array"), _) => {
                for (index, item) in value.as_array().unwrap().iter().enumerate() {
                    self.check(&info["element-type"], item, &format!("{path}[{index}]"));
                }
                true
            }
            (Some("object"), _) => {
                self.check_members(info, value, path);
                true
            }
            other => panic!("{path} has a type of kind {other:?}"),
        };
        assert!(fits, "{path} is {value}, and should be {info}");
    }

    fn check_members(&self, info: &Value, value: &Value, path: &str) {
        let mut rest = value.as_object().expect(path).clone();
        for member in info["members"].as_array().unwrap() {
            let name = member["name"].as_str().unwrap();
            let is_optional = member.get("default").is_some();
            match rest.remove(name) {
                // "Not known", or "none".
                None | Some(Value::Null) => assert!(is_optional, "{path}.{name} is missing"),
                Some(value) => self.check(&member["type"], &value, &format!("{path}.{name}")),
            }
        }
        assert!(rest.is_empty(), "{path} has more than it should: {rest:?}");
    }

    fn check_reply(&self, command: &str, reply: &Value) {
        self.check(&self.0[command]["ret-type"], reply, command);
    }
}

#[test]
fn replies_when_compared_with_the_schema_fit() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    let schema = Schema::of(&mut agent);

    let range = json!({"start": 4 * MIB, "bytes": MIB});
    let pin = json!({"start": 4 * MIB, "bytes": MIB, "tier": "slow", "when-full": "fill"});
    for (command, arguments) in [
        ("query-tier", None),
        (
            "tier-set-policy",
            Some(json!({"policy": "dual-heap", "horizon": 5})),
        ),
        ("tier-set-limit", Some(json!({"bytes": 8 * MIB}))),
        ("tier-pin", Some(pin)),
        ("tier-explain", Some(json!({"address": 4 * MIB}))),
        ("tier-explain", Some(json!({"address": 8 * MIB}))),
        ("tier-drain", None),
        ("tier-pause", None),
        ("query-tier", None),
        ("tier-resume", None),
        ("query-tier-heatmap", None),
        ("tier-unpin", Some(range)),
    ] {
        let reply = agent.ask(command, arguments);
        schema.check_reply(command, &reply);
    }
    // What the state file said is told after a restart only.
    agent.kill();
    let mut agent = Agent::start_in(agent.folder.clone(), "");
    let reply = agent.ask_until(|reply| reply["restored"].is_object());
    schema.check_reply("query-tier", &reply);
    let reply = agent.ask("tier-explain", Some(json!({"address": 8 * MIB})));
    schema.check_reply("tier-explain", &reply);
}

#[test]
fn events_when_compared_with_the_schema_fit() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    let schema = Schema::of(&mut agent);
    let (_listener, events) = agent.client();

    agent.ask("tier-pause", None);
    agent.ask("tier-set-limit", Some(json!({"bytes": 40 * MIB})));
    agent.ask("tier-set-limit", None);
    agent.ask("tier-drain", Some(json!({"bytes": 32 * MIB})));

    let mut missing = vec!["TIER_STATE", "TIER_LIMIT", "TIER_DRAIN"];
    while !missing.is_empty() {
        let event = events.recv_timeout(FOR_EVER).unwrap();
        let data = &schema.0[&event.name]["arg-type"];
        schema.check(data, &event.data, &event.name);
        missing.retain(|name| *name != event.name);
    }
}
