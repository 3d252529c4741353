//! The guest's memory: backends, devices, RAM blocks, balloon.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::plain_commands;
use crate::hmp;

plain_commands! {
    /// The memory backends.
    QueryMemdev = "query-memdev" -> Vec<Memdev>;
    /// The plugged memory devices.
    QueryMemoryDevices = "query-memory-devices" -> Vec<MemoryDevice>;
    /// Base and plugged memory in bytes.
    QueryMemorySizeSummary = "query-memory-size-summary" -> MemorySizeSummary;
    /// The RAM blocks as text; QEMU ≥ 6.2. Parse it by [`HumanReadableText::ramblocks`].
    QueryRamblock = "x-query-ramblock" -> HumanReadableText;
    /// The balloon; an error of class `DeviceNotActive` when there is none.
    QueryBalloon = "query-balloon" -> BalloonInfo;
}

/// A memory backend.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Memdev {
    /// The id; `qom-get /objects/ID` tells more (`hugetlb`, `hugetlbsize`).
    #[serde(default)]
    pub id: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// The kernel may merge its pages (KSM).
    #[serde(default)]
    pub merge: bool,
    /// It is part of a core dump.
    #[serde(default)]
    pub dump: bool,
    /// It was populated at start.
    #[serde(default)]
    pub prealloc: bool,
    /// It is mapped shared.
    #[serde(default)]
    pub share: bool,
    /// Swap or huge pages were reserved for it; QEMU ≥ 6.1.
    #[serde(default)]
    pub reserve: Option<bool>,
    /// The host nodes that it is bound to.
    #[serde(default)]
    pub host_nodes: Vec<u32>,
    /// The memory policy: `default`, `preferred`, `bind`, `interleave`.
    pub policy: String,
}

/// A plugged memory device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryDevice {
    /// A DIMM.
    Dimm(DimmInfo),
    /// A persistent DIMM. Its range is shorter than its block by the label area.
    Nvdimm(DimmInfo),
    /// virtio-mem: the guest plugs and unplugs blocks of it.
    VirtioMem(VirtioMemInfo),
    /// virtio-pmem.
    VirtioPmem(VirtioPmemInfo),
    /// A kind that this crate doesn't know.
    Other {
        /// Its kind: `sgx-epc`, `hv-balloon` …
        kind: String,
        /// What QEMU tells of it.
        data: Value,
    },
}

impl MemoryDevice {
    /// The guest-physical range that it may fill: first address and length in bytes.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Dimm(dimm) | Self::Nvdimm(dimm) => Some((dimm.addr, dimm.size)),
            Self::VirtioMem(device) => Some((device.memaddr, device.max_size)),
            Self::VirtioPmem(device) => Some((device.memaddr, device.size)),
            Self::Other { data, .. } => {
                let number = |key: &str| data.get(key).and_then(Value::as_u64);
                Some((
                    number("memaddr")?,
                    number("max-size").or_else(|| number("size"))?,
                ))
            }
        }
    }

    /// The QOM path of its memory backend: `/objects/mem0`.
    #[must_use]
    pub fn memdev(&self) -> Option<&str> {
        match self {
            Self::Dimm(dimm) | Self::Nvdimm(dimm) => Some(&dimm.memdev),
            Self::VirtioMem(device) => Some(&device.memdev),
            Self::VirtioPmem(device) => Some(&device.memdev),
            Self::Other { data, .. } => data.get("memdev").and_then(Value::as_str),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryDevice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Tagged {
            r#type: String,
            data: Value,
        }

        fn typed<T: serde::de::DeserializeOwned, E: serde::de::Error>(data: Value) -> Result<T, E> {
            serde_json::from_value(data).map_err(E::custom)
        }

        let Tagged { r#type: kind, data } = Tagged::deserialize(deserializer)?;
        Ok(match kind.as_str() {
            "dimm" => Self::Dimm(typed(data)?),
            "nvdimm" => Self::Nvdimm(typed(data)?),
            "virtio-mem" => Self::VirtioMem(typed(data)?),
            "virtio-pmem" => Self::VirtioPmem(typed(data)?),
            _ => Self::Other { kind, data },
        })
    }
}

/// A DIMM or NVDIMM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DimmInfo {
    /// The device's id.
    #[serde(default)]
    pub id: Option<String>,
    /// Its first guest-physical address.
    pub addr: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its slot.
    pub slot: i64,
    /// The guest's node.
    pub node: i64,
    /// The QOM path of its backend.
    pub memdev: String,
    /// It was plugged at run time.
    #[serde(default)]
    pub hotplugged: bool,
    /// It can be unplugged.
    #[serde(default)]
    pub hotpluggable: bool,
}

/// A virtio-mem device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VirtioMemInfo {
    /// The device's id.
    #[serde(default)]
    pub id: Option<String>,
    /// The first guest-physical address of its region.
    pub memaddr: u64,
    /// Bytes that it should have.
    pub requested_size: u64,
    /// Bytes plugged now. Which blocks these are QEMU doesn't tell.
    pub size: u64,
    /// The size of its region in bytes.
    pub max_size: u64,
    /// The size of a block in bytes.
    pub block_size: u64,
    /// The guest's node.
    pub node: i64,
    /// The QOM path of its backend.
    pub memdev: String,
}

/// A virtio-pmem device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VirtioPmemInfo {
    /// The device's id.
    #[serde(default)]
    pub id: Option<String>,
    /// The first guest-physical address of its region.
    pub memaddr: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The QOM path of its backend.
    pub memdev: String,
}

/// Base and plugged memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySizeSummary {
    /// Bytes given by `-m`.
    pub base_memory: u64,
    /// Bytes plugged since; absent where the target has no plugging.
    #[serde(default)]
    pub plugged_memory: Option<u64>,
}

/// A text for people, as the `x-query-*` commands give it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanReadableText {
    /// The text.
    pub human_readable_text: String,
}

impl HumanReadableText {
    /// The text of `x-query-ramblock` as RAM blocks.
    ///
    /// # Errors
    /// As [`hmp::parse_ramblocks`].
    pub fn ramblocks(&self) -> Result<Vec<hmp::RamBlock>, hmp::ParseRamBlocksError> {
        hmp::parse_ramblocks(&self.human_readable_text)
    }
}

/// The balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct BalloonInfo {
    /// Bytes that the guest has now.
    pub actual: u64,
}
