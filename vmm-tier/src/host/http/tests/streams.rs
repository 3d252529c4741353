//! The stream of figures: what clients get, and what clients that do not read cost.

use super::*;

/// Asks for the stream.
fn listening(address: SocketAddr) -> TcpStream {
    let mut stream = connected(address);
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    stream
}

/// Reads until `wanted` has been said.
fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut said = Vec::new();
    let mut part = [0; 1 << 16];
    loop {
        let count = stream.read(&mut part).unwrap();
        said.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&said);
        if text.contains(wanted) {
            return text.into_owned();
        }
        assert!(count > 0, "the stream ended: {text}");
    }
}

/// The memory of this process that is its own, in bytes.
fn own_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn stream_when_figures_come_tells_them_at_once_and_for_longer_than_other_answers() {
    let published = Arc::new(Published::default());
    published.put(host(2));
    let patience = Patience {
        asked_within: Duration::from_millis(500),
        answered_within: Duration::from_secs(1),
        stalled: STALLED,
    };
    let address = serve_with(
        patience,
        "0".parse().unwrap(),
        Vec::new(),
        published.clone(),
    )
    .unwrap();
    let mut stream = listening(address);
    let said = read_until(&mut stream, r#""state-file-error":null}"#);
    assert!(
        said.contains("content-type: text/event-stream\r\n"),
        "{said}"
    );
    assert!(said.contains("event: hello\ndata: {"), "{said}");
    assert!(said.contains("event: host\nid: "), "{said}");
    assert!(said.contains(r#""name":"vm2""#), "{said}");
    let data = said.rsplit("data: ").next().unwrap();
    let told: serde_json::Value =
        serde_json::from_str(data.split('\n').next().unwrap()).unwrap_or_default();
    assert!(told["at-ms"].as_u64() > Some(1_600_000_000_000), "{said}");
    assert_eq!(told["pool-bytes"], 84 << 20);
    thread::sleep(patience.answered_within * 2);
    let mut next = host(2);
    next.pool_bytes = 4096;
    next.band = f64::NAN;
    published.put(next);
    let said = read_until(&mut stream, "\"pool-bytes\":4096");
    assert!(said.contains(r#""band":null"#), "{said}");
}

#[test]
fn stream_when_nobody_reads_costs_little_and_is_let_go() {
    let _alone = count_files_alone();
    let published = Arc::new(Published::default());
    published.put(host(200));
    let patience = Patience {
        asked_within: Duration::from_secs(5),
        answered_within: Duration::from_millis(500),
        stalled: Duration::from_secs(3),
    };
    let address = serve_with(
        patience,
        "0".parse().unwrap(),
        Vec::new(),
        published.clone(),
    )
    .unwrap();
    let before = own_memory();
    let mut deaf: Vec<TcpStream> = (0..MOST_STREAMS).map(|_| listening(address)).collect();
    let mut reader = listening(address);
    read_until(&mut reader, "event: host");
    // More figures than sockets hold.
    for number in 0..40 {
        let mut next = host(200);
        next.pool_bytes = number + 1;
        published.put(next);
        let begin = Instant::now();
        read_until(&mut reader, &format!("\"pool-bytes\":{},", number + 1));
        assert!(begin.elapsed() < Duration::from_secs(2), "others wait");
        assert_eq!(body(&get(address, "/health")), "ok\n");
    }
    let each = own_memory().saturating_sub(before) / MOST_STREAMS as u64;
    println!("a client that does not read costs {} KiB", each >> 10);
    assert!(each < 1 << 20, "{each} bytes");
    thread::sleep(patience.stalled * 3);
    // The server has closed it: what the buffers held is an answer without its end.
    let mut held = Vec::new();
    if let Err(error) = deaf[5].read_to_end(&mut held) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    assert!(held.len() < 4 << 20, "{} bytes", held.len());
    published.put(host(1));
    read_until(&mut reader, "\"pool-bytes\":88080384");
}

#[test]
fn streams_when_there_are_a_thousand_leave_room_for_the_next() {
    let _alone = count_files_alone();
    let (address, _) = started(1);
    let mut all = VecDeque::new();
    for number in 0..1000 {
        all.push_back(listening(address));
        if all.len() > 300 {
            all.pop_front();
        }
        if number % 200 == 199 {
            let mut newest = listening(address);
            read_until(&mut newest, "event: host");
            assert_eq!(body(&get(address, "/health")), "ok\n");
            assert!(open_files() < 300 + MOST_STREAMS + 3 * MOST_CONNECTIONS + 400);
        }
    }
}

#[test]
#[ignore = "a measurement: fifty pages for ten seconds"]
fn streams_of_fifty_pages_cost_little_of_a_core() {
    let published = Arc::new(Published::default());
    published.put(host(200));
    let address = serve("0".parse().unwrap(), Vec::new(), published.clone()).unwrap();
    for _ in 0..50 {
        let mut stream = listening(address);
        thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    }
    let cpu = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let of = |name: &str| -> f64 {
            let text = std::fs::read_to_string(format!("{name}/schedstat")).unwrap_or_default();
            let ns = text.split(' ').next().and_then(|it| it.parse().ok());
            ns.unwrap_or(0.0) / 1e9
        };
        tasks
            .filter_map(Result::ok)
            .map(|task| task.path().display().to_string())
            .filter(|path| {
                std::fs::read_to_string(format!("{path}/comm")).is_ok_and(|it| it == "http\n")
            })
            .map(|path| of(&path))
            .sum::<f64>()
    };
    thread::sleep(Duration::from_secs(1));
    let (before, begin) = (cpu(), Instant::now());
    for _ in 0..10 {
        published.put(host(200));
        thread::sleep(Duration::from_secs(1));
    }
    let share = (cpu() - before) / begin.elapsed().as_secs_f64();
    println!("50 pages of 200 VMs: {:.2} % of a core", share * 100.0);
    assert!(share < 0.05, "{share}");
}
