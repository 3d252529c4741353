//! Commands that wait for a reply, and who gets it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Closed;
use crate::QmpError;

/// Commands that wait for a reply.
#[derive(Debug)]
pub(super) enum Pending {
    Open(Waiting),
    Closed(Closed),
}

/// Takes a reply, in the reader's thread; whether somebody still waited for it.
pub(crate) type Sink = Box<dyn FnOnce(Result<Value, QmpError>) -> bool + Send>;

/// The commands that wait for a reply, by id. Ids go up in the order of sending.
#[derive(Default)]
pub(super) struct Waiting(BTreeMap<u64, Entry>);

struct Entry {
    oob: bool,
    /// `None` when nobody waits any more; the reply is still to come.
    sink: Option<Sink>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Waiting {
    pub(super) fn insert(&mut self, id: u64, oob: bool, sink: Sink) {
        let sink = Some(sink);
        self.0.insert(id, Entry { oob, sink });
    }

    /// Nobody waits for it any more.
    pub(super) fn give_up(&mut self, id: u64) -> Option<Sink> {
        self.0.get_mut(&id).and_then(|entry| entry.sink.take())
    }

    /// Who gets the reply with this id. QEMU could not read a command whose error has no id; as it
    /// answers in order, that is the oldest one in band.
    pub(super) fn settle(&mut self, id: Option<&Value>) -> Option<Sink> {
        let id = match id {
            Some(id) => id.as_u64(),
            None => {
                let in_band = self.0.iter().find(|(_, entry)| !entry.oob);
                in_band.map(|(&id, _)| id)
            }
        };
        self.0.remove(&id?)?.sink
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn waiting(entries: &[(u64, bool)]) -> Waiting {
        let mut waiting = Waiting::default();
        for &(id, oob) in entries {
            waiting.insert(id, oob, Box::new(|_| true));
        }
        waiting
    }

    #[test]
    fn oldest_in_band_command_is_settled_when_an_error_has_no_id() {
        let mut waiting = waiting(&[(1, true), (2, false), (3, false)]);

        assert!(waiting.settle(None).is_some());
        assert!(waiting.settle(Some(&json!(2))).is_none());
        assert!(waiting.settle(Some(&json!(3))).is_some());
        assert!(waiting.settle(None).is_none(), "only out of band is left");
    }

    #[test]
    fn given_up_command_keeps_its_place_when_an_error_has_no_id() {
        let mut waiting = waiting(&[(1, false), (2, false)]);
        waiting.give_up(1);

        assert!(waiting.settle(None).is_none(), "it was for the first");
        assert!(waiting.settle(None).is_some());
    }
}
