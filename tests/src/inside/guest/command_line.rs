//! The command line of a guest's QEMU, and of the guest itself.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::folder;
use crate::scenario::{Backend, Guest, GuestAgent, System};

/// What a guest's Linux is told, so that it takes as few interrupts as can be: none of its
/// watchdogs, and a periodic timer, which need not be set anew for each tick.
const LINUX_WORDS: &str = "console=ttyS0 quiet mitigations=off reboot=t panic=-1 \
    nowatchdog tsc=reliable no_timer_check nohz=off highres=off lapic=notscdeadline";
/// The context id of a guest with a vsock device.
const GUEST_CID: u32 = 3;
/// The port of the device by which a bare guest ends QEMU, and the status when nobody reads its
/// serial port (see `bare-guest`).
const EXIT_PORT: u16 = 0xf4;

/// The rate of the time stamp counter, as this machine's kernel found it.
pub(super) fn tsc_khz() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    khz_of_cpuinfo(&text).context("/proc/cpuinfo tells no 'cpu MHz'")
}

fn khz_of_cpuinfo(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    Some((mhz * 1000.0).round() as u64).filter(|khz| *khz > 0)
}

/// QEMU's arguments. The time stamp counter's rate is for guests that can't find it out.
pub(super) fn arguments(guest: &Guest, tsc_khz: u64) -> Vec<String> {
    let mib = guest.mib;
    let backend = match guest.backend {
        Backend::Memfd => format!("memory-backend-memfd,id=ram0,size={mib}M,share=on"),
        Backend::Hugetlb | Backend::Hugetlb1G => {
            let page = match guest.backend {
                Backend::Hugetlb1G => "1G",
                _ => "2M",
            };
            format!(
                "memory-backend-memfd,id=ram0,size={mib}M,share=on,hugetlb=on,hugetlbsize={page}"
            )
        }
        Backend::Ram => format!("memory-backend-ram,id=ram0,size={mib}M"),
        Backend::Shm => format!(
            "memory-backend-file,id=ram0,size={mib}M,share=on,mem-path=/dev/shm/{}",
            guest.name
        ),
    };
    let bound = guest.bind_node;
    let bound = bound.map_or_else(String::new, |node| {
        format!(",host-nodes={node},policy=bind")
    });
    let backend = backend + &bound;
    let monitor = |name: &str| {
        let path = folder(&guest.name).join(name);
        format!("unix:{},server=on,wait=off", path.display())
    };
    let mut words: Vec<String> = Vec::new();
    // The kernel finds virtio devices by ACPI only, and without devices a boot without it is
    // shorter.
    let machine = match guest {
        // The only machine here that memory can be plugged into.
        Guest {
            virtio_mem_mib: 1..,
            ..
        } => "q35,memory-backend=ram0",
        Guest {
            agent: None,
            balloon: false,
            ..
        } => "microvm,acpi=off,memory-backend=ram0",
        _ => "microvm,acpi=on,pcie=on,memory-backend=ram0",
    };
    let memory = match guest.virtio_mem_mib {
        0 => format!("{mib}M"),
        more => format!("{mib}M,maxmem={}M", mib + more),
    };
    let agent = guest.agent.map_or("", agent_word);
    let mut drivers = String::new();
    if guest.balloon {
        drivers += " tier.balloon";
    }
    if guest.virtio_mem_mib > 0 {
        drivers += " tier.virtio-mem";
    }
    let work = format!("{} {}{agent}{drivers}", guest.work.words(), guest.words);
    let exit = format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4");
    let (kernel, start) = match guest.system {
        System::Bare => (
            "/lab/bare-guest",
            vec![
                "-device".to_owned(),
                exit,
                "-append".to_owned(),
                format!("tsc_khz={tsc_khz} {work}"),
            ],
        ),
        System::Linux => (
            "/lab/vmlinuz",
            vec![
                "-initrd".to_owned(),
                "/lab/guest.cpio".to_owned(),
                "-append".to_owned(),
                format!("{LINUX_WORDS} {work}"),
            ],
        ),
    };
    for pair in [
        ["-name", guest.name.as_str()],
        ["-M", machine],
        ["-cpu", "host"],
        ["-accel", "kvm"],
        ["-smp", &guest.cpus.to_string()],
        ["-m", &memory],
        ["-object", &backend],
        ["-display", "none"],
        ["-serial", "stdio"],
        ["-qmp", &monitor("qmp.sock")],
        ["-qmp", &monitor("lab-qmp.sock")],
        ["-L", "/usr/share/qemu"],
        ["-kernel", kernel],
    ] {
        words.extend(pair.map(str::to_owned));
    }
    words.extend(start);
    // It begins when it is told to, so that it can't end before somebody listens.
    for word in ["-nodefaults", "-no-user-config", "-S"] {
        words.push(word.to_owned());
    }
    words.extend(guest.agent.iter().flat_map(|&agent| {
        let socket = folder(&guest.name).join("guest.sock");
        agent_devices(agent, &socket)
    }));
    if guest.balloon {
        words.extend(["-device", "virtio-balloon-pci"].map(str::to_owned));
    }
    if guest.virtio_mem_mib > 0 {
        let size = guest.virtio_mem_mib;
        words.extend([
            "-object".to_owned(),
            format!("memory-backend-memfd,id=plugged0,size={size}M,share=on"),
            "-device".to_owned(),
            "virtio-mem-pci,id=vmem0,memdev=plugged0".to_owned(),
        ]);
    }
    if !guest.may_reset {
        words.push("-no-reboot".to_owned());
    }
    words
}

