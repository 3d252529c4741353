//! The sentences that tell an operator of a page: where it lies, how hot it is, what is planned for it,
//! and what became of its last moves. `tier-explain` and `vmm-tier explain` say the same.

use super::explain::{Explanation, PageCondition, PastMoveNote};
use crate::{
    addr::{BASE_PAGE, Gpa, NodeId},
    dual_heap::Placement,
    engine::evidence::skew,
    map::{Backing, RamBlock},
    moves::{Direction, Outcome},
    text::size::human,
};

/// Which RAM block and backend a guest-physical address belongs to, and in a page of what size.
#[must_use]
pub fn address(gpa: Gpa, block: &RamBlock, block_offset: u64, page_bytes: u64) -> String {
    let name = match block.name.as_str() {
        "" => "a RAM block without a name".to_owned(),
        name => format!("RAM block {name}"),
    };
    let backing = block.backing.map_or("unknown", Backing::name);
    format!(
        "Guest address {:#x} is byte {block_offset:#x} of {name} ({backing} memory), in a page of {}.",
        gpa.0,
        human(page_bytes)
    )
}

/// Where a page lies; without a tier, on a node of which nobody said whether it is fast.
#[must_use]
pub fn place(node: Option<NodeId>, placement: Placement) -> String {
    let tier = match placement {
        Placement::Fast => "the fast tier",
        Placement::Slow => "the slow tier",
        Placement::Untracked => match node {
            Some(node) => return format!("The page lies on node {node}."),
            None => {
                return "No page is present there, or it lies on a node of neither tier: the guest never touched it, \
                        or gave it back (balloon, free-page reporting, virtio-mem)."
                    .to_owned();
            }
        },
    };
    match node {
        Some(node) => format!("The page lies on node {node}, in {tier}."),
        None => format!("The page lies in {tier}."),
    }
}

/// All sentences of an explanation, those about its block and its page first.
pub(super) fn of(page: &Explanation, block: &RamBlock) -> Vec<String> {
    let mut told = vec![
        address(page.gpa, block, page.block_offset, page.page_bytes),
        place(page.node, page.placement),
    ];
    if page.placement != Placement::Untracked {
        told.push(heat(page));
        told.extend(spread(page));
    }
    told.extend(condition(page));
    if page.state != PageCondition::InFlight {
        told.push(format!(
            "Before it moves, this must hold: {}.",
            page.would_move_if
        ));
    }
    match (&page.last_move, &page.last_failure) {
        (None, None) => told.push("No move of it is remembered.".to_owned()),
        (Some(last), failure) => {
            told.push(past("Its last move", last));
            let earlier = failure.as_ref().filter(|failure| *failure != last);
            told.extend(earlier.map(|failure| past("Its last failure", failure)));
        }
        (None, Some(failure)) => told.push(past("Its last failure", failure)),
    }
    told
}

fn heat(page: &Explanation) -> String {
    let heat = match page.samples > 0.0 {
        true => format!(
            "Its heat is {:.1} samples of each 4 KiB, which is about {:.0} accesses a second to the page",
            page.samples, page.accesses_per_s
        ),
        false => "No access to it was seen".to_owned(),
    };
    let order = match page.placement {
        Placement::Fast => "colder",
        _ => "hotter",
    };
    match (page.rank, page.heap_pages) {
        (Some(rank), Some(all)) => {
            format!("{heat}; {rank} of the {all} pages of its tier that may be taken are {order}.")
        }
        _ => format!("{heat}."),
    }
}

/// On how much of a huge page its accesses fall.
fn spread(page: &Explanation) -> Option<String> {
    let (samples, hit) = (page.recent_samples?, page.recent_frames?);
    let so = match skew::is_skewed(samples, hit) {
        true => ": few of them make the page hot",
        false => "",
    };
    Some(format!(
        "Its last {samples} sampled accesses fell on {hit} of its {} frames of 4 KiB{so}.",
        page.page_bytes / BASE_PAGE
    ))
}

fn condition(page: &Explanation) -> Option<String> {
    let pin = page.pin.as_ref();
    Some(match page.state {
        PageCondition::Untracked | PageCondition::InHeap | PageCondition::NeverSampled => {
            return None;
        }
        PageCondition::InFlight => "A move of it is under way.".to_owned(),
        PageCondition::Cooling => format!(
            "It rests for {:.1} s, after a move.",
            page.cooling_ms.unwrap_or(0) as f64 / 1e3
        ),
        PageCondition::Excluded => {
            "It is not tried again: it can't be moved where it lies.".to_owned()
        }
        PageCondition::Pinned => match pin {
            Some(pin) => format!("An operator has pinned it to the {} tier.", pin.tier),
            None => "An operator has pinned it.".to_owned(),
        },
    })
}

