//! Writer of cpio archives in the "newc" format, the one the kernel unpacks as initramfs.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::io::{self, Write};

const TRAILER: &str = "TRAILER!!!";
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;

/// Writes entries one after the other; [`Archive::finish`] writes the trailer.
///
/// Archives may be concatenated: the kernel unpacks one after the other and a later entry
/// replaces an earlier one of the same name.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// A folder; its parents must come before it.
    ///
    /// # Errors
    /// What writing to the underlying writer gives.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, TYPE_DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A regular file with its permission bits.
    ///
    /// # Errors
    /// What writing to the underlying writer gives; `InvalidInput` from 4 GiB on.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, TYPE_FILE | (permissions & 0o7777), (0, 0), content)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// What writing to the underlying writer gives.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, TYPE_SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device, for instance the console that a first process needs.
    ///
    /// # Errors
    /// What writing to the underlying writer gives.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, TYPE_CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Writes the trailer, fills up to 512 bytes and gives the writer back.
    ///
    /// # Errors
    /// What writing to the underlying writer gives.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        self.pad(512)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, "larger than 4 GiB");
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.inode += 1;
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
        // rdevmajor, rdevminor, namesize, check
        let header = format!(
            "070701{:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{size:08X}{:08X}{:08X}{major:08X}{minor:08X}{name_size:08X}{:08X}",
            self.inode, 0, 0, 1, 0, 0, 0, 0,
        );
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(content)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        const ZEROS: [u8; 512] = [0; 512];
        let missing = (to - self.written % to) % to;
        self.put(&ZEROS[..usize::try_from(missing).unwrap_or(0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads name, mode and content of each entry back, by the format's own rules.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let field = |at: usize, n: usize| {
            let text = std::str::from_utf8(&archive[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&archive[at..at + 6], b"070701", "magic at {at}");
            let (mode, size, name_size) = (field(at, 1), field(at, 6), field(at, 11));
            let name_at = at + 110;
            let name_end = name_at + name_size as usize - 1;
            let name = String::from_utf8(archive[name_at..name_end].to_vec()).unwrap();
            let data = (name_end + 1).next_multiple_of(4);
            if name == TRAILER {
                return found;
            }
            found.push((name, mode, archive[data..data + size as usize].to_vec()));
            at = (data + size as usize).next_multiple_of(4);
        }
    }

    #[test]
    fn archive_when_read_back_holds_every_entry() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        archive.file("init", 0o755, b"12345").unwrap();
        archive.symlink("lib", "usr/lib").unwrap();

        let bytes = archive.finish().unwrap();

        assert_eq!(bytes.len() % 512, 0);
        let found = entries(&bytes);
        let names: Vec<_> = found.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(names, ["dev", "dev/console", "init", "lib"]);
        assert_eq!(found[2].1, 0o100_755);
        assert_eq!(found[2].2, b"12345");
        assert_eq!(found[3].1, 0o120_777);
        assert_eq!(found[3].2, b"usr/lib");
    }

    #[test]
    fn archives_when_concatenated_start_at_a_block() {
        let first = Archive::new(Vec::new()).finish().unwrap();
        let mut both = Archive::new(first);
        both.file("x", 0o644, b"y").unwrap();

        let bytes = both.finish().unwrap();

        assert_eq!(entries(&bytes[512..])[0].0, "x");
    }
}
