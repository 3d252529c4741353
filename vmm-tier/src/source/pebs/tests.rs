//! PEBS samples as the kernel writes them.

use proptest::prelude::*;

use super::*;
use crate::source::vcpus::synthetic::{
    ADDR, DATA_SRC, TID, assert_sums, batch_of, gathered, lost, mixed, sample, throttle,
};

const FIELDS: u64 = TID | ADDR | DATA_SRC;
/// `perf_event_header.misc` of an exact sample in each mode.
const EXACT: u16 = 1 << 14;
const KERNEL: u16 = EXACT | 1;
const USER: u16 = EXACT | 2;
const GUEST_KERNEL: u16 = EXACT | 4;
const GUEST_USER: u16 = EXACT | 5;
/// A load that hit DRAM, and a store.
const LOAD: u64 = 0x2;

fn decoder(is_kvm: bool) -> Pebs {
    let event = |access| Opened {
        pmu: "cpu".to_owned(),
        access,
    };
    Pebs {
        is_kvm,
        events: vec![event(Access::L3Misses), event(Access::Stores)],
    }
}

fn record(address: u64, misc: u16) -> Vec<u8> {
    sample(misc, &[1, address, LOAD])
}

#[test]
fn decode_when_a_record_has_no_usable_address_says_why() {
    let records = [
        record(0x7f00_1234_5678, USER),
        // The kernel reads QEMU's memory for it.
        record(0x7f00_2000_0000, KERNEL),
        record(0xffff_8880_0000_1000, KERNEL),
        record(0x7f00_3000_0000, GUEST_USER),
        record(0xffff_ffff_8100_0000, GUEST_KERNEL),
        record(0, USER),
        throttle(),
    ];
    let mut decode = decoder(true);

    let batch = batch_of(&records, FIELDS, 0, |sample| decode.decode(0, sample));

    let found: Vec<_> = batch.samples.iter().map(|sample| sample.address).collect();
    let at = |hva| SampleAddress::Host(Hva(hva));
    assert_eq!(found, [at(0x7f00_1234_5678), at(0x7f00_2000_0000)]);
    assert_eq!(batch.account.dropped[&DropReason::WrongMode], 3);
    assert_eq!(batch.account.dropped[&DropReason::NoAddress], 1);
    assert_eq!((batch.account.samples, batch.account.throttled), (4, 1));
}

#[test]
fn decode_when_the_event_is_of_stores_makes_stores() {
    let mut decode = decoder(false);
    for (event, kind) in [(0, AccessKind::Load), (1, AccessKind::Store)] {
        let records = [record(0x7f00_0000_1000, USER)];
        let batch = batch_of(&records, FIELDS, 0, |sample| decode.decode(event, sample));
        assert_eq!(batch.samples[0].kind, kind);
    }
}

#[test]
fn label_when_kvm_runs_the_guest_says_that_nothing_of_it_is_seen() {
    let kvm = decoder(true);
    assert_eq!(kvm.sight(), Sight::HostMode);
    assert_eq!(
        kvm.what(),
        "PEBS on the vCPU threads, loads that miss the L3 (cpu), stores (cpu): sees QEMU's own accesses \
         only, none of the guest's"
    );
    let tcg = decoder(false);
    assert_eq!(tcg.sight(), Sight::Guest);
    assert!(tcg.what().contains("the guest's accesses"));
}

#[test]
fn open_when_this_host_has_no_pebs_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let error = events(&SysRoot::at(folder.path()), 4093).unwrap_err();
    assert!(error.to_string().contains("pmu=on"), "{error}");
}

#[test]
fn look_when_records_were_lost_and_dropped_counts_them_as_made() {
    let mut decode = decoder(false);
    let records = [
        record(0x7f00_1234_5678, USER),
        record(0, USER),
        lost(7),
        throttle(),
    ];
    let mut gathered = gathered(&records, FIELDS, 0, |sample| decode.decode(0, sample));

    let look = gathered.look(Duration::ZERO, Duration::ZERO);

    assert_eq!((look.records, look.samples, look.throttled), (9, 1, 1));
}

proptest! {
    #[test]
    fn account_when_records_are_of_all_kinds_sums_to_what_arrived(
        kinds in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u16>()), 0..200),
        start in any::<u64>(),
        is_kvm in any::<bool>(),
    ) {
        let mut decode = decoder(is_kvm);
        let (records, samples, gone, throttled) = mixed(&kinds, record);

        let batch = batch_of(&records, FIELDS, start & !7, |sample| decode.decode(1, sample));

        assert_sums(&batch, samples, gone, throttled);
    }
}
