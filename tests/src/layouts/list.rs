//! The layouts: machines, splits, backends, huge pages, memory devices, and what looks like RAM and is none.

use serde_json::json;

use super::layout::{GIB, KIB, Layout, MIB};
use super::steps::Step;

/// Slots on the first PCI bus, free in every layout.
const VGA: u8 = 3;
const SHMEM: u8 = 4;
const VIRTIO: u8 = 5;
/// The BAR of a VGA's memory, and that of ivshmem's.
const BAR0: u8 = 0x10;
const BAR2: u8 = 0x18;

/// Every layout.
#[must_use]
pub fn all() -> Vec<Layout> {
    let mut list = machines();
    list.extend(nodes());
    list.extend(backends());
    list.extend(huge_pages());
    list.extend(dimms());
    list.extend(virtio());
    list.extend(no_ram());
    list
}

/// A few that show most, for the test suite.
#[must_use]
pub fn short() -> Vec<Layout> {
    const NAMES: [&str; 8] = [
        "q35, 5 GiB, split",
        "pc, 5 GiB, split",
        "microvm, 512 MiB",
        "two nodes",
        "memfd, shared",
        "file on tmpfs, shared",
        "DIMM, plugged",
        "virtio-mem, grown",
    ];
    let mut list = all();
    list.retain(|layout| NAMES.contains(&layout.name));
    debug_assert_eq!(list.len(), NAMES.len());
    list
}

fn machines() -> Vec<Layout> {
    vec![
        Layout::new("q35, 512 MiB", "-M q35 -m 512").base("pc.ram", 512 * MIB),
        Layout::new("q35, 2815 MiB, just not split", "-M q35 -m 2815").base("pc.ram", 2815 * MIB),
        Layout::new("q35, 2816 MiB, just split", "-M q35 -m 2816").base("pc.ram", 2816 * MIB),
        Layout::new("q35, 5 GiB, split", "-M q35 -m 5G").base("pc.ram", 5 * GIB),
        Layout::new(
            "q35, max-ram-below-4g=1G",
            "-M q35,max-ram-below-4g=1G -m 3G",
        )
        .base("pc.ram", 3 * GIB),
        Layout::new(
            "q35, RAM above 1 TiB (AMD)",
            "-M q35 -cpu EPYC,phys-bits=48 -m 5G,slots=1,maxmem=1020G",
        )
        .base("pc.ram", 5 * GIB)
        .place(1 << 40),
        Layout::new("pc, 512 MiB", "-M pc -m 512").base("pc.ram", 512 * MIB),
        Layout::new("pc, 3583 MiB, just not split", "-M pc -m 3583").base("pc.ram", 3583 * MIB),
        Layout::new("pc, 5 GiB, split", "-M pc -m 5G").base("pc.ram", 5 * GIB),
        Layout::new("pc, max-ram-below-4g=1G", "-M pc,max-ram-below-4g=1G -m 3G")
            .base("pc.ram", 3 * GIB),
        Layout::new("microvm, 512 MiB", "-M microvm -m 512").base("microvm.ram", 512 * MIB),
        Layout::new("microvm, 5 GiB, split", "-M microvm -m 5G").base("microvm.ram", 5 * GIB),
        Layout::new(
            "microvm, PCI, ACPI",
            "-M microvm,pcie=on,acpi=on,rtc=on -m 2G",
        )
        .base("microvm.ram", 2 * GIB),
    ]
}

fn nodes() -> Vec<Layout> {
    vec![
        Layout::new(
            "two nodes",
            "-M q35 -m 1G -smp 2 -object memory-backend-ram,id=m0,size=512M \
             -object memory-backend-memfd,id=m1,size=512M,share=on \
             -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1",
        )
        .base("m0", 512 * MIB)
        .ram("m1", 512 * MIB),
        Layout::new(
            "three nodes, the second split",
            "-M q35 -m 5G -object memory-backend-ram,id=m0,size=1G \
             -object memory-backend-memfd,id=m1,size=3G -object memory-backend-ram,id=m2,size=1G \
             -numa node,memdev=m0 -numa node,memdev=m1 -numa node,memdev=m2",
        )
        .base("m0", GIB)
        .ram("m1", 3 * GIB)
        .ram("m2", GIB),
        Layout::new(
            "eight nodes, one empty",
            "-M pc -m 4480 -object memory-backend-ram,id=m0,size=640M \
             -object memory-backend-ram,id=m1,size=640M -object memory-backend-ram,id=m2,size=640M \
             -object memory-backend-ram,id=m3,size=640M -object memory-backend-ram,id=m4,size=640M \
             -object memory-backend-ram,id=m5,size=640M -object memory-backend-ram,id=m6,size=640M \
             -numa node,memdev=m6 -numa node,memdev=m5 -numa node,memdev=m4 -numa node,memdev=m3 \
             -numa node,memdev=m2 -numa node,memdev=m1 -numa node,memdev=m0 -numa node",
        )
        .base("m6", 640 * MIB)
        .ram("m5", 640 * MIB)
        .ram("m4", 640 * MIB)
        .ram("m3", 640 * MIB)
        .ram("m2", 640 * MIB)
        .ram("m1", 640 * MIB)
        .ram("m0", 640 * MIB),
    ]
}

