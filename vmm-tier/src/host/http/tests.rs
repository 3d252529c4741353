//! The server against clients that ask for too much, wait too long or come by another name.

mod page;
mod prometheus;
mod streams;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tier_core::{
    arbiter::{Fairness, Mode},
    report::open_metrics::Format,
};

use super::*;
use crate::host::report::{HostInfo, HostMoves, HostReports, HostVm, VmState};

/// How long a test waits for what must happen.
const LONG_ENOUGH: Duration = Duration::from_secs(30);

/// The figures of a host with this many VMs, named `vm1` and so on.
pub(crate) fn host(vms: usize) -> HostInfo {
    let vm = |number: usize| HostVm {
        name: format!("vm{number}"),
        pid: 1000 + number as u32,
        uuid: Some(format!("c7a5fdbd-cdaf-9455-926a-{number:012}")),
        state: VmState::Reporting,
        refused: None,
        weight: 1.0,
        guarantee_bytes: 8 << 20,
        cap_bytes: 1 << 30,
        goal: None,
        entitled_bytes: Some(23 << 20),
        fair_bytes: Some(23 << 20),
        share_bytes: Some(23 << 20),
        fast_bytes: (22 << 20) + number as u64 * 4096,
        kernel_bytes: Some(22 << 20),
        demand_bytes: Some(24 << 20),
        limit_bytes: None,
        hit_ratio: Some(0.9375),
        slowdown: Some(1.0625),
        credits: Some(-1048576.5),
        source: Some("damon".to_owned()),
        agent_state: Some("running".to_owned()),
        waits_for: None,
        control: None,
        agent_pid: None,
        moves_per_s: Some(4096.0),
        move_budget_bytes_per_s: Some(1 << 28),
        report_age_s: Some(0.5),
    };
    HostInfo {
        mode: Mode::Weighted,
        band: 0.2,
        pool_bytes: 84 << 20,
        configured_bytes: 84 << 20,
        charged_bytes: 0,
        free_bytes: 0,
        shortfall_bytes: 0,
        starting: false,
        drain: None,
        moves: HostMoves {
            budget_bytes_per_s: 1 << 30,
            bytes_per_s: 4096.0,
        },
        reports: HostReports {
            clients: vms,
            registered: vms as u64,
            refused_registrations: 0,
            accepted: 7,
            refused: BTreeMap::new(),
            mismatches: 0,
        },
        vms: (1..=vms).map(vm).collect(),
        fairness: Fairness {
            jain: 0.995,
            worst_vm: Some("vm1".to_owned()),
            worst_ratio: 0.9,
            deficit_byte_seconds: 0.0,
            envy: 0,
            settled_after_s: Some(3.0),
            redealt_bytes: 0,
        },
        alarms: Vec::new(),
        state_file: "/run/vmm-tier/host.state".to_owned(),
        state_file_error: None,
    }
}

/// A server with the figures of this many VMs.
fn started(vms: usize) -> (SocketAddr, Arc<Published>) {
    let published = Arc::new(Published::default());
    published.put(host(vms));
    let address = serve(
        "127.0.0.1:0".parse().unwrap(),
        vec!["host1.example".to_owned()],
        published.clone(),
    );
    (address.unwrap(), published)
}

fn connected(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG_ENOUGH)).unwrap();
    stream
}

/// What a server says until it closes the connection.
fn said(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is closed before all that was sent has been read is reset.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8(answer).unwrap()
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = connected(address);
    stream.write_all(request.as_bytes()).unwrap();
    said(&mut stream)
}

