//! The consumer's side of a perf ring, over any memory that behaves like one.
//!
//! The producer writes records at `data_head` and never passes `data_tail`; the consumer reads up to
//! the head it has seen and then moves the tail. [`Ring::drain`] reads the head once and goes up to it in
//! steps: it copies a step's bytes out (so a record that wraps is whole again), parses the copy and gives
//! the space back. The copy is small enough to stay in the core's first-level cache, so it costs little
//! more than reading the ring once, and nothing that happens in shared memory meanwhile can reach the
//! parser.

use std::{
    cell::{Cell, RefCell},
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use perf_event_open_sys::bindings::perf_event_mmap_page;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{
    collect::{Collected, Drained},
    record::{Record, RecordFormat, Sample, walk},
};

/// Bytes that [`Ring::drain`] copies out at a time: half of a first-level data cache of 32 KiB.
const STEP: usize = 16 << 10;

/// Memory that a producer fills as the kernel fills a perf ring.
pub trait RingMemory {
    /// The bytes of the data area, a power of two.
    fn capacity(&self) -> usize;
    /// Where the producer will write next; grows without end. Everything before it can be read after
    /// this call (acquire).
    fn head(&self) -> u64;
    /// Where the consumer stands.
    fn tail(&self) -> u64;
    /// Gives everything before `tail` back to the producer, after all reads of it (release).
    fn set_tail(&self, tail: u64);
    /// Appends `len` bytes of the data area from `offset` on to `out`; `offset + len` is at most the
    /// capacity.
    fn append_to(&self, offset: usize, len: usize, out: &mut Vec<u8>);
}

/// A ring and the format of its records.
#[derive(Debug)]
pub struct Ring<M> {
    memory: M,
    format: RecordFormat,
    copy: Vec<u8>,
}

impl<M: RingMemory> Ring<M> {
    /// A consumer of `memory`, whose records have this format.
    pub fn new(memory: M, format: RecordFormat) -> Self {
        Self {
            memory,
            format,
            copy: Vec::new(),
        }
    }

    /// The memory under the ring.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The share of the ring that waits to be read.
    pub fn filled(&self) -> f64 {
        let waits = self.memory.head().wrapping_sub(self.memory.tail());
        waits as f64 / self.memory.capacity() as f64
    }

    /// Hands every record that stands in the ring at the moment of the call to `take`, and frees
    /// their space.
    pub fn drain(&mut self, mut take: impl FnMut(Record<'_>)) -> Drained {
        let mut drained = Drained::default();
        let (head, tail) = (self.memory.head(), self.memory.tail());
        let capacity = self.memory.capacity();
        let available = head.wrapping_sub(tail);
        if available == 0 {
            return drained;
        }
        // Only a broken producer gets here; what lies in the ring then can't be told from garbage.
        if available > capacity as u64 {
            self.memory.set_tail(head);
            return Drained {
                overruns: 1,
                ..drained
            };
        }
        // At most the capacity, which is a usize.
        let available = available as usize;
        drained.bytes = available as u64;
        let mut done = 0;
        // What the next record needs, where a step ended in the middle of a long one.
        let mut needed = 0;
        while done < available {
            let left = available - done;
            self.copy_out(
                tail.wrapping_add(done as u64),
                left.min(STEP.max(needed)),
                capacity,
            );
            let walked = walk(&self.copy, &self.format, &mut take);
            drained.records += walked.records;
            drained.malformed += walked.malformed;
            done += walked.bytes;
            needed = match walked.stopped {
                None => 0,
                Some(error) => match error.needs() {
                    // The step ended before the record does.
                    Some(bytes) if bytes <= available - done => bytes,
                    // Where the next record begins can't be known.
                    _ => {
                        drained.malformed += 1;
                        break;
                    }
                },
            };
            self.memory.set_tail(tail.wrapping_add(done as u64));
        }
        self.memory.set_tail(head);
        drained
    }

    /// Hands every sample in the ring to `take`, and counts the other records.
    #[inline]
    pub fn collect(&mut self, mut take: impl FnMut(Sample<'_>)) -> Collected {
        Collected::by(|collected| {
            self.drain(|record| {
                if let Some(sample) = collected.sample(record) {
                    take(sample);
                }
            })
        })
    }

    /// Copies `len` bytes of the ring from the position `from` on.
    fn copy_out(&mut self, from: u64, len: usize, capacity: usize) {
        self.copy.clear();
        // The capacity is a power of two and a usize.
        let offset = (from & (capacity as u64 - 1)) as usize;
        let first = len.min(capacity - offset);
        self.memory.append_to(offset, first, &mut self.copy);
        self.memory.append_to(0, len - first, &mut self.copy);
    }
}

/// The memory that the kernel maps for a perf event: a control page and 2ⁿ data pages.
#[derive(Debug)]
pub struct MappedRing {
    base: *mut u8,
    page: usize,
    capacity: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached only through raw loads and stores;
// nothing in it depends on the thread that made it.
unsafe impl Send for MappedRing {}

impl MappedRing {
    /// Maps the ring of a perf event with `data_pages` pages for records.
    ///
    /// # Errors
    /// The kernel's: `EPERM` over the locked-memory limit, `EINVAL` if `data_pages` is no power of
    /// two, `ENOMEM`.
    pub fn map(event: impl AsFd, data_pages: usize) -> rustix::io::Result<Self> {
        let capacity = data_pages
            .checked_mul(rustix::param::page_size())
            .ok_or(rustix::io::Errno::INVAL)?;
        Self::map_data(event, capacity)
    }

    /// Maps a control page and `capacity` bytes of data behind it.
    pub(super) fn map_data(file: impl AsFd, capacity: usize) -> rustix::io::Result<Self> {
        if !capacity.is_power_of_two() {
            return Err(rustix::io::Errno::INVAL);
        }
        Self::map_bytes(file, capacity)
    }

    /// Maps the control page alone: a ring in which nothing can ever stand.
    pub(super) fn map_control(file: impl AsFd) -> rustix::io::Result<Self> {
        Self::map_bytes(file, 0)
    }

    fn map_bytes(file: impl AsFd, capacity: usize) -> rustix::io::Result<Self> {
        let page = rustix::param::page_size();
        let length = capacity.checked_add(page).ok_or(rustix::io::Errno::INVAL)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a null address lets the kernel choose the place, so no other mapping is replaced;
        // the length is not zero; the result is checked by rustix.
        let base = unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file, 0) }?;
        Ok(Self {
            base: base.cast(),
            page,
            capacity,
        })
    }

    /// The word of the control page at `offset`, as it stands now.
    pub(super) fn control_value(&self, offset: usize) -> u64 {
        self.control_word(offset).load(Ordering::Acquire)
    }

    fn head_cell(&self) -> &AtomicU64 {
        self.control_word(std::mem::offset_of!(perf_event_mmap_page, data_head))
    }

    fn tail_cell(&self) -> &AtomicU64 {
        self.control_word(std::mem::offset_of!(perf_event_mmap_page, data_tail))
    }

    /// A word of the control page.
    fn control_word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset <= self.page - 8);
        let word = self.base.wrapping_add(offset).cast::<u64>();
        // SAFETY: the word lies within the control page (asserted), which is mapped readable and
        // writable for as long as self lives; it is aligned (asserted; a page is); the kernel reads
        // and writes such words whole (READ_ONCE, WRITE_ONCE), and we only reach them as atomics.
        unsafe { AtomicU64::from_ptr(word) }
    }
}

