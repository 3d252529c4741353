//! Faults as the tracepoint writes them, on kernels with different layouts.

use proptest::prelude::*;
use tier_core::sample::SampleBatch;

use super::*;
use crate::source::records::synthetic::{
    RAW, TID, TIME, assert_sums, batch_of, lost, mixed, raw_sample,
};

const FIELDS: u64 = TID | TIME | RAW;

/// Linux 5.10.
const OLD: &str = "name: kvm_page_fault
ID: 1517
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:unsigned long fault_address;	offset:8;	size:8;	signed:0;
	field:unsigned int error_code;	offset:16;	size:4;	signed:0;

print fmt: \"address %lx error_code %x\", REC->fault_address, REC->error_code
";

/// Linux 6.12.
const NEW: &str = "name: kvm_page_fault
ID: 100
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:unsigned int vcpu_id;	offset:8;	size:4;	signed:0;
	field:unsigned long guest_rip;	offset:16;	size:8;	signed:0;
	field:u64 fault_address;	offset:24;	size:8;	signed:0;
	field:u64 error_code;	offset:32;	size:8;	signed:0;

print fmt: \"vcpu %u rip 0x%lx address 0x%016llx error_code 0x%llx\", REC->vcpu_id
";

/// A tree whose kernel has the tracepoint, and nested paging or not.
fn tree(format: &str, npt: Option<&str>) -> (tempfile::TempDir, SysRoot) {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let event = "sys/kernel/tracing/events/kvm/kvm_page_fault";
    write(&format!("{event}/id"), "100\n");
    write(&format!("{event}/format"), format);
    if let Some(npt) = npt {
        write("sys/module/kvm_amd/parameters/npt", npt);
    }
    let root = SysRoot::at(folder.path());
    (folder, root)
}

fn decoder(format: &str) -> KvmFaults {
    let (_folder, root) = tree(format, None);
    let tracepoint = Tracepoint::read(&root, "kvm", "kvm_page_fault").unwrap();
    KvmFaults::of(&tracepoint).unwrap()
}

/// The raw record of a fault.
fn fault(format: &str, address: u64, code: u64) -> Vec<u8> {
    let mut raw = vec![0; 8];
    if format == NEW {
        raw.extend(3u64.to_ne_bytes());
        raw.extend(0xffff_ffff_8100_0000u64.to_ne_bytes());
        raw.extend(address.to_ne_bytes());
        raw.extend(code.to_ne_bytes());
    } else {
        raw.extend(address.to_ne_bytes());
        raw.extend((code as u32).to_ne_bytes());
    }
    raw
}

fn decoded(format: &str, faults: &[(u64, u64)]) -> SampleBatch {
    let decode = decoder(format);
    let records: Vec<_> = faults
        .iter()
        .map(|&(address, code)| raw_sample(&[1, 2], &fault(format, address, code)))
        .collect();
    batch_of(&records, FIELDS, 0, |sample| decode.decode(0, sample))
}

#[test]
fn decode_when_the_layout_differs_finds_address_and_kind() {
    for format in [OLD, NEW] {
        // VMX: exit qualification 0x181 is a read, 0x182 a write. SVM: 0x6 is a write of user mode.
        let batch = decoded(
            format,
            &[(0x1234_5678, 0x181), (0x2000, 0x182), (0x3000, 6)],
        );

        let found: Vec<_> = batch
            .samples
            .iter()
            .map(|sample| (sample.address, sample.len, sample.kind))
            .collect();
        let at = |gpa| SampleAddress::Guest(Gpa(gpa));
        assert_eq!(
            found,
            [
                (at(0x1234_5678), 1, AccessKind::Load),
                (at(0x2000), 1, AccessKind::Store),
                (at(0x3000), 1, AccessKind::Store),
            ]
        );
        assert_eq!(batch.account.arrived, 0);
    }
}

#[test]
fn decode_when_the_cpu_walked_the_guests_tables_does_not_call_it_a_write() {
    // SVM: 0x2_0000_0007.
    let batch = decoded(NEW, &[(0x5000, TABLE_WALK | 7)]);
    assert_eq!(batch.samples[0].kind, AccessKind::Any);
}

#[test]
fn decode_when_the_record_is_shorter_than_its_fields_is_malformed() {
    let decode = decoder(NEW);
    let records = [raw_sample(&[1, 2], &[0; 20]), lost(5)];

    let batch = batch_of(&records, FIELDS, 0, |sample| decode.decode(0, sample));

    assert_eq!(batch.samples, []);
    assert_eq!(batch.account.dropped[&DropReason::Malformed], 1);
    assert_eq!((batch.account.arrived, batch.account.lost), (1, 5));
}

#[test]
fn event_when_kvm_uses_nested_paging_is_the_tracepoint() {
    let (_folder, root) = tree(NEW, Some("1\n"));
    let spec = event(&root).unwrap();
    assert_eq!(
        (spec.config, spec.name.as_str()),
        (100, "kvm:kvm_page_fault")
    );
}

#[test]
fn event_when_addresses_would_be_virtual_says_why_not() {
    let (_folder, root) = tree(NEW, Some("N\n"));
    assert!(event(&root).unwrap_err().contains("npt=1"));

    let (_folder, root) = tree(NEW, None);
    assert!(event(&root).unwrap_err().contains("kvm_amd"));
}

#[test]
fn event_when_the_kernel_has_no_address_field_names_it() {
    let (_folder, root) = tree(&NEW.replace("fault_address", "gpa"), Some("1\n"));
    assert!(event(&root).unwrap_err().contains("fault_address"));
}

proptest! {
    #[test]
    fn account_when_records_are_of_all_kinds_sums_to_what_arrived(
        kinds in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u16>()), 0..200),
        start in any::<u64>(),
        cut in 0usize..48,
    ) {
        let decode = decoder(NEW);
        let (records, samples, gone, throttled) = mixed(&kinds, |value, misc| {
            let mut raw = fault(NEW, value, u64::from(misc));
            // Every eighth one ends anywhere.
            if value % 8 == 0 {
                raw.truncate(cut);
            }
            raw_sample(&[1, 2], &raw)
        });

        let batch = batch_of(&records, FIELDS, start & !7, |sample| decode.decode(0, sample));

        assert_sums(&batch, samples, gone, throttled);
        // Page-exact: each sample's address is one that was put in.
        for sample in &batch.samples {
            let SampleAddress::Guest(Gpa(address)) = sample.address else {
                panic!("{sample:?}");
            };
            prop_assert!(kinds.iter().any(|&(_, value, _)| value == address));
        }
    }
}
