//! Agents of every kind over a socket pair: honest, lying, flooding, stalling, restarting, replaying.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use proptest::prelude::*;
use tier_core::{
    addr::{Gpa, Hva},
    map::{BlockIndex, MapRange, RamBlock},
    sample::{AccessKind, DropReason, SampleAccount, SampleAddress, SampleBatch},
    wire::{
        Access, Batch, Credit, Decoded, Drops, Frame, Hello, InGuest, Message, Observed, Region,
        Status,
    },
};
use tier_sys::{damon::DamonSettings, sysroot::SysRoot};

use super::*;

const MIB: u64 = 1 << 20;

/// Two ranges of a guest: 1 to 64 MiB, and 4096 to 4160 MiB, apart in QEMU too.
fn map() -> Arc<GuestMemoryMap> {
    let block = |name: &str, hva| RamBlock {
        name: name.to_owned(),
        hva: Hva(hva),
        used: 64 * MIB,
        total: 64 * MIB,
        page_size: 4096,
        backing: None,
    };
    let range = |gpa, len, block, offset, hva| MapRange {
        gpa: Gpa(gpa),
        len,
        block: BlockIndex(block),
        offset,
        hva: Hva(hva),
    };
    let (low, high) = (1 << 32, 1 << 40);
    let blocks = vec![block("low", low), block("high", high)];
    let ranges = vec![
        range(MIB, 63 * MIB, 0, MIB, low + MIB),
        range(4096 * MIB, 64 * MIB, 1, 0, high),
    ];
    Arc::new(GuestMemoryMap::new(7, blocks, ranges).unwrap())
}

fn setup() -> Setup {
    Setup {
        root: SysRoot::real(),
        run_dir: "/nonexistent".into(),
        pid: std::process::id(),
        vcpus: Vec::new(),
        is_kvm: true,
        damon: DamonSettings::default(),
        quiet_factor: 10,
        cpu_budget: 0.01,
    }
}

/// The host's side, and the guest's end of the wire.
struct Rig {
    host: GuestAgent,
    guest: UnixStream,
    heard: Decoder,
    batches: Vec<SampleBatch>,
}

impl Rig {
    fn new() -> Self {
        let (ours, guest) = UnixStream::pair().unwrap();
        for end in [&ours, &guest] {
            end.set_nonblocking(true).unwrap();
        }
        let address = "/nonexistent/guest.sock".parse().unwrap();
        let host = GuestAgent::new(&setup(), &map(), address, Link::over(ours.into()));
        Self {
            host,
            guest,
            heard: Decoder::new(),
            batches: Vec::new(),
        }
    }

    /// Sends bytes, and lets the host take them in as far as it wants to.
    fn send_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.guest.write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            self.poll();
        }
    }

    fn send(&mut self, session: u64, sequence: u64, message: Message) {
        let bytes = encoded(session, sequence, message);
        self.send_bytes(&bytes);
    }

    fn poll(&mut self) {
        let polled = self.host.poll(Duration::from_millis(1).into()).unwrap();
        self.batches.extend(polled.batches);
    }

    /// Polls until the condition holds.
    fn poll_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < Duration::from_secs(20), "never: {what}");
            self.poll();
        }
    }

    /// What the host has said since the last call.
    fn said(&mut self) -> Vec<Message> {
        let mut buffer = [0; 4096];
        let mut said = Vec::new();
        while let Ok(bytes @ 1..) = self.guest.read(&mut buffer) {
            self.heard.push(&buffer[..bytes], |found| match found {
                Decoded::Frame(frame, _) => said.push(frame.message),
                other => panic!("the host sent {other:?}"),
            });
        }
        said
    }

    /// What was counted so far. Drops alone are told of after a while.
    fn account_when(
        &mut self,
        what: &str,
        done: impl Fn(&SampleAccount, usize) -> bool,
    ) -> SampleAccount {
        let mut account = SampleAccount::default();
        self.poll_until(what, |rig| {
            account = SampleAccount::default();
            for batch in &rig.batches {
                account.add(&batch.account);
            }
            done(&account, rig.samples())
        });
        assert!(account.is_valid());
        account
    }

    fn samples(&self) -> usize {
        self.batches.iter().map(|batch| batch.samples.len()).sum()
    }
}

fn encoded(session: u64, sequence: u64, message: Message) -> Vec<u8> {
    let frame = Frame {
        session,
        sequence,
        message,
    };
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).unwrap();
    bytes
}

fn hello() -> Message {
    Message::Hello(Hello {
        agent: "0.1.0".to_owned(),
        kernel: "6.12.0-test".to_owned(),
        page_sizes: vec![4096, 2 << 20],
        memory_bytes: 127 * MIB,
        source: InGuest::Damon,
        can: vec![InGuest::Damon],
    })
}

