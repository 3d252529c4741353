//! Shared memory as words: every access is atomic, so that another process may write at the same time.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapped file, or a device's memory.
#[derive(Debug)]
pub struct Shared {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and all that can be had of it are references to
// atomics, which any thread may use.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps the first `bytes` bytes of a file, to be read and written.
    ///
    /// A file that is cut off while it is mapped ends the process with SIGBUS at the next access: map only
    /// files whose length nobody changes.
    ///
    /// # Errors
    /// The kernel's, and `EINVAL` for no bytes or more than fit an address.
    pub fn map(file: impl AsFd, bytes: u64) -> rustix::io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| rustix::io::Errno::INVAL)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a null address lets the kernel choose a place that nothing else uses; the kernel checks
        // the length; what it returns is unmapped only when this value is dropped.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, protection, flags, file, 0) }?;
        Ok(Self {
            base: base.cast(),
            bytes,
        })
    }

    /// Bytes mapped.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// All whole words.
    #[must_use]
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is readable and writable for `bytes` bytes for as long as self lives, and a
        // page's start is aligned for words; mapped memory has no invalid values; all writers, here and in
        // other processes, write whole words, and what we read and write through are atomics.
        unsafe { std::slice::from_raw_parts(self.base.cast(), self.bytes / 8) }
    }

    /// The word at a byte offset, which is a multiple of eight; `None` behind the end.
    #[must_use]
    pub fn word(&self, offset: u64) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) {
            return None;
        }
        self.words().get(usize::try_from(offset / 8).ok()?)
    }

    /// Reads a word, relaxed.
    #[must_use]
    pub fn load(&self, offset: u64) -> Option<u64> {
        Some(self.word(offset)?.load(Ordering::Relaxed))
    }

    /// Writes a word, relaxed; behind the end nothing is written.
    pub fn store(&self, offset: u64, value: u64) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`; every reference into it is bound
        // to the borrow of self and has ended.
        let unmapped = unsafe { munmap(self.base.cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "an own mapping can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_when_behind_the_end_or_between_words_is_none() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let shared = Shared::map(&file, 4096).unwrap();

        shared.store(4088, 7);
        shared.store(4096, 8);

        assert_eq!(shared.load(4088), Some(7));
        assert_eq!(shared.load(4096), None);
        assert_eq!(shared.load(12), None);
    }

    #[test]
    fn map_when_two_map_the_same_file_they_see_the_same() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let one = Shared::map(&file, 4096).unwrap();
        let other = Shared::map(&file, 4096).unwrap();

        one.store(8, 42);

        assert_eq!(other.load(8), Some(42));
    }
}