/// A move that ended, with what the classes of moves say of its end.
fn past(what: &str, past: &PastMoveNote) -> String {
    let way = match past.direction {
        Direction::Promote => "a promotion",
        Direction::Demote => "a demotion",
    };
    let head = format!(
        "{what}, {way} {:.1} s ago, ended as {}: {}.",
        past.seconds_ago,
        past.outcome,
        past.outcome.cause()
    );
    if past.outcome == Outcome::Moved {
        return head;
    }
    format!(
        "{head} The agent {}. What you can do: {}.",
        past.outcome.retry(),
        past.outcome.remedy()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Hva;

    fn block() -> RamBlock {
        RamBlock {
            name: "ram0".to_owned(),
            hva: Hva(0),
            used: 1 << 30,
            total: 1 << 30,
            page_size: 4096,
            backing: Some(Backing::Shmem),
        }
    }

    fn page() -> Explanation {
        Explanation {
            gpa: Gpa(1 << 30),
            block: "ram0".to_owned(),
            block_offset: 4096,
            hva: Hva(4096),
            page_hva: Hva(4096),
            page_bytes: 4096,
            node: Some(NodeId(1)),
            placement: Placement::Slow,
            samples: 12.34,
            accesses_per_s: 40.2,
            recent_samples: None,
            recent_frames: None,
            rank: Some(3),
            heap_pages: Some(1024),
            state: PageCondition::InHeap,
            cooling_ms: None,
            pin: None,
            last_move: None,
            last_failure: None,
            would_move_if: "its turn comes: 3 hotter pages go first".to_owned(),
            sentences: Vec::new(),
        }
    }

    fn note(outcome: Outcome, seconds_ago: f64) -> PastMoveNote {
        PastMoveNote {
            direction: Direction::Promote,
            outcome,
            node: None,
            seconds_ago,
        }
    }

    #[test]
    fn sentences_of_a_page_that_waits_tell_block_place_heat_and_plan() {
        assert_eq!(
            of(&page(), &block()),
            [
                "Guest address 0x40000000 is byte 0x1000 of RAM block ram0 (shared memory), in a page of 4 KiB.",
                "The page lies on node 1, in the slow tier.",
                "Its heat is 12.3 samples of each 4 KiB, which is about 40 accesses a second to the page; 3 of the \
                 1024 pages of its tier that may be taken are hotter.",
                "Before it moves, this must hold: its turn comes: 3 hotter pages go first.",
                "No move of it is remembered.",
            ]
        );
    }

    #[test]
    fn sentences_of_a_huge_page_say_on_how_much_of_it_accesses_fall() {
        for (hit, end) in [(9, ": few of them make the page hot."), (180, ".")] {
            let huge = Explanation {
                page_bytes: 2 << 20,
                recent_samples: Some(200),
                recent_frames: Some(hit),
                ..page()
            };
            let told = of(&huge, &block());
            let expected = format!(
                "Its last 200 sampled accesses fell on {hit} of its 512 frames of 4 KiB{end}"
            );
            assert_eq!(told[3], expected);
        }
    }

    #[test]
    fn sentences_of_a_page_that_failed_tell_class_retry_and_remedy() {
        let busy = note(Outcome::Busy, 3.25);
        let failed = Explanation {
            state: PageCondition::Cooling,
            cooling_ms: Some(1250),
            last_move: Some(busy),
            last_failure: Some(busy),
            ..page()
        };
        let told = of(&failed, &block());
        assert_eq!(told[3], "It rests for 1.2 s, after a move.");
        assert_eq!(
            told[5],
            format!(
                "Its last move, a promotion 3.2 s ago, ended as busy: {}. The agent tries again after 1 s. What you \
                 can do: {}.",
                Outcome::Busy.cause(),
                Outcome::Busy.remedy()
            )
        );
        assert_eq!(told.len(), 6);
        let later = Explanation {
            last_move: Some(note(Outcome::Moved, 1.0)),
            ..failed
        };
        let told = of(&later, &block());
        assert!(
            told[5].ends_with("ended as moved: the page went to its node, and was found there.")
        );
        assert!(told[6].starts_with("Its last failure, a promotion 3.2 s ago, ended as busy"));
    }

    #[test]
    fn sentences_of_a_page_that_is_not_there_say_why() {
        let absent = Explanation {
            node: None,
            placement: Placement::Untracked,
            state: PageCondition::Untracked,
            ..page()
        };
        let told = of(&absent, &block());
        assert!(told[1].starts_with("No page is present there"), "{told:?}");
        assert!(told[2].starts_with("Before it moves"), "{told:?}");
    }
}
