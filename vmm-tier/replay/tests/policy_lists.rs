//! The policies' lists against lists of the standard library.

use std::{collections::VecDeque, sync::Arc};

use proptest::prelude::*;
use tier_replay::{machine::Guest, policy::lists::Lists};

const PAGES: u32 = 12;
const LISTS: u8 = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    ToFront(u8, u32),
    Remove(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..LISTS, 0..PAGES).prop_map(|(list, page)| Op::ToFront(list, page)),
        1 => (0..PAGES).prop_map(Op::Remove),
    ]
}

proptest! {
    #[test]
    fn lists_hold_what_a_model_holds_after_every_operation(ops in prop::collection::vec(op(), 0..200)) {
        let guest = Arc::new(Guest::uniform(0, PAGES, 4096));
        let mut lists = Lists::new(guest, LISTS);
        // Each from back to front.
        let mut model = vec![VecDeque::<u32>::new(); usize::from(LISTS)];
        for op in ops {
            let (Op::ToFront(_, page) | Op::Remove(page)) = op;
            for list in &mut model {
                list.retain(|&other| other != page);
            }
            match op {
                Op::ToFront(list, page) => {
                    lists.to_front(list, page);
                    model[usize::from(list)].push_back(page);
                }
                Op::Remove(page) => lists.remove(page),
            }
            for (list, expected) in (0..).zip(&model) {
                prop_assert!(lists.from_back(list).eq(expected.iter().copied()));
                prop_assert_eq!(lists.back(list), expected.front().copied());
                prop_assert_eq!(lists.len(list) as usize, expected.len());
                prop_assert_eq!(lists.is_empty(list), expected.is_empty());
                prop_assert_eq!(lists.bytes(list), 4096 * expected.len() as u64);
            }
            for page in 0..=PAGES {
                let expected = (0..).zip(&model).find(|(_, list)| list.contains(&page));
                prop_assert_eq!(lists.list_of(page), expected.map(|(list, _)| list));
            }
        }
    }
}