fn batch(observed: Observed) -> Message {
    Message::Batch(Batch {
        clock_ns: 5,
        span_ns: 400_000_000,
        drops: Drops::default(),
        observed,
    })
}

fn accesses(first_page: u64, count: u64) -> Message {
    let samples = (0..count).map(|i| Access {
        gpa: Gpa((first_page + i) << 12),
        kind: AccessKind::Load,
    });
    batch(Observed::Accesses {
        period: 4093,
        samples: samples.collect(),
    })
}

fn regions(regions: &[(u64, u64, u32)]) -> Message {
    let regions = regions.iter().map(|&(start, end, used)| Region {
        start: Gpa(start),
        len: end - start,
        used,
    });
    batch(Observed::Regions {
        tests: 20,
        regions: regions.collect(),
    })
}

fn dropped(account: &SampleAccount, reason: DropReason) -> u64 {
    account.dropped.get(&reason).copied().unwrap_or(0)
}

#[test]
fn agent_when_it_keeps_to_the_rules_is_heard() {
    let mut rig = Rig::new();
    rig.poll();
    assert_eq!(rig.said(), [Message::Ask]);

    rig.send(1, 0, hello());
    let said = rig.said();
    let [Message::Welcome(credit, wish)] = said[..] else {
        panic!("{said:?}");
    };
    assert!(credit.sequence > 10 && credit.bytes > 100_000, "{credit:?}");
    assert_eq!(u64::from(wish.max_regions), setup().damon.max_regions);
    rig.send(1, 1, accesses(1000, 50));
    rig.send(
        1,
        2,
        regions(&[(2 * MIB, 3 * MIB, 20), (3 * MIB, 60 * MIB, 0)]),
    );
    rig.poll_until("both batches", |rig| rig.samples() == 52);

    let [single, ranges] = &rig.batches[..] else {
        panic!("{:?}", rig.batches);
    };
    assert_eq!((single.tests, single.period), (0, 4093));
    assert_eq!(single.source, SourceKind::Guest);
    assert_eq!(single.map_generation, 7);
    assert_eq!(
        single.samples[0].address,
        SampleAddress::Guest(Gpa(1000 << 12))
    );
    assert!(
        single
            .samples
            .iter()
            .all(|own| own.weight == 1.0 && own.len == 1)
    );
    assert_eq!((ranges.tests, ranges.span.as_millis()), (20, 400));
    assert_eq!(ranges.samples[0].weight, 20.0);
    let label = rig.host.label();
    assert!(
        label.contains("6.12.0-test") && label.contains("damon"),
        "{label}"
    );
    assert!(label.contains("4 KiB, 2 MiB"), "{label}");
}

#[test]
fn agent_when_its_region_spans_ranges_is_cut_at_the_map() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    // From below the first range, over the hole, into the second; and one in no range at all.
    let far = 1 << 45;
    rig.send(1, 1, regions(&[(0, 4097 * MIB, 3), (far, far + MIB, 3)]));
    rig.poll_until("the batch", |rig| !rig.batches.is_empty());

    let place = |sample: &tier_core::sample::AccessSample| match sample.address {
        SampleAddress::Guest(gpa) => (gpa.0, sample.len),
        SampleAddress::Host(_) => unreachable!("a guest knows no host addresses"),
    };
    let places: Vec<_> = rig.batches[0].samples.iter().map(place).collect();
    let expected = [(MIB, 63 * MIB), (4096 * MIB, MIB), (far, MIB)];
    assert_eq!(places, expected);
}

#[test]
fn agent_when_it_replays_or_repeats_is_not_heard_again() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    rig.send(1, 1, accesses(1000, 10));
    let replay = encoded(1, 1, accesses(1000, 10));
    rig.send_bytes(&replay);
    // The hello of a session that goes on.
    rig.send(1, 0, hello());
    let account = rig.account_when("the replay", |account, _| account.samples == 11);
    assert_eq!(dropped(&account, DropReason::OutOfSequence), 11);
    assert_eq!(rig.samples(), 10);

    // A new session: the old one's frames are void, its hello too.
    rig.send(2, 0, hello());
    rig.send(1, 2, accesses(1000, 10));
    rig.send(1, 0, hello());
    rig.send(2, 1, accesses(1000, 10));
    let account = rig.account_when("the old session", |account, _| account.samples == 22);
    assert_eq!(dropped(&account, DropReason::OutOfSequence), 22);
    assert_eq!(rig.samples(), 20);
    assert_eq!(rig.host.peer.sessions, 2);
}

