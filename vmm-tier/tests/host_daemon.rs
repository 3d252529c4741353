//! `vmm-tier host` as a process: agents register, report and misbehave; it ends, and starts again.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::host::{Daemon, HostAgent, MIB, Sleeper, command, ended};

/// The VM of this name in a reply to `query-host`.
fn vm<'a>(reply: &'a Value, name: &str) -> Option<&'a Value> {
    let mut vms = reply["vms"].as_array().unwrap().iter();
    vms.find(|vm| vm["name"] == name)
}

fn state<'a>(reply: &'a Value, name: &str) -> Option<&'a str> {
    vm(reply, name)?["state"].as_str()
}

#[test]
fn agents_when_they_report_get_shares_and_those_that_misbehave_harm_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path(), "[vm.b]\nweight = 3.0");
    let (operator, events) = daemon.client();
    let mut qemus = [Sleeper::start(folder.path()), Sleeper::start(folder.path())];
    let mut a = HostAgent::connect(&daemon.socket, "a", qemus[0].pid());
    let mut b = HostAgent::connect(&daemon.socket, "b", qemus[1].pid());

    for agent in [&a, &b] {
        let lease = agent.register().unwrap();
        assert_eq!(
            (&lease["lease-ms"], &lease["report-ms"]),
            (&json!(10_000), &json!(1000))
        );
    }
    // Shares are there as soon as both have reported and the daemon has looked around.
    let mut shares = [0; 2];
    while shares.iter().sum::<u64>() < 63 * MIB {
        for (agent, share) in [&mut a, &mut b].into_iter().zip(&mut shares) {
            let report = agent.report();
            let lease = agent.say(report).unwrap();
            *share = lease["share-bytes"].as_u64().unwrap_or(0);
        }
        thread::sleep(Duration::from_secs(1));
    }
    // 64 MiB by 1 : 3, and nobody uses all of it.
    assert!(shares[1] > 2 * shares[0], "{shares:?}");
    assert!(shares.iter().sum::<u64>() <= 64 * MIB, "{shares:?}");
    let reply = daemon.ask("query-host", None);
    assert_eq!(state(&reply, "a"), Some("reporting"));
    assert_eq!(reply["pool-bytes"], 64 * MIB);
    assert_eq!(reply["vms"][0]["name"], "a");
    assert_eq!(events.recv().unwrap().name, "HOST_VM");

    // Liars and floods.
    let repeated = json!({"number": 1});
    let mut report = b.report();
    report["number"] = repeated["number"].clone();
    assert!(b.say(report).unwrap_err().contains("is none that is due"));
    let mut report = b.report();
    report["made-ns"] = json!(1);
    assert!(b.say(report).unwrap_err().contains("s old"));
    let mut report = b.report();
    report["curve"] = vec![json!([1, 1]); 65].into();
    assert!(b.say(report).unwrap_err().contains("points"));
    thread::sleep(Duration::from_secs(1));
    let floods = (0..8).filter(|_| {
        let report = b.report();
        b.say(report)
            .is_err_and(|error| error.contains("within a second"))
    });
    assert!(floods.count() >= 1);
    assert!(b.register().unwrap_err().contains("has registered a VM"));

    // Others' names and pids, and processes that are no QEMU.
    let again = |name, pid| {
        let agent = HostAgent::connect(&daemon.socket, name, pid);
        agent.register().unwrap_err()
    };
    assert!(again("b", qemus[1].pid()).contains("has an agent that is connected"));
    assert!(again("b", qemus[0].pid()).contains("is VM a"));
    assert!(again("c", std::process::id()).contains("is no QEMU"));
    let unknown = HostAgent::connect(&daemon.socket, "c", qemus[0].pid());
    let mut told = unknown.told();
    told["pid-start"] = json!(1);
    let refused = unknown.client.execute_raw("host-register", Some(told));
    assert!(refused.unwrap_err().to_string().contains("not at tick 1"));

    let report = a.report();
    assert!(a.say(report).is_ok(), "the other is untouched");
    let reply = operator.execute_raw("query-host", None).unwrap();
    let refused = &reply["reports"]["refused"];
    for fault in ["number", "old", "malformed", "flood"] {
        assert!(refused[fault].as_u64() >= Some(1), "{fault}: {refused}");
    }

    // QEMU ends: the VM is gone, and so is its agent's place.
    qemus[1].end();
    daemon.ask_until(|reply| state(reply, "b").is_none());
    let report = b.report();
    assert!(b.say(report).unwrap_err().contains("registered no VM"));
}

