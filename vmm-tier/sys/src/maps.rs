//! `/proc/PID/maps`: the mappings of a process.

use std::io::{BufRead, BufReader, Read};

use tier_core::addr::Hva;

use crate::sysroot::{ParseError, SysRoot, SysRootError, open};

/// The longest line that is taken: an address pair, some numbers and a path of `PATH_MAX` bytes whose
/// newlines are written as four bytes each.
pub(crate) const MAX_LINE: u64 = 32 << 10;
/// The most lines that are taken: `vm.max_map_count` is 65530 by default; smaps has some 25 lines a
/// mapping.
pub(crate) const MAX_LINES: usize = 16 << 20;

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first byte.
    pub start: Hva,
    /// The first byte behind it.
    pub end: Hva,
    /// Permissions such as `rw-s`.
    pub permissions: String,
    /// Offset in the mapped file, in bytes.
    pub offset: u64,
    /// The device of the mapped file, major and minor number; 0 and 0 for anonymous memory.
    pub device: (u32, u32),
    /// The mapped file's inode; 0 for anonymous memory.
    pub inode: u64,
    /// The path or name; empty for anonymous memory.
    pub name: String,
}

impl Mapping {
    /// Whether `address` lies in the mapping.
    #[must_use]
    pub fn contains(&self, address: Hva) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Parses one line of maps, or the first line of an entry of smaps; `None` if it is neither.
#[must_use]
pub fn parse_line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail;
        word
    };
    let (start, end) = word().split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let permissions = word();
    let offset = hex(word())?;
    let (major, minor) = word().split_once(':')?;
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let device = (number(major)?, number(minor)?);
    let inode = word().parse().ok()?;
    if start >= end || permissions.len() != 4 {
        return None;
    }
    Some(Mapping {
        start: Hva(start),
        end: Hva(end),
        permissions: permissions.to_owned(),
        offset,
        device,
        inode,
        name: rest.trim().to_owned(),
    })
}

/// Hands each line of a long file to `take` until it returns `false`. Never holds more than one line.
pub(crate) fn each_line(
    reader: impl Read,
    path: &std::path::Path,
    mut take: impl FnMut(usize, &str) -> Result<bool, ParseError>,
) -> Result<(), SysRootError> {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let mut line = Vec::new();
    for index in 0.. {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Ok(()),
            Ok(_) if index >= MAX_LINES || (line.len() as u64 >= MAX_LINE) => break,
            Ok(_) => {}
            Err(source) => {
                return Err(SysRootError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        let text = String::from_utf8_lossy(&line);
        match take(index, text.trim_end_matches('\n')) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(error.in_file(path)),
        }
    }
    Err(SysRootError::TooLarge {
        path: path.to_owned(),
        limit: MAX_LINE * MAX_LINES as u64,
    })
}

/// Reads the mappings of a process for which `keep` is true, in rising order.
///
/// # Errors
/// [`SysRootError`]; see [`SysRootError::is_process_gone`].
pub fn read(
    root: &SysRoot,
    pid: u32,
    keep: impl Fn(&Mapping) -> bool,
) -> Result<Vec<Mapping>, SysRootError> {
    let path = root.process(pid, "maps");
    let mut found = Vec::new();
    each_line(open(&path)?, &path, |index, line| {
        let mapping =
            parse_line(line).ok_or_else(|| ParseError::at(index, "no mapping stands here"))?;
        if keep(&mapping) {
            found.push(mapping);
        }
        Ok(true)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_line_when_name_holds_spaces_keeps_it_whole() {
        let line = "7f00e8000000-7f0101000000 rw-s 00001000 00:01 1050    /memfd:my ram (deleted)";

        let mapping = parse_line(line).unwrap();

        assert_eq!(mapping.name, "/memfd:my ram (deleted)");
        assert_eq!((mapping.offset, mapping.inode), (0x1000, 1050));
        assert_eq!(mapping.device, (0, 1));
        assert!(
            mapping.contains(Hva(0x7f00_e800_0000)) && !mapping.contains(Hva(0x7f01_0100_0000))
        );
    }

    #[test]
    fn parse_line_when_malformed_is_none() {
        for line in [
            "",
            "x-y rw-p 0 0:0 0",
            "2-1 rw-p 0 0:0 0",
            "1-2 rw-p 0 00 0",
            "Rss: 4 kB",
        ] {
            assert_eq!(parse_line(line), None, "{line}");
        }
    }

    #[test]
    fn read_when_line_is_endless_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/7")).unwrap();
        std::fs::write(folder.path().join("proc/7/maps"), vec![b'1'; 100_000]).unwrap();

        let error = read(&SysRoot::at(folder.path()), 7, |_| true).unwrap_err();

        assert!(matches!(error, SysRootError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn read_when_asked_for_ourselves_finds_the_stack() {
        let local = 0u8;
        let address = Hva(std::ptr::from_ref(&local) as u64);

        let own = read(&SysRoot::real(), std::process::id(), |m| {
            m.contains(address)
        })
        .unwrap();

        assert_eq!(own.len(), 1);
    }

    #[test]
    fn read_when_process_is_gone_says_so() {
        // Beyond PID_MAX_LIMIT (4 Mi), so no process has it.
        let error = read(&SysRoot::real(), 5_000_000, |_| true).unwrap_err();
        assert!(error.is_process_gone(), "{error}");
    }
}