#[test]
fn agent_when_frames_are_missing_counts_as_lost() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    rig.send(1, 6, accesses(1000, 10));
    let account = rig.account_when("the batch", |_, samples| samples == 10);
    assert_eq!(account.lost, 5);

    rig.send(1, 1 << 40, accesses(1000, 10));
    let account = rig.account_when("the leap", |account, _| account.samples == 10);
    assert_eq!(dropped(&account, DropReason::Hostile), 10);
}

#[test]
fn agent_when_it_floods_is_limited_and_all_is_counted() {
    let mut rig = Rig::new();
    let begin = Instant::now();
    rig.send(1, 0, hello());
    let (frames, each) = (400, 4000);
    for sequence in 1..=frames {
        rig.send(1, sequence, accesses(1000, each));
    }
    let all = frames * each;
    let account = rig.account_when("all records", |account, samples| {
        account.samples + samples as u64 == all
    });
    let limited = dropped(&account, DropReason::RateLimited);
    assert_eq!(limited, account.samples, "{account:?}");
    // 200 000 a second, 400 000 at once.
    let most = 400_000.0 + 200_000.0 * begin.elapsed().as_secs_f64();
    assert!((rig.samples() as f64) <= most, "{}", rig.samples());
    assert!(rig.samples() > 0);
}

#[test]
fn agent_when_it_claims_more_time_than_passes_is_limited() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    for sequence in 1..=20 {
        let mut claim = regions(&[(2 * MIB, 3 * MIB, 20)]);
        if let Message::Batch(batch) = &mut claim {
            batch.span_ns = u64::MAX;
        }
        rig.send(1, sequence, claim);
    }
    let account = rig.account_when("all reports", |account, samples| {
        account.samples + samples as u64 == 20
    });
    // Ten seconds are granted at once, and none claims more.
    assert_eq!(dropped(&account, DropReason::RateLimited), 19);
    assert_eq!(rig.batches[0].span.as_secs(), 10);
}

#[test]
fn agent_when_it_speaks_like_a_host_or_nonsense_is_hostile() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    let credit = Credit {
        sequence: u64::MAX,
        bytes: u64::MAX,
    };
    rig.send(1, 1, Message::Credit(credit));
    rig.send(1, 2, Message::Stop);
    rig.send_bytes(b"GET / HTTP/1.1\r\n\r\n");
    rig.send(1, 3, accesses(1000, 1));
    let account = rig.account_when("the last sample", |_, samples| samples == 1);
    assert_eq!(dropped(&account, DropReason::Hostile), 2);
    assert_eq!(dropped(&account, DropReason::Malformed), 1);
}

#[test]
fn agent_when_killed_within_a_frame_is_followed_by_the_next_one() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    let cut = encoded(1, 1, accesses(1000, 5000));
    rig.send_bytes(&cut[..cut.len() - 100]);
    // The port stays open, and a new agent begins in the middle of the old one's frame.
    rig.send(2, 0, hello());
    rig.poll_until("the new session", |rig| rig.host.peer.sessions == 2);
    rig.send(2, 1, accesses(1000, 3));
    rig.poll_until("its samples", |rig| rig.samples() == 3);
}

#[test]
fn agent_when_credit_is_used_up_gets_more() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    let mut credit = match rig.said().pop() {
        Some(Message::Welcome(credit, _)) => credit,
        other => panic!("{other:?}"),
    };
    let status = || Message::Status(Status::default());
    let mut sent = 1;
    while sent < 300 {
        for sequence in sent..credit.sequence {
            rig.send(1, sequence, status());
        }
        sent = credit.sequence;
        rig.poll_until("more credit", |rig| {
            let mut more = rig.said().into_iter().filter_map(|said| match said {
                Message::Credit(credit) => Some(credit),
                _ => None,
            });
            credit = more.next_back().unwrap_or(credit);
            credit.sequence > sent
        });
    }
    assert!(rig.batches.is_empty(), "{:?}", rig.batches);
}

#[test]
fn agent_when_it_hangs_up_ends_its_session_and_nobody_is_found() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    let (_, other) = UnixStream::pair().unwrap();
    rig.guest = other;
    rig.poll_until("the end", |rig| rig.host.peer.session.is_none());
    assert!(rig.host.label().contains("not heard of"));
    rig.poll_until("a try to connect", |rig| rig.host.link.trouble.is_some());
    let why = rig.host.why_alone();
    assert!(why.contains("/nonexistent/guest.sock"), "{why}");
}

