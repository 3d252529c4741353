//! The link against a daemon in this process, and what the agent makes of its news.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use qmp::{
    Event, QmpError, Server,
    server::{CommandSpec, Handler, Options},
};
use serde_json::{Map, Value, json};

use super::{link::Facts, *};
use crate::host::{
    self,
    protocol::{LEASE_MS, Register},
};

/// No test waits for long; this only ends one that would wait for ever.
const FOR_EVER: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

type Answer = Box<dyn Fn(&str) -> Result<Value, QmpError> + Send>;

/// A daemon that answers what it is told to, and keeps what it hears.
struct Daemon {
    answer: Mutex<Answer>,
    registered: Mutex<Vec<Register>>,
    reported: Mutex<Vec<Report>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    fn new(answer: impl Fn(&str) -> Result<Value, QmpError> + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(Box::new(answer)),
            registered: Mutex::default(),
            reported: Mutex::default(),
        })
    }

    fn serve(self: &Arc<Self>, path: &Path) -> Server {
        let handler = Arc::clone(self);
        Server::bind(path, handler, Options::default()).unwrap()
    }
}

impl Handler for Daemon {
    fn commands(&self) -> &[CommandSpec] {
        // The real daemon's, by which what the agent sends is checked.
        host::commands()
    }

    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        let arguments = Value::Object(arguments);
        match name {
            "host-register" => {
                lock(&self.registered).push(serde_json::from_value(arguments).unwrap());
            }
            _ => lock(&self.reported).push(serde_json::from_value(arguments).unwrap()),
        }
        lock(&self.answer)(name)
    }
}

fn lease(share_bytes: Option<u64>) -> Lease {
    Lease {
        share_bytes,
        lease_ms: LEASE_MS,
        report_ms: REPORT_EVERY_MS,
        move_bytes_per_s: 64 * MIB,
    }
}

fn granting(share_bytes: u64) -> Arc<Daemon> {
    Daemon::new(move |_| Ok(serde_json::to_value(lease(Some(share_bytes))).unwrap()))
}

fn identity() -> Identity {
    Identity {
        name: "vm1".to_owned(),
        pid: 128,
        pid_start: 77,
        control: Some("/run/vmm-tier/vm1.sock".to_owned()),
    }
}

fn facts(fast_bytes: u64) -> Facts {
    Facts {
        memory_bytes: 64 * MIB,
        page_bytes: 4096,
        share_bytes: Some(3 * MIB),
        report: Report {
            number: 0,
            made_ns: 5,
            curve: vec![(4096, 1.5), (8192, 2.0)],
            ram: vec![(1 << 40, 64 * MIB)],
            fast_bytes,
            present_bytes: 32 * MIB,
            limit_bytes: None,
            limit_in_force_bytes: Some(3 * MIB),
            state: "running".to_owned(),
            source: Some("damon".to_owned()),
            waits_for: Some("gain".to_owned()),
            hit_ratio: None,
            promoted_bytes: 1,
            demoted_bytes: 2,
        },
    }
}

