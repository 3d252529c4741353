//! Records of `ibs_op` as the kernel writes them, as words of the ring.
//!
//! The event whose records these are was opened with `sample_type` [`SAMPLE_TYPE`] and
//! `sample_id_all`. Field order: include/uapi/linux/perf_event.h. Raw data: `perf_ibs_handle_irq` in
//! arch/x86/events/amd/ibs.c, registers: AMD's Processor Programming Reference, IBS_OP_*.

/// `PERF_SAMPLE_TID | TIME | CPU | PERIOD | RAW`.
pub const SAMPLE_TYPE: u64 = 1 << 1 | 1 << 2 | 1 << 7 | 1 << 8 | 1 << 10;

/// Words of a sample.
pub const SAMPLE_WORDS: usize = 13;
/// Words of a note of lost samples.
pub const LOST_WORDS: usize = 6;

const PERF_RECORD_LOST: u64 = 2;
const PERF_RECORD_SAMPLE: u64 = 9;
/// Nobody here knows which thread runs on an emulated CPU.
const UNKNOWN_THREAD: u64 = u64::MAX;

/// CPUID 8000_001B EAX: IBS is there (0) and samples ops (2), the count can be read and written (3), ops
/// can be counted (4) with 27 bits (6), and an invalid RIP is marked (7). Without branch targets (5) and
/// IbsOpData4 (10) the raw data has seven registers.
const CAPS: u64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7;
/// The raw data: caps and seven registers.
const RAW_BYTES: u64 = 4 + 7 * 8;

/// A memory access of an emulated CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The instruction's address.
    pub rip: u64,
    /// The linear address, the guest's if a guest runs.
    pub linear: u64,
    /// The emulated machine's physical address.
    pub physical: u64,
    /// Whether it is a write.
    pub store: bool,
    /// log₂ of its bytes.
    pub size_shift: u32,
}

/// `perf_event_header`: type u32, misc u16, size u16. The misc word says in which mode the CPU was, which
/// nobody knows here: 0, PERF_RECORD_MISC_CPUMODE_UNKNOWN.
const fn header(kind: u64, words: usize) -> u64 {
    kind | (words as u64 * 8) << 48
}

/// IbsOpCtl with IbsOpMaxCnt = period / 16, ops counted (19), a sample taken (18), enabled (17).
const fn control(period: u64) -> u64 {
    let max_count = period >> 4;
    // Bits 26:20 of the period stand at 26:20, bits 19:4 at 15:0.
    (max_count & 0xffff) | (period & 0x7f0_0000) | 1 << 17 | 1 << 18 | 1 << 19
}

/// IbsOpData3: a load (0) or a store (1), both addresses valid (17, 18), and the width (25:22, where 1
/// stands for a byte).
const fn data3(access: &Access) -> u64 {
    let kind = if access.store { 1 << 1 } else { 1 };
    let width = if access.size_shift < 6 {
        access.size_shift as u64 + 1
    } else {
        0
    };
    kind | 1 << 17 | 1 << 18 | width << 22
}

/// A `PERF_RECORD_SAMPLE` of an access on a CPU, `period` accesses after the last.
///
/// Branch and cache registers (IbsOpData, IbsOpData2) say nothing: no caches are emulated.
#[must_use]
pub const fn sample(access: &Access, cpu: u32, time_ns: u64, period: u64) -> [u64; SAMPLE_WORDS] {
    [
        header(PERF_RECORD_SAMPLE, SAMPLE_WORDS),
        UNKNOWN_THREAD,
        time_ns,
        cpu as u64,
        period,
        RAW_BYTES | CAPS << 32,
        control(period),
        access.rip,
        0,
        0,
        data3(access),
        access.linear,
        access.physical,
    ]
}

/// A `PERF_RECORD_LOST`: `lost` samples found no room.
#[must_use]
pub const fn lost(lost: u64, cpu: u32, time_ns: u64) -> [u64; LOST_WORDS] {
    let id = 0;
    [
        header(PERF_RECORD_LOST, LOST_WORDS),
        id,
        lost,
        UNKNOWN_THREAD,
        time_ns,
        cpu as u64,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tier_sys::perf::record::{Record, RecordFormat, parse};

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn register(raw: &[u8], index: usize) -> u64 {
        let at = 4 + index * 8;
        u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap())
    }

    proptest! {
        #[test]
        fn sample_when_parsed_as_the_kernels_has_the_access(
            rip: u64, linear: u64, physical: u64, store: bool, size_shift in 0_u32..6,
            cpu: u32, time: u64, period in 16_u64..1 << 26,
        ) {
            let access = Access { rip, linear, physical, store, size_shift };
            let record = bytes(&sample(&access, cpu, time, period));
            let format = RecordFormat::new(SAMPLE_TYPE, true).unwrap();

            let (record, size) = parse(&record, &format).unwrap();

            prop_assert_eq!(size, 104);
            let Record::Sample(sample) = record else { panic!("{record:?}") };
            prop_assert_eq!(sample.tid(), Some(u32::MAX));
            prop_assert_eq!(sample.time(), Some(time));
            prop_assert_eq!(sample.cpu(), Some(cpu));
            prop_assert_eq!(sample.period(), Some(period));
            let raw = sample.raw().unwrap();
            prop_assert_eq!(raw.len(), 60);
            prop_assert_eq!(u32::from_ne_bytes(raw[..4].try_into().unwrap()), 0xdd);
            let control = register(raw, 0);
            prop_assert_eq!(((control & 0xffff) | (control >> 4 & 0x7f_0000)) << 4, period & !15);
            prop_assert_eq!(register(raw, 1), rip);
            let data3 = register(raw, 4);
            prop_assert_eq!((data3 & 1 != 0, data3 & 2 != 0), (!store, store));
            prop_assert_eq!(data3 >> 17 & 3, 3);
            prop_assert_eq!(data3 >> 22 & 15, u64::from(size_shift) + 1);
            prop_assert_eq!(register(raw, 5), linear);
            prop_assert_eq!(register(raw, 6), physical);
        }
    }

    #[test]
    fn lost_when_parsed_as_the_kernels_says_how_many() {
        let record = bytes(&lost(17, 3, 99));
        let format = RecordFormat::new(SAMPLE_TYPE, true).unwrap();

        let (record, size) = parse(&record, &format).unwrap();

        assert_eq!(size, 48);
        let Record::Lost {
            id,
            lost,
            sample_id,
        } = record
        else {
            panic!("{record:?}")
        };
        assert_eq!((id, lost), (0, 17));
        assert_eq!((sample_id.time, sample_id.cpu), (Some(99), Some(3)));
    }
}