/// A q35 with 512 MiB of one backend.
fn backend(name: &'static str, object: &str) -> Layout {
    Layout::new(
        name,
        format!(
            "-M q35,memory-backend=ram0 -m 512 -object memory-backend-{object},id=ram0,size=512M"
        ),
    )
    .base("ram0", 512 * MIB)
}

fn backends() -> Vec<Layout> {
    vec![
        Layout::new(
            "ram, 5 GiB",
            "-M q35,memory-backend=ram0 -m 5G -object memory-backend-ram,id=ram0,size=5G",
        )
        .base("ram0", 5 * GIB),
        backend("ram, shared", "ram,share=on"),
        backend("ram, prealloc", "ram,prealloc=on"),
        backend("ram, reserve off", "ram,reserve=off"),
        backend(
            "ram, canonical path",
            "ram,x-use-canonical-path-for-ramblock-id=on",
        ),
        backend("memfd, shared", "memfd,share=on"),
        backend("memfd, private", "memfd,share=off"),
        backend(
            "file on /dev/shm, shared",
            "file,mem-path=/dev/shm,share=on",
        ),
        backend(
            "file on tmpfs, shared",
            "file,mem-path={tmpfs}/ram,share=on",
        ),
        backend(
            "file on tmpfs, private",
            "file,mem-path={tmpfs}/ram,share=off",
        ),
        backend(
            "file on disk, private",
            "file,mem-path={file}/ram,share=off",
        ),
        backend("file on disk, shared", "file,mem-path={file}/ram,share=on"),
        backend(
            "file with an offset",
            "file,mem-path={file}/ram,share=on,offset=1M",
        )
        .since(8, 1),
        backend("shm", "shm").since(9, 1),
        Layout::new("-mem-path", "-M q35 -m 512 -mem-path {file}").base("pc.ram", 512 * MIB),
        Layout::new(
            "-mem-path, prealloc, pc",
            "-M pc -m 512 -mem-path {tmpfs} -mem-prealloc",
        )
        .base("pc.ram", 512 * MIB),
    ]
}

fn huge_pages() -> Vec<Layout> {
    // A pool one page larger than the guest.
    let small = |name, object: &str| backend(name, object).pages(2 * MIB, 257);
    let giant = |name, object: &str| {
        Layout::new(
            name,
            format!(
                "-M q35,memory-backend=ram0 -m 1G -object memory-backend-{object},id=ram0,size=1G"
            ),
        )
        .base("ram0", GIB)
        .pages(GIB, 1)
    };
    vec![
        small(
            "hugetlb 2 MiB, memfd, shared",
            "memfd,hugetlb=on,hugetlbsize=2M,share=on",
        ),
        small(
            "hugetlb 2 MiB, memfd, private",
            "memfd,hugetlb=on,hugetlbsize=2M,share=off",
        ),
        small(
            "hugetlb 2 MiB, memfd, prealloc",
            "memfd,hugetlb=on,hugetlbsize=2M,share=on,prealloc=on",
        ),
        small(
            "hugetlb 2 MiB, memfd, reserve off",
            "memfd,hugetlb=on,hugetlbsize=2M,share=on,reserve=off",
        ),
        small(
            "hugetlb 2 MiB, file, shared",
            "file,mem-path={huge2m},share=on",
        ),
        small(
            "hugetlb 2 MiB, file, private, prealloc",
            "file,mem-path={huge2m},share=off,prealloc=on",
        ),
        Layout::new(
            "hugetlb 2 MiB, -mem-path, prealloc",
            "-M q35 -m 512 -mem-path {huge2m} -mem-prealloc",
        )
        .base("pc.ram", 512 * MIB)
        .pages(2 * MIB, 257),
        Layout::new(
            "hugetlb 2 MiB, node and DIMM",
            "-M q35,memory-backend=ram0 -m 128M,slots=2,maxmem=2G \
             -object memory-backend-memfd,id=ram0,size=128M,hugetlb=on,hugetlbsize=2M \
             -object memory-backend-memfd,id=d0,size=128M,hugetlb=on,hugetlbsize=2M \
             -device pc-dimm,id=dimm0,memdev=d0",
        )
        .base("ram0", 128 * MIB)
        .ram("d0", 128 * MIB)
        .pages(2 * MIB, 129),
        giant(
            "hugetlb 1 GiB, memfd, shared",
            "memfd,hugetlb=on,hugetlbsize=1G,share=on",
        ),
        giant(
            "hugetlb 1 GiB, memfd, private, prealloc",
            "memfd,hugetlb=on,hugetlbsize=1G,share=off,prealloc=on",
        ),
        giant(
            "hugetlb 1 GiB, file, reserve off",
            "file,mem-path={huge1g},share=on,reserve=off",
        ),
    ]
}