/// What the guest's first process is told of its agent, on the kernel's command line.
fn agent_word(agent: GuestAgent) -> &'static str {
    match agent {
        GuestAgent::Serial => " tier.agent=serial",
        GuestAgent::Vsock => " tier.agent=vsock",
    }
}

/// The devices by which a guest's agent reaches the host.
fn agent_devices(agent: GuestAgent, socket: &Path) -> Vec<String> {
    match agent {
        GuestAgent::Serial => vec![
            "-chardev".to_owned(),
            format!(
                "socket,id=tier,path={},server=on,wait=off",
                socket.display()
            ),
            "-device".to_owned(),
            "virtio-serial-pci".to_owned(),
            "-device".to_owned(),
            "virtserialport,chardev=tier,name=vmm-tier".to_owned(),
        ],
        GuestAgent::Vsock => vec![
            "-device".to_owned(),
            format!("vhost-vsock-pci,guest-cid={GUEST_CID}"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tsc_when_the_kernel_tells_its_rate_is_in_khz() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2596.123\n";

        assert_eq!(khz_of_cpuinfo(text), Some(2_596_123));
        assert_eq!(khz_of_cpuinfo("cpu MHz : 0.000\n"), None);
        assert_eq!(khz_of_cpuinfo(""), None);
    }

    #[test]
    fn arguments_when_memory_is_shared_name_the_backend() {
        let words = arguments(&Guest::default(), 2_500_000).join(" ");

        assert!(words.contains("memory-backend-memfd,id=ram0,size=400M,share=on"));
        assert!(words.contains("unix:/run/lab/guest/qmp.sock,server=on,wait=off"));
        assert!(words.contains("-kernel /lab/bare-guest") && words.contains("iobase=0xf4"));
        assert!(words.contains("tsc_khz=2500000 lab.set_mib=300"));
        assert!(words.contains("microvm,acpi=off") && !words.contains("tier.agent"));
    }

    #[test]
    fn arguments_when_the_guest_has_an_agent_give_it_a_way_out() {
        let with = |agent| {
            let guest = Guest {
                agent: Some(agent),
                system: System::Linux,
                ..Guest::default()
            };
            arguments(&guest, 2_500_000).join(" ")
        };
        let serial = with(GuestAgent::Serial);
        assert!(serial.contains("path=/run/lab/guest/guest.sock,server=on"));
        assert!(serial.contains("name=vmm-tier") && serial.contains("tier.agent=serial"));
        let vsock = with(GuestAgent::Vsock);
        assert!(vsock.contains("guest-cid=3") && vsock.contains("tier.agent=vsock"));
    }
}
