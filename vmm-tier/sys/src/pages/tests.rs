//! The logic of moving over a kernel that fails as Linux does, and over the real one.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tier_core::addr::HUGE_PAGE;

use super::*;

/// Folios by head address. Behaves as `do_pages_move` of mm/migrate.c (6.12) does.
#[derive(Clone, Default)]
struct FakeKernel {
    /// (head, bytes, node)
    folios: Vec<(u64, u64, i32)>,
    /// Addresses that can't be isolated: status EBUSY, the call goes on.
    unisolated: BTreeSet<u64>,
    /// Heads that can't be migrated: the call returns > 0 and writes no status.
    stuck: BTreeSet<u64>,
    /// Heads mapped by others.
    shared: BTreeSet<u64>,
    /// Folios that split and leave their second half behind.
    splitting: BTreeSet<u64>,
    /// Pages the target has room for; more makes the call fail with ENOMEM.
    room: usize,
    whole_call_error: Option<i32>,
    /// After so many calls each further call is refused with this error.
    refuses_after: Option<(usize, i32)>,
    mapped: bool,
    calls: usize,
    /// Whether the target has little free memory.
    is_below_watermark: bool,
    /// Pages pinned on the host.
    pinned: u64,
    /// What is no longer stuck after a pause.
    released: BTreeSet<u64>,
}

impl FakeKernel {
    fn folio(&mut self, address: u64) -> Option<&mut (u64, u64, i32)> {
        self.folios
            .iter_mut()
            .find(|(head, bytes, _)| (*head..head + bytes).contains(&address))
    }

    /// Migrates the queue; the number of failures, or ENOMEM.
    fn flush(
        &mut self,
        queue: &mut Vec<(usize, u64)>,
        target: i32,
        status: &mut [i32],
    ) -> Result<u64, i32> {
        let mut failed = 0;
        for &(_, head) in queue.iter() {
            if self.stuck.contains(&head) {
                failed += 1;
                continue;
            }
            if self.room == 0 {
                return Err(libc::ENOMEM);
            }
            self.room -= 1;
            if self.splitting.contains(&head) {
                let (_, bytes, node) = *self.folio(head).unwrap();
                self.folios.push((head + bytes / 2, bytes / 2, node));
                *self.folio(head).unwrap() = (head, bytes / 2, target);
            } else {
                self.folio(head).unwrap().2 = target;
            }
        }
        if failed == 0 {
            for &(index, _) in queue.iter() {
                status[index] = target;
            }
        }
        queue.clear();
        Ok(failed)
    }
}

impl PageCalls for FakeKernel {
    fn call(
        &mut self,
        _pid: u32,
        addresses: &[Hva],
        nodes: Option<&[i32]>,
        status: &mut [i32],
        all: bool,
    ) -> Result<u64, i32> {
        let Some(nodes) = nodes else {
            if self.whole_call_error == Some(libc::ESRCH) {
                return Err(libc::ESRCH);
            }
            for (address, status) in addresses.iter().zip(status) {
                let absent = if self.mapped {
                    -libc::ENOENT
                } else {
                    -libc::EFAULT
                };
                *status = self.folio(address.0).map_or(absent, |folio| folio.2);
            }
            return Ok(0);
        };
        if let Some(errno) = self.whole_call_error {
            return Err(errno);
        }
        if let Some((_, errno)) = self.refuses_after.filter(|(calls, _)| self.calls >= *calls) {
            return Err(errno);
        }
        self.calls += 1;
        let mut queue: Vec<(usize, u64)> = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let target = nodes[index];
            let error = match self.folio(address.0).copied() {
                None if self.mapped => -libc::ENOENT,
                None => -libc::EFAULT,
                Some((_, _, node)) if node == target => node,
                Some((head, ..)) if self.shared.contains(&head) && !all => -libc::EACCES,
                Some((head, ..)) if self.unisolated.contains(&head) => -libc::EBUSY,
                Some((head, ..)) if queue.iter().any(|&(_, queued)| queued == head) => -libc::EBUSY,
                Some((head, ..)) => {
                    queue.push((index, head));
                    continue;
                }
            };
            status[index] = error;
            let failed = self.flush(&mut queue, target, status)?;
            if failed > 0 {
                return Ok(failed + (addresses.len() - index) as u64);
            }
        }
        let target = nodes.first().copied().unwrap_or(0);
        self.flush(&mut queue, target, status)
    }

    fn mapped(&mut self, _pid: u32, addresses: &[Hva]) -> Vec<bool> {
        vec![self.mapped; addresses.len()]
    }

    fn is_below_watermark(&mut self, _node: NodeId) -> bool {
        self.is_below_watermark
    }

    fn pinned_pages(&mut self) -> u64 {
        self.pinned
    }

    fn pause(&mut self, _time: Duration) {
        self.stuck = &self.stuck - &self.released;
    }
}