/// A command that adds a backend.
fn add_backend(id: &str, mib: u64) -> Step {
    Step::Command(
        "object-add",
        json!({"qom-type": "memory-backend-ram", "id": id, "size": mib * MIB}),
    )
}

/// A command that plugs a DIMM, at an address if one is given.
fn plug(id: &str, memdev: &str) -> Step {
    Step::Command(
        "device_add",
        json!({"driver": "pc-dimm", "id": id, "memdev": memdev}),
    )
}

fn dimms() -> Vec<Layout> {
    let guest = |name, machine: &str| {
        Layout::new(name, format!("-M {machine} -m 512,slots=4,maxmem=4G"))
            .base("pc.ram", 512 * MIB)
    };
    let unplug = |device, slot| Step::Unplug { device, slot };
    vec![
        guest("DIMM, backend without device", "q35").step(add_backend("d0", 256)),
        guest("DIMM, plugged", "q35")
            .step(add_backend("d0", 256))
            .step(plug("dimm0", "d0"))
            .ram("d0", 256 * MIB),
        guest("DIMM, plugged, pc", "pc")
            .step(add_backend("d0", 256))
            .step(plug("dimm0", "d0"))
            .ram("d0", 256 * MIB),
        guest("DIMM, asked back, not given", "q35")
            .step(add_backend("d0", 256))
            .step(plug("dimm0", "d0"))
            .step(Step::Command("device_del", json!({"id": "dimm0"})))
            .ram("d0", 256 * MIB),
        guest("DIMM, unplugged, backend kept", "q35")
            .step(add_backend("d0", 256))
            .step(plug("dimm0", "d0"))
            .step(unplug("dimm0", 0))
            .place(4 * GIB),
        guest("DIMM, unplugged, pc", "pc")
            .step(add_backend("d0", 256))
            .step(plug("dimm0", "d0"))
            .step(unplug("dimm0", 0))
            .step(Step::Command("object-del", json!({"id": "d0"}))),
        guest("DIMMs, the first of three replaced", "q35")
            .step(add_backend("d0", 256))
            .step(add_backend("d1", 256))
            .step(add_backend("d2", 128))
            .step(plug("dimm0", "d0"))
            .step(plug("dimm1", "d1"))
            .step(plug("dimm2", "d2"))
            .step(unplug("dimm0", 0))
            .step(Step::Command("object-del", json!({"id": "d0"})))
            .step(add_backend("d3", 128))
            .step(plug("dimm3", "d3"))
            .ram("d1", 256 * MIB)
            .ram("d2", 128 * MIB)
            .ram("d3", 128 * MIB),
        Layout::new(
            "DIMM at a given address, 5 GiB",
            "-M q35 -m 5G,slots=4,maxmem=32G -object memory-backend-memfd,id=d0,size=1G,share=on \
             -device pc-dimm,id=dimm0,memdev=d0,addr=0x300000000",
        )
        .base("pc.ram", 5 * GIB)
        .ram("d0", GIB),
        Layout::new(
            "nvdimm with labels",
            "-M q35,nvdimm=on -m 512,slots=2,maxmem=2G \
             -object memory-backend-file,id=nv0,size=256M,mem-path={file}/nv,share=on \
             -device nvdimm,id=nvdimm0,memdev=nv0,label-size=128K",
        )
        .base("pc.ram", 512 * MIB)
        .ram("nv0", 256 * MIB - 128 * KIB),
        Layout::new(
            "nvdimm in RAM, pc",
            "-M pc,nvdimm=on -m 512,slots=2,maxmem=2G \
             -object memory-backend-ram,id=nv0,size=256M -device nvdimm,id=nvdimm0,memdev=nv0",
        )
        .base("pc.ram", 512 * MIB)
        .ram("nv0", 256 * MIB),
    ]
}

