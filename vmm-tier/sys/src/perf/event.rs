//! Perf events: what to open, on what, and what to do when the kernel refuses.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use perf_event_open_sys::{bindings as abi, ioctls, perf_event_open};
use rustix::event::{PollFd, PollFlags};

use super::{
    collect::{Collected, Drained},
    record::{Record, RecordFormat, Sample, UnsupportedFields},
    refusal::{Asked, Refusal, Step, Surroundings},
    ring::{MappedRing, Ring},
};
use crate::{sysroot::SysRoot, wait::Wait};

/// How often an event writes a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Events for each sample; 0 only counts and never samples.
    Period(u64),
    /// So many samples a second; the kernel adapts the period.
    Frequency(u64),
}

/// Where an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One thread, on whatever CPU it runs.
    Thread(u32),
    /// One CPU, whatever runs on it.
    Cpu(u32),
}

impl Target {
    /// Process and CPU as `perf_event_open` takes them; a number that the kernel could not have given
    /// out is a thread that does not exist.
    fn numbers(self) -> io::Result<(i32, i32)> {
        let numbers = match self {
            Self::Thread(tid) => i32::try_from(tid).ok().map(|tid| (tid, -1)),
            Self::Cpu(cpu) => i32::try_from(cpu).ok().map(|cpu| (-1, cpu)),
        };
        numbers.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(tid) => write!(f, "thread {tid}"),
            Self::Cpu(cpu) => write!(f, "CPU {cpu}"),
        }
    }
}

/// The description of an event.
#[derive(Clone, Debug)]
pub struct EventSpec {
    /// What errors call it.
    pub name: String,
    /// `perf_event_attr.type`.
    pub kind: u32,
    /// `perf_event_attr.config`.
    pub config: u64,
    /// `perf_event_attr.config1`.
    pub config1: u64,
    /// `perf_event_attr.config2`.
    pub config2: u64,
    /// How often it samples.
    pub rate: Rate,
    /// The fields of a sample: `PERF_SAMPLE_*`.
    pub sample_type: u64,
    /// 0 to 3: how near the sampled address must be to the instruction that caused it.
    pub precise_ip: u8,
    /// Count nothing in user mode.
    pub exclude_user: bool,
    /// Count nothing in kernel mode.
    pub exclude_kernel: bool,
    /// Count nothing in hypervisor mode.
    pub exclude_hv: bool,
    /// Count nothing while a guest runs. Where KVM hands the PMU to guests whole, hardware events are
    /// refused without it.
    pub exclude_guest: bool,
    /// Pages of the ring for records, a power of two.
    pub data_pages: usize,
    /// Bytes in the ring at which a poll wakes; 0 wakes at every sample.
    pub wakeup_bytes: u32,
}

impl EventSpec {
    /// An event for every hit of a tracepoint, with its raw record, time and thread. Wakes when the
    /// ring is a quarter full; a poll with a time-out gets the rest.
    #[must_use]
    pub fn tracepoint(name: &str, id: u64, data_pages: usize) -> Self {
        Self {
            name: name.to_owned(),
            kind: abi::PERF_TYPE_TRACEPOINT,
            config: id,
            config1: 0,
            config2: 0,
            rate: Rate::Period(1),
            sample_type: u64::from(
                abi::PERF_SAMPLE_RAW | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_TID,
            ),
            precise_ip: 0,
            exclude_user: false,
            exclude_kernel: false,
            exclude_hv: false,
            exclude_guest: false,
            data_pages,
            wakeup_bytes: quarter_of(data_pages),
        }
    }

    /// An event of `PERF_TYPE_SOFTWARE` with this `PERF_COUNT_SW_*`, its address, time and thread.
    #[must_use]
    pub fn software(name: &str, config: u64, rate: Rate, data_pages: usize) -> Self {
        Self {
            kind: abi::PERF_TYPE_SOFTWARE,
            rate,
            sample_type: u64::from(
                abi::PERF_SAMPLE_ADDR | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_TID,
            ),
            ..Self::tracepoint(name, config, data_pages)
        }
    }

    /// The software event of every page fault that host code causes, with its address, time and thread.
    #[must_use]
    pub fn page_faults(data_pages: usize) -> Self {
        let config = u64::from(abi::PERF_COUNT_SW_PAGE_FAULTS);
        Self::software("page-faults", config, Rate::Period(1), data_pages)
    }

