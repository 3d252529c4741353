//! What the proxy costs: a command's round trip direct and through it, and commands a second with
//! many clients.
//!
//! The server behind is a thread that answers at once, which makes the proxy's share as large as it
//! can be, and a real QEMU if `VMM_TIER_BENCH_QEMU` names its binary (with more arguments after
//! spaces).

use std::{
    hint::black_box,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qmp::{
    Client, Proxy, QmpError, client, proxy,
    server::{CommandSpec, Handler},
};
use serde_json::{Map, Value, json};

/// Adds nothing.
struct NoExtension;

impl Handler for NoExtension {
    fn commands(&self) -> &[CommandSpec] {
        &[]
    }

    fn handle(&self, name: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
        Err(QmpError::command_not_found(name))
    }
}

/// A client as plain as can be: one thread, blocking.
struct Plain {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Plain {
    fn connect(path: &Path) -> Self {
        let mut plain = Self {
            stream: UnixStream::connect(path).expect("a server"),
            buffer: vec![0; 64 << 10],
        };
        plain.read_line();
        plain.ask(b"{\"execute\":\"qmp_capabilities\"}\r\n");
        plain
    }

    fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("a server that reads");
        self.read_line();
    }

    fn read_line(&mut self) {
        loop {
            let len = self.stream.read(&mut self.buffer).expect("a reply");
            assert!(len > 0, "the server left");
            if black_box(&self.buffer[..len]).ends_with(b"\n") {
                return;
            }
        }
    }
}

const STATUS: &[u8] = b"{\"execute\":\"query-status\",\"id\":\"libvirt-42\"}\r\n";

/// Serves any number of clients, one thread each, and answers every line at once.
fn instant_server(path: &Path) {
    let listener = UnixListener::bind(path).expect("a path");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            thread::spawn(move || answer(stream));
        }
    });
}

fn answer(mut stream: UnixStream) {
    let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""});
    let greeting = json!({"QMP": {"version": version, "capabilities": []}});
    let _ = stream.write_all(format!("{greeting}\r\n").as_bytes());
    let mut buffer = vec![0; 64 << 10];
    let mut kept = 0;
    while let Ok(len) = stream.read(&mut buffer[kept..]) {
        if len == 0 {
            return;
        }
        let end = kept + len;
        let mut out = Vec::new();
        let mut begin = 0;
        while let Some(line) = buffer[begin..end].iter().position(|&byte| byte == b'\n') {
            let request: Value =
                serde_json::from_slice(&buffer[begin..begin + line]).unwrap_or_default();
            let status = json!({"status": "running", "singlestep": false, "running": true});
            let reply = json!({"return": status, "id": request["id"]});
            out.extend_from_slice(format!("{reply}\r\n").as_bytes());
            begin += line + 1;
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        buffer.copy_within(begin..end, 0);
        kept = end - begin;
    }
}

/// A QEMU without a machine, with two monitors; it ends with this.
struct Qemu(Child);

impl Qemu {
    fn start(command: &str, monitors: [&Path; 2]) -> Self {
        let mut words = command.split_whitespace();
        let mut qemu = Command::new(words.next().expect("a binary"));
        qemu.args(words);
        qemu.args(["-machine", "none", "-nodefaults", "-display", "none"]);
        for path in monitors {
            let option = format!("unix:{},server=on,wait=off", path.display());
            qemu.args(["-qmp", &option]);
        }
        let child = qemu.stdin(Stdio::null()).spawn().expect("QEMU must start");
        let begin = Instant::now();
        while !monitors.iter().all(|path| path.exists()) {
            assert!(begin.elapsed() < Duration::from_secs(20), "QEMU must serve");
            thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn proxy_before(upstream: &Path, path: &Path) -> Proxy {
    let options = client::Options {
        oob: true,
        ..client::Options::default()
    };
    let (client, _) = Client::connect(upstream, &options).expect("a server");
    Proxy::bind(
        path,
        Arc::new(client),
        Arc::new(NoExtension),
        proxy::options(),
    )
    .expect("a path")
}

fn round_trip(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    instant_server(&path("instant"));
    let mut servers = vec![("instant", path("instant"), path("instant"))];
    let _qemu = std::env::var("VMM_TIER_BENCH_QEMU").ok().map(|command| {
        let (first, second) = (path("first"), path("second"));
        let qemu = Qemu::start(&command, [&first, &second]);
        servers.push(("qemu", first, second));
        qemu
    });
    let mut group = criterion.benchmark_group("round-trip");
    for (name, first, second) in servers {
        let mut direct = Plain::connect(&first);
        group.bench_function(BenchmarkId::new("direct", name), |bencher| {
            bencher.iter(|| direct.ask(STATUS));
        });
        let _proxy = proxy_before(&second, &path(&format!("{name}-proxy")));
        let mut proxied = Plain::connect(&path(&format!("{name}-proxy")));
        group.bench_function(BenchmarkId::new("proxy", name), |bencher| {
            bencher.iter(|| proxied.ask(STATUS));
        });
    }
    group.finish();
}

fn throughput(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let upstream = folder.path().join("upstream");
    instant_server(&upstream);
    let path = folder.path().join("proxy");
    let _proxy = proxy_before(&upstream, &path);
    let mut group = criterion.benchmark_group("commands-through-the-proxy");
    group.throughput(Throughput::Elements(1));
    for count in [1_usize, 8, 64] {
        let mut clients: Vec<_> = (0..count).map(|_| Plain::connect(&path)).collect();
        group.bench_function(BenchmarkId::new("clients", count), |bencher| {
            bencher.iter_custom(|commands| {
                let each = commands.div_ceil(count as u64);
                let begin = Instant::now();
                thread::scope(|scope| {
                    for client in &mut clients {
                        scope.spawn(move || (0..each).for_each(|_| client.ask(STATUS)));
                    }
                });
                // The time of as many commands as were asked for.
                begin
                    .elapsed()
                    .mul_f64(commands as f64 / (each * count as u64) as f64)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, round_trip, throughput);
criterion_main!(benches);
