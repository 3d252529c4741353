//! AMD's instruction-based sampling of operations (`ibs_op`): the event, and what its registers say.
//!
//! The hardware tags one operation in each period and reports what became of it. Most operations access
//! no memory; for those that do, the physical address is the host's also while a guest runs, which
//! makes this the one source that sees a guest's accesses exactly and from outside.
//!
//! Registers: AMD64 Architecture Programmer's Manual, volume 2, "Instruction-Based Sampling". The raw
//! record: `perf_ibs_handle_irq` in `arch/x86/events/amd/ibs.c`.

use std::path::PathBuf;

use perf_event_open_sys::bindings as abi;
use tier_core::sample::AccessKind;

use super::event::{EventSpec, Rate};
use crate::sysroot::{ParseError, SysRoot, SysRootError, read_optional, read_value_optional};

/// The fields of a sample that the source asks for, and that a ring file of `ibs_op` records has.
pub const SAMPLE_FIELDS: u64 = (abi::PERF_SAMPLE_TID
    | abi::PERF_SAMPLE_TIME
    | abi::PERF_SAMPLE_CPU
    | abi::PERF_SAMPLE_PERIOD
    | abi::PERF_SAMPLE_RAW) as u64;

/// The shortest period that the PMU takes.
pub const MIN_PERIOD: u64 = 0x10;
/// The longest period that the hardware counts in one go: 16 bits in units of 16 (`IbsOpMaxCnt`).
pub const MAX_PERIOD: u64 = 0xF_FFF0;

/// The least bytes of the raw record: the capabilities (u32), then seven registers (u64 each).
const RAW_BYTES: usize = 4 + 7 * 8;
/// Where a register stands in the raw record.
const OP_DATA_3: usize = 4 + 4 * 8;
const DC_LIN_AD: usize = 4 + 5 * 8;
const DC_PHYS_AD: usize = 4 + 6 * 8;

/// `IbsOpData3`: the operation loads.
const LOAD: u64 = 1 << 0;
/// `IbsOpData3`: the operation stores.
const STORE: u64 = 1 << 1;
/// `IbsOpData3`: `IbsDcLinAd` is valid.
const LINEAR_VALID: u64 = 1 << 17;
/// `IbsOpData3`: `IbsDcPhysAd` is valid.
const PHYSICAL_VALID: u64 = 1 << 18;
/// Bits of a physical address.
const PHYSICAL_BITS: u64 = (1 << 52) - 1;

/// What one tagged operation did to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IbsOp {
    /// Whether it loads, stores, or neither. What does both (an atomic add) stores.
    pub access: Option<AccessKind>,
    /// The linear address of the data, in the address space that ran: the guest's while a guest ran.
    pub linear: Option<u64>,
    /// The host-physical address of the data. `None` unless the hardware says that it is valid:
    /// the kernel then makes one up from the linear address, which is wrong for a guest.
    pub physical: Option<u64>,
}

impl IbsOp {
    /// Where and how memory was accessed: `None` if it was not, or where is not known.
    #[must_use]
    #[inline]
    pub fn accessed(&self) -> Option<(u64, AccessKind)> {
        self.physical.zip(self.access)
    }
}