const SLOW: i32 = 1;
const FAST: NodeId = NodeId(0);

fn small_pages(count: u64) -> (FakeKernel, Vec<Page>) {
    let folios = (0..count)
        .map(|n| (0x10000 + n * BASE_PAGE, BASE_PAGE, SLOW))
        .collect();
    let kernel = FakeKernel {
        folios,
        room: usize::MAX,
        mapped: true,
        ..FakeKernel::default()
    };
    let pages = (0..count).map(|n| Page {
        hva: Hva(0x10000 + n * BASE_PAGE),
        bytes: BASE_PAGE,
    });
    (kernel, pages.collect())
}

fn answers<'a>(
    status: Option<i32>,
    before: &'a [PageStatus],
    nodes: &'a [PageStatus],
) -> Answers<'a> {
    Answers {
        bytes: BASE_PAGE,
        status,
        no_memory: false,
        is_below_watermark: false,
        before,
        nodes,
    }
}

fn outcomes(kernel: &mut FakeKernel, pages: &[Page], all: bool) -> Vec<Outcome> {
    let results = move_with(kernel, 7, FAST, pages, all).unwrap();
    assert_eq!(results.iter().map(|r| r.page).collect::<Vec<_>>(), pages);
    results.into_iter().map(|result| result.outcome).collect()
}

#[test]
fn move_when_all_goes_well_takes_one_call() {
    let (mut kernel, pages) = small_pages(100);
    assert_eq!(outcomes(&mut kernel, &pages, false), [Outcome::Moved; 100]);
    assert_eq!(kernel.calls, 1);
}

#[test]
fn move_when_one_page_is_stuck_still_reports_the_others_as_moved() {
    let (mut kernel, pages) = small_pages(4);
    kernel.stuck.insert(pages[1].hva.0);

    let found = outcomes(&mut kernel, &pages, false);

    assert_eq!(
        found,
        [
            Outcome::Moved,
            Outcome::Busy,
            Outcome::Moved,
            Outcome::Moved
        ]
    );
}

#[test]
fn move_when_a_failed_batch_ends_the_call_tries_the_rest_again() {
    // Page 0 is stuck; page 1 is absent, which flushes page 0 and ends the call: 2 was never tried.
    let (mut kernel, pages) = small_pages(3);
    kernel.stuck.insert(pages[0].hva.0);
    kernel.folios.remove(1);

    let found = outcomes(&mut kernel, &pages, false);

    assert_eq!(found, [Outcome::Busy, Outcome::Absent, Outcome::Moved]);
}

#[test]
fn move_when_target_is_full_says_no_memory_for_what_did_not_fit() {
    let (mut kernel, pages) = small_pages(4);
    kernel.room = 2;

    let found = outcomes(&mut kernel, &pages, false);

    assert_eq!(
        found,
        [
            Outcome::Moved,
            Outcome::Moved,
            Outcome::NoMemory,
            Outcome::NoMemory
        ]
    );
}

#[test]
fn move_when_a_page_stays_stuck_where_pages_are_pinned_calls_it_pinned() {
    let (mut kernel, pages) = small_pages(4);
    kernel.pinned = 3;
    // Page 0 stays pinned, page 1 only while a disk reads it, page 2 can't even be isolated.
    kernel.stuck.extend([pages[0].hva.0, pages[1].hva.0]);
    kernel.released.insert(pages[1].hva.0);
    kernel.unisolated.insert(pages[2].hva.0);

    let found = outcomes(&mut kernel, &pages, false);

    assert_eq!(
        found,
        [
            Outcome::Pinned,
            Outcome::Moved,
            Outcome::Busy,
            Outcome::Moved
        ]
    );
}

