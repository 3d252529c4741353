//! The proxy between clients and a QEMU that follows a script.

use std::{
    io::{PipeReader, PipeWriter, Read, Write, pipe},
    net::Shutdown,
    os::fd::AsFd,
    thread,
    time::Duration,
};

use qmp::{Event, client::ExecuteError, proxy, server::Options};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    qemu::{plain_rig, rig},
    receive_fds, send_fds, wait_until,
};

fn error(class: &str, desc: &str) -> Value {
    json!({"error": {"class": class, "desc": desc}})
}

#[test]
fn each_client_gets_its_reply_when_both_use_the_same_id() {
    let (rig, mut qemu) = plain_rig();
    let (mut first, mut second) = (rig.negotiated(), rig.negotiated());

    first.send("{'execute':'a','arguments':{'x':1},'id':1}");
    let a = qemu.request();
    second.send("{'execute':'b','id':1}");
    let b = qemu.request();
    qemu.reply(&b, &json!("b"));
    qemu.reply(&a, &json!("a"));

    assert_ne!(a["id"], b["id"]);
    assert_eq!(
        (&a["execute"], &a["arguments"]),
        (&json!("a"), &json!({"x": 1}))
    );
    assert_eq!(b.get("arguments"), None);
    assert_eq!(first.message(), json!({"return": "a", "id": 1}));
    assert_eq!(second.message(), json!({"return": "b", "id": 1}));
}

#[test]
fn id_comes_back_exactly_when_it_is_any_json_value() {
    let (rig, qemu) = plain_rig();
    qemu.answer_all(|request| json!(request["execute"]));
    let mut raw = rig.negotiated();

    for id in [
        json!("__qmp#00000"),
        json!({"a": [1, null, "é\u{1F600}"]}),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.1),
        json!(null),
        json!([]),
    ] {
        let reply = raw.ask(json!({"execute": "stop", "id": id}).to_string());
        assert_eq!(reply, json!({"return": "stop", "id": id}));
    }
    assert_eq!(raw.ask("{'execute':'stop'}"), json!({"return": "stop"}));
}

#[test]
fn error_of_qemu_reaches_the_client_as_it_is() {
    let (rig, mut qemu) = plain_rig();
    let mut raw = rig.negotiated();

    raw.send("{'execute':'balloon','id':'x'}");
    let request = qemu.request();
    let refusal = json!({"class": "DeviceNotActive", "desc": "No balloon device"});
    qemu.0
        .send(json!({"error": refusal, "id": request["id"]}).to_string());

    assert_eq!(raw.message(), json!({"error": refusal, "id": "x"}));
}

#[test]
fn replies_come_in_order_when_everything_is_sent_at_once_without_line_endings() {
    let (rig, qemu) = plain_rig();
    qemu.answer_all(|request| request["arguments"]["n"].clone());
    let mut raw = rig.greeted();
    let mut requests = "{'execute':'qmp_capabilities'}".to_owned();
    for n in 0..500 {
        requests += &match n % 7 {
            0 => format!("{{'execute':'tier-name','id':{n}}}"),
            _ => format!("{{'execute':'echo','arguments':{{'n':{n}}},'id':{n}}}"),
        };
    }

    raw.send(requests);
    raw.stream.shutdown(Shutdown::Write).unwrap();

    assert_eq!(raw.message(), json!({"return": {}}));
    for n in 0..500 {
        let value = if n % 7 == 0 { json!("dram") } else { json!(n) };
        assert_eq!(raw.message(), json!({"return": value, "id": n}));
    }
    // All replies were out before the proxy closed.
    assert_eq!(raw.next(), None);
}

#[test]
fn extension_waits_for_what_was_sent_before_and_holds_what_comes_after() {
    let (rig, mut qemu) = plain_rig();
    let mut raw = rig.negotiated();

    raw.send("{'execute':'a','id':1}{'execute':'tier-name','id':2}{'execute':'b','id':3}");
    let first = qemu.request();
    // The owner's command overtakes the client's second: it waits for the extension.
    thread::scope(|scope| {
        let own = scope.spawn(|| rig.client.execute_raw("own", None));
        let request = qemu.request();
        assert_eq!(request["execute"], "own");
        qemu.reply(&first, &json!("a"));
        qemu.reply(&request, &json!({}));
        assert!(own.join().unwrap().is_ok());
    });
    let second = qemu.request();
    qemu.reply(&second, &json!("b"));

    assert_eq!(raw.message(), json!({"return": "a", "id": 1}));
    assert_eq!(raw.message(), json!({"return": "dram", "id": 2}));
    assert_eq!(raw.message(), json!({"return": "b", "id": 3}));
}