#[test]
fn daemon_when_killed_or_ended_is_started_again_with_what_commands_set() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path(), "");
    let set = json!({"name": "a", "guarantee-bytes": 8 * MIB, "weight": 2});
    daemon.ask("host-set-vm", Some(set));
    daemon.ask(
        "host-set-mode",
        Some(json!({"mode": "utility", "band": 0.5})),
    );
    let refused = daemon.refused("host-set-vm", json!({"name": "a", "weight": 0}));
    assert!(refused.contains("0.001 to 1000"), "{refused}");
    let fits = daemon.ask("host-admit", Some(json!({"guarantee-bytes": 65 * MIB})));
    assert_eq!(fits["fits"], false);
    let socket = daemon.socket.clone();
    daemon.kill();
    assert!(socket.exists(), "nobody could remove it");

    let mut daemon = Daemon::start(folder.path(), "");
    let reply = daemon.ask("query-host", None);
    assert_eq!(
        (&reply["mode"], &reply["band"]),
        (&json!("utility"), &json!(0.5))
    );
    let qemu = Sleeper::start(folder.path());
    let mut agent = HostAgent::connect(&daemon.socket, "a", qemu.pid());
    agent.register().unwrap();
    let report = agent.report();
    agent.say(report).unwrap();
    let reply = daemon.ask_until(|reply| state(reply, "a") == Some("reporting"));
    let a = vm(&reply, "a").unwrap();
    assert_eq!(
        (&a["guarantee-bytes"], &a["weight"]),
        (&json!(8 * MIB), &json!(2.0))
    );
    let reply = daemon.ask("host-drain", None);
    assert_eq!(reply["drain"]["to-bytes"], 0);
    let reply = daemon.ask("host-drain", Some(json!({"cancel": true})));
    assert!(reply["drain"].is_null());

    assert!(daemon.terminate().success());
    assert!(!socket.exists());
}

#[test]
fn daemon_when_there_is_another_or_its_file_is_malformed_ends_with_a_clear_message() {
    let folder = tempfile::tempdir().unwrap();
    let pool = "[pool]\nbytes = '64M'\nnodes = '0'\n";
    let mut daemon = Daemon::start(folder.path(), "");

    let (success, says) = ended(command(folder.path(), "other", pool));
    assert!(!success && says.contains("is another daemon's"), "{says}");
    let elsewhere = tempfile::tempdir().unwrap();
    let second = command(elsewhere.path(), &daemon.socket, pool);
    let (success, says) = ended(second);
    assert!(
        !success && says.contains("in use by another process"),
        "{says}"
    );

    for (toml, words) in [
        ("[pool]\nbites = 1", ["line 3", "bites", "bytes"]),
        ("[rules]\nmode = 'x'", ["line 3", "mode", "weighted"]),
        (
            "[vm.db]\nweight = -1",
            ["vm.db.weight", "-1", "0.001 to 1000"],
        ),
        (
            "[pool]\nbytes = '64M'\nnodes = '63'",
            ["pool.nodes", "node 63", "has not"],
        ),
    ] {
        let (success, says) = ended(command(elsewhere.path(), "malformed", toml));
        assert!(!success, "{toml}");
        for word in words {
            assert!(says.contains(word), "{toml}: '{word}' is not in {says}");
        }
    }
    assert_eq!(daemon.ask("query-host", None)["pool-bytes"], 64 * MIB);
}