#[test]
fn move_when_page_is_shared_needs_all() {
    let (mut kernel, pages) = small_pages(2);
    kernel.shared.insert(pages[0].hva.0);

    assert_eq!(
        outcomes(&mut kernel, &pages, false),
        [Outcome::Shared, Outcome::Moved]
    );
    assert_eq!(
        outcomes(&mut kernel, &pages, true),
        [Outcome::Moved, Outcome::AlreadyThere]
    );
}

#[test]
fn move_when_folio_is_named_twice_calls_both_moved() {
    let mut kernel = FakeKernel {
        folios: vec![(HUGE_PAGE, HUGE_PAGE, SLOW)],
        room: 9,
        mapped: true,
        ..FakeKernel::default()
    };
    let pages = [HUGE_PAGE, HUGE_PAGE + BASE_PAGE].map(|a| Page {
        hva: Hva(a),
        bytes: BASE_PAGE,
    });

    assert_eq!(
        outcomes(&mut kernel, &pages, false),
        [Outcome::Moved, Outcome::Moved]
    );
}

#[test]
fn move_when_every_frame_of_an_unknown_folio_is_named_takes_few_calls() {
    const FRAMES: u64 = 16;
    let pages: Vec<Page> = (0..FRAMES)
        .map(|n| Page {
            hva: Hva(HUGE_PAGE + n * BASE_PAGE),
            bytes: BASE_PAGE,
        })
        .collect();
    let mut kernel = FakeKernel {
        folios: vec![(HUGE_PAGE, FRAMES * BASE_PAGE, SLOW)],
        room: 9,
        mapped: true,
        ..FakeKernel::default()
    };
    // The second address is refused as busy, for the folio is queued; by then it has moved.
    let mut moved = kernel.clone();
    assert_eq!(outcomes(&mut moved, &pages, false), [Outcome::Moved; 16]);
    assert_eq!(moved.calls, 1);

    // One that can't be moved ends a call for every two of its addresses, and for no more than that.
    kernel.stuck.insert(HUGE_PAGE);
    assert_eq!(outcomes(&mut kernel, &pages, false), [Outcome::Busy; 16]);
    assert!(kernel.calls <= MAX_ROUNDS, "{}", kernel.calls);
}

#[test]
fn move_when_huge_page_splits_on_the_way_says_split() {
    let mut kernel = FakeKernel {
        folios: vec![
            (HUGE_PAGE, HUGE_PAGE, SLOW),
            (2 * HUGE_PAGE, HUGE_PAGE, SLOW),
        ],
        room: 9,
        mapped: true,
        ..FakeKernel::default()
    };
    kernel.splitting.insert(HUGE_PAGE);
    let pages = [1, 2].map(|n| Page {
        hva: Hva(n * HUGE_PAGE),
        bytes: HUGE_PAGE,
    });

    assert_eq!(
        outcomes(&mut kernel, &pages, false),
        [Outcome::Split, Outcome::Moved]
    );
}

#[test]
fn move_when_mapping_is_gone_tells_it_from_the_page_of_zeros() {
    let (mut kernel, pages) = small_pages(1);
    kernel.folios.clear();
    kernel.mapped = false;
    assert_eq!(outcomes(&mut kernel, &pages, false), [Outcome::Gone]);

    let zero = [PageStatus::Fault];
    let zero = answers(Some(-libc::EFAULT), &zero, &zero);
    assert_eq!(zero.outcome(FAST), Outcome::Gone);
    let page = PageResult {
        page: pages[0],
        outcome: Outcome::Gone,
        node: None,
    };
    let mut results = [page];
    kernel.mapped = true;
    tell_gone_from_zero(&mut kernel, 7, &mut results);
    assert_eq!(results[0].outcome, Outcome::Absent);
}

#[test]
fn move_when_kernel_reports_success_but_page_is_elsewhere_says_wrong_node() {
    let slow = [PageStatus::Node(NodeId(1))];
    assert_eq!(
        answers(Some(0), &slow, &slow).outcome(FAST),
        Outcome::WrongNode
    );
}