#[test]
fn agent_when_all_is_in_use_and_nothing_is_to_be_done_looks_in_turns() {
    let mut rig = Rig::new();
    rig.send(1, 0, hello());
    rig.host.set_quiet(true).unwrap();
    rig.poll();
    // Slow looks find everything in use at every look.
    for sequence in 1..=3 {
        rig.send(1, sequence, regions(&[(2 * MIB, 60 * MIB, 20)]));
    }
    rig.poll_until("the batches", |rig| rig.batches.len() == 3);
    let Some(turns) = rig.host.pace.pace().turns else {
        panic!("{:?}", rig.host.pace);
    };
    let wishes = |rig: &mut Rig| -> Vec<bool> {
        rig.poll();
        rig.poll();
        let said = rig.said().into_iter();
        said.filter_map(|said| match said {
            Message::Wish(wish) => Some(wish.is_rest()),
            _ => None,
        })
        .collect()
    };
    // A turn ends with its first report.
    assert_eq!(wishes(&mut rig).last(), Some(&true));
    let Some(since) = Instant::now().checked_sub(turns.rest) else {
        eprintln!("SKIPPED: this machine has only just begun");
        return;
    };
    rig.host.turn.set_since(since);
    assert_eq!(wishes(&mut rig), [false]);
    // Without a report it ends, too.
    let Some(since) = Instant::now().checked_sub(turns.watch) else {
        eprintln!("SKIPPED: this machine has only just begun");
        return;
    };
    rig.host.turn.set_since(since);
    assert_eq!(wishes(&mut rig), [true]);
}

#[test]
fn poll_when_nobody_answers_for_long_ends_and_says_what_to_do() {
    let mut rig = Rig::new();
    let since = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
    let Some(long_ago) = since(20) else {
        eprintln!("SKIPPED: this machine has only just begun");
        return;
    };
    rig.host.opened = long_ago;
    let ended = rig.host.poll(Duration::ZERO.into()).unwrap().ended.unwrap();
    assert!(ended.contains("start guest-agent in the guest"), "{ended}");

    // Somebody is there, but speaks another language.
    let mut other = encoded(1, 0, hello());
    other[4] = 9;
    let check = crc32(&other[..28]);
    other[28..32].copy_from_slice(&check.to_le_bytes());
    rig.guest.write_all(&other).unwrap();
    let ended = rig
        .host
        .poll(Duration::from_secs(5).into())
        .unwrap()
        .ended
        .unwrap();
    assert!(ended.contains("version 9"), "{ended}");

    // One that has begun a session may be silent for as long as it likes.
    rig.send(1, 0, hello());
    rig.host.peer.heard = Some(Time(0));
    assert_eq!(rig.host.poll(Duration::ZERO.into()).unwrap().ended, None);
    assert!(
        rig.host.label().contains("silent for 2"),
        "{}",
        rig.host.label()
    );
}

/// CRC-32 (IEEE 802.3), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), step)
    })
}

#[test]
fn open_when_there_is_no_socket_says_what_qemu_needs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.sock");
    let address = GuestAddress::Unix(path.clone());
    let error = open(&setup(), &map(), &address).err().unwrap().to_string();
    assert!(error.contains("virtserialport"), "{error}");
    std::fs::write(&path, "").unwrap();
    let error = open(&setup(), &map(), &address).err().unwrap().to_string();
    assert!(error.contains("is no socket"), "{error}");
}

#[test]
fn open_when_qemu_listens_connects_again_after_each_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut source = open(&setup(), &map(), &GuestAddress::Unix(path)).unwrap();
    for _ in 0..2 {
        let begin = Instant::now();
        let peer = loop {
            assert!(begin.elapsed() < Duration::from_secs(20), "no connection");
            source.poll(Duration::from_millis(5).into()).unwrap();
            if let Ok((peer, _)) = listener.accept() {
                break peer;
            }
        };
        drop(peer);
    }
    source.stop().unwrap();
}