/// Reads the raw data of an `ibs_op` sample. Newer CPUs append registers, which are of no use here.
/// `None` if there are fewer bytes than seven registers take.
#[must_use]
#[inline]
pub fn decode(raw: &[u8]) -> Option<IbsOp> {
    let registers: &[u8; RAW_BYTES] = raw.first_chunk()?;
    let register = |offset: usize| {
        let bytes = registers[offset..].first_chunk();
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    let flags = register(OP_DATA_3);
    let valid = |bit: u64, value: u64| (flags & bit != 0).then_some(value);
    Some(IbsOp {
        access: valid(STORE, 0)
            .map(|_| AccessKind::Store)
            .or_else(|| valid(LOAD, 0).map(|_| AccessKind::Load)),
        linear: valid(LINEAR_VALID, register(DC_LIN_AD)),
        physical: valid(PHYSICAL_VALID, register(DC_PHYS_AD) & PHYSICAL_BITS),
    })
}

/// The nearest period that the PMU takes: a multiple of 16 within [`MIN_PERIOD`] and [`MAX_PERIOD`].
#[must_use]
pub const fn valid_period(period: u64) -> u64 {
    if period < MIN_PERIOD {
        MIN_PERIOD
    } else if period > MAX_PERIOD {
        MAX_PERIOD
    } else {
        period & !0xf
    }
}

/// The PMU can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IbsError {
    /// The kernel has no such PMU.
    #[error(
        "this host has no ibs_op PMU ({} does not exist): it takes an AMD CPU of family 10h or later whose \
         IBS is neither off in the firmware nor hidden by a hypervisor; choose another source",
        path.display()
    )]
    NoPmu {
        /// Where it should be.
        path: PathBuf,
    },
    /// What sysfs says of the PMU can't be read.
    #[error(transparent)]
    Sysfs(#[from] SysRootError),
}

/// The `ibs_op` PMU, as sysfs describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IbsPmu {
    /// `perf_event_attr.type`.
    pub kind: u32,
    /// The bit of `config` that counts operations and not cycles, if the CPU can.
    pub count_ops: Option<u32>,
    /// The bit of `config` that keeps only operations that missed the third-level cache, if the CPU
    /// can (Zen 4 and later).
    pub l3_miss_only: Option<u32>,
}

impl IbsPmu {
    /// Looks for the PMU.
    ///
    /// # Errors
    /// [`IbsError`], whose text says what to do.
    pub fn read(root: &SysRoot) -> Result<Self, IbsError> {
        let folder = root.sys("bus/event_source/devices/ibs_op");
        let path = folder.join("type");
        let Some(kind) = read_value_optional(&path)? else {
            return Err(IbsError::NoPmu { path: folder });
        };
        let bit = |name: &str| {
            let path = folder.join("format").join(name);
            match read_optional(&path)? {
                None => Ok(None),
                Some(text) => config_bit(&text)
                    .map(Some)
                    .map_err(|error| error.in_file(&path)),
            }
        };
        let zen4: Option<u32> = read_value_optional(&folder.join("caps/zen4_ibs_extensions"))?;
        let l3_miss_only = if zen4.unwrap_or(0) != 0 {
            bit("l3missonly")?
        } else {
            None
        };
        Ok(Self {
            kind,
            count_ops: bit("cnt_ctl")?,
            l3_miss_only,
        })
    }

    /// The event that samples one operation in `period` ([made valid](valid_period)). The PMU knows no
    /// exclusion of any mode, so none is asked for: samples that are not the guest's are recognised by
    /// their address.
    #[must_use]
    pub fn event(&self, period: u64, data_pages: usize) -> EventSpec {
        let bits = [self.count_ops, self.l3_miss_only];
        EventSpec {
            kind: self.kind,
            config: bits
                .iter()
                .flatten()
                .fold(0, |config, bit| config | 1 << bit),
            rate: Rate::Period(valid_period(period)),
            sample_type: SAMPLE_FIELDS,
            ..EventSpec::tracepoint("ibs_op", 0, data_pages)
        }
    }
}