#[test]
fn move_when_the_kernel_writes_any_documented_status_has_a_class_for_it() {
    let slow = [PageStatus::Node(NodeId(1))];
    for (errno, expected) in [
        (libc::EACCES, Outcome::Shared),
        (libc::EBUSY, Outcome::Busy),
        (libc::EAGAIN, Outcome::Busy),
        (libc::EIO, Outcome::Busy),
        (libc::EFAULT, Outcome::Busy),
        (libc::ENOENT, Outcome::Busy),
        (libc::EINVAL, Outcome::Pinned),
        (libc::ENOMEM, Outcome::NoMemory),
    ] {
        // Where it is present and lies elsewhere; ENOENT and EFAULT are of a page that has come back.
        let found = answers(Some(-errno), &slow, &slow).outcome(FAST);
        assert_eq!(found, expected, "{errno}");
    }
    let none = [PageStatus::Absent];
    assert_eq!(
        answers(Some(-libc::ENOENT), &none, &none).outcome(FAST),
        Outcome::Absent
    );
    assert_eq!(
        answers(Some(i32::MIN), &slow, &slow).outcome(FAST),
        Outcome::Busy
    );
}

#[test]
fn move_when_target_lacks_memory_says_which() {
    let (mut kernel, pages) = small_pages(1);
    kernel.room = 0;
    assert_eq!(outcomes(&mut kernel, &pages, false), [Outcome::NoMemory]);
    kernel.is_below_watermark = true;
    assert_eq!(
        outcomes(&mut kernel, &pages, false),
        [Outcome::BelowWatermark]
    );
    kernel.folios = vec![(HUGE_PAGE, HUGE_PAGE, SLOW)];
    let huge = Page {
        hva: Hva(HUGE_PAGE),
        bytes: HUGE_PAGE,
    };
    assert_eq!(outcomes(&mut kernel, &[huge], false), [Outcome::NoHugePage]);
}

#[test]
fn move_when_many_pages_of_a_large_batch_lie_there_before_says_so_of_each() {
    let (mut kernel, pages) = small_pages(200);
    for folio in &mut kernel.folios[71..71 + ONE_IN] {
        folio.2 = i32::from(FAST.0);
    }
    let found = outcomes(&mut kernel, &pages, false);
    for (index, outcome) in found.iter().enumerate() {
        let lay_there = (71..71 + ONE_IN).contains(&index);
        let expected = match lay_there {
            true => Outcome::AlreadyThere,
            false => Outcome::Moved,
        };
        assert_eq!(*outcome, expected, "page {index}");
    }
}

#[test]
fn move_when_a_page_lies_there_before_says_so() {
    let (mut kernel, pages) = small_pages(3);
    kernel.folios[1].2 = i32::from(FAST.0);
    assert_eq!(
        outcomes(&mut kernel, &pages, false),
        [Outcome::Moved, Outcome::AlreadyThere, Outcome::Moved]
    );
}

#[test]
fn move_when_process_is_gone_makes_every_page_gone() {
    let (mut kernel, pages) = small_pages(3);
    kernel.whole_call_error = Some(libc::ESRCH);
    assert_eq!(outcomes(&mut kernel, &pages, false), [Outcome::Gone; 3]);
}

#[test]
fn move_when_refused_as_a_whole_says_what_to_do() {
    let (mut kernel, pages) = small_pages(1);
    for (errno, outcome, advice) in [
        (libc::EACCES, Outcome::Cpuset, "cpuset.mems"),
        (libc::ENODEV, Outcome::Refused, "not online"),
        (libc::EPERM, Outcome::Refused, "CAP_SYS_PTRACE"),
        (libc::EINVAL, Outcome::Refused, "failed"),
        (libc::EFAULT, Outcome::Refused, "failed"),
        (libc::ENOSYS, Outcome::Refused, "failed"),
    ] {
        kernel.whole_call_error = Some(errno);
        let error = move_with(&mut kernel, 7, FAST, &pages, false).unwrap_err();
        assert_eq!(error.outcome(), outcome, "{errno}");
        let error = error.to_string();
        assert!(error.contains(advice), "{error}");
    }
}