#[test]
fn negotiation_is_each_clients_own_and_never_sent_on() {
    let (rig, mut qemu) = plain_rig();
    let mut raw = rig.greeted();

    assert_eq!(
        raw.ask("{'execute':'query-status'}"),
        error(
            "CommandNotFound",
            "Expecting capabilities negotiation with 'qmp_capabilities'"
        )
    );
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}"),
        error("GenericError", "Capability oob not available")
    );
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities'}"),
        json!({"return": {}})
    );
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities'}"),
        error(
            "CommandNotFound",
            "Capabilities negotiation is already complete, command ignored"
        )
    );
    raw.send("{'execute':'query-status'}");
    assert_eq!(qemu.request()["execute"], "query-status");
}

#[test]
fn event_reaches_negotiated_clients_before_the_reply_that_follows_it() {
    let (rig, mut qemu) = plain_rig();
    let mut silent = rig.greeted();
    let (mut first, mut second) = (rig.negotiated(), rig.negotiated());

    for round in 0..100 {
        first.send("{'execute':'stop'}");
        let request = qemu.request();
        qemu.event("STOP");
        qemu.reply(&request, &json!(round));
        assert_eq!(first.message()["event"], "STOP");
        assert_eq!(first.message(), json!({"return": round}));
        assert_eq!(second.message()["event"], "STOP");
        assert_eq!(rig.events.recv_timeout(PATIENCE).unwrap().name, "STOP");
    }
    rig.proxy
        .broadcast(&Event::now("TIER_STATE", json!({"state": "running"})));

    assert_eq!(first.message()["data"], json!({"state": "running"}));
    assert_eq!(second.message()["event"], "TIER_STATE");
    assert_eq!(
        silent.ask("{'execute':'qmp_capabilities'}"),
        json!({"return": {}})
    );
}

#[test]
fn commands_and_schema_are_merged_and_wrong_arguments_are_qemus_to_refuse() {
    let (rig, qemu) = plain_rig();
    qemu.answer_all(|request| match request["execute"].as_str() {
        Some("query-commands") => json!([{"name": "stop"}]),
        Some("query-qmp-schema") => json!([
            {"name": "stop", "meta-type": "command", "arg-type": "0", "ret-type": "0"},
            {"name": "bool", "meta-type": "builtin", "json-type": "boolean"},
        ]),
        _ => request["arguments"].clone(),
    });
    let mut raw = rig.negotiated();

    let commands = raw.ask("{'execute':'query-commands'}");
    let schema = raw.ask("{'execute':'query-qmp-schema'}");

    let names = |reply: &Value| -> Vec<String> {
        let entries = reply["return"].as_array().unwrap().iter();
        entries
            .map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&commands), ["stop", "tier-name"]);
    let names = names(&schema);
    for name in ["stop", "bool", "tier-name", "TIER_STATE", "str"] {
        let count = names.iter().filter(|found| *found == name).count();
        assert_eq!(count, 1, "{name} in {names:?}");
    }
    assert_eq!(
        raw.ask("{'execute':'tier-name','arguments':{'x':1}}"),
        error("GenericError", "Parameter 'x' is unexpected")
    );
    assert_eq!(
        raw.ask("{'execute':'stop','arguments':{'x':18446744073709551615}}"),
        json!({"return": {"x": u64::MAX}})
    );
}

#[test]
fn out_of_band_command_overtakes_when_client_and_qemu_negotiated_it() {
    let (rig, mut qemu) = rig(true, proxy::options());
    let mut plain = rig.negotiated();
    let mut raw = rig.out_of_band();

    assert_eq!(
        plain.ask("{'exec-oob':'migrate-pause','id':1}"),
        json!({"error": {"class": "GenericError",
               "desc": "QMP input member 'exec-oob' is unexpected"}, "id": 1})
    );
    raw.send("{'execute':'slow','id':1}");
    let slow = qemu.request();
    // The extension's command waits for the slow one; what is out of band waits for neither.
    raw.send("{'execute':'tier-name','id':2}{'exec-oob':'migrate-pause','id':3}");
    let oob = qemu.request();
    assert_eq!(oob["exec-oob"], "migrate-pause");
    qemu.reply(&oob, &json!({}));
    assert_eq!(raw.message(), json!({"return": {}, "id": 3}));
    assert_eq!(
        raw.ask("{'exec-oob':'tier-name','id':4}")["error"]["desc"],
        "The command tier-name does not support OOB"
    );
    qemu.reply(&slow, &json!("slow"));

    assert_eq!(raw.message(), json!({"return": "slow", "id": 1}));
    assert_eq!(raw.message(), json!({"return": "dram", "id": 2}));
}