/// The answer to a plain request.
fn get(address: SocketAddr, path: &str) -> String {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn metrics_when_asked_for_are_in_the_format_that_the_client_knows() {
    let (address, _) = started(2);
    let plain = get(address, "/metrics");
    assert_eq!(status(&plain), "200");
    assert!(
        plain.contains("content-type: text/plain; version=0.0.4"),
        "{plain}"
    );
    assert!(!plain.contains("# EOF"), "{plain}");
    let open = ask(
        address,
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\
         Accept: application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5\r\n\r\n",
    );
    assert!(
        open.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{open}"
    );
    let text = body(&open);
    for line in [
        r#"vmm_tier_host_vm_share_bytes{domain="vm2"} 24117248"#,
        r#"vmm_tier_host_vm_state{domain="vm1",vmm_tier_host_vm_state="reporting"} 1"#,
        "vmm_tier_fairness_jain_ratio 0.995",
        "# TYPE vmm_tier_guarantee_deficit_byte_seconds counter",
        "# UNIT vmm_tier_guarantee_deficit_byte_seconds byte_seconds",
        "vmm_tier_guarantee_deficit_byte_seconds_total 0",
        r#"vmm_tier_host_refused_reports_total{reason="flood"} 0"#,
    ] {
        let mut lines = text.lines();
        assert!(lines.any(|it| it == line), "{line} is not in {text}");
    }
    let uuid = r#"uuid="c7a5fdbd-cdaf-9455-926a-000000000001""#;
    let info = text.lines().find(|line| line.contains(uuid)).unwrap();
    assert!(
        info.contains(r#"domain="vm1""#) && info.contains(r#"pid="1001""#),
        "{info}"
    );
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn figures_when_new_ones_come_are_served_next() {
    let (address, published) = started(1);
    let pool = |answer: &str| answer.contains("vmm_tier_host_pool_bytes 88080384\n");
    assert!(pool(&get(address, "/metrics")));
    let mut next = host(1);
    next.pool_bytes = 4096;
    published.put(next);
    let answer = get(address, "/metrics");
    assert!(
        answer.contains("vmm_tier_host_pool_bytes 4096\n"),
        "{answer}"
    );
}

#[test]
fn health_when_there_are_no_figures_is_bad() {
    let published = Arc::new(Published::default());
    let address = serve("0".parse().unwrap(), Vec::new(), published.clone()).unwrap();
    assert!(address.ip().is_loopback());
    for path in ["/health", "/metrics"] {
        let answer = get(address, path);
        assert_eq!(
            (status(&answer), body(&answer)),
            ("503", "there are no figures yet\n")
        );
    }
    published.put(host(0));
    assert_eq!(body(&get(address, "/health")), "ok\n");
}

#[test]
fn request_when_it_is_no_get_of_a_page_is_refused() {
    let (address, _) = started(1);
    let index = get(address, "/");
    assert!(body(&index).contains("/metrics"), "{index}");
    let head = ask(address, "HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((status(&head), body(&head)), ("200", ""));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] {
        let request =
            format!("{method} /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi");
        let answer = ask(address, &request);
        assert_eq!(status(&answer), "405", "{method}");
        assert!(answer.contains("allow: GET,HEAD"), "{answer}");
    }
    for path in [
        "/metrics/",
        "/../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/metrics/../../etc/passwd",
        "/metrics%00",
        "/.",
        "/favicon.ico",
    ] {
        let answer = get(address, path);
        assert_eq!(
            (status(&answer), body(&answer)),
            ("404", "there is no such page\n"),
            "{path}"
        );
    }
    for garbage in [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET /metrics HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ] {
        let mut stream = connected(address);
        stream.write_all(garbage.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = said(&mut stream);
        assert!(answer.is_empty() || status(&answer) == "400", "{answer}");
    }
}

#[test]
fn request_when_it_calls_us_by_another_name_is_refused() {
    let (address, _) = started(1);
    let port = address.port();
    let ask_as =
        |uri: &str, hosts: &str| ask(address, &format!("GET {uri} HTTP/1.1\r\n{hosts}\r\n"));
    for host in ["localhost", "127.0.0.1", "[::1]", "host1.example"] {
        for host in [host.to_owned(), format!("{host}:{port}")] {
            let answer = ask_as("/metrics", &format!("Host: {host}\r\n"));
            assert_eq!(status(&answer), "200", "{host}");
        }
    }
    for host in ["evil.example", "localhost.evil.example:80", "10.0.0.1", ""] {
        let answer = ask_as("/metrics", &format!("Host: {host}\r\n"));
        assert_eq!(status(&answer), "421", "{host}");
        assert!(!answer.contains("vmm_tier_"), "{answer}");
    }
    for hosts in ["", "Host: localhost\r\nHost: evil.example\r\n"] {
        assert_eq!(status(&ask_as("/metrics", hosts)), "400", "{hosts}");
    }
    let absolute = ask_as("http://evil.example/metrics", "Host: localhost\r\n");
    assert_eq!(status(&absolute), "421");
}

#[test]
fn answer_when_of_any_kind_tells_browsers_to_keep_it_apart() {
    let (address, _) = started(1);
    let other = ask(address, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let post = ask(address, "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for answer in [
        get(address, "/metrics"),
        get(address, "/nothing"),
        other,
        post,
    ] {
        for header in [
            "cache-control: no-store\r\n",
            "content-security-policy: default-src 'none'; frame-ancestors 'none'\r\n",
            "cross-origin-resource-policy: same-origin\r\n",
            "referrer-policy: no-referrer\r\n",
            "x-content-type-options: nosniff\r\n",
            "x-frame-options: DENY\r\n",
            // No client holds a connection.
            "connection: close\r\n",
        ] {
            assert!(answer.contains(header), "{header} is not in {answer}");
        }
    }
}

#[test]
fn headers_when_huge_are_refused() {
    let (address, _) = started(1);
    let long = "a".repeat(MOST_HEADER_BYTES);
    let answer = ask(
        address,
        &format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
    );
    assert_eq!(status(&answer), "431", "{answer}");
    let many = "X: y\r\n".repeat(MOST_HEADERS + 1);
    let answer = ask(
        address,
        &format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
    );
    assert_eq!(status(&answer), "431", "{answer}");
    // A header without an end: the server stops to read long before the client stops to send.
    let mut stream = connected(address);
    stream.set_write_timeout(Some(LONG_ENOUGH)).unwrap();
    let sent = (0..10_000).take_while(|_| stream.write_all(long.as_bytes()).is_ok());
    assert!(sent.count() < 10_000);
    assert_eq!(body(&get(address, "/health")), "ok\n");
}

#[test]
fn client_when_it_sends_or_reads_nothing_is_let_go() {
    // A name of 2 kB in each sample: more than the socket's buffers hold, so that the server must wait.
    let mut many = host(1000);
    many.vms
        .iter_mut()
        .for_each(|vm| vm.name.push_str(&"x".repeat(2000)));
    let published = Arc::new(Published::default());
    published.put(many);
    let patience = Patience {
        asked_within: Duration::from_millis(500),
        answered_within: Duration::from_secs(2),
        stalled: STALLED,
    };
    let address = serve_with(patience, "0".parse().unwrap(), Vec::new(), published).unwrap();
    let mut deaf = connected(address);
    deaf.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut silent = connected(address);
    let mut slow = connected(address);
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: local")
        .unwrap();

    assert_eq!(said(&mut silent), "");
    assert_eq!(said(&mut slow), "");
    // Others are served meanwhile.
    assert!(body(&get(address, "/")).starts_with("The host daemon"));
    // Who reads too late finds no more than what the buffers held.
    thread::sleep(patience.answered_within * 2);
    let answer = said(&mut deaf);
    assert!(answer.starts_with("HTTP/1.1 200"));
    assert!(!answer.ends_with("vmm_tier_division_redealt_bytes 0\n"));
}

/// Held by tests that count the files of this process, and by those that open many.
static FILES: Mutex<()> = Mutex::new(());

fn count_files_alone() -> MutexGuard<'static, ()> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files that this process has open.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn clients_when_ten_thousand_connect_leave_room_for_a_scraper() {
    let _alone = count_files_alone();
    let (address, _) = started(3);
    let mut waiting = VecDeque::new();
    for number in 0..10_000 {
        let stream = connected(address);
        if number % 2 == 0 {
            (&stream)
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: local")
                .unwrap();
        }
        waiting.push_back(stream);
        // The test's own end counts too: it keeps some hundred of them.
        if waiting.len() > 300 {
            waiting.pop_front();
        }
        if number % 1000 == 999 {
            let answer = get(address, "/metrics");
            assert_eq!(status(&answer), "200", "after {number}");
            assert!(
                open_files() < 300 + 2 * MOST_CONNECTIONS + 400,
                "{}",
                open_files()
            );
        }
    }
    let is_closed = |stream: &mut TcpStream| said(stream).is_empty();
    assert!(
        waiting
            .drain(..200)
            .all(|mut stream| is_closed(&mut stream))
    );
}

#[test]
fn text_when_of_a_thousand_vms_is_bounded_and_rendered_once() {
    let (address, published) = started(1000);
    let begin = Instant::now();
    let text = pages::render(&host(1000), Format::OpenMetrics);
    let alone = begin.elapsed();
    println!("{} bytes for 1000 VMs, made in {alone:?}", text.len());
    // About 25 figures of 90 bytes for each VM.
    assert!(
        (1 << 20..4 << 20).contains(&text.len()),
        "{} bytes",
        text.len()
    );
    let first = get(address, "/metrics");
    let figures = Arc::downgrade(&published.last().unwrap());
    let answers: Vec<String> = (0..20).map(|_| get(address, "/metrics")).collect();
    assert!(answers.iter().all(|answer| body(answer) == body(&first)));
    // What is kept of old figures goes with the next text.
    published.put(host(1000));
    assert!(figures.upgrade().is_some());
    get(address, "/metrics");
    assert!(figures.upgrade().is_none());
}

#[test]
fn address_when_it_is_taken_is_told() {
    let (address, published) = started(1);
    let error = serve(Address(address), Vec::new(), published).unwrap_err();
    let told = format!("can't listen for HTTP on {address}");
    assert_eq!(error.to_string(), told);
}
