//! `vmm-tier run` beside a QEMU whose monitor is slow or says nothing: the agent obeys all the same.
//!
//! Nothing here measures time. QEMU, which is played, goes on only after the agent has done what is
//! expected, or counts how many commands it answered until then.

use std::{
    os::unix::net::UnixListener,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use qmp::Server;
use serde_json::{Value, json};

use crate::played::{Agent, MIB, Qemu, event};

/// An agent that has started beside a QEMU that answers at once.
fn started() -> (Arc<Qemu>, Server, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    (qemu, server, agent)
}

/// Makes the agent ask QEMU for the layout, and waits until QEMU has a command of it: one about the
/// layout, or about migrations, after which the layout is asked for.
fn reset(qemu: &Qemu, server: &Server, agent: &mut Agent) {
    let asked = qemu.asked.load(Ordering::Relaxed);
    let reset = json!({"guest": true, "reason": "guest-reset"});
    server.broadcast(&event("RESET", reset));
    agent.wait_for(|| (qemu.asked.load(Ordering::Relaxed) > asked).then_some(()));
}

/// Waits until the agent has ended, with success.
fn ends_with_success(agent: &mut Agent) {
    let status = agent.ended();
    assert_eq!(status.code(), Some(0), "{status}: {}", agent.log());
}

/// Gives the agent both commands and the signal.
fn obeys(agent: &mut Agent) {
    assert_eq!(agent.ask("query-tier", None)["name"], "played");
    assert_eq!(agent.ask("tier-pause", None)["state"], "paused");
    agent.terminate();
    ends_with_success(agent);
    assert!(!agent.control().exists());
}

#[test]
fn agent_when_qemu_never_answers_obeys() {
    let (qemu, server, mut agent) = started();
    let _released = qemu.released();
    qemu.hangs.store(true, Ordering::Relaxed);
    reset(&qemu, &server, &mut agent);
    let answered = qemu.answered.load(Ordering::Relaxed);

    obeys(&mut agent);

    assert_eq!(qemu.answered.load(Ordering::Relaxed), answered);
}

#[test]
fn agent_when_qemu_takes_5_s_for_each_command_obeys() {
    let (qemu, server, mut agent) = started();
    let _released = qemu.released();
    *qemu.delay.lock().unwrap() = Duration::from_secs(5);
    reset(&qemu, &server, &mut agent);
    let answered = qemu.answered.load(Ordering::Relaxed);

    obeys(&mut agent);

    // One command may have been under way.
    assert!(qemu.answered.load(Ordering::Relaxed) <= answered + 1);
}

/// A discovery has more than ten commands: blocks and devices twice, and probes. An agent that waits for
/// them would obey only when the last was answered.
#[test]
fn agent_when_qemu_is_slow_obeys_before_a_discovery_can_end() {
    let (qemu, server, mut agent) = started();
    let _released = qemu.released();
    *qemu.delay.lock().unwrap() = Duration::from_secs(2);
    reset(&qemu, &server, &mut agent);
    let answered = qemu.answered.load(Ordering::Relaxed);

    obeys(&mut agent);

    let meanwhile = qemu.answered.load(Ordering::Relaxed) - answered;
    assert!(
        meanwhile <= 3,
        "{meanwhile} commands were answered meanwhile"
    );
}

#[test]
fn agent_when_stopped_before_a_slow_qemu_told_everything_ends_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    *qemu.delay.lock().unwrap() = Duration::from_secs(2);
    let _server = qemu.serve(&folder.path().join("qmp"));
    let _released = qemu.released();
    let mut agent = Agent::start(folder);
    agent.wait_for(|| (qemu.asked.load(Ordering::Relaxed) > 0).then_some(()));

    agent.terminate();

    ends_with_success(&mut agent);
    let answered = qemu.answered.load(Ordering::Relaxed);
    assert!(answered <= 3, "{answered} commands were answered meanwhile");
}

#[test]
fn agent_when_stopped_before_qemu_answers_ends_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    qemu.hangs.store(true, Ordering::Relaxed);
    let _server = qemu.serve(&folder.path().join("qmp"));
    let _released = qemu.released();
    let mut agent = Agent::start(folder);
    agent.wait_for(|| (qemu.asked.load(Ordering::Relaxed) > 0).then_some(()));

    agent.terminate();

    // An agent that waited would end with the error that QEMU did not answer.
    ends_with_success(&mut agent);
}

#[test]
fn agent_when_stopped_before_qemu_greets_ends_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
    let mut agent = Agent::start(folder);
    let qemu = listener.accept().unwrap();

    agent.terminate();

    // An agent that waited would end with the error that no greeting came.
    ends_with_success(&mut agent);
    drop(qemu);
}

#[test]
fn agent_when_the_monitor_is_lost_and_the_new_one_never_greets_obeys() {
    let (_qemu, server, mut agent) = started();
    drop(server);
    agent.ask_until(|reply| reply["state"] == "detached");
    let listener = UnixListener::bind(agent.folder.path().join("qmp")).unwrap();
    let qemu = listener.accept().unwrap();

    assert_eq!(agent.ask("query-tier", None)["state"], "detached");
    let paused = agent.ask("tier-pause", None);
    assert_eq!(paused["paused-by"], json!(["operator"]));
    agent.terminate();

    ends_with_success(&mut agent);
    drop(qemu);
}

#[test]
fn agent_when_qemu_answers_again_follows_the_guest() {
    let (qemu, server, mut agent) = started();
    let _released = qemu.released();
    qemu.hangs.store(true, Ordering::Relaxed);
    reset(&qemu, &server, &mut agent);
    qemu.has_dimm.store(true, Ordering::Relaxed);
    server.broadcast(&event("STOP", Value::Null));
    agent.ask_until(|reply| reply["state"] == "guest-stopped");

    server.broadcast(&event("RESUME", Value::Null));
    qemu.hangs.store(false, Ordering::Relaxed);

    let reply = agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 35 * MIB);
    assert_ne!(reply["state"], "guest-stopped");
}
