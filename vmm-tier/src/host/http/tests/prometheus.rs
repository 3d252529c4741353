//! A real Prometheus scrapes the server beside an exporter of libvirt, and joins what both say.
//!
//! The exporter's text was recorded from prometheus-libvirt-exporter 0.2.0 (Debian 12) with libvirt's
//! test driver and two domains.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{LONG_ENOUGH, ask, body, started};
use crate::metrics::tools::tool;

const LIBVIRT: &str = include_str!("../../../../tests/data/libvirt-exporter.prom");

const PAGE: &str = include_str!("../../../../../docs/metrics.md");

/// The queries that docs/metrics.md gives.
fn documented_queries() -> Vec<&'static str> {
    let (page, _) = PAGE.split_once("<!-- Below").unwrap();
    let rows = page.lines().filter_map(|line| line.strip_suffix("` |"));
    rows.filter_map(|row| Some(row.split_once("? | `")?.1))
        .collect()
}

/// Answers every request with a text, until the tests end.
fn exporter(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(&stream).lines();
            let headers = lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty());
            // A client that goes away is no matter.
            if headers.count() > 0 {
                let length = text.len();
                let _ = write!(
                    stream,
                    "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\
                     Content-Length: {length}\r\n\r\n{text}"
                );
            }
        }
    });
    address
}

/// A Prometheus that scrapes these, by name of the job.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    /// Where it keeps its data.
    _folder: TempDir,
}

impl Prometheus {
    fn start(program: &std::path::Path, jobs: &[(&str, SocketAddr)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/prometheus");
        let mut config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{rules}/rules.yml', '{rules}/alerts.yml']\nscrape_configs:\n"
        );
        for (job, target) in jobs {
            let _ = writeln!(
                config,
                "- {{job_name: {job}, static_configs: [{{targets: ['{target}']}}]}}"
            );
        }
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        // It can't tell which port the kernel chose, so a port that was free a moment ago must do.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process,
            address,
            _folder: folder,
        }
    }

    /// What it answers to a request of its API; null before it listens.
    fn get(&self, path: &str, argument: &str) -> Value {
        let mut encoded = String::new();
        for byte in argument.bytes() {
            let _ = write!(encoded, "%{byte:02x}");
        }
        if std::net::TcpStream::connect(self.address).is_err() {
            return Value::Null;
        }
        let host = self.address;
        let answer = ask(
            self.address,
            &format!("GET /api/v1/{path}={encoded} HTTP/1.0\r\nHost: {host}\r\n\r\n"),
        );
        serde_json::from_str(body(&answer)).unwrap_or_default()
    }

    /// The samples of a query, by their `domain`, once there are so many.
    fn query(&mut self, query: &str, count: usize) -> Vec<(String, f64)> {
        let begin = Instant::now();
        loop {
            let answer = self.get("query?query", query);
            let result = answer["data"]["result"].as_array();
            let mut samples: Vec<_> = result.into_iter().flatten().map(sample).collect();
            if samples.len() >= count {
                samples.sort_by(|a, b| a.0.cmp(&b.0));
                return samples;
            }
            let ended = self.process.try_wait().unwrap();
            let log = fs::read_to_string(self._folder.path().join("log")).unwrap();
            assert!(ended.is_none(), "{log}");
            assert!(
                begin.elapsed() < LONG_ENOUGH * 4,
                "{query}: {answer}\n{log}"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }
}

fn sample(sample: &Value) -> (String, f64) {
    let domain = sample["metric"]["domain"].as_str().unwrap_or_default();
    let value = sample["value"][1].as_str().unwrap().parse().unwrap();
    (domain.to_owned(), value)
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_when_it_scrapes_us_and_libvirt_joins_both_by_domain() {
    let Some(program) = tool("prometheus") else {
        return;
    };
    let (address, _) = started(2);
    let jobs = [("vmm-tier", address), ("libvirt", exporter(LIBVIRT))];
    let mut prometheus = Prometheus::start(&program, &jobs);

    let up = prometheus.query("up == 1", 2);
    let for_each_cpu = prometheus.query(
        "vmm_tier_host_vm_share_bytes / on (domain) libvirt_domain_info_virtual_cpus",
        2,
    );
    let of_maximum = prometheus.query(
        "vmm_tier_host_vm_fast_bytes / on (domain) libvirt_domain_info_maximum_memory_bytes",
        2,
    );
    let same_uuid = prometheus.query(
        "vmm_tier_host_vm_info * on (domain, uuid) group_left libvirt_domain_info_virtual_cpus",
        2,
    );

    assert_eq!(up.len(), 2);
    let named = |first, second| vec![("vm1".to_owned(), first), ("vm2".to_owned(), second)];
    let share = f64::from(23 << 20);
    assert_eq!(for_each_cpu, named(share / 2.0, share / 4.0));
    let fast = |number: u64| ((22 << 20) + number * 4096) as f64;
    let gib = f64::from(1 << 30);
    assert_eq!(
        of_maximum,
        named(fast(1) / (4.0 * gib), fast(2) / (8.0 * gib))
    );
    assert_eq!(same_uuid, named(2.0, 4.0));
    // State sets are known as such: what was read is OpenMetrics.
    let metadata = prometheus.get("metadata?metric", "vmm_tier_host_vm_state");
    let kind = &metadata["data"]["vmm_tier_host_vm_state"][0]["type"];
    assert_eq!(kind, "stateset", "{metadata}");
    // The rules of the examples are evaluated, and none fails on what is scraped.
    let received = prometheus.query("domain:vmm_tier_host_vm_received:ratio", 2);
    assert_eq!(received[0].0, "vm1");
    let groups = prometheus.get("rules?type", "");
    let groups = groups["data"]["groups"].as_array().unwrap().iter();
    let rules: Vec<&Value> = groups
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() > 20, "{rules:?}");
    for rule in rules {
        assert_ne!(rule["health"], "err", "{rule}");
    }
    let documented = documented_queries();
    assert!(documented.len() > 10, "{documented:?}");
    for query in documented {
        let answer = prometheus.get("query?query", query);
        assert_eq!(answer["status"], "success", "{query}: {answer}");
    }
    println!("for each virtual CPU, {for_each_cpu:?} bytes");
}
