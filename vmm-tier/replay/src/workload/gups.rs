//! Giga updates per second: words of a table are read, changed and written at random, most of them in a
//! hot set.

use tier_core::{
    addr::BASE_PAGE,
    random::{Random, scaled},
    sample::AccessKind,
};

use super::{Plan, Scale, generator::Pattern};

/// Of 65 536 updates, those that go to the hot set: 9 in 10.
const HOT: u16 = (65_536 * 9 / 10) as u16;

/// Pages that stand one after the other.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: u32,
    len: u32,
}

struct Gups {
    hot: Block,
    /// The pages that the other updates go to.
    rest: Block,
    /// Hot sets to come, the last first.
    next: Vec<Block>,
    /// Where the current update still has to be written.
    store: Option<u64>,
}

impl Pattern for Gups {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        if let Some(offset) = self.store.take() {
            return (offset, AccessKind::Store);
        }
        let bits = random.draw();
        let is_hot = (bits as u16) < HOT;
        let block = if is_hot { self.hot } else { self.rest };
        let page = block.first + scaled((bits >> 32) as u32, block.len);
        // One of 512 words.
        let offset = u64::from(page) * BASE_PAGE + (bits >> 16) % (BASE_PAGE / 8) * 8;
        self.store = Some(offset);
        (offset, AccessKind::Load)
    }

    fn change(&mut self, _: &mut Random) {
        if let Some(next) = self.next.pop() {
            self.hot = next;
        }
    }
}

/// `HeMem`'s set-up (SOSP 2021): nine of ten updates go to a hot set of a 32nd of the table (16 of 512
/// GB), the others anywhere. In mid-run another hot set, elsewhere, takes its place: all of it, where
/// `HeMem`'s authors shift a part.
pub(super) fn hemem(scale: &Scale, _: &mut Random) -> Plan {
    let len = scale.share(1, 32);
    let block = |first| Block { first, len };
    let mut plan = Plan::steady(Gups {
        hot: block(scale.share(5, 8)),
        rest: Block {
            first: 0,
            len: scale.pages,
        },
        next: vec![block(scale.share(7, 8))],
        store: None,
    });
    plan.changes = vec![scale.seconds / 2];
    plan.phases = scale.seconds > 1;
    plan
}

/// Demeter's set-up (SOSP 2025): a table of 14 GiB in a guest of 16 GiB, a hot set of 1 GiB at its end,
/// so that it starts on the slow tier; nine of ten updates are hot, the others go to the rest of the
/// table.
pub(super) fn demeter(scale: &Scale, _: &mut Random) -> Plan {
    let (first, end) = (scale.share(13, 16), scale.share(14, 16));
    Plan::steady(Gups {
        hot: Block {
            first,
            len: end - first,
        },
        rest: Block {
            first: 0,
            len: first,
        },
        next: Vec::new(),
        store: None,
    })
}
