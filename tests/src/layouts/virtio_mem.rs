//! A virtio-mem driver in a few register writes: what a guest would do to plug and unplug blocks.
//!
//! Registers and requests: Virtual I/O Device (VIRTIO) 1.2, 4.1.4 (PCI) and 5.15 (memory device).

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::qtest::Qtest;

/// Where the device's registers are put: in the PCI hole of every machine.
const REGISTERS: u64 = 0xfe00_0000;
/// Where the driver's queue lies: guest RAM in every layout.
const QUEUE: u64 = 0x0100_0000;
const DESCRIPTORS: u64 = QUEUE;
const AVAILABLE: u64 = QUEUE + 0x1000;
const USED: u64 = QUEUE + 0x2000;
const REQUEST: u64 = QUEUE + 0x3000;
const RESPONSE: u64 = QUEUE + 0x4000;

/// The BAR with the modern registers, in QEMU always BAR 4, 64 bits wide.
const BAR: u8 = 0x20;
const CAPABILITIES: u8 = 0x34;
const VENDOR_CAPABILITY: u32 = 0x09;
/// Kinds of virtio capabilities.
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;

/// Device status: acknowledged, driver there, features agreed, driver ready.
const FEATURES_OK: u64 = 1 | 2 | 8;
const DRIVER_OK: u64 = FEATURES_OK | 4;
/// Of the first 32 features: ACPI_PXM and UNPLUGGED_INACCESSIBLE.
const FEATURES_LOW: u64 = 0b11;
/// Of the second 32 features: VERSION_1.
const FEATURES_HIGH: u64 = 1;

const PLUG: u64 = 0;
const UNPLUG: u64 = 1;
const ACKNOWLEDGED: u64 = 0;
const REQUEST_BYTES: u64 = 24;
const RESPONSE_BYTES: u64 = 10;
const QUEUE_SIZE: u64 = 8;

/// Plugs and unplugs blocks: whether to plug, the first block's number, how many.
pub(super) fn drive(
    qtest: &mut Qtest,
    slot: u8,
    start: u64,
    block: u64,
    requests: &[(bool, u64, u16)],
) -> anyhow::Result<()> {
    // The low bits of a BAR are read-only.
    qtest.pci_write(slot, BAR, REGISTERS as u32)?;
    qtest.pci_write(slot, BAR + 4, 0)?;
    qtest.pci_write(slot, 0x04, 0x6)?;
    let common = REGISTERS + capability(qtest, slot, COMMON)?.0;
    let (notify, multiplier) = capability(qtest, slot, NOTIFY)?;

    qtest.write(1, common + 20, 0)?; // device_status: reset
    qtest.write(1, common + 20, 1 | 2)?;
    for (select, wanted) in [(0, FEATURES_LOW), (1, FEATURES_HIGH)] {
        qtest.write(4, common, select)?; // device_feature_select
        let offered = qtest.read(4, common + 4)?; // device_feature
        qtest.write(4, common + 8, select)?; // driver_feature_select
        qtest.write(4, common + 12, offered & wanted)?; // driver_feature
    }
    qtest.write(1, common + 20, FEATURES_OK)?;
    let status = qtest.read(1, common + 20)?;
    ensure!(
        status & 8 != 0,
        "the device refuses the features (status {status:#x})"
    );

    qtest.write(2, common + 22, 0)?; // queue_select
    qtest.write(2, common + 24, QUEUE_SIZE)?; // queue_size
    let offset = qtest.read(2, common + 30)?; // queue_notify_off
    for (register, address) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
        qtest.write(4, common + register, address)?;
        qtest.write(4, common + register + 4, 0)?;
    }
    // What an earlier driver left would look like requests and answers.
    qtest.write(4, AVAILABLE, 0)?;
    qtest.write(4, USED, 0)?;
    qtest.write(2, common + 28, 1)?; // queue_enable
    qtest.write(1, common + 20, DRIVER_OK)?;
    let bell = REGISTERS + notify + offset * multiplier;

    // Descriptor 0: the request, readable, another follows. Descriptor 1: the response, writable.
    let response = (RESPONSE, RESPONSE_BYTES, 2, 0);
    for (number, (address, len, flags, next)) in [(REQUEST, REQUEST_BYTES, 1, 1), response]
        .into_iter()
        .enumerate()
    {
        let at = DESCRIPTORS + 16 * number as u64;
        qtest.write(8, at, address)?;
        qtest.write(4, at + 8, len)?;
        qtest.write(2, at + 12, flags)?;
        qtest.write(2, at + 14, next)?;
    }
    for (done, &(plug, first, count)) in requests.iter().enumerate() {
        qtest.write(8, REQUEST, if plug { PLUG } else { UNPLUG })?;
        qtest.write(8, REQUEST + 8, start + first * block)?;
        qtest.write(8, REQUEST + 16, u64::from(count))?;
        qtest.write(8, RESPONSE, u64::MAX)?;
        // Each time the same chain, at the next place of the ring.
        qtest.write(2, AVAILABLE + 4 + 2 * (done as u64 % QUEUE_SIZE), 0)?;
        qtest.write(2, AVAILABLE + 2, done as u64 + 1)?;
        qtest.write(2, bell, 0)?;
        let began = Instant::now();
        while qtest.read(2, USED + 2)? != done as u64 + 1 {
            if began.elapsed() > Duration::from_secs(5) {
                bail!("the device does not answer");
            }
        }
        let answer = qtest.read(2, RESPONSE)?;
        ensure!(
            answer == ACKNOWLEDGED,
            "the device answers {answer} to block {first} + {count}, plug {plug}"
        );
    }
    Ok(())
}

/// Where the registers of a kind begin in the BAR, and for notifications the multiplier.
fn capability(qtest: &mut Qtest, slot: u8, kind: u32) -> anyhow::Result<(u64, u64)> {
    let mut at = (qtest.pci_read(slot, CAPABILITIES)? & 0xfc) as u8;
    // A function has room for 48 capabilities.
    for _ in 0..48 {
        if at == 0 {
            break;
        }
        let head = qtest.pci_read(slot, at)?;
        if head & 0xff == VENDOR_CAPABILITY && head >> 24 == kind {
            let offset = qtest.pci_read(slot, at + 8)?;
            let multiplier = qtest.pci_read(slot, at + 16)?;
            return Ok((offset.into(), multiplier.into()));
        }
        at = (head >> 8 & 0xfc) as u8;
    }
    None.with_context(|| format!("slot {slot} has no virtio capability of kind {kind}"))
}
