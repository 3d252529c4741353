//! An agent in the guest, played behind the socket that would be QEMU's.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use tier_core::{
    addr::Gpa,
    sample::AccessKind,
    wire::{
        Access, Batch, Decoded, Decoder, Drops, Frame, Hello, InGuest, Message, Observed, Region,
    },
};

use crate::played::MIB;

/// The guest's side of the wire.
pub struct Guest {
    path: PathBuf,
    listener: UnixListener,
    pub stream: Option<UnixStream>,
    decoder: Decoder,
    session: u64,
    /// The next frame, and the first for which there is no credit.
    pub next: u64,
    credit: u64,
}

impl Guest {
    /// An agent that listens in `folder`.
    pub fn new(folder: &tempfile::TempDir) -> Self {
        let path = folder.path().join("guest");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            path,
            listener,
            stream: None,
            decoder: Decoder::new(),
            session: 0,
            next: 0,
            credit: 0,
        }
    }

    /// Takes in what the host says, and answers.
    pub fn listen(&mut self) {
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

    pub fn send(&mut self, message: Message) {
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
    pub fn observe(&mut self, addresses: &[u64]) -> u64 {
        match self.say(accesses(addresses)) {
            true => addresses.len() as u64,
            false => 0,
        }
    }

    /// Sends a message if there is credit; whether it was sent.
    pub fn say(&mut self, message: Message) -> bool {
        self.listen();
        let may = self.next > 0 && self.next < self.credit;
        if may {
            self.send(message);
        }
        may
    }

    /// How `--source` names it.
    pub fn source(&self) -> String {
        format!("guest={}", self.path.display())
    }
}

/// Loads from these addresses, one in 199.
pub fn accesses(addresses: &[u64]) -> Message {
    let access = |&gpa: &u64| Access {
        gpa: Gpa(gpa),
        kind: AccessKind::Load,
    };
    observed(Observed::Accesses {
        period: 199,
        samples: addresses.iter().map(access).collect(),
    })
}

/// Regions that were tested so often: first byte, length, how often they were used.
pub fn regions(tests: u32, regions: &[(u64, u64, u32)]) -> Message {
    let region = |&(start, len, used): &(u64, u64, u32)| Region {
        start: Gpa(start),
        len,
        used,
    };
    observed(Observed::Regions {
        tests,
        regions: regions.iter().map(region).collect(),
    })
}

/// A batch of 50 ms.
pub fn observed(observed: Observed) -> Message {
    Message::Batch(Batch {
        clock_ns: 1,
        span_ns: 50_000_000,
        drops: Drops::default(),
        observed,
    })
}