    fn attr(&self) -> abi::perf_event_attr {
        let mut attr = abi::perf_event_attr {
            type_: self.kind,
            size: size_of::<abi::perf_event_attr>() as u32,
            config: self.config,
            sample_type: self.sample_type,
            clockid: libc::CLOCK_MONOTONIC,
            ..abi::perf_event_attr::default()
        };
        attr.__bindgen_anon_3.config1 = self.config1;
        attr.__bindgen_anon_4.config2 = self.config2;
        match self.rate {
            Rate::Period(period) => attr.__bindgen_anon_1.sample_period = period,
            Rate::Frequency(frequency) => {
                attr.set_freq(1);
                attr.__bindgen_anon_1.sample_freq = frequency;
            }
        }
        if self.wakeup_bytes > 0 {
            attr.set_watermark(1);
            attr.__bindgen_anon_2.wakeup_watermark = self.wakeup_bytes;
        } else {
            attr.__bindgen_anon_2.wakeup_events = 1;
        }
        attr.set_disabled(1);
        attr.set_sample_id_all(1);
        attr.set_use_clockid(1);
        attr.set_precise_ip(u64::from(self.precise_ip.min(3)));
        attr.set_exclude_user(u64::from(self.exclude_user));
        attr.set_exclude_kernel(u64::from(self.exclude_kernel));
        attr.set_exclude_hv(u64::from(self.exclude_hv));
        attr.set_exclude_guest(u64::from(self.exclude_guest));
        attr
    }

    fn asked(&self) -> Asked {
        let software = [
            abi::PERF_TYPE_SOFTWARE,
            abi::PERF_TYPE_TRACEPOINT,
            abi::PERF_TYPE_BREAKPOINT,
        ];
        Asked {
            hardware: !software.contains(&self.kind),
            precise_ip: self.precise_ip,
            exclude_guest: self.exclude_guest,
        }
    }

    /// What the kernel's answer means, in words.
    fn refused(
        &self,
        root: &SysRoot,
        target: impl fmt::Display,
        step: Step,
        source: io::Error,
    ) -> EventError {
        let around = Surroundings::read(root);
        let errno = source.raw_os_error().unwrap_or(0);
        let refusal = Refusal::of(step, errno, self.asked(), &around);
        EventError::Refused {
            name: self.name.clone(),
            target: target.to_string(),
            step,
            refusal,
            advice: refusal.advice(&around),
            source,
        }
    }
}

fn quarter_of(data_pages: usize) -> u32 {
    u32::try_from(data_pages.saturating_mul(rustix::param::page_size()) / 4).unwrap_or(u32::MAX)
}

/// An event can't be opened, mapped or switched.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The record parser lacks a field that the event asks for.
    #[error("perf event {name} can't be read: {fields}")]
    Fields {
        /// The event.
        name: String,
        /// The fields.
        fields: UnsupportedFields,
    },
    /// The kernel refused.
    #[error("perf event {name} on {target} can't be {step}: {advice}")]
    Refused {
        /// The event.
        name: String,
        /// What it was to count.
        target: String,
        /// What was asked.
        step: Step,
        /// Why.
        refusal: Refusal,
        /// What to do.
        advice: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl EventError {
    /// Whether the thread that was to be watched is gone.
    #[must_use]
    pub fn is_target_gone(&self) -> bool {
        self.refusal() == Some(Refusal::ThreadGone)
    }

    /// Why the kernel refused, if it did.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            Self::Fields { .. } => None,
        }
    }
}

/// What a poll saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// There is enough to read.
    Ready,
    /// The wait is over; there may be less than the watermark to read.
    TimedOut,
    /// The watched thread ended; what stands in the ring can still be read.
    Ended,
}

/// An open event with its ring. It begins disabled.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
    /// The leader of its group, which only counts.
    leader: Option<OwnedFd>,
    ring: Ring<MappedRing>,
    root: SysRoot,
    spec: EventSpec,
    target: Target,
}

impl Event {
    /// Opens the event and maps its ring.
    ///
    /// # Errors
    /// [`EventError`], whose text says what to do.
    pub fn open(root: &SysRoot, spec: &EventSpec, target: Target) -> Result<Self, EventError> {
        Self::open_behind(root, None, spec, target)
    }

    /// Opens the event as a member of a group behind `leader`, and maps its ring. The leader counts
    /// and writes nothing; the two are on the CPU together or not at all. Some of Intel's load events
    /// need this (`mem-loads-aux` in front of `mem-loads`).
    ///
    /// # Errors
    /// [`EventError`], whose text says what to do and which of the two was refused.
    pub fn open_group(
        root: &SysRoot,
        leader: &EventSpec,
        spec: &EventSpec,
        target: Target,
    ) -> Result<Self, EventError> {
        let counting = EventSpec {
            rate: Rate::Period(0),
            sample_type: 0,
            precise_ip: 0,
            wakeup_bytes: 0,
            ..leader.clone()
        };
        let refused = |source| leader.refused(root, target, Step::Open, source);
        let (pid, cpu) = target.numbers().map_err(refused)?;
        let fd = open_event(&mut counting.attr(), pid, cpu, None)
            .map_err(|source| leader.refused(root, target, Step::Open, source))?;
        Self::open_behind(root, Some(fd), spec, target)
    }