/// News of the link, which is told the same facts until it has some.
fn news(end: &LinkEnd, fast_bytes: u64) -> News {
    let until = Instant::now() + FOR_EVER;
    loop {
        end.tell(facts(fast_bytes));
        match end.news().recv_timeout(Duration::from_millis(20)) {
            Ok(news) => return news,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
}

#[test]
fn link_when_a_daemon_serves_registers_once_and_reports_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let daemon = granting(4 * MIB);
    let _server = daemon.serve(&path);
    let end = LinkEnd::start(path, identity()).unwrap();

    assert_eq!(news(&end, 1), News::Registered(lease(Some(4 * MIB))));
    for _ in 0..3 {
        assert_eq!(news(&end, 2), News::Reported(lease(Some(4 * MIB))));
    }

    let registered = lock(&daemon.registered);
    let [first] = &registered[..] else {
        panic!("{registered:?}")
    };
    assert_eq!((first.name.as_str(), first.pid), ("vm1", 128));
    assert_eq!((first.pid_start, first.share_bytes), (77, Some(3 * MIB)));
    let reported = lock(&daemon.reported);
    let numbers: Vec<u64> = reported.iter().map(|report| report.number).collect();
    assert_eq!(numbers[..3], [1, 2, 3]);
    let expected = Report {
        number: 3,
        ..facts(2).report
    };
    assert_eq!(reported[2], expected);
}

#[test]
fn link_when_the_daemon_comes_goes_and_comes_again_registers_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let end = LinkEnd::start(path.clone(), identity()).unwrap();
    let News::Lost(why) = news(&end, 1) else {
        panic!("there is no daemon")
    };
    assert!(why.contains("no host daemon serves"), "{why}");

    for share in [MIB, 2 * MIB] {
        let server = granting(share).serve(&path);
        while let News::Lost(_) = news(&end, 1) {}
        assert_eq!(news(&end, 1), News::Reported(lease(Some(share))));
        drop(server);
        while let News::Reported(_) = news(&end, 1) {}
    }
}

#[test]
fn link_when_the_daemon_refuses_tells_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let daemon = Daemon::new(|name| match name {
        "host-register" => Err(QmpError::generic("name 'vm1' is taken".repeat(1000))),
        _ => Ok(Value::Null),
    });
    let _server = daemon.serve(&path);
    let end = LinkEnd::start(path, identity()).unwrap();
    let News::Refused(why) = news(&end, 1) else {
        panic!("it was refused")
    };
    assert!(why.starts_with("name 'vm1' is taken"), "{why}");
    assert!(why.len() < 1000, "what a daemon says is bounded");
}

#[test]
fn link_when_the_daemon_answers_nonsense_says_so_and_registers_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let nonsense = [
        json!({}),
        json!({"share-bytes": -1, "lease-ms": 1, "report-ms": 1, "move-bytes-per-s": 1}),
        json!({"share-bytes": "all", "lease-ms": 1, "report-ms": 1, "move-bytes-per-s": 1}),
        json!([1, 2]),
        json!(7),
    ];
    let turn = Mutex::new(0);
    let daemon = Daemon::new(move |name| match name {
        "host-register" => Ok(serde_json::to_value(lease(None)).unwrap()),
        _ => {
            let mut turn = lock(&turn);
            *turn += 1;
            Ok(nonsense[(*turn - 1) % nonsense.len()].clone())
        }
    });
    let _server = daemon.serve(&path);
    let end = LinkEnd::start(path, identity()).unwrap();
    assert_eq!(news(&end, 1), News::Registered(lease(None)));
    for _ in 0..3 {
        let News::Nonsense(why) = news(&end, 1) else {
            panic!("it is no lease")
        };
        assert!(why.contains("no lease"), "{why}");
    }
}

#[test]
fn link_when_the_daemon_floods_it_with_events_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let server = granting(MIB).serve(&path);
    let end = LinkEnd::start(path, identity()).unwrap();
    assert!(matches!(news(&end, 1), News::Registered(_)));
    let events = server.events();
    let flood = thread::spawn(move || {
        for _ in 0..20_000 {
            events.send(&Event::now("HOST_NOISE", json!({"text": "x".repeat(100)})));
        }
    });
    for _ in 0..5 {
        match news(&end, 1) {
            News::Reported(_) => {}
            // A client that reads too slowly is disconnected, and comes again.
            News::Lost(_) => break,
            other => panic!("{other:?}"),
        }
    }
    flood.join().unwrap();
    while !matches!(news(&end, 1), News::Reported(_)) {}
}

#[test]
fn agent_when_the_daemon_hangs_never_waits_and_is_told_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let daemon = Daemon::new(|name| {
        if name == "host-report" {
            thread::sleep(Duration::from_secs(5));
        }
        Ok(serde_json::to_value(lease(None)).unwrap())
    });
    let _server = daemon.serve(&path);
    let end = LinkEnd::start(path, identity()).unwrap();
    assert!(matches!(news(&end, 1), News::Registered(_)));
    let begun = Instant::now();
    for number in 0..10_000 {
        end.tell(facts(number));
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "it waited");
    let News::Lost(why) = news(&end, 1) else {
        panic!("it does not answer")
    };
    assert!(why.contains("no reply to host-report within 3 s"), "{why}");
}

