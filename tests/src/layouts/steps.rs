//! What is done with a guest before its map is made: commands, BARs, and what a guest's driver would do.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::emulator::Qemu;
use super::virtio_mem;

/// The registers of QEMU's ACPI memory hot-plug (docs/specs/acpi_mem_hotplug.rst).
const HOTPLUG_SELECT: u16 = 0x0a00;
const HOTPLUG_CONTROL: u16 = 0x0a14;
/// Starts the ejection of the selected slot, as `_EJ0` does.
const HOTPLUG_EJECT: u32 = 1 << 3;

/// Registers of a PCI function.
const PCI_COMMAND: u8 = 0x04;
/// Memory and bus mastering on.
const PCI_ENABLE: u32 = 0x6;

/// One thing that is done.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A QMP command.
    Command(&'static str, Value),
    /// A device's BAR is put at an address.
    Bar {
        slot: u8,
        register: u8,
        gpa: u64,
        is_64: bool,
    },
    /// A DIMM is asked back and given back, as the guest's ACPI would.
    Unplug { device: &'static str, slot: u32 },
    /// A virtio-mem driver plugs or unplugs blocks: whether it plugs, first block, how many.
    VirtioMem {
        slot: u8,
        device: &'static str,
        requests: &'static [(bool, u64, u16)],
        /// The size that must be plugged afterwards, in bytes.
        size: u64,
    },
}

impl Step {
    pub(super) fn carry_out(&self, qemu: &mut Qemu) -> anyhow::Result<()> {
        match self {
            Self::Command(name, arguments) => {
                qemu.execute(name, Some(arguments.clone())).map(|_| ())
            }
            &Self::Bar {
                slot,
                register,
                gpa,
                is_64,
            } => set_bar(qemu, slot, register, gpa, is_64),
            Self::Unplug { device, slot } => unplug(qemu, device, *slot),
            Self::VirtioMem {
                slot,
                device,
                requests,
                size,
            } => {
                let before = memory_device(qemu, device)?;
                let start = number(&before, "memaddr")?;
                let block = number(&before, "block-size")?;
                virtio_mem::drive(qemu.qtest()?, *slot, start, block, requests)?;
                let after = number(&memory_device(qemu, device)?, "size")?;
                if after != *size {
                    bail!("{after} bytes are plugged, not {size}");
                }
                Ok(())
            }
        }
    }
}

/// Puts a BAR at an address and switches the function's memory on.
pub(super) fn set_bar(
    qemu: &mut Qemu,
    slot: u8,
    register: u8,
    gpa: u64,
    is_64: bool,
) -> anyhow::Result<()> {
    let qtest = qemu.qtest()?;
    qtest.pci_write(slot, register, (gpa & 0xffff_ffff) as u32)?;
    if is_64 {
        qtest.pci_write(slot, register + 4, (gpa >> 32) as u32)?;
    }
    qtest.pci_write(slot, PCI_COMMAND, PCI_ENABLE)?;
    let there = qtest.pci_read(slot, register)? & !0xf;
    if there != (gpa & 0xffff_fff0) as u32 {
        bail!("the BAR of slot {slot} is at {there:#x}, not at {gpa:#x}");
    }
    Ok(())
}

fn unplug(qemu: &mut Qemu, device: &str, slot: u32) -> anyhow::Result<()> {
    qemu.execute("device_del", Some(json!({"id": device})))?;
    let qtest = qemu.qtest()?;
    qtest.out(4, HOTPLUG_SELECT, slot)?;
    qtest.out(1, HOTPLUG_CONTROL, HOTPLUG_EJECT)?;
    let began = Instant::now();
    while memory_device(qemu, device).is_ok() {
        if began.elapsed() > Duration::from_secs(5) {
            bail!("{device} is still plugged after its ejection");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What `query-memory-devices` says of a device.
fn memory_device(qemu: &Qemu, id: &str) -> anyhow::Result<Value> {
    let devices = qemu.execute("query-memory-devices", None)?;
    let mut datas = devices
        .as_array()
        .into_iter()
        .flatten()
        .map(|device| &device["data"]);
    let found = datas.find(|data| data["id"] == id).cloned();
    found.with_context(|| format!("no memory device {id}"))
}

fn number(data: &Value, key: &str) -> anyhow::Result<u64> {
    data[key]
        .as_u64()
        .with_context(|| format!("no {key} in {data}"))
}
