//! Perf events: what to open, on what, and what to do when the kernel refuses.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use perf_event_open_sys::{bindings as abi, ioctls, perf_event_open};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    record::{Record, RecordFormat, UnsupportedFields},
    ring::{Drained, MappedRing, Ring},
};
use crate::sysroot::{SysRoot, read_optional};

/// How often an event writes a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// One sample every so many events.
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
        attr
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
        /// `opened`, `mapped` or `enabled`.
        step: &'static str,
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
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::ESRCH))
    }
}

/// What a poll saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// There is enough to read.
    Ready,
    /// The time is over; there may be less than the watermark to read.
    TimedOut,
    /// The watched thread ended; what stands in the ring can still be read.
    Ended,
}

/// An open event with its ring. It begins disabled.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
    ring: Ring<MappedRing>,
    name: String,
    target: String,
}

impl Event {
    /// Opens the event and maps its ring.
    ///
    /// # Errors
    /// [`EventError`], whose text says what to do.
    pub fn open(root: &SysRoot, spec: &EventSpec, target: Target) -> Result<Self, EventError> {
        let format =
            RecordFormat::new(spec.sample_type, true).map_err(|fields| EventError::Fields {
                name: spec.name.clone(),
                fields,
            })?;
        let shown = match target {
            Target::Thread(tid) => format!("thread {tid}"),
            Target::Cpu(cpu) => format!("CPU {cpu}"),
        };
        let refused = |step, source: io::Error| EventError::Refused {
            name: spec.name.clone(),
            target: shown.clone(),
            step,
            advice: advice(root, step, source.raw_os_error().unwrap_or(0)),
            source,
        };
        let (pid, cpu) = match target {
            Target::Thread(tid) => (libc::pid_t::try_from(tid).ok(), Some(-1)),
            Target::Cpu(cpu) => (Some(-1), i32::try_from(cpu).ok()),
        };
        let (Some(pid), Some(cpu)) = (pid, cpu) else {
            return Err(refused("opened", io::Error::from_raw_os_error(libc::ESRCH)));
        };
        let fd = open_event(&mut spec.attr(), pid, cpu).map_err(|e| refused("opened", e))?;
        let memory =
            MappedRing::map(&fd, spec.data_pages).map_err(|e| refused("mapped", e.into()))?;
        let ring = Ring::new(memory, format);
        Ok(Self {
            fd,
            ring,
            name: spec.name.clone(),
            target: shown,
        })
    }

    /// Begins to count.
    ///
    /// # Errors
    /// [`EventError::Refused`].
    pub fn enable(&self) -> Result<(), EventError> {
        enable_event(self.fd.as_fd()).map_err(|source| self.refused("enabled", source))
    }

    /// Stops counting; what stands in the ring can still be read.
    ///
    /// # Errors
    /// [`EventError::Refused`].
    pub fn disable(&self) -> Result<(), EventError> {
        disable_event(self.fd.as_fd()).map_err(|source| self.refused("disabled", source))
    }

    /// Waits until the ring is filled to its watermark, the watched thread ends, or `timeout` is over.
    ///
    /// # Errors
    /// [`EventError::Refused`] if the kernel can't wait.
    pub fn poll(&self, timeout: Duration) -> Result<Polled, EventError> {
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(Polled::TimedOut),
            Ok(_) if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) => {
                Ok(Polled::Ended)
            }
            Ok(_) => Ok(Polled::Ready),
            Err(errno) => Err(self.refused("waited for", errno.into())),
        }
    }

    /// Hands every record in the ring to `take`.
    pub fn drain(&mut self, take: impl FnMut(Record<'_>)) -> Drained {
        self.ring.drain(take)
    }

    fn refused(&self, step: &'static str, source: io::Error) -> EventError {
        EventError::Refused {
            name: self.name.clone(),
            target: self.target.clone(),
            step,
            advice: "try again with a new event".to_owned(),
            source,
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_event(attr: &mut abi::perf_event_attr, pid: i32, cpu: i32) -> io::Result<OwnedFd> {
    let flags = u64::from(abi::PERF_FLAG_FD_CLOEXEC);
    // SAFETY: attr is a properly initialised perf_event_attr that states its own size, lives for the
    // whole call, and may be written to (the kernel writes the size it expects on E2BIG). The event
    // only observes; it changes nothing in the watched thread.
    let fd = unsafe { perf_event_open(attr, pid, cpu, -1, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor to us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// What an operator can do about an error of `perf_event_open` or of the ring's mmap.
fn advice(root: &SysRoot, step: &str, errno: i32) -> String {
    let setting = |name: &str| {
        let value = read_optional(&root.proc("sys/kernel").join(name))
            .ok()
            .flatten();
        value.unwrap_or_else(|| "unknown".to_owned())
    };
    match errno {
        libc::EPERM if step == "mapped" => format!(
            "locked memory is used up (kernel.perf_event_mlock_kb is {}): raise it, raise \
             LimitMEMLOCK, or give the agent CAP_IPC_LOCK",
            setting("perf_event_mlock_kb")
        ),
        libc::EACCES | libc::EPERM => format!(
            "no permission (kernel.perf_event_paranoid is {}): run as root or with CAP_PERFMON; at 3 \
             and above some distributions ask for CAP_SYS_ADMIN",
            setting("perf_event_paranoid")
        ),
        libc::ESRCH => "the thread is gone: look for it again".to_owned(),
        libc::ENODEV => "this CPU has no such hardware event: choose another source".to_owned(),
        libc::ENOENT => {
            "the kernel or this CPU does not know the event: choose another source".to_owned()
        }
        libc::EOPNOTSUPP => {
            "the hardware can't sample this way (no PMU in this machine, or it is given \
                             to a guest): choose another source"
                .to_owned()
        }
        libc::EMFILE | libc::ENFILE => "too many open files: raise LimitNOFILE".to_owned(),
        libc::ENOSPC => "all hardware counters are in use: end other perf sessions".to_owned(),
        libc::EBUSY => "another user has the counters exclusively: end it".to_owned(),
        libc::EINVAL => "the kernel does not know a part of the event's description".to_owned(),
        libc::E2BIG => "the kernel is older than the event's description".to_owned(),
        libc::ENOMEM => "not enough memory for the ring: make it smaller".to_owned(),
        _ => "see the kernel's answer".to_owned(),
    }
}
