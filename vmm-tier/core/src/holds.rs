//! Holds: what keeps a guest's memory in place, by what the kernel tells of QEMU's process.
//!
//! A device that reads and writes guest memory by itself (VFIO, vDPA) has it pinned. The kernel tries
//! ten times to move such a page, and each try unmaps the page under the guest. So a guest whose memory
//! is pinned is left in peace. Memory of a guest_memfd (SEV-SNP, TDX) is in no page table of QEMU.

use std::collections::BTreeSet;

use crate::text::size::human;

crate::words! {
    /// Who may have pages pinned.
    pub enum Holder {
        /// A device of the host that is passed through.
        Vfio = "vfio",
        /// A device with a vDPA driver.
        Vdpa = "vdpa",
        /// A ring of io_uring, if it has registered buffers.
        IoUring = "io-uring",
    }
}

crate::report! {
    /// What keeps guest memory in place.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Holds = "TierHolds" {
        /// Who may have pages pinned, by QEMU's open files.
        #[metric(states = "holder")]
        pub by: Vec<Holder>,
        /// Memory that is pinned in QEMU's process (`VmPin`).
        #[metric(gauge = "pinned_bytes")]
        pub pinned_bytes: u64,
        /// Memory that is locked in QEMU's process (`VmLck`): VFIO counts here what it pins, and so
        /// does `mlock`, whose pages can be moved.
        #[metric(gauge = "locked_bytes")]
        pub locked_bytes: u64,
        /// Whether a part of the guest's memory is private (guest_memfd): it can be neither seen nor
        /// moved.
        #[metric(gauge = "private_memory")]
        pub private: bool,
        /// Why no page of the guest is moved, if its memory is pinned.
        #[metric(exempt = "text; `vmm_tier_paused_by` says that it is so")]
        pub reason: Option<String>,
    }
}

/// What is said of private memory.
pub const PRIVATE_MEMORY: &str = "private memory (guest_memfd) can be neither seen nor moved: only the guest's shared memory is tiered";

impl Holder {
    /// Who has the file open to which a link of `/proc/PID/fd` points.
    fn of_file(target: &str) -> Option<Self> {
        let is = |starts: &[&str]| starts.iter().any(|start| target.starts_with(start));
        if is(&[
            "/dev/vfio/",
            "anon_inode:[vfio",
            "anon_inode:vfio",
            "/dev/iommu",
        ]) {
            Some(Self::Vfio)
        } else if is(&["/dev/vhost-vdpa"]) {
            Some(Self::Vdpa)
        } else if is(&["anon_inode:[io_uring]"]) {
            Some(Self::IoUring)
        } else {
            None
        }
    }
}

/// Whether a link of `/proc/PID/fd` points to a guest_memfd. Newer kernels give it a filesystem of its
/// own.
fn is_guest_memfd(target: &str) -> bool {
    target.contains("[kvm-gmem]")
        || target.contains("kvm-guest-memfd")
        || target.contains("[guest_memfd]")
}