    fn open_behind(
        root: &SysRoot,
        leader: Option<OwnedFd>,
        spec: &EventSpec,
        target: Target,
    ) -> Result<Self, EventError> {
        let format =
            RecordFormat::new(spec.sample_type, true).map_err(|fields| EventError::Fields {
                name: spec.name.clone(),
                fields,
            })?;
        let refused = |step, source| spec.refused(root, target, step, source);
        let (pid, cpu) = target.numbers().map_err(|e| refused(Step::Open, e))?;
        let group = leader.as_ref().map(AsFd::as_fd);
        let fd = open_event(&mut spec.attr(), pid, cpu, group)
            .map_err(|source| refused(Step::Open, source))?;
        let memory = MappedRing::map(&fd, spec.data_pages)
            .map_err(|errno| refused(Step::Map, errno.into()))?;
        Ok(Self {
            fd,
            leader,
            ring: Ring::new(memory, format),
            root: root.clone(),
            spec: spec.clone(),
            target,
        })
    }

    /// What it was opened with.
    #[must_use]
    pub const fn spec(&self) -> &EventSpec {
        &self.spec
    }

    /// Begins to count.
    ///
    /// # Errors
    /// [`EventError::Refused`].
    pub fn enable(&self) -> Result<(), EventError> {
        if let Some(leader) = &self.leader {
            enable_event(leader.as_fd()).map_err(|source| self.refused(source))?;
        }
        enable_event(self.fd.as_fd()).map_err(|source| self.refused(source))
    }

    /// Stops counting; what stands in the ring can still be read.
    ///
    /// # Errors
    /// [`EventError::Refused`].
    pub fn disable(&self) -> Result<(), EventError> {
        disable_event(self.fd.as_fd()).map_err(|source| self.refused(source))?;
        match &self.leader {
            Some(leader) => disable_event(leader.as_fd()).map_err(|source| self.refused(source)),
            None => Ok(()),
        }
    }

    /// Samples one event in `period` from now on.
    ///
    /// # Errors
    /// [`EventError::Refused`] if the event does not sample or its PMU does not take such a period.
    pub fn set_period(&mut self, period: u64) -> Result<(), EventError> {
        set_event_period(self.fd.as_fd(), period).map_err(|source| self.refused(source))?;
        self.spec.rate = Rate::Period(period);
        Ok(())
    }

    /// Waits until the ring is filled to its watermark, the watched thread ends, or the wait does.
    ///
    /// # Errors
    /// [`EventError::Refused`] if the kernel can't wait.
    pub fn poll<'a>(&self, wait: impl Into<Wait<'a>>) -> Result<Polled, EventError> {
        let mut fds = vec![PollFd::new(&self.fd, PollFlags::IN)];
        let waited = wait.into().until_ready(&mut fds);
        waited.map_err(|error| self.refused(error))?;
        let seen = fds[0].revents();
        Ok(if seen.is_empty() {
            Polled::TimedOut
        } else if seen.intersects(PollFlags::HUP | PollFlags::ERR) {
            Polled::Ended
        } else {
            Polled::Ready
        })
    }

    /// Hands every record in the ring to `take`.
    pub fn drain(&mut self, take: impl FnMut(Record<'_>)) -> Drained {
        self.ring.drain(take)
    }

    /// As [`Ring::collect`].
    pub fn collect(&mut self, take: impl FnMut(Sample<'_>)) -> Collected {
        self.ring.collect(take)
    }

    fn refused(&self, source: io::Error) -> EventError {
        self.spec
            .refused(&self.root, self.target, Step::Use, source)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_event(
    attr: &mut abi::perf_event_attr,
    pid: i32,
    cpu: i32,
    group: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let flags = u64::from(abi::PERF_FLAG_FD_CLOEXEC);
    let group = group.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: attr is a properly initialised perf_event_attr that states its own size, lives for the
    // whole call, and may be written to (the kernel writes the size it expects on E2BIG). The group's
    // descriptor, if there is one, is open for the whole call. The event only observes; it changes
    // nothing in the watched thread.
    let fd = unsafe { perf_event_open(attr, pid, cpu, group, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor to us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_event_period(fd: BorrowedFd<'_>, period: u64) -> io::Result<()> {
    // The kernel takes a pointer to the period here, although the bindings type it as the number.
    let pointer = (&raw const period).expose_provenance() as u64;
    // SAFETY: the descriptor is open for the whole call; the kernel reads eight bytes at the pointer
    // (PERF_EVENT_IOC_PERIOD is _IOW('$', 4, __u64)), which is aligned and outlives the call.
    match unsafe { ioctls::PERIOD(fd.as_raw_fd(), pointer) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn enable_event(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; the ioctl takes a plain number.
    match unsafe { ioctls::ENABLE(fd.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn disable_event(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; the ioctl takes a plain number.
    match unsafe { ioctls::DISABLE(fd.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