#[test]
fn out_of_band_command_overtakes_when_other_clients_have_all_places() {
    let (rig, mut qemu) = rig(true, proxy::options());
    let mut greedy = rig.negotiated();
    let mut raw = rig.out_of_band();
    greedy.send("{'execute':'slow'}".repeat(100));
    let first = qemu.request();
    raw.send("{'execute':'waits-its-turn','id':1}");

    raw.send("{'exec-oob':'urgent','id':2}");

    // Whatever of the greedy one stands before it: no more than QEMU itself takes before it stops
    // to read (8).
    let before = (0..100).find(|_| {
        let request = qemu.request();
        let urgent = request.get("exec-oob").is_some();
        if urgent {
            qemu.reply(&request, &json!("at once"));
        }
        urgent
    });
    assert!(before.is_some_and(|before| before < 8), "{before:?}");
    assert_eq!(raw.message(), json!({"return": "at once", "id": 2}));
    qemu.reply(&first, &json!({}));
}

/// A pipe whose writing end is to be passed on.
fn pipe_ends() -> (PipeReader, PipeWriter) {
    pipe().unwrap()
}

#[test]
fn file_descriptor_goes_on_in_the_message_of_its_command() {
    let (rig, mut qemu) = plain_rig();
    let (mut raw, other) = (rig.negotiated(), rig.negotiated());
    let (mut reader, writer) = pipe_ends();

    let getfd = b"{'execute':'getfd','arguments':{'fdname':'f'},'id':1}";
    send_fds(&raw.stream, getfd, &[writer.as_fd()]);
    let (bytes, mut fds) = receive_fds(&qemu.0.stream);
    // QEMU forgets a descriptor when another comes, so the second has to wait.
    send_fds(&other.stream, getfd, &[writer.as_fd()]);
    drop(writer);

    let request: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(request["execute"], "getfd");
    assert_eq!(fds.len(), 1);
    let mut file = std::fs::File::from(fds.remove(0));
    file.write_all(b"through").unwrap();
    let second = thread::scope(|scope| {
        let own = scope.spawn(|| rig.client.execute_raw("own", None));
        let own_request = qemu.request();
        assert_eq!(own_request["execute"], "own", "the second getfd waits");
        qemu.reply(&own_request, &json!({}));
        assert!(own.join().unwrap().is_ok());
        qemu.reply(&request, &json!({}));
        let (bytes, more) = receive_fds(&qemu.0.stream);
        fds.extend(more);
        bytes
    });
    assert_eq!(fds.len(), 1);
    fds.clear();
    assert!(second.starts_with(b"{\"execute\":\"getfd\""));
    assert_eq!(raw.message(), json!({"return": {}, "id": 1}));

    drop(file);
    let mut text = String::new();
    // It ends only if no copy of the descriptor was left open on the way.
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

#[test]
fn file_descriptors_are_closed_when_no_command_takes_them() {
    let (rig, qemu) = plain_rig();
    qemu.answer_all(|_| json!({}));
    let mut raw = rig.negotiated();
    let (mut reader, writer) = pipe_ends();
    let (mut second_reader, second_writer) = pipe_ends();

    send_fds(&raw.stream, b"{'execute':'stop'}", &[writer.as_fd()]);
    assert_eq!(raw.message(), json!({"return": {}}));
    drop(writer);
    // Newer ones take the place of older ones; the end of the connection closes all.
    send_fds(&raw.stream, b"{'execute':'stop'}", &[second_writer.as_fd()]);
    assert_eq!(raw.message(), json!({"return": {}}));
    drop(second_writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    drop(raw);
    assert_eq!(second_reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn clients_get_what_came_before_and_then_the_end_when_qemu_leaves_mid_command() {
    let (rig, mut qemu) = plain_rig();
    let (mut first, mut second) = (rig.negotiated(), rig.negotiated());
    let mut silent = rig.greeted();

    first.send("{'execute':'quit','id':1}{'execute':'tier-name','id':2}");
    let quit = qemu.request();
    second.send("{'execute':'never-answered'}");
    qemu.request();
    qemu.event("SHUTDOWN");
    qemu.reply(&quit, &json!({}));
    drop(qemu);

    assert_eq!(first.message()["event"], "SHUTDOWN");
    assert_eq!(first.message(), json!({"return": {}, "id": 1}));
    // The extension may still have answered.
    if let Some(reply) = first.next() {
        assert_eq!(reply, json!({"return": "dram", "id": 2}));
        assert_eq!(first.next(), None);
    }
    assert_eq!(second.message()["event"], "SHUTDOWN");
    assert_eq!(second.next(), None);
    assert_eq!(silent.next(), None);
    wait_until("the socket file to be gone", || !rig.path.exists());
    assert!(matches!(
        rig.client.execute_raw("x", None),
        Err(ExecuteError::Closed { .. })
    ));
}

#[test]
fn clients_are_disconnected_and_qemu_is_not_when_the_proxy_is_dropped() {
    let (rig, mut qemu) = plain_rig();
    let mut raw = rig.negotiated();
    raw.send("{'execute':'never-answered'}{'execute':'tier-name'}");
    qemu.request();

    drop(rig.proxy);

    assert_eq!(raw.next(), None);
    assert!(!rig.path.exists());
    qemu.answer_all(|_| json!("alive"));
    assert_eq!(rig.client.execute_raw("x", None).unwrap(), json!("alive"));
}

#[test]
fn client_that_never_reads_is_disconnected_and_others_are_not_delayed() {
    let options = Options {
        queue_messages: 16,
        write_timeout: Duration::from_millis(100),
        ..proxy::options()
    };
    let (rig, qemu) = rig(false, options);
    qemu.answer_all(|request| match request["execute"].as_str() {
        Some("big") => json!("x".repeat(64 << 10)),
        _ => json!({}),
    });
    let mut lazy = rig.negotiated();
    let mut good = rig.negotiated();

    // 64 KiB each: far more than socket and queue hold.
    lazy.send("{'execute':'big'}".repeat(200));
    for _ in 0..200 {
        assert_eq!(good.ask("{'execute':'stop'}"), json!({"return": {}}));
    }

    wait_until("the lazy client to be disconnected", || {
        rig.proxy.stats().too_slow == 1
    });
    assert_eq!(good.ask("{'execute':'stop'}"), json!({"return": {}}));
    wait_until("its place to be free", || rig.proxy.stats().clients == 1);
}

#[test]
fn client_gets_its_turn_when_another_sends_without_end() {
    let (rig, mut qemu) = plain_rig();
    let mut greedy = rig.negotiated();
    let mut modest = rig.negotiated();

    greedy.send("{'execute':'greedy'}".repeat(1000));
    let first = qemu.request();
    modest.send("{'execute':'modest','id':7}");
    qemu.reply(&first, &json!({}));
    for before in 0.. {
        let request = qemu.request();
        if request["execute"] == "modest" {
            qemu.reply(&request, &json!("served"));
            break;
        }
        assert!(before < 900, "the other's commands all come first");
        qemu.reply(&request, &json!({}));
        thread::sleep(Duration::from_millis(1));
    }

    assert_eq!(modest.message(), json!({"return": "served", "id": 7}));
}

#[test]
fn place_of_a_client_is_free_when_it_leaves_while_qemu_hangs() {
    let (rig, mut qemu) = plain_rig();
    let mut stays = rig.negotiated();

    for _ in 0..10 {
        let mut leaves = rig.negotiated();
        leaves.send("{'execute':'hangs'}".repeat(20));
    }

    wait_until("their places to be free", || rig.proxy.stats().clients == 1);
    assert_eq!(
        stays.ask("{'execute':'tier-name'}"),
        json!({"return": "dram"})
    );
    // What QEMU had got by then is answered to nobody, and then it is the next one's turn.
    stays.send("{'execute':'query-status','id':1}");
    let status = loop {
        let request = qemu.request();
        if request["execute"] == "query-status" {
            break request;
        }
        qemu.reply(&request, &json!({}));
    };
    qemu.reply(&status, &json!("running"));
    assert_eq!(stays.message(), json!({"return": "running", "id": 1}));
}

#[test]
fn error_without_id_goes_to_the_oldest_command() {
    let (rig, mut qemu) = plain_rig();
    let (mut first, mut second) = (rig.negotiated(), rig.negotiated());
    first.send("{'execute':'a','id':1}");
    qemu.request();
    second.send("{'execute':'b','id':2}");
    let b = qemu.request();

    let refusal = json!({"class": "GenericError", "desc": "JSON parse error"});
    qemu.0.send(json!({"error": refusal}).to_string());
    qemu.reply(&b, &json!({}));

    assert_eq!(first.message(), json!({"error": refusal, "id": 1}));
    assert_eq!(second.message(), json!({"return": {}, "id": 2}));
}

#[test]
fn text_that_qemu_cannot_read_is_refused_before_it() {
    let (rig, qemu) = plain_rig();
    qemu.answer_all(|_| json!({}));
    let mut raw = rig.negotiated();

    for text in ["\\ufffe", "\u{FDD0}", "\u{1FFFF}"] {
        let reply = raw.ask(format!("{{'execute':'stop','arguments':{{'a':'{text}'}}}}"));
        let desc = reply["error"]["desc"].as_str().unwrap();
        assert!(desc.starts_with("JSON parse error"), "{desc}");
    }
    assert_eq!(raw.ask("{'execute':'stop'}"), json!({"return": {}}));
}
