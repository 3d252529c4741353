//! Hostile bytes: no panic, no unbounded memory, no lost reply, neither for the same connection
//! once it is in step again nor for a well-formed neighbour.
//!
//! Short by default; `QMP_FUZZ_CASES=1000000 cargo test -p qmp --test fuzz` is a night's run.

mod support;

use std::{path::Path, sync::Arc};

use proptest::prelude::*;
use qmp::{
    Client, QmpError, Server, client,
    codec::{Decoder, Limits},
    hmp, proxy,
    server::{self, CommandSpec, Handler, MemberSpec, TypeSpec},
};
use serde_json::{Map, Value, json};
use support::{Raw, qemu::rig, socket};

/// Cases of each test.
fn config(few: u32) -> ProptestConfig {
    let asked = std::env::var("QMP_FUZZ_CASES").ok();
    let cases = asked.and_then(|cases| cases.parse().ok()).unwrap_or(few);
    ProptestConfig {
        cases,
        // Shrinking opens connections too.
        max_shrink_iters: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What hostile input is made of: bytes, and pieces of QMP that lead further in.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "'",
        "\"",
        "\\",
        "\\u",
        "\\ud800",
        "\n",
        "\r\n",
        " ",
        "1e",
        "-",
        "0",
        "18446744073709551616",
        "nul",
        "true",
        "é",
        "\u{FFFE}",
        "{'execute':'echo','arguments':{'text':'a'}}",
        "{'execute':'echo','arguments':{'text':1},'id':{}}",
        "{'execute':'qmp_capabilities'}",
        "{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}",
        "{'exec-oob':'echo'}",
        "{'execute':'query-commands'}",
        "{'execute':'tier-name','id':",
        "'execute':",
        "'arguments':{",
        "'id':",
        "{'a':1,'a':2}",
    ]);
    prop_oneof![
        3 => words.prop_map(|word: &str| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..24),
        1 => (1..200_usize).prop_map(|depth| b"[".repeat(depth)),
    ]
}

fn hostile() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(piece(), 0..24)
}

/// The last thing a hostile client sends, and by which it sees that all was looked at: 0xFF brings
/// the server back in step.
const LAST: &[u8] = b"\xFF\n{'execute':'echo','arguments':{'text':'last'},'id':'last'}";

struct Echo;

impl Handler for Echo {
    fn commands(&self) -> &[CommandSpec] {
        const TEXT: MemberSpec = MemberSpec::needed("text", TypeSpec::String, "");
        &[CommandSpec {
            name: "echo",
            args: &[TEXT],
            returns: TypeSpec::String,
            oob: true,
            ..CommandSpec::PLAIN
        }]
    }

    fn handle(&self, _: &str, mut arguments: Map<String, Value>) -> Result<Value, QmpError> {
        Ok(arguments.remove("text").unwrap_or_default())
    }
}

/// Sends hostile pieces on a connection of their own, and sees that it is back in step after them.
fn attack(path: &Path, pieces: &[Vec<u8>]) {
    let mut raw = Raw::connect(path);
    raw.message();
    raw.send(pieces.concat());
    raw.send(LAST);
    while raw.message()["id"] != "last" {}
}

/// Pages of 4 KiB that this process holds.
fn resident_pages() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Attacks a socket in all cases, each beside a neighbour whose replies must all come.
fn attack_beside_a_neighbour(path: &Path) {
    let (neighbour, _events) = Client::connect(path, &client::Options::default()).unwrap();
    attack(path, &[]);
    let before = resident_pages();
    let cases = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(config(300));
    let outcome = runner.run(&hostile(), |pieces| {
        let number = cases.get() + 1;
        cases.set(number);
        let text = format!("neighbour {number}");
        let first = neighbour.send("echo", Some(json!({"text": text}))).unwrap();
        attack(path, &pieces);
        let second = neighbour.execute_raw("echo", Some(json!({"text": number.to_string()})));
        prop_assert_eq!(first.wait(support::PATIENCE).unwrap(), text);
        prop_assert_eq!(second.unwrap(), number.to_string());
        Ok(())
    });
    outcome.unwrap();
    let grown = resident_pages().saturating_sub(before);
    // Far less than a million connections would leave if each left a page.
    assert!(grown < 64 << 8, "{grown} pages more than before");
}

#[test]
fn server_answers_a_neighbour_and_is_back_in_step_when_input_is_hostile() {
    let (_folder, path) = socket();
    let options = server::Options {
        oob: true,
        max_clients: 1024,
        ..server::Options::default()
    };
    let server = Server::bind(&path, Arc::new(Echo), options).unwrap();

    attack_beside_a_neighbour(&path);

    assert_eq!(server.stats().too_slow, 0);
}

#[test]
fn proxy_answers_a_neighbour_and_is_back_in_step_when_input_is_hostile() {
    let options = server::Options {
        max_clients: 1024,
        ..proxy::options()
    };
    let (rig, qemu) = rig(true, options);
    qemu.answer_all(|request| request["arguments"]["text"].clone());

    attack_beside_a_neighbour(&rig.path);

    assert_eq!(rig.proxy.stats().too_slow, 0);
    assert_eq!(rig.client.closed(), None);
    assert_eq!(rig.client.late_replies(), 0);
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn decoder_is_back_in_step_however_hostile_bytes_are_split(
        pieces in hostile(),
        limit in 2..200_usize,
    ) {
        let limits = Limits { message_bytes: limit, tokens: 20, nesting: 4 };
        let mut decoder = Decoder::new(limits);
        let mut sent = 0;
        let mut messages = 0;
        let mut drain = |decoder: &mut Decoder| {
            while let Some(message) = decoder.next_message() {
                messages += 1;
                if let Ok(message) = message {
                    assert!(message.to_string().len() <= 12 * limit + 2);
                }
            }
        };

        for piece in &pieces {
            sent += piece.len();
            decoder.push(piece);
            drain(&mut decoder);
        }

        decoder.push(b"\xFF\n");
        drain(&mut decoder);
        // At most one message or error a byte.
        prop_assert!(messages <= sent + 1);
        decoder.push(b"{}");
        prop_assert_eq!(decoder.next_message(), Some(Ok(json!({}))));
        prop_assert!(!decoder.is_mid_message());
    }

    #[test]
    fn texts_of_the_human_monitor_are_read_without_panic(pieces in hostile(), text in ".*") {
        let mut mixed = String::from_utf8_lossy(&pieces.concat()).into_owned();
        mixed += &text;
        for text in [
            mixed.clone(),
            format!("Host virtual address for 0x{mixed} (pc.ram) is 0x{text}"),
            format!("Block Name    PSize  Offset  Used  Total\n{mixed} 4 KiB 0x0 {text} 0x10\n"),
        ] {
            let _ = hmp::parse_gpa2hva(&text);
            let _ = hmp::parse_ramblocks(&text);
        }
    }
}
