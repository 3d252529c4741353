//! `vmm-tier run` with an agent in the guest, which this test plays behind the socket that would be
//! QEMU's: one that keeps to the rules, one that names others' memory, one that floods.

mod played;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};

use played::{Agent, MIB, Qemu};
use serde_json::{Value, json};
use tier_core::{
    addr::Gpa,
    sample::AccessKind,
    wire::{Access, Batch, Decoded, Decoder, Drops, Frame, Hello, InGuest, Message, Observed},
};

/// The guest's side of the wire.
struct Guest {
    listener: UnixListener,
    stream: Option<UnixStream>,
    decoder: Decoder,
    session: u64,
    /// The next frame, and the first for which there is no credit.
    next: u64,
    credit: u64,
}

impl Guest {
    fn new(folder: &tempfile::TempDir) -> Self {
        let listener = UnixListener::bind(folder.path().join("guest")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            listener,
            stream: None,
            decoder: Decoder::new(),
            session: 0,
            next: 0,
            credit: 0,
        }
    }

    /// Takes in what the host says, and answers.
    fn listen(&mut self) {
        if let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            self.stream = Some(stream);
            self.decoder.reset();
        }
        let mut buffer = [0; 4096];
        while let Some(bytes @ 1..) = self.stream.as_mut().and_then(|s| s.read(&mut buffer).ok()) {
            let mut said = Vec::new();
            self.decoder.push(&buffer[..bytes], |found| match found {
                Decoded::Frame(frame, _) => said.push(frame.message),
                other => panic!("the host sent {other:?}"),
            });
            for message in said {
                match message {
                    Message::Ask => {
                        self.session += 1;
                        (self.next, self.credit) = (0, 0);
                        self.send(Message::Hello(Hello {
                            agent: "played".to_owned(),
                            kernel: "6.12-played".to_owned(),
                            page_sizes: vec![4096],
                            memory_bytes: 31 * MIB,
                            source: InGuest::Pebs,
                            can: vec![InGuest::Pebs],
                        }));
                    }
                    Message::Welcome(credit, _) | Message::Credit(credit) => {
                        self.credit = credit.sequence;
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: Message) {
        let frame = Frame {
            session: self.session,
            sequence: self.next,
            message,
        };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        self.next += 1;
        let mut rest = &bytes[..];
        while let (false, Some(stream)) = (rest.is_empty(), &mut self.stream) {
            match stream.write(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(_) => self.stream = None,
            }
        }
    }

    /// Sends accesses to these addresses, if there is credit; how many were sent.
    fn observe(&mut self, addresses: &[u64]) -> u64 {
        self.listen();
        if self.next == 0 || self.next >= self.credit {
            return 0;
        }
        self.send(accesses(addresses));
        addresses.len() as u64
    }
}

fn accesses(addresses: &[u64]) -> Message {
    let access = |&gpa| Access {
        gpa: Gpa(gpa),
        kind: AccessKind::Load,
    };
    Message::Batch(Batch {
        clock_ns: 1,
        span_ns: 50_000_000,
        drops: Drops::default(),
        observed: Observed::Accesses {
            period: 199,
            samples: addresses.iter().map(access).collect(),
        },
    })
}

fn start(folder: &Arc<tempfile::TempDir>) -> Agent {
    let place = folder.path().join("guest");
    let more = format!("[source]\nkind = 'guest={}'\n", place.display());
    Agent::start_in(Arc::clone(folder), &more)
}

/// All records have a fate.
fn assert_accounted(source: &Value) {
    let dropped = source["dropped"].as_object().unwrap().values();
    let dropped: u64 = dropped.map(|count| count.as_u64().unwrap()).sum();
    let accepted = source["accepted"].as_u64().unwrap();
    assert_eq!(
        source["samples"].as_u64(),
        Some(accepted + dropped),
        "{source}"
    );
}

#[test]
fn guest_when_it_observes_warms_its_own_pages() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut agent = start(&folder);
    let hot: Vec<u64> = (0..64).map(|page| 2 * MIB + page * 65_536).collect();

    let reply = agent.ask_until(|reply| {
        guest.observe(&hot);
        thread::sleep(Duration::from_millis(20));
        let label = reply["sources"][0]["label"].as_str().unwrap_or_default();
        reply["state"] == "running"
            && reply["source"]["accepted"].as_u64() >= Some(6400)
            && label.contains("6.12-played")
    });

    assert_eq!(reply["source"]["kind"], "guest", "{reply}");
    assert_accounted(&reply["source"]);
    assert_eq!(reply["source"]["dropped"], json!({}), "{reply}");
    let explained = agent.ask("tier-explain", Some(json!({"address": 2 * MIB + 65_536})));
    assert!(
        explained["samples"].as_f64().unwrap_or_default() > 10.0,
        "{explained}"
    );
    let cold = agent.ask("tier-explain", Some(json!({"address": 2 * MIB + 4096})));
    assert_eq!(cold["samples"].as_f64(), Some(0.0), "{cold}");
}

#[test]
fn guest_when_it_names_others_memory_is_broken_and_changes_nothing() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut agent = start(&folder);
    // Behind its memory, far away, and where this process has its own.
    let foreign = [64 * MIB, 1 << 45, qemu.base() + 2 * MIB];

    let reply = agent.ask_until(|reply| {
        guest.observe(&foreign);
        thread::sleep(Duration::from_millis(20));
        reply["sources"][0]["health"] == "broken"
    });

    assert_eq!(reply["source"]["accepted"], 0, "{reply}");
    assert!(
        reply["source"]["dropped"]["not-guest-ram"].as_u64() > Some(0),
        "{reply}"
    );
    assert_accounted(&reply["source"]);
    assert_eq!(reply["state"], "blind", "{reply}");
}

#[test]
fn guest_when_it_stalls_is_silent_and_heard_again_when_it_goes_on() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut agent = start(&folder);
    let hot: Vec<u64> = (0..64).map(|page| 2 * MIB + page * 65_536).collect();
    let observe = |guest: &mut Guest| {
        guest.observe(&hot);
        thread::sleep(Duration::from_millis(20));
    };
    agent.ask_until(|reply| {
        observe(&mut guest);
        reply["source"]["accepted"].as_u64() >= Some(640)
    });

    let stalled = agent.ask_until(|reply| reply["sources"][0]["health"] == "silent");
    assert_eq!(stalled["state"], "blind", "{stalled}");

    let back = agent.ask_until(|reply| {
        observe(&mut guest);
        reply["state"] == "running"
    });
    assert!(back["source"]["accepted"].as_u64() > stalled["source"]["accepted"].as_u64());
    assert_accounted(&back["source"]);
}

#[test]
fn guest_when_it_floods_is_limited_and_the_agent_answers_all_the_same() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut agent = start(&folder);
    let addresses: Vec<u64> = (0..8000).map(|page| 2 * MIB + page % 6000 * 4096).collect();

    let reply = agent.ask_until(|reply| {
        guest.listen();
        // No credit is asked for.
        for _ in 0..20 {
            if guest.next > 0 && guest.stream.is_some() {
                guest.send(accesses(&addresses));
            }
        }
        reply["source"]["dropped"]["rate-limited"].as_u64() >= Some(1_000_000)
    });

    assert_accounted(&reply["source"]);
    assert!(reply["source"]["accepted"].as_u64() > Some(0), "{reply}");
}
