//! The log and last words on the standard error. It may be gone or full at any time, and nothing ends for
//! that.

use std::{
    fmt::{Display, Write as _},
    io::{self, Stderr, Write},
    sync::Mutex,
};

use tracing_subscriber::fmt::{
    format,
    time::{FormatTime, SystemTime},
};

/// Where the subscriber writes its lines.
pub(crate) fn stderr() -> Mutex<Log<Stderr>> {
    Mutex::new(Log::new(io::stderr()))
}

/// Tells the user why the program ends.
pub(crate) fn complain(words: impl Display) {
    // The exit code says it to those who can't read it.
    let _ = writeln!(io::stderr(), "vmm-tier: {words}");
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// Writes one line with each call, and fails at none: a line that can't be written is counted, and the next
/// that can is written behind a line that tells how many were lost.
///
/// An error would come to the subscriber, which panics when it can't report that either.
#[derive(Debug)]
pub(crate) struct Log<W> {
    out: W,
    lost: u64,
    /// The last line has no end.
    is_cut: bool,
}

impl<W: Write> Log<W> {
    const fn new(out: W) -> Self {
        Self {
            out,
            lost: 0,
            is_cut: false,
        }
    }

    /// Whether all of `text` could be written.
    fn put(&mut self, text: &[u8]) -> bool {
        let mut rest = text;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => return false,
                Ok(written) => {
                    self.is_cut = rest[written - 1] != b'\n';
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether those who read know of all lines that are lost.
    fn tell_lost(&mut self) -> bool {
        if self.lost == 0 {
            return true;
        }
        let mut line = String::new();
        if self.is_cut {
            line.push('\n');
        }
        // As the subscriber writes its lines. A string takes all that is written to it.
        let _ = SystemTime.format_time(&mut format::Writer::new(&mut line));
        let lines = match self.lost {
            1 => "line was",
            _ => "lines were",
        };
        let _ = writeln!(line, "  WARN {} log {lines} lost", self.lost);
        let told = self.put(line.as_bytes());
        if told {
            self.lost = 0;
        }
        told
    }
}

impl<W: Write> Write for Log<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !(self.tell_lost() && self.put(line)) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has room for a number of bytes, then is full, as a disk is.
    #[derive(Debug, Default)]
    struct Disk {
        text: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let taken = text.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.text.extend(&text[..taken]);
            self.room -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is read of lines for which there was so much room each. Times are taken out.
    fn read(lines: &[(&str, usize)]) -> Vec<String> {
        let mut log = Log::new(Disk::default());
        for (line, room) in lines {
            log.out.room = *room;
            log.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        let text = String::from_utf8(log.out.text).unwrap();
        let lines = text.lines().map(|line| match line.split_once("  WARN ") {
            Some((time, words)) => {
                // Such as 2026-01-31T12:00:00.000000Z.
                assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
                words.to_owned()
            }
            None => line.to_owned(),
        });
        lines.collect()
    }

    const ROOM: usize = 1000;

    #[test]
    fn lines_when_they_can_be_written_are_all_there_is() {
        assert_eq!(read(&[("a", ROOM), ("b", ROOM)]), ["a", "b"]);
    }

    #[test]
    fn lines_when_some_were_lost_come_behind_their_number() {
        let lines = [("a", ROOM), ("b", 0), ("c", 0), ("d", ROOM), ("e", ROOM)];
        let expected = ["a", "2 log lines were lost", "d", "e"];
        assert_eq!(read(&lines), expected);

        let lines = [("a", 0), ("b", ROOM), ("c", 0), ("d", ROOM)];
        let lost = "1 log line was lost";
        assert_eq!(read(&lines), [lost, "b", lost, "d"]);
    }

    #[test]
    fn line_when_it_is_cut_is_lost_and_the_next_begins_anew() {
        let lines = [("abcd", 2), ("e", ROOM)];
        assert_eq!(read(&lines), ["ab", "1 log line was lost", "e"]);
        // All but its end.
        let lines = [("abcd", 4), ("e", ROOM)];
        assert_eq!(read(&lines), ["abcd", "1 log line was lost", "e"]);
    }

    #[test]
    fn number_of_lost_lines_when_it_is_lost_itself_is_told_again() {
        // Time, "  WARN ", 19 letters and the line's end; there is no room for "c".
        let told = 27 + 7 + 19 + 1;
        let lost = "1 log line was lost";
        let lines = [("a", 0), ("b", told), ("c", ROOM)];
        assert_eq!(read(&lines), [lost, lost, "c"]);

        let lines = [("a", 0), ("b", 10), ("c", ROOM)];
        let read = read(&lines);
        assert_eq!(
            (read[0].len(), &read[1..]),
            (
                10,
                ["2 log lines were lost", "c"].map(str::to_owned).as_slice()
            )
        );
    }

    #[test]
    fn writing_when_it_is_interrupted_is_tried_again() {
        struct Interrupted(Vec<u8>, bool);
        impl Write for Interrupted {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                match self.1 {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => self.0.write(&text[..1]),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut log = Log::new(Interrupted(Vec::new(), false));

        log.write_all(b"abc\n").unwrap();

        assert_eq!((log.out.0.as_slice(), log.lost), (b"abc\n".as_slice(), 0));
    }
}
