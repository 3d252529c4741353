//! The agent's side of a session: numbers, credit, and what the host says. Pure.

use tier_core::wire::{Credit, Drops, Frame, Hello, InGuest, Message, Status, Wish};

/// A session with the host.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    hello: Hello,
    /// The number of the next frame; 1 after the hello.
    next: u64,
    /// Bytes of frames so far.
    sent: u64,
    credit: Option<Credit>,
    /// The pace that the host wishes for, if it is new.
    wish: Option<Wish>,
}

/// What a message from the host means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing that asks for more than was noted.
    Noted,
    /// The host wants a new session.
    Ask,
    /// The host wants no more.
    Stop,
}

impl Session {
    pub(crate) fn new(id: u64, hello: Hello) -> Self {
        Self {
            id,
            hello,
            next: 1,
            sent: 0,
            credit: None,
            wish: None,
        }
    }

    /// The frame that begins the session; it may be said again until it is answered.
    pub(crate) fn hello(&mut self) -> Vec<u8> {
        let bytes = self.frame(0, Message::Hello(self.hello.clone()));
        self.sent = bytes.len() as u64;
        bytes
    }

    fn frame(&self, sequence: u64, message: Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        let frame = Frame {
            session: self.id,
            sequence,
            message,
        };
        // What the builder and the reports make is always within bounds.
        let encoded = frame.encode(&mut bytes);
        debug_assert!(encoded.is_ok(), "{encoded:?}");
        bytes
    }

    /// Takes note of what the host says.
    pub(crate) fn hear(&mut self, frame: &Frame) -> Heard {
        if frame.message == Message::Ask {
            return Heard::Ask;
        }
        if frame.session != self.id {
            return Heard::Noted;
        }
        match &frame.message {
            Message::Welcome(credit, wish) => {
                self.add_credit(*credit);
                self.wish = Some(*wish);
            }
            Message::Credit(credit) => self.add_credit(*credit),
            Message::Wish(wish) => self.wish = Some(*wish),
            Message::Stop => return Heard::Stop,
            Message::Ask | Message::Hello(_) | Message::Batch(_) | Message::Status(_) => {}
        }
        Heard::Noted
    }

    fn add_credit(&mut self, credit: Credit) {
        let before = self.credit.unwrap_or_default();
        self.credit = Some(Credit {
            sequence: credit.sequence.max(before.sequence),
            bytes: credit.bytes.max(before.bytes),
        });
    }

    pub(crate) const fn is_welcome(&self) -> bool {
        self.credit.is_some()
    }

    /// The pace wished for, once for each wish.
    pub(crate) fn take_wish(&mut self) -> Option<Wish> {
        self.wish.take()
    }

    /// The bytes of a message with the next number, if there is credit for it.
    pub(crate) fn say(&mut self, message: Message) -> Option<Vec<u8>> {
        let credit = self.credit?;
        if self.next >= credit.sequence {
            return None;
        }
        let bytes = self.frame(self.next, message);
        let sent = self.sent + bytes.len() as u64;
        if sent > credit.bytes {
            return None;
        }
        self.next += 1;
        self.sent = sent;
        Some(bytes)
    }

    /// A sign of life; without credit it is not given.
    pub(crate) fn status(
        &mut self,
        source: InGuest,
        taken: u64,
        drops: Drops,
        cpu_ns: u64,
        trouble: &str,
    ) -> Option<Vec<u8>> {
        let trouble: String = trouble
            .chars()
            .filter(char::is_ascii)
            .take(tier_core::wire::MAX_TEXT)
            .collect();
        self.say(Message::Status(Status {
            source,
            taken,
            drops,
            cpu_ns,
            trouble,
        }))
    }
}

#[cfg(test)]
mod tests {
    use tier_core::wire::{Decoded, Decoder};

    use super::*;

    fn from_host(session: u64, message: Message) -> Frame {
        Frame {
            session,
            sequence: 0,
            message,
        }
    }

    fn credit(sequence: u64, bytes: u64) -> Credit {
        Credit { sequence, bytes }
    }

    fn frame(bytes: &[u8]) -> Frame {
        let mut found = None;
        Decoder::new().push(bytes, |what| match what {
            Decoded::Frame(frame, _) => found = Some(frame),
            other => panic!("{other:?}"),
        });
        found.unwrap()
    }

    #[test]
    fn say_when_not_welcome_says_nothing() {
        let mut session = Session::new(5, Hello::default());
        assert_eq!(frame(&session.hello()).sequence, 0);
        assert_eq!(session.say(Message::Stop), None);
        let other = Message::Welcome(credit(10, 10_000), Wish::default());
        assert_eq!(session.hear(&from_host(6, other)), Heard::Noted);
        assert!(!session.is_welcome());
    }

    #[test]
    fn say_when_credit_is_used_up_waits_for_more() {
        let mut session = Session::new(5, Hello::default());
        session.hello();
        let welcome = Message::Welcome(credit(3, 10_000), Wish::default());
        session.hear(&from_host(5, welcome));
        assert_eq!(session.take_wish(), Some(Wish::default()));
        assert_eq!(session.take_wish(), None);
        let numbers: Vec<u64> = (0..5)
            .filter_map(|_| session.say(Message::Stop))
            .map(|bytes| frame(&bytes).sequence)
            .collect();
        assert_eq!(numbers, [1, 2]);
        // An old credit that comes late takes nothing away.
        session.hear(&from_host(5, Message::Credit(credit(4, 20_000))));
        session.hear(&from_host(5, Message::Credit(credit(1, 10))));
        assert_eq!(frame(&session.say(Message::Stop).unwrap()).sequence, 3);
    }

    #[test]
    fn say_when_bytes_are_used_up_keeps_the_number() {
        let mut session = Session::new(5, Hello::default());
        let hello = session.hello().len() as u64;
        let welcome = Message::Welcome(credit(100, hello + 40), Wish::default());
        session.hear(&from_host(5, welcome));
        // A frame without payload has 32 bytes.
        assert!(session.say(Message::Stop).is_some());
        assert!(session.say(Message::Stop).is_none());
        session.hear(&from_host(5, Message::Credit(credit(100, hello + 64))));
        assert_eq!(frame(&session.say(Message::Stop).unwrap()).sequence, 2);
    }

    #[test]
    fn status_when_trouble_is_long_or_strange_is_cut() {
        let mut session = Session::new(5, Hello::default());
        session.hello();
        let welcome = Message::Welcome(credit(9, 10_000), Wish::default());
        session.hear(&from_host(5, welcome));
        let trouble = "é no DAMON ".repeat(40);
        let bytes = session.status(InGuest::Nothing, 7, Drops::default(), 1, &trouble);
        let bytes = bytes.unwrap();
        let Message::Status(status) = frame(&bytes).message else {
            panic!("no status");
        };
        assert!(
            status.trouble.starts_with(" no DAMON"),
            "{}",
            status.trouble
        );
    }

    #[test]
    fn hear_when_the_host_asks_or_stops_says_so() {
        let mut session = Session::new(5, Hello::default());
        assert_eq!(session.hear(&from_host(0, Message::Ask)), Heard::Ask);
        assert_eq!(session.hear(&from_host(5, Message::Stop)), Heard::Stop);
        assert_eq!(session.hear(&from_host(4, Message::Stop)), Heard::Noted);
    }
}