#[test]
fn move_when_it_is_refused_in_the_middle_reports_what_moved_before() {
    // Page 1 is stuck; page 2 is absent, which flushes the queue and ends the call. Then the cpuset of
    // the process changes, or the node goes offline.
    for (errno, outcome) in [
        (libc::EACCES, Outcome::Cpuset),
        (libc::ENODEV, Outcome::Refused),
    ] {
        let (mut kernel, pages) = small_pages(4);
        kernel.stuck.insert(pages[1].hva.0);
        kernel.folios.remove(2);
        kernel.refuses_after = Some((1, errno));

        let found = outcomes(&mut kernel, &pages, false);

        let expected = [Outcome::Busy, Outcome::Busy, Outcome::Absent, Outcome::Busy];
        assert_eq!(found[1..], expected[1..], "{errno}");
        let truth = kernel.folio(pages[0].hva.0).unwrap().2;
        assert_eq!(found[0] == Outcome::Moved, truth == i32::from(FAST.0));
        // The next batch meets the refusal at once, and moves nothing.
        let refused = move_with(&mut kernel, 7, FAST, &pages[3..], false).unwrap_err();
        assert_eq!(refused.outcome(), outcome);
        assert_eq!(kernel.folio(pages[3].hva.0).unwrap().2, SLOW);
    }
}

proptest! {
    #[test]
    fn move_when_anything_fails_reports_where_each_page_truly_lies(
        faults in prop::collection::vec(0u8..6, 1..60),
        room in 0usize..80,
        all: bool,
        pinned in 0u64..3,
    ) {
        let (mut kernel, pages) = small_pages(faults.len() as u64);
        kernel.room = room;
        kernel.pinned = pinned;
        for (fault, page) in faults.iter().zip(&pages) {
            let head = page.hva.0;
            match fault {
                1 => drop(kernel.stuck.insert(head)),
                2 => drop(kernel.unisolated.insert(head)),
                3 => drop(kernel.shared.insert(head)),
                4 => kernel.folios.retain(|folio| folio.0 != head),
                _ => {}
            }
        }

        let results = move_with(&mut kernel, 7, FAST, &pages, all).unwrap();

        prop_assert_eq!(results.len(), pages.len());
        let stuck = faults.iter().filter(|&&fault| fault == 1).count();
        for (result, fault) in results.iter().zip(&faults) {
            let truth = kernel.folio(result.page.hva.0).map(|folio| folio.2);
            prop_assert_eq!(result.outcome == Outcome::Moved, truth == Some(0));
            prop_assert_eq!(result.outcome == Outcome::Absent, *fault == 4);
            prop_assert_eq!(result.node.map(|node| i32::from(node.0)), truth);
            // With room left and few enough failures, nothing that can move stays behind.
            if stuck < MAX_ROUNDS && room >= faults.len() && (*fault == 0 || *fault == 5) {
                prop_assert_eq!(result.outcome, Outcome::Moved);
            }
        }
    }
}

/// A kernel that answers anything.
#[derive(Debug)]
struct Chaos {
    /// What calls return, in turn.
    returns: Vec<Result<u64, i32>>,
    /// What stands in status arrays, in turn; `None` leaves the entry as it was.
    statuses: Vec<Option<i32>>,
    calls: usize,
    entries: usize,
}

impl PageCalls for Chaos {
    fn call(
        &mut self,
        _pid: u32,
        _addresses: &[Hva],
        _nodes: Option<&[i32]>,
        status: &mut [i32],
        _all: bool,
    ) -> Result<u64, i32> {
        for entry in status {
            if let Some(value) = self.statuses[self.entries % self.statuses.len()] {
                *entry = value;
            }
            self.entries += 1;
        }
        self.calls += 1;
        self.returns[self.calls % self.returns.len()]
    }

    fn mapped(&mut self, _pid: u32, addresses: &[Hva]) -> Vec<bool> {
        vec![self.calls.is_multiple_of(2); addresses.len()]
    }

    fn is_below_watermark(&mut self, _node: NodeId) -> bool {
        self.calls.is_multiple_of(2)
    }

    fn pinned_pages(&mut self) -> u64 {
        self.calls as u64
    }

    fn pause(&mut self, _time: Duration) {}
}