/// The bit in `config:19`.
fn config_bit(text: &str) -> Result<u32, ParseError> {
    let bit = text.trim().strip_prefix("config:");
    bit.and_then(|bit| bit.parse().ok())
        .filter(|&bit| bit < 64)
        .ok_or_else(|| ParseError::at(0, "not one bit of config, such as config:19"))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn raw(op_data_3: u64, linear: u64, physical: u64) -> Vec<u8> {
        let registers = [1, 2, 3, 4, op_data_3, linear, physical];
        let words = registers.iter().flat_map(|word: &u64| word.to_ne_bytes());
        0xffu32.to_ne_bytes().into_iter().chain(words).collect()
    }

    #[test]
    fn decode_when_an_address_is_not_valid_gives_none() {
        let op = |flags| decode(&raw(flags, 0x7000, 0x1234_5678)).unwrap();

        assert_eq!(op(LOAD | LINEAR_VALID).physical, None);
        assert_eq!(op(LOAD | LINEAR_VALID).accessed(), None);
        assert_eq!(op(LOAD | PHYSICAL_VALID).linear, None);
        assert_eq!(op(PHYSICAL_VALID).accessed(), None);
        let load = op(LOAD | LINEAR_VALID | PHYSICAL_VALID);
        assert_eq!(load.accessed(), Some((0x1234_5678, AccessKind::Load)));
        assert_eq!(load.linear, Some(0x7000));
        let both = op(LOAD | STORE | PHYSICAL_VALID);
        assert_eq!(both.accessed(), Some((0x1234_5678, AccessKind::Store)));
    }

    #[test]
    fn decode_when_registers_are_appended_reads_the_same_and_when_cut_off_nothing() {
        let mut bytes = raw(LOAD | PHYSICAL_VALID, 0, 0xfff0_0000_0000_1000);
        bytes.extend([0xee; 16]);
        let long = decode(&bytes).unwrap();
        // The upper 12 bits of the register are no part of the address.
        assert_eq!(long.accessed(), Some((0x1000, AccessKind::Load)));
        assert_eq!(decode(&bytes[..60]), Some(long));
        assert_eq!(decode(&bytes[..59]), None);
    }

    #[test]
    fn valid_period_when_out_of_bounds_or_uneven_is_mended() {
        let asked = [0, 15, 16, 100, 65537, MAX_PERIOD, MAX_PERIOD + 1, u64::MAX];
        let valid = [16, 16, 16, 96, 65536, MAX_PERIOD, MAX_PERIOD, MAX_PERIOD];
        assert_eq!(asked.map(valid_period), valid);
    }

    fn pmu(root: &Path, files: &[(&str, &str)]) -> Result<IbsPmu, IbsError> {
        let folder = root.join("sys/bus/event_source/devices/ibs_op");
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        IbsPmu::read(&SysRoot::at(root))
    }

    #[test]
    fn pmu_when_it_has_all_extensions_asks_for_them_and_excludes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("type", "11\n"),
            ("format/cnt_ctl", "config:19\n"),
            ("format/l3missonly", "config:16\n"),
            ("caps/zen4_ibs_extensions", "1\n"),
        ];

        let event = pmu(folder.path(), &files).unwrap().event(100_000, 64);

        assert_eq!((event.kind, event.config), (11, 1 << 19 | 1 << 16));
        assert_eq!(event.rate, Rate::Period(100_000));
        assert_eq!((event.precise_ip, event.config1, event.config2), (0, 0, 0));
        assert!(!(event.exclude_user || event.exclude_kernel || event.exclude_hv));
    }

    #[test]
    fn pmu_when_the_cpu_is_older_asks_for_less() {
        let folder = tempfile::tempdir().unwrap();
        let files = [("type", "9\n"), ("format/l3missonly", "config:16\n")];
        let event = pmu(folder.path(), &files).unwrap().event(7, 64);
        assert_eq!((event.kind, event.config), (9, 0));
        assert_eq!(event.rate, Rate::Period(MIN_PERIOD));
    }

    #[test]
    fn pmu_when_missing_or_garbled_says_what_and_where() {
        let folder = tempfile::tempdir().unwrap();
        let missing = pmu(folder.path(), &[]).unwrap_err().to_string();
        assert!(missing.contains("no ibs_op PMU") && missing.contains("another source"));

        let files = [("type", "9"), ("format/cnt_ctl", "config1:0-15")];
        let garbled = pmu(folder.path(), &files).unwrap_err().to_string();
        assert!(
            garbled.contains("format/cnt_ctl:1: not one bit"),
            "{garbled}"
        );
    }
}
