//! The proxy before a real QEMU, where there is one (see `support/live.rs`).

use std::{
    io::pipe,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use qmp::{Client, Proxy, client, proxy};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{PATIENCE, Raw, live::Live, qemu::Extension, send_fds, wait_until};

struct Rig {
    /// A monitor that no proxy stands before.
    direct: PathBuf,
    path: PathBuf,
    client: Arc<Client>,
    _proxy: Proxy,
    _qemu: Live,
    _folder: TempDir,
}

/// A proxy before one of two monitors; `None` where there is no QEMU.
fn rig() -> Option<Rig> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (direct, upstream) = (path("direct"), path("upstream"));
    let qemu = Live::start(&[&direct, &upstream])?;
    let options = client::Options {
        greeting_timeout: PATIENCE,
        oob: true,
        ..client::Options::default()
    };
    let client = Arc::new(Client::connect(&upstream, &options).unwrap().0);
    let extension = Arc::new(Extension);
    let proxy = Proxy::bind(path("p"), Arc::clone(&client), extension, proxy::options()).unwrap();
    Some(Rig {
        direct,
        path: path("p"),
        client,
        _proxy: proxy,
        _qemu: qemu,
        _folder: folder,
    })
}

/// A client with out-of-band commands, and the greeting it got.
fn out_of_band(path: &Path) -> (Raw, Value) {
    let mut raw = Raw::connect(path);
    let greeting = raw.message();
    let request = "{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}";
    assert_eq!(raw.ask(request), json!({"return": {}}));
    (raw, greeting)
}

#[test]
fn proxy_answers_as_qemu_itself_whatever_is_asked() {
    let Some(rig) = rig() else { return };
    let (mut direct, greeting) = out_of_band(&rig.direct);
    let (mut proxied, same) = out_of_band(&rig.path);

    assert_eq!(greeting, same);
    for request in [
        "{'execute':'query-status','id':18446744073709551615}",
        "{'execute':'query-status','id':{'a':[1,null,'x']}}",
        "{'execute':'query-version'}",
        "{'execute':'query-kvm','arguments':{}}",
        "{'execute':'no-such','id':1}",
        "{'execute':'query-status','arguments':{'x':1}}",
        "{'execute':'qom-list','arguments':{}}",
        "{'execute':'qom-list','arguments':{'path':1}}",
        "{'execute':'qom-get','arguments':{'path':'/none','property':'x'}}",
        "{'execute':'qmp_capabilities'}",
        "{'execute':1,'id':2}",
        "{'execute':'query-status','x':1}",
        "{'arguments':{}}",
        "[]",
        "{'exec-oob':'query-status','id':3}",
        "{'exec-oob':'migrate-pause','id':4}",
        "{'exec-oob':'no-such','id':5}",
        "{'exec-oob':1}",
        "{'execute':'getfd','arguments':{'fdname':'f'}}",
        "{'execute':'human-monitor-command','arguments':{'command-line':'info status'}}",
    ] {
        assert_eq!(proxied.ask(request), direct.ask(request), "{request}");
    }
}

#[test]
fn introspection_of_qemu_and_extension_is_one() {
    let Some(rig) = rig() else { return };
    let (mut proxied, _) = out_of_band(&rig.path);

    let schema = proxied.ask("{'execute':'query-qmp-schema'}");
    let commands = proxied.ask("{'execute':'query-commands'}");

    let schema = schema["return"].as_array().unwrap();
    let mut names: Vec<_> = schema
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert!(count > 500 && names.len() == count, "{count} entries");
    for command in commands["return"].as_array().unwrap() {
        let name = command["name"].as_str().unwrap();
        assert!(names.binary_search(&name).is_ok(), "{name}");
    }
    for name in ["query-status", "tier-name", "TIER_STATE", "SHUTDOWN"] {
        assert!(names.binary_search(&name).is_ok(), "{name}");
    }
}

#[test]
fn qemu_gets_every_file_descriptor_when_two_clients_pass_some_at_once() {
    let Some(rig) = rig() else { return };
    let clients = ["a", "b"].map(|name| (name, out_of_band(&rig.path).0));
    let (_reader, writer) = pipe().unwrap();

    for number in 0..20 {
        for (name, raw) in &clients {
            let arguments = json!({"fdname": format!("{name}{number}")});
            let request = json!({"execute": "getfd", "arguments": arguments, "id": number});
            send_fds(
                &raw.stream,
                request.to_string().as_bytes(),
                &[writer.as_fd()],
            );
        }
    }

    for (name, mut raw) in clients {
        for number in 0..20 {
            assert_eq!(raw.message(), json!({"return": {}, "id": number}), "{name}");
        }
        // A name is known only where QEMU got a descriptor with it.
        for number in 0..20 {
            let arguments = json!({"fdname": format!("{name}{number}")});
            let request = json!({"execute": "closefd", "arguments": arguments});
            assert_eq!(raw.ask(request.to_string()), json!({"return": {}}));
        }
    }
}

#[test]
fn clients_get_the_shutdown_event_and_then_the_end_when_qemu_quits() {
    let Some(rig) = rig() else { return };
    let (mut first, _) = out_of_band(&rig.path);
    let (mut second, _) = out_of_band(&rig.path);

    first.send("{'execute':'quit'}");

    let rest = |raw: &mut Raw| -> Vec<Value> { std::iter::from_fn(|| raw.next()).collect() };
    let (first, second) = (rest(&mut first), rest(&mut second));
    let is_shutdown = |message: &&Value| message["event"] == "SHUTDOWN";
    assert_eq!(first.iter().filter(is_shutdown).count(), 1, "{first:?}");
    assert_eq!(second.iter().filter(is_shutdown).count(), 1, "{second:?}");
    assert!(first.contains(&json!({"return": {}})), "{first:?}");
    wait_until("the socket file to be gone", || !rig.path.exists());
    assert!(rig.client.closed().is_some());
}