proptest! {
    #[test]
    fn move_when_the_kernel_answers_anything_loses_no_page(
        returns in prop::collection::vec(
            prop_oneof![4 => Just(Ok(0)), 2 => (0_u64..70).prop_map(Ok), 1 => (1_i32..134).prop_map(Err)],
            1..12,
        ),
        statuses in prop::collection::vec(
            prop_oneof![
                3 => (0_i32..3).prop_map(Some),
                2 => (-133_i32..0).prop_map(Some),
                1 => Just(None),
                1 => any::<i32>().prop_map(Some),
            ],
            1..40,
        ),
        sizes in prop::collection::vec(prop::sample::select(vec![BASE_PAGE, 16 * BASE_PAGE, HUGE_PAGE]), 0..60),
        all: bool,
    ) {
        let pages = (0..).zip(&sizes).map(|(n, &bytes)| Page { hva: Hva(n * HUGE_PAGE), bytes });
        let pages: Vec<Page> = pages.collect();
        let mut kernel = Chaos { returns, statuses, calls: 0, entries: 0 };
        match move_with(&mut kernel, 7, FAST, &pages, all) {
            // Each page once, in order: the classes' sum is what was asked for.
            Ok(results) => {
                let found: Vec<Page> = results.iter().map(|result| result.page).collect();
                prop_assert_eq!(found, pages);
            }
            // The caller gives all pages this class.
            Err(error) => prop_assert!(!error.outcome().is_success()),
        }
    }
}

/// Anonymous pages of this process, touched.
fn own_pages(count: usize) -> (Vec<u8>, Vec<Page>) {
    let bytes = vec![1u8; (count + 1) << 12];
    let first = (bytes.as_ptr() as u64).next_multiple_of(BASE_PAGE);
    let pages = (0..count as u64).map(|n| Page {
        hva: Hva(first + n * BASE_PAGE),
        bytes: BASE_PAGE,
    });
    (bytes, pages.collect())
}

#[test]
fn query_when_asked_of_ourselves_knows_touched_from_untouched() {
    let pid = std::process::id();
    let (bytes, pages) = own_pages(4);
    // Fresh from the kernel and larger than any cache of the allocator: never touched.
    let untouched: Vec<u8> = Vec::with_capacity(64 << 20);
    let middle = Hva((untouched.as_ptr() as u64 + (32 << 20)) & !(BASE_PAGE - 1));
    let asked: Vec<Hva> = pages
        .iter()
        .map(|page| page.hva)
        .chain([middle, Hva(BASE_PAGE)])
        .collect();

    let Ok(found) = query_nodes(pid, &asked) else {
        eprintln!("SKIPPED: this kernel has no move_pages (CONFIG_NUMA, CONFIG_MIGRATION)");
        return;
    };

    assert!(
        found[..4].iter().all(|status| status.node().is_some()),
        "{found:?}"
    );
    assert_eq!(found[4..], [PageStatus::Absent, PageStatus::Fault]);
    assert_eq!(bytes[0], 1);
}

#[test]
fn move_when_target_is_where_the_pages_are_says_so_and_keeps_their_bytes() {
    let pid = std::process::id();
    let (bytes, pages) = own_pages(64);
    let Ok(found) = query_nodes(pid, &[pages[0].hva]) else {
        eprintln!("SKIPPED: this kernel has no move_pages (CONFIG_NUMA, CONFIG_MIGRATION)");
        return;
    };
    let node = found[0].node().unwrap();

    let results = move_pages(pid, node, &pages, true).unwrap();

    assert!(
        results
            .iter()
            .filter(|r| r.outcome == Outcome::AlreadyThere)
            .count()
            >= 60,
        "{results:?}"
    );
    assert!(bytes.iter().all(|&byte| byte == 1));
}

#[test]
fn move_when_node_does_not_exist_is_refused() {
    let (_bytes, pages) = own_pages(1);
    match move_pages(std::process::id(), NodeId(1000), &pages, false) {
        Err(PagesError::NoSuchNode { node: NodeId(1000) }) => {}
        Err(PagesError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENOSYS) => {
            eprintln!("SKIPPED: this kernel has no move_pages");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn query_when_process_is_gone_says_so() {
    // Beyond PID_MAX_LIMIT (4 Mi).
    assert!(matches!(
        query_nodes(5_000_000, &[Hva(0)]),
        Err(PagesError::Gone { pid: 5_000_000 })
    ));
}