impl RingMemory for MappedRing {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn head(&self) -> u64 {
        self.head_cell().load(Ordering::Acquire)
    }

    fn tail(&self) -> u64 {
        self.tail_cell().load(Ordering::Relaxed)
    }

    fn set_tail(&self, tail: u64) {
        // The reads of the records must be over before the kernel sees the space as free: a full
        // barrier, the partner of the one in perf_output_begin (kernel/events/ring_buffer.c).
        fence(Ordering::SeqCst);
        self.tail_cell().store(tail, Ordering::Release);
    }

    fn append_to(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        assert!(offset <= self.capacity && len <= self.capacity - offset);
        out.reserve(len);
        let end = out.len();
        // SAFETY: offset is at most the capacity, so the pointer stays within the mapping, whose
        // data area begins one page after its base.
        let from = unsafe { self.base.add(self.page + offset) };
        let to = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `from` is readable for len bytes (asserted above); `to` is writable for len bytes
        // (reserved above); the vector's own memory can't overlap the mapping. A producer does not
        // write between tail and head; one that breaks this (a ring file's may) spoils bytes, of
        // which every pattern is allowed: they are copied before anything looks at them.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        // SAFETY: the capacity was reserved and the len bytes behind the old end were just written.
        unsafe { out.set_len(end + len) };
    }
}

impl Drop for MappedRing {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`, which nothing else holds
        // a reference into: all references are bound to the borrow of self.
        let unmapped = unsafe { munmap(self.base.cast(), self.capacity + self.page) };
        debug_assert!(unmapped.is_ok(), "the ring's own mapping can be unmapped");
    }
}

/// A ring in plain memory, with its producer: for tests, benches and replays of recorded rings.
#[derive(Debug)]
pub struct PlainRing {
    data: RefCell<Vec<u8>>,
    head: Cell<u64>,
    tail: Cell<u64>,
}

impl PlainRing {
    /// An empty ring of `capacity` bytes (a power of two) whose head and tail begin at `start`.
    ///
    /// # Panics
    /// If `capacity` is no power of two.
    #[must_use]
    pub fn new(capacity: usize, start: u64) -> Self {
        assert!(
            capacity.is_power_of_two(),
            "the capacity of a ring is a power of two"
        );
        Self {
            data: RefCell::new(vec![0; capacity]),
            head: Cell::new(start),
            tail: Cell::new(start),
        }
    }

    /// Writes `bytes` behind the head as the kernel does, wrapping where the ring ends; `false`, and
    /// nothing written, if there is no room.
    pub fn push(&self, bytes: &[u8]) -> bool {
        let mut data = self.data.borrow_mut();
        let capacity = data.len();
        let used = self.head.get().wrapping_sub(self.tail.get()) as usize;
        if bytes.len() > capacity - used.min(capacity) {
            return false;
        }
        let offset = (self.head.get() & (capacity as u64 - 1)) as usize;
        let first = bytes.len().min(capacity - offset);
        data[offset..offset + first].copy_from_slice(&bytes[..first]);
        data[..bytes.len() - first].copy_from_slice(&bytes[first..]);
        self.head
            .set(self.head.get().wrapping_add(bytes.len() as u64));
        true
    }

    /// Sets the head to any value, as a broken producer might.
    pub fn set_head(&self, head: u64) {
        self.head.set(head);
    }
}

impl RingMemory for PlainRing {
    fn capacity(&self) -> usize {
        self.data.borrow().len()
    }

    fn head(&self) -> u64 {
        self.head.get()
    }

    fn tail(&self) -> u64 {
        self.tail.get()
    }

    fn set_tail(&self, tail: u64) {
        self.tail.set(tail);
    }

    fn append_to(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.data.borrow()[offset..offset + len]);
    }
}