fn any_batch() -> impl Strategy<Value = (Message, u64)> {
    let single =
        (0..1_u64 << 30, 1..40_u64).prop_map(|(page, count)| (accesses(page, count), count));
    // Within one range, so that a region is one sample.
    let ranges = prop::collection::btree_set(300..10_000_u64, 1..20).prop_map(|pages| {
        let count = pages.len() as u64;
        let list: Vec<_> = pages
            .into_iter()
            .map(|page| (page << 12, (page + 1) << 12, (page % 20) as u32))
            .collect();
        (regions(&list), count)
    });
    prop_oneof![single, ranges]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn records_when_sent_in_any_order_and_session_are_all_counted(
        frames in prop::collection::vec((0..3_u64, 0..30_u64, any_batch()), 0..60),
        pace_ms in 0..50_u64,
    ) {
        let map = map();
        let mut now = Time(1);
        let mut peer = Peer::new(now, wish(setup_pace(), 1));
        let Message::Hello(greeting) = hello() else { unreachable!() };
        let greeting = Frame { session: 1, sequence: 0, message: Message::Hello(greeting) };
        peer.take(Decoded::Frame(greeting, 90), now, &map);
        let (mut sent, mut seen, mut account) = (0, 0, SampleAccount::default());
        let mut batches = Vec::new();
        for (session, sequence, (message, records)) in frames {
            now = now + Duration::from_millis(pace_ms);
            sent += records;
            let frame = Frame { session, sequence, message };
            peer.take(Decoded::Frame(frame, 1000), now, &map);
            batches.extend(peer.take_batches(now, &map));
        }
        // The last drops are reported after a while.
        batches.extend(peer.take_batches(now + Duration::from_secs(2), &map));
        for batch in batches {
            let most = batch.tests.max(1) as f32;
            prop_assert!(batch.samples.iter().all(|own| own.weight <= most));
            seen += batch.samples.len() as u64;
            account.add(&batch.account);
        }
        prop_assert!(account.is_valid());
        prop_assert_eq!(account.accepted, 0);
        prop_assert_eq!(seen + account.samples, sent);
    }
}

/// Cases of the test below; `GUEST_FUZZ_CASES=1000000` is a night's run.
fn fuzz_cases() -> ProptestConfig {
    let asked = std::env::var("GUEST_FUZZ_CASES").ok();
    let cases = asked.and_then(|cases| cases.parse().ok()).unwrap_or(2000);
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Bytes of an agent that means harm: whole frames in any order and session, cut ones, and anything.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let message = prop_oneof![
        2 => Just(hello()),
        6 => any_batch().prop_map(|(message, _)| message),
        1 => any::<(u64, u64)>().prop_map(|(span_ns, no_credit)| {
            let drops = Drops { no_credit, lost: no_credit, ..Drops::default() };
            let observed = Observed::Regions { tests: 10_000, regions: Vec::new() };
            Message::Batch(Batch { clock_ns: span_ns, span_ns, drops, observed })
        }),
        1 => any::<(u64, u64)>().prop_map(|(lost, throttled)| {
            let drops = Drops { lost, throttled, ..Drops::default() };
            Message::Status(Status { drops, ..Status::default() })
        }),
        1 => Just(Message::Stop),
        1 => Just(Message::Ask),
    ];
    let numbers = prop_oneof![0..4_u64, any::<u64>()];
    let whole = (0..3_u64, numbers, message)
        .prop_map(|(session, sequence, message)| encoded(session, sequence, message));
    let cut = (whole.clone(), any::<prop::sample::Index>())
        .prop_map(|(bytes, at)| bytes[..at.index(bytes.len())].to_vec());
    prop_oneof![
        8 => whole,
        1 => cut,
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(fuzz_cases())]

    #[test]
    fn peer_when_fed_anything_counts_it_and_stays_within_bounds(
        pieces in prop::collection::vec(hostile_bytes(), 0..12),
        pace_ms in 0..2000_u64,
    ) {
        let map = map();
        let mut now = Time(1);
        let mut peer = Peer::new(now, wish(setup_pace(), 1));
        let mut decoder = Decoder::new();
        peer.on_connected(now);
        for piece in &pieces {
            now = now + Duration::from_millis(pace_ms);
            decoder.push(piece, |found| peer.take(found, now, &map));
            peer.tell_credit(now);
            peer.ask_if_alone(now);
            // Whatever a guest sends, at most one answer goes to each of its frames, and two beside.
            prop_assert!(peer.take_replies().len() <= piece.len() / 32 + 2);
        }
        let mut observed = Duration::ZERO;
        for batch in peer.take_batches(now + Duration::from_secs(2), &map) {
            prop_assert!(batch.account.is_valid());
            prop_assert!(batch.end <= now + Duration::from_secs(2));
            prop_assert!(batch.span <= Duration::from_secs(10));
            let most = batch.tests.max(1) as f32;
            prop_assert!(batch.samples.iter().all(|own| own.weight <= most));
            if batch.tests > 0 {
                observed += batch.span;
            }
        }
        // No more was observed than time has passed, but for what is granted at once.
        prop_assert!(observed <= now.since(Time(0)).mul_f64(1.1) + Duration::from_secs(11));
    }
}

fn setup_pace() -> Pace {
    Pace {
        sampling: Duration::from_millis(20),
        aggregation: Duration::from_millis(400),
        max_regions: 2000,
        turns: None,
    }
}
