//! QEMU's qtest protocol: reads and writes of guest memory and I/O ports, one line each.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

/// Commands that are sent before their answers are read. Few enough that answers fit into the
/// socket's buffer.
const AT_ONCE: usize = 256;

/// A connection to QEMU's qtest socket.
#[derive(Debug)]
pub(super) struct Qtest {
    reader: BufReader<UnixStream>,
}

impl Qtest {
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Sends commands; what follows `OK` in each answer.
    pub(super) fn ask_all(&mut self, commands: &[String]) -> anyhow::Result<Vec<String>> {
        let mut answers = Vec::with_capacity(commands.len());
        for some in commands.chunks(AT_ONCE) {
            let mut text = some.join("\n");
            text.push('\n');
            self.reader.get_mut().write_all(text.as_bytes())?;
            for command in some {
                let mut line = String::new();
                self.reader
                    .read_line(&mut line)
                    .with_context(|| format!("no answer to qtest '{command}'"))?;
                match line.trim().strip_prefix("OK") {
                    Some(rest) => answers.push(rest.trim().to_owned()),
                    None => bail!("qtest '{command}' was answered by '{}'", line.trim()),
                }
            }
        }
        Ok(answers)
    }

    fn tell(&mut self, command: String) -> anyhow::Result<()> {
        self.ask_all(&[command]).map(|_| ())
    }

    fn number(&mut self, command: String) -> anyhow::Result<u64> {
        let answer = self.ask_all(&[command])?.concat();
        let digits = answer.strip_prefix("0x").unwrap_or(&answer);
        u64::from_str_radix(digits, 16).with_context(|| format!("qtest answered '{answer}'"))
    }

    /// Writes 8 bytes at each guest-physical address.
    pub(super) fn write_words(&mut self, words: &[(u64, u64)]) -> anyhow::Result<()> {
        let commands: Vec<String> = words
            .iter()
            .map(|(gpa, word)| format!("writeq {gpa:#x} {word:#x}"))
            .collect();
        self.ask_all(&commands).map(|_| ())
    }

    /// Writes the low `bytes` (1, 2, 4 or 8) of a value at a guest-physical address.
    pub(super) fn write(&mut self, bytes: u8, gpa: u64, value: u64) -> anyhow::Result<()> {
        self.tell(format!("write{} {gpa:#x} {value:#x}", width(bytes)))
    }

    /// Reads 1, 2, 4 or 8 bytes at a guest-physical address.
    pub(super) fn read(&mut self, bytes: u8, gpa: u64) -> anyhow::Result<u64> {
        self.number(format!("read{} {gpa:#x}", width(bytes)))
    }

    /// Writes the low `bytes` (1, 2 or 4) of a value to an I/O port.
    pub(super) fn out(&mut self, bytes: u8, port: u16, value: u32) -> anyhow::Result<()> {
        self.tell(format!("out{} {port:#x} {value:#x}", width(bytes)))
    }

    /// Reads 4 bytes of a PCI function's configuration, on bus 0.
    pub(super) fn pci_read(&mut self, slot: u8, register: u8) -> anyhow::Result<u32> {
        self.out(4, 0xcf8, pci_address(slot, register))?;
        let value = self.number("inl 0xcfc".to_owned())?;
        Ok(u32::try_from(value)?)
    }

    /// Writes 4 bytes of a PCI function's configuration, on bus 0.
    pub(super) fn pci_write(&mut self, slot: u8, register: u8, value: u32) -> anyhow::Result<()> {
        self.out(4, 0xcf8, pci_address(slot, register))?;
        self.out(4, 0xcfc, value)
    }
}

fn width(bytes: u8) -> char {
    match bytes {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    }
}

/// Configuration mechanism 1 (PCI Local Bus Specification 3.0, 3.2.2.3.2).
fn pci_address(slot: u8, register: u8) -> u32 {
    1 << 31 | u32::from(slot) << 11 | u32::from(register & !3)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A QEMU that answers each line with the next of `answers`; the thread returns the lines.
    fn played(
        folder: &Path,
        answers: &'static [&'static str],
    ) -> (Qtest, thread::JoinHandle<Vec<String>>) {
        let socket = folder.join("qtest");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut log = Vec::new();
            // Answers first: no line is waited for after the last.
            for (answer, line) in answers.iter().zip(lines) {
                log.push(line.unwrap());
                writeln!(stream, "{answer}").unwrap();
            }
            log
        });
        (Qtest::connect(&socket).unwrap(), server)
    }

    #[test]
    fn commands_when_qemu_answers_are_sent_as_lines_and_their_values_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut qtest, server) = played(folder.path(), &["OK", "OK 0x00000000000000ff", "OK"]);

        qtest.write_words(&[(0x10_0000, 7)]).unwrap();
        let value = qtest.read(8, 0x2000).unwrap();
        qtest.out(1, 0xa14, 8).unwrap();

        assert_eq!(value, 255);
        assert_eq!(
            server.join().unwrap(),
            ["writeq 0x100000 0x7", "readq 0x2000", "outb 0xa14 0x8"]
        );
    }

    #[test]
    fn command_when_qemu_refuses_it_says_what_qemu_said() {
        let folder = tempfile::tempdir().unwrap();
        let (mut qtest, _server) = played(folder.path(), &["FAIL Unknown command 'x'"]);

        let error = qtest.ask_all(&["x".to_owned()]).unwrap_err();

        assert!(error.to_string().contains("FAIL Unknown command 'x'"));
    }

    #[test]
    fn address_of_a_configuration_register_when_slot_and_register_are_given() {
        assert_eq!(pci_address(5, 0x18), 0x8000_2818);
    }
}
