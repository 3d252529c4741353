//! A small QMP client of the lab's own, so that what it measures does not rest on the code
//! under test.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Longest line that is read: no reply that the lab asks for comes near it.
const LONGEST: u64 = 1 << 20;

/// A negotiated connection to a QMP server: QEMU, or an agent's control socket.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects, reads the greeting and negotiates.
    ///
    /// # Errors
    /// When nobody serves the socket, or what serves it does not answer as QMP within `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        if monitor.read()?.get("QMP").is_none() {
            bail!("{} does not greet as QMP", path.display());
        }
        monitor.execute("qmp_capabilities", Value::Null)?;
        Ok(monitor)
    }

    /// Connects as soon as somebody serves the socket.
    ///
    /// # Errors
    /// When nobody does within `within`.
    pub fn connect_within(path: &Path, within: Duration) -> anyhow::Result<Self> {
        let start = Instant::now();
        loop {
            match Self::connect(path, Duration::from_secs(10)) {
                Ok(monitor) => return Ok(monitor),
                Err(error) if start.elapsed() >= within => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Sends a command and waits for its reply; events in between are passed over.
    ///
    /// # Errors
    /// When the reply is an error, or none comes in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .with_context(|| format!("sending {command}"))?;
        loop {
            let mut reply = self.read().with_context(|| format!("reply to {command}"))?;
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = reply.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("error"));
            }
        }
    }

    /// The host virtual address of a guest-physical one, as QEMU says.
    ///
    /// # Errors
    /// When there is no memory at that address.
    pub fn host_address(&mut self, gpa: u64) -> anyhow::Result<u64> {
        let text = self.execute(
            "human-monitor-command",
            json!({ "command-line": format!("gpa2hva {gpa:#x}") }),
        )?;
        let text = text.as_str().unwrap_or_default();
        parse_host_address(text).with_context(|| format!("gpa2hva {gpa:#x}: {}", text.trim()))
    }

    /// The threads of the guest's virtual CPUs.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn vcpu_threads(&mut self) -> anyhow::Result<Vec<u32>> {
        let reply = self.execute("query-cpus-fast", Value::Null)?;
        let cpus = reply.as_array().context("query-cpus-fast: no list")?;
        let thread = |cpu: &Value| cpu["thread-id"].as_u64()?.try_into().ok();
        cpus.iter()
            .map(|cpu| thread(cpu).context("query-cpus-fast: no thread-id"))
            .collect()
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(LONGEST)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            bail!("connection closed");
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

/// Reads "Host virtual address for 0x.. (NAME) is 0x..".
fn parse_host_address(text: &str) -> Option<u64> {
    let address = text.trim().strip_prefix("Host virtual address for ")?;
    let (_, address) = address.rsplit_once(" is 0x")?;
    u64::from_str_radix(address, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn host_address_when_qemu_has_none_is_none() {
        // Both texts as QEMU 7.2 and 10.0 print them.
        assert_eq!(
            parse_host_address("Host virtual address for 0x100000 (ram0) is 0x7f0c3fe00000\r\n"),
            Some(0x7f0c_3fe0_0000)
        );
        assert_eq!(
            parse_host_address("No memory is mapped at address 0x40000000\r\n"),
            None
        );
    }

    #[test]
    fn execute_when_events_come_first_finds_the_reply() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\r\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.next();
            stream.write_all(b"{\"return\": {}}\r\n").unwrap();
            lines.next();
            stream
                .write_all(b"{\"event\": \"STOP\"}\r\n{\"return\": {\"n\": 7}}\r\n")
                .unwrap();
        });

        let mut monitor = Monitor::connect(&path, Duration::from_secs(5)).unwrap();
        let reply = monitor.execute("query-x", Value::Null).unwrap();

        assert_eq!(reply, json!({"n": 7}));
        server.join().unwrap();
    }
}