impl Holds {
    /// What a process whose open files are `files` (targets of the links in `/proc/PID/fd`) and whose
    /// `/proc/PID/status` is `status` keeps in place of `guest_bytes` bytes of guest memory. A line of
    /// the status that can't be understood counts as not there.
    #[must_use]
    pub fn of<'a>(
        files: impl IntoIterator<Item = &'a str>,
        status: &str,
        guest_bytes: u64,
    ) -> Self {
        let mut by = BTreeSet::new();
        let mut private = false;
        for target in files {
            by.extend(Holder::of_file(target));
            private |= is_guest_memfd(target);
        }
        let mut holds = Self {
            by: by.into_iter().collect(),
            pinned_bytes: field(status, "VmPin:"),
            locked_bytes: field(status, "VmLck:"),
            private,
            reason: None,
        };
        holds.reason = holds.reason(guest_bytes);
        holds
    }

    /// What an operator must know of them, in sentences.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let rests = self.reason.as_ref();
        let rests = rests.map(|reason| format!("No page of this guest is moved: {reason}."));
        let private = self
            .private
            .then(|| format!("The guest has a guest_memfd (SEV-SNP, TDX): {PRIVATE_MEMORY}."));
        rests.into_iter().chain(private).collect()
    }

    /// Whether this holder is one of them.
    #[must_use]
    pub fn are_by(&self, holder: Holder) -> bool {
        self.by.contains(&holder)
    }

    /// Why no page may be moved: half of the guest or more is pinned. VFIO counts as locked what it
    /// pins.
    fn reason(&self, guest_bytes: u64) -> Option<String> {
        let has_device = self.are_by(Holder::Vfio) || self.are_by(Holder::Vdpa);
        let locked_by_device = if has_device { self.locked_bytes } else { 0 };
        let held = self.pinned_bytes.max(locked_by_device);
        if guest_bytes == 0 || held < guest_bytes / 2 || held == 0 {
            return None;
        }
        let who: Vec<&str> = self.by.iter().map(|holder| holder.name()).collect();
        let who = match who.is_empty() {
            true => "a device".to_owned(),
            false => who.join(", "),
        };
        Some(format!(
            "{who} has {} pinned, of a guest of {}: the kernel can't move a pinned page, and each try makes the \
             guest wait",
            human(held),
            human(guest_bytes)
        ))
    }
}

/// A field of `/proc/PID/status` in KiB, as bytes; 0 if it is not there or no number.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn status(locked_kib: u64, pinned_kib: u64) -> String {
        format!(
            "Name:\tqemu-system-x86\nVmPeak:\t 5000000 kB\nVmLck:\t {locked_kib} kB\nVmPin:\t {pinned_kib} kB\n"
        )
    }

    #[test]
    fn guest_when_vfio_has_its_memory_pinned_is_left_in_peace() {
        let files = [
            "/dev/kvm",
            "anon_inode:[vfio-device]",
            "/dev/vfio/12",
            "socket:[81]",
        ];
        // Type 1 counts what it pins as locked.
        let holds = Holds::of(files, &status(4 << 20, 0), 4 * GIB);
        assert_eq!(holds.by, [Holder::Vfio]);
        assert_eq!(
            holds.reason.as_deref(),
            Some(
                "vfio has 4 GiB pinned, of a guest of 4 GiB: the kernel can't move a pinned page, and each try \
                 makes the guest wait"
            )
        );
        // Behind an IOMMU of the guest only its buffers are pinned.
        let holds = Holds::of(files, &status(64 << 10, 0), 4 * GIB);
        assert_eq!(holds.reason, None);
        // An iommufd counts as pinned.
        let holds = Holds::of(["/dev/iommu"], &status(0, 4 << 20), 4 * GIB);
        assert!(holds.reason.is_some());
    }

    #[test]
    fn guest_when_its_memory_is_only_locked_is_tiered() {
        let holds = Holds::of(["anon_inode:[io_uring]"], &status(4 << 20, 0), 4 * GIB);
        assert_eq!((holds.by, holds.reason), (vec![Holder::IoUring], None));
    }

    #[test]
    fn guest_memfd_when_open_makes_memory_private() {
        for file in ["anon_inode:[kvm-gmem]", "/[kvm-gmem] (deleted)"] {
            assert!(Holds::of([file], "", GIB).private, "{file}");
        }
        assert!(!Holds::of(["/memfd:pc.ram (deleted)"], "", GIB).private);
    }

    proptest! {
        #[test]
        fn holds_when_status_and_files_are_anything_are_made_of_them(
            files in prop::collection::vec(".{0,40}", 0..8),
            status in "(VmLck:|VmPin:|[a-z \\n\\t0-9])*",
            guest_bytes: u64,
        ) {
            let holds = Holds::of(files.iter().map(String::as_str), &status, guest_bytes);
            prop_assert!(holds.reason.is_none() || guest_bytes > 0);
        }
    }
}