#[test]
fn link_when_the_agent_ends_leaves_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let server = granting(MIB).serve(&path);
    let end = LinkEnd::start(path, identity()).unwrap();
    assert!(matches!(news(&end, 1), News::Registered(_)));
    drop(end);
    let until = Instant::now() + FOR_EVER;
    while server.stats().clients > 0 {
        assert!(Instant::now() < until, "it stays");
        thread::sleep(Duration::from_millis(5));
    }
}

/// An agent's side, with a link to nobody.
fn host() -> HostLink {
    let nowhere = Path::new("/nonexistent/host.sock");
    HostLink::start(nowhere, identity(), None).unwrap()
}

#[test]
fn trouble_when_it_stays_is_said_once_and_its_end_too() {
    let (mut host, now) = (host(), Instant::now());
    let mut take = |news| host.take(news, 64 * MIB, now);
    let good = || News::Reported(lease(Some(MIB)));

    assert_eq!(take(News::Registered(lease(None))), None);
    assert_eq!(take(good()), Some(Words::Registered));
    assert_eq!(take(good()), None);
    let lost = || News::Lost("gone".to_owned());
    assert_eq!(take(lost()), Some(Words::Trouble("gone".to_owned())));
    assert_eq!(take(lost()), None, "said already");
    assert_eq!(take(News::Registered(lease(None))), None);
    assert_eq!(take(good()), Some(Words::Registered));
    assert_eq!(
        take(News::Refused("taken".to_owned())),
        Some(Words::Trouble(
            "the host daemon refuses this VM: taken".to_owned()
        ))
    );
    let short = Lease {
        lease_ms: 0,
        ..lease(Some(0))
    };
    let Some(Words::Trouble(why)) = take(News::Reported(short)) else {
        panic!("a lease of nothing")
    };
    assert!(why.contains("0 ms is shorter"), "{why}");
    assert_eq!(take(News::Reported(short)), None);

    let Counts {
        registrations,
        reports,
        refusals,
        bad_replies,
        ..
    } = host.counts;
    assert_eq!(
        (registrations, reports, refusals, bad_replies),
        (2, 5, 1, 2)
    );
    assert_eq!(host.leases.grant().share_bytes, Some(MIB), "the last good");
}

#[test]
fn reports_when_the_agent_looks_around_often_come_at_their_pace() {
    let (mut host, start) = (host(), Instant::now());
    host.next_report = start;
    let mut sent = 0;
    for tick in 0..100 {
        let now = start + Duration::from_millis(100) * tick;
        sent += u32::from(host.is_report_due(now));
    }
    assert_eq!(sent, 10);
    // After a long silence there is one report, not all that were left out.
    let later = start + Duration::from_secs(100);
    assert!(host.is_report_due(later));
    assert!(!host.is_report_due(later + Duration::from_millis(400)));
}

#[test]
fn limit_when_a_share_changes_each_second_is_told_seldom() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let host = Some(LimitOwner::Host);
    let told = Told::default();
    assert!(told.is_news(Some(100), host, start), "the first at once");
    let told = Told {
        bytes: Some(100),
        owner: host,
        at: Some(start),
    };
    assert!(!told.is_news(Some(50), host, at(9)), "too soon");
    assert!(told.is_news(Some(50), host, at(10)));
    assert!(!told.is_news(Some(105), host, at(60)), "5 %");
    assert!(told.is_news(Some(106), host, at(60)));
    assert!(told.is_news(Some(100), Some(LimitOwner::Operator), at(10)));
    assert!(told.is_news(None, None, at(10)));
    assert!(!told.is_news(Some(100), host, at(100)));
}