fn virtio() -> Vec<Layout> {
    // Only as much of the region as is requested, and 256 MiB, can be plugged.
    let guest = |name, requested: &str, gib: u64, more: &str| {
        Layout::new(
            name,
            format!(
                "-M q35 -m 512,maxmem=16G -object memory-backend-memfd,id=vmem0,size={gib}G,share=on,\
                 reserve=off -device virtio-mem-pci,id=vm0,memdev=vmem0,requested-size={requested},\
                 bus=pcie.0,addr={VIRTIO}{more}"
            ),
        )
        .base("pc.ram", 512 * MIB)
    };
    let memslots = |name, requested| guest(name, requested, 8, ",dynamic-memslots=on").since(8, 2);
    let guest = |name, requested| guest(name, requested, 2, "");
    let drive = |requests, size| Step::VirtioMem {
        slot: VIRTIO,
        device: "vm0",
        requests,
        size,
    };
    let request = |mib: u64| {
        Step::Command(
            "qom-set",
            json!({"path": "vm0", "property": "requested-size", "value": mib * MIB}),
        )
    };
    const BLOCK: u64 = 2 * MIB;
    // Blocks of the device's 1024: whether plugged, first, count.
    const GROW: &[(bool, u64, u16)] = &[(true, 0, 64), (true, 100, 4), (true, 1023, 1)];
    const SHRINK: &[(bool, u64, u16)] = &[(false, 0, 32), (false, 1023, 1)];
    // Blocks of the device's 4096, 512 in each of its eight slots.
    const BOTH_ENDS: &[(bool, u64, u16)] = &[(true, 0, 8), (true, 4088, 8)];
    const FIRST_GIVEN_BACK: &[(bool, u64, u16)] = &[(false, 0, 8)];
    const MIDDLE: &[(bool, u64, u16)] = &[(true, 1100, 4), (true, 2559, 2)];
    vec![
        guest("virtio-mem, size 0", "0").ram("vmem0", 2 * GIB),
        guest("virtio-mem, requested", "512M").ram("vmem0", 2 * GIB),
        guest("virtio-mem, grown", "2G")
            .step(drive(GROW, 69 * BLOCK))
            .ram("vmem0", 2 * GIB),
        guest("virtio-mem, grown and shrunk", "2G")
            .step(drive(GROW, 69 * BLOCK))
            .step(request(16))
            .step(drive(SHRINK, 36 * BLOCK))
            .ram("vmem0", 2 * GIB),
        memslots("virtio-mem, memslots, size 0", "0"),
        memslots("virtio-mem, memslots, both ends", "8G")
            .step(drive(BOTH_ENDS, 16 * BLOCK))
            .ram("vmem0", 2 * GIB),
        memslots("virtio-mem, memslots, start given back", "8G")
            .step(drive(BOTH_ENDS, 16 * BLOCK))
            .step(request(16))
            .step(drive(FIRST_GIVEN_BACK, 8 * BLOCK))
            .ram("vmem0", GIB),
        memslots("virtio-mem, memslots, in the middle", "8G")
            .step(drive(MIDDLE, 6 * BLOCK))
            .ram("vmem0", 3 * GIB),
        Layout::new(
            "virtio-mem beside a DIMM, 5 GiB",
            "-M q35 -m 5G,slots=2,maxmem=16G -object memory-backend-ram,id=d0,size=512M \
             -device pc-dimm,id=dimm0,memdev=d0 -object memory-backend-ram,id=vmem0,size=1G \
             -device virtio-mem-pci,id=vm0,memdev=vmem0,requested-size=256M",
        )
        .base("pc.ram", 5 * GIB)
        .ram("d0", 512 * MIB)
        .ram("vmem0", GIB),
        Layout::new(
            "virtio-pmem",
            "-M q35 -m 512,maxmem=4G \
             -object memory-backend-file,id=pm0,size=256M,mem-path={file}/pm,share=on \
             -device virtio-pmem-pci,id=pmem0,memdev=pm0",
        )
        .base("pc.ram", 512 * MIB)
        .ram("pm0", 256 * MIB),
        Layout::new(
            "balloon, free-page reporting",
            "-M q35 -m 512 -device virtio-balloon-pci,id=balloon0,free-page-reporting=on",
        )
        .base("pc.ram", 512 * MIB),
    ]
}

