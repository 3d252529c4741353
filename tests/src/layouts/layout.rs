//! What a layout is: QEMU's arguments, what is done with the guest, and the RAM that the map must have.

use super::emulator::Version;
use super::flat_view::short_name;
use super::steps::Step;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// Memory regions of firmware and devices that no map may have, in every machine.
const NEVER_RAM: [&str; 3] = ["pc.bios", "pc.rom", "isa-bios"];

/// What a layout needs of the machine that QEMU runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Free huge pages.
    Pool {
        /// The size of a page in bytes.
        page: u64,
        /// How many.
        count: u64,
    },
}

/// RAM that the map must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ram {
    /// The name of its memory region in QEMU.
    pub(super) region: &'static str,
    /// Bytes from 1 MiB up.
    pub(super) bytes: u64,
    /// The size of the kernel's pages.
    pub(super) page: u64,
}

/// A guest's memory layout.
#[derive(Debug, Clone)]
pub struct Layout {
    /// A short name.
    pub name: &'static str,
    /// QEMU's arguments, separated by blanks; `{file}`, `{tmpfs}`, `{huge2m}` and `{huge1g}` are folders.
    pub arguments: String,
    /// What it needs of the machine.
    pub need: Need,
    pub(super) since: (u32, u32),
    pub(super) steps: Vec<Step>,
    pub(super) ram: Vec<Ram>,
    /// Regions that look like RAM and are none.
    pub(super) others: Vec<&'static str>,
    /// Guest-physical addresses around which more is asked.
    pub(super) places: Vec<u64>,
}

impl Layout {
    pub(super) fn new(name: &'static str, arguments: impl Into<String>) -> Self {
        Self {
            name,
            arguments: arguments.into(),
            need: Need::Nothing,
            since: (0, 0),
            steps: Vec::new(),
            ram: Vec::new(),
            others: Vec::new(),
            places: Vec::new(),
        }
    }

    /// The RAM from guest-physical 0 up: the map leaves its first MiB out.
    pub(super) fn base(self, region: &'static str, bytes: u64) -> Self {
        self.ram(region, bytes - MIB)
    }

    /// RAM that is in the map whole.
    pub(super) fn ram(mut self, region: &'static str, bytes: u64) -> Self {
        self.ram.push(Ram {
            region,
            bytes,
            page: 4 * KIB,
        });
        self
    }

    /// All RAM named so far is on pages of this size, and so many of them must be had.
    pub(super) fn pages(mut self, page: u64, count: u64) -> Self {
        for ram in &mut self.ram {
            ram.page = page;
        }
        self.need = Need::Pool { page, count };
        self
    }

    /// A region that looks like RAM and is none.
    pub(super) fn other(mut self, region: &'static str) -> Self {
        self.others.push(region);
        self
    }

    /// An address around which more is asked.
    pub(super) fn place(mut self, gpa: u64) -> Self {
        self.places.push(gpa);
        self
    }

    /// What is done with the guest before the map is made.
    pub(super) fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The first QEMU version that has it.
    pub(super) fn since(mut self, major: u32, minor: u32) -> Self {
        self.since = (major, minor);
        self
    }

    /// Why this version can't have the layout, if it can't.
    pub(super) fn lacking(&self, version: &Version) -> Option<String> {
        (version.number < self.since)
            .then(|| format!("QEMU has it since {}.{}", self.since.0, self.since.1))
    }

    /// The RAM that a memory region must have in the map.
    pub(super) fn ram_of(&self, region: &str) -> Option<&Ram> {
        let name = short_name(region);
        self.ram.iter().find(|ram| ram.region == name)
    }

    /// Whether a region is known to be no RAM.
    pub(super) fn is_other(&self, region: &str) -> bool {
        let name = short_name(region);
        self.others.contains(&name) || NEVER_RAM.contains(&name)
    }
}
