//! `vmm-tier host --http`: metrics and history of a daemon that runs.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::exposition;

/// A daemon of 84 MiB without agents, in a folder of its own.
struct Daemon {
    process: Child,
    /// Where it says that it serves figures.
    address: String,
    folder: TempDir,
}

fn program(folder: &Path, more: &[&str]) -> Command {
    let config = folder.join("host.toml");
    // Processes of other tests that are QEMUs are charged; they don't matter here.
    let text = format!(
        "run-dir = '{}'\n[pool]\nbytes = '84M'\nnodes = '0'\n[http]\nhosts = ['host1.example']\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_vmm-tier"));
    program.args(["host", "--config"]).arg(config).args(more);
    program.env_remove("VMM_TIER_LOG").stderr(Stdio::piped());
    program
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = program(folder.path(), &["--http", "0"]).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("{said}")).unwrap();
            if let Some((_, rest)) = line.split_once("http://") {
                let (address, _) = rest.split_once('/').unwrap();
                break address.to_owned();
            }
            said += &line;
            said.push('\n');
        };
        // Whoever writes to a pipe that nobody reads ends.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            process,
            address,
            folder,
        }
    }

    fn get(&self, path: &str, host: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
            .arg("ctl")
            .arg(self.folder.path().join("host.sock"))
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn daemon_when_asked_for_http_shows_its_figures_and_keeps_their_history() {
    let daemon = Daemon::start();
    let open = "application/openmetrics-text; version=1.0.0";
    let begin = Instant::now();
    let answer = loop {
        let answer = daemon.get("/metrics", &daemon.address, open);
        if answer.starts_with("HTTP/1.1 200") {
            break answer;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{answer}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    let families = exposition::read(text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let configured = "vmm_tier_host_configured_pool_bytes";
    let pool = families.iter().find(|family| family.name == configured);
    assert_eq!(pool.unwrap().samples[0].value, f64::from(84 << 20));

    let evil = daemon.get("/metrics", "evil.example", open);
    assert!(evil.starts_with("HTTP/1.1 421"), "{evil}");
    let named = daemon.get("/health", "host1.example:80", "*/*");
    assert!(named.ends_with("\r\n\r\nok\n"), "{named}");

    // It goes on: longer than the pause between two looks at the processes of the host.
    loop {
        let output = daemon.ctl(&["query-host-history", r#"{"since-s": 60}"#]);
        assert!(output.status.success(), "{output:?}");
        let history: Value = serde_json::from_slice(&output.stdout).unwrap();
        let envy = history["host"]["envy"]["max"].as_array().unwrap();
        assert_eq!(history["steps"], envy.len());
        let known = envy.iter().filter(|envy| **envy == 0.0).count();
        if known > 12 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(90), "{history}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let output = daemon.ctl(&["query-host-history", r#"{"name": "nobody"}"#]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("There is no VM nobody"), "{said}");
}

#[test]
fn daemon_when_the_address_is_taken_or_is_none_says_so_and_ends() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["--http", &daemon.address])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let told = format!(
        "can't listen for HTTP on {}: Address already in use",
        daemon.address
    );
    assert!(said.contains(&told), "{said}");
    assert!(!folder.path().join("host.sock").exists());

    let output = program(folder.path(), &["--http", "host1:80"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("names are not looked up"), "{said}");
}