fn no_ram() -> Vec<Layout> {
    let vga = |gpa| Step::Bar {
        slot: VGA,
        register: BAR0,
        gpa,
        is_64: false,
    };
    let shmem = |gpa| Step::Bar {
        slot: SHMEM,
        register: BAR2,
        gpa,
        is_64: true,
    };
    let with_shmem = |name, machine: &str, bus: &str| {
        Layout::new(
            name,
            format!(
                "-M {machine} -object memory-backend-memfd,id=shmem0,size=64M,share=on \
                 -device ivshmem-plain,memdev=shmem0,bus={bus},addr={SHMEM}"
            ),
        )
        .other("shmem0")
    };
    vec![
        Layout::new(
            "VGA, its memory above RAM",
            format!("-M q35 -m 512 -device VGA,bus=pcie.0,addr={VGA}"),
        )
        .step(vga(0x2000_0000))
        .base("pc.ram", 512 * MIB)
        .other("vga.vram")
        .place(0x2000_0000),
        Layout::new(
            "two VGAs, pc",
            format!(
                "-M pc -m 512 -device VGA,bus=pci.0,addr={VGA} \
                 -device secondary-vga,bus=pci.0,addr={SHMEM}"
            ),
        )
        .step(vga(0xe000_0000))
        .step(Step::Bar {
            slot: SHMEM,
            register: BAR0,
            gpa: 0xe100_0000,
            is_64: false,
        })
        .base("pc.ram", 512 * MIB)
        .other("vga.vram")
        .place(0xe000_0000)
        .place(0xe100_0000),
        Layout::new(
            "flash below 4 GiB",
            "-M q35 -m 5G -drive if=pflash,unit=0,format=raw,readonly=on,file={flash}",
        )
        .base("pc.ram", 5 * GIB)
        .other("system.flash0")
        .place(0xffc0_0000),
        with_shmem("ivshmem far from RAM", "q35 -m 512", "pcie.0")
            .step(shmem(0xc000_0000))
            .base("pc.ram", 512 * MIB)
            .place(0xc000_0000),
        with_shmem("ivshmem at the end of low RAM", "q35 -m 512", "pcie.0")
            .step(shmem(512 * MIB))
            .base("pc.ram", 512 * MIB)
            .place(512 * MIB),
        with_shmem(
            "ivshmem at the end of low RAM, 5 GiB",
            "q35 -m 5G",
            "pcie.0",
        )
        .step(shmem(2 * GIB))
        .base("pc.ram", 5 * GIB)
        .place(2 * GIB),
        with_shmem("ivshmem at the end of high RAM", "pc -m 5G", "pci.0")
            .step(shmem(6 * GIB))
            .base("pc.ram", 5 * GIB)
            .place(6 * GIB),
        with_shmem("ivshmem at 4 GiB, no RAM there", "q35 -m 512", "pcie.0")
            .step(shmem(4 * GIB))
            .base("pc.ram", 512 * MIB)
            .place(4 * GIB),
        with_shmem(
            "everything at once",
            "q35,nvdimm=on -m 5G,slots=4,maxmem=32G -smp 2 \
             -object memory-backend-ram,id=m0,size=1G \
             -object memory-backend-memfd,id=m1,size=4G,share=on \
             -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1 \
             -object memory-backend-ram,id=d0,size=512M -device pc-dimm,id=dimm0,memdev=d0,node=1 \
             -object memory-backend-ram,id=nv0,size=256M \
             -device nvdimm,id=nvdimm0,memdev=nv0,label-size=128K,node=0 \
             -object memory-backend-memfd,id=vmem0,size=1G,share=on \
             -device virtio-mem-pci,id=vm0,memdev=vmem0,requested-size=0,node=0 \
             -device virtio-balloon-pci,id=balloon0 \
             -device VGA,bus=pcie.0,addr=3 \
             -drive if=pflash,unit=0,format=raw,readonly=on,file={flash}",
            "pcie.0",
        )
        .step(vga(0xe000_0000))
        .step(shmem(7 * GIB))
        .base("m0", GIB)
        .ram("m1", 4 * GIB)
        .ram("d0", 512 * MIB)
        // Huge pages may back it, so what the labels leave is cut to a multiple of 2 MiB.
        .ram("nv0", 254 * MIB)
        .ram("vmem0", GIB)
        .other("vga.vram")
        .other("system.flash0")
        .place(0xe000_0000)
        .place(7 * GIB),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn layouts_when_listed_have_names_of_their_own_and_ram() {
        let list = all();

        let names: BTreeSet<_> = list.iter().map(|layout| layout.name).collect();
        assert_eq!(names.len(), list.len());
        assert!(list.len() >= 20);
        assert!(list.iter().all(|layout| !layout.ram.is_empty()));
        assert_eq!(short().len(), 8);
    }
}
