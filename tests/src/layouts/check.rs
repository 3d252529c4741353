//! The comparison of one guest's map with what qtest, the monitor and the flat view say.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use qmp::hmp::Gpa2Hva;
use serde::{Deserialize, Serialize};

use super::Options;
use super::emulator::{Qemu, output_of};
use super::flat_view::{self, Piece, short_name};
use super::layout::{GIB, Layout, MIB};
use super::random::Random;

/// Nothing below is ever in a map.
const LOWEST: u64 = MIB;
const WORD: u64 = 8;
/// Random addresses outside the map are below this.
const HIGHEST: u64 = 1 << 40;
/// How many mismatches are told one by one.
const TOLD: usize = 8;

/// Where PCs have devices and firmware: legacy VGA, option ROMs, BIOS, PCI windows, IOAPIC, HPET,
/// TPM, local APIC, pflash, and the addresses that AMD keeps for HyperTransport.
const DEVICES: [u64; 16] = [
    0xa_0000,
    0xb_8000,
    0xc_0000,
    0xe_0000,
    0xf_fff8,
    0xb000_0000,
    0xc000_0000,
    0xe000_0000,
    0xfeb0_0000,
    0xfec0_0000,
    0xfed0_0000,
    0xfed4_0000,
    0xfee0_0000,
    0xff80_0000,
    0xffff_fff0,
    0xfd_0000_0000,
];

/// What was found in one guest.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Findings {
    /// Ranges of the map.
    pub ranges: usize,
    /// Bytes of the map.
    pub bytes: u64,
    /// Addresses that the map's making asked QEMU for.
    pub translations: u32,
    /// How long the map's making took: the median of [`Options::maps`] times.
    pub elapsed_us: u64,
    /// Addresses in the map that were written, read back and asked for.
    pub inside: usize,
    /// Addresses outside the map that were asked for.
    pub outside: usize,
    /// Everything that does not agree.
    pub mismatches: u64,
    /// The first mismatches in words.
    pub told: Vec<String>,
}

/// What `vmm-tier map --json` says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MapJson {
    pid: u32,
    translations: u32,
    elapsed_us: u64,
    ranges: Vec<RangeJson>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RangeJson {
    gpa: u64,
    len: u64,
    offset: u64,
    hva: u64,
    page_size: u64,
}

impl RangeJson {
    fn end(&self) -> u64 {
        self.gpa.saturating_add(self.len)
    }
}

/// The checks of one guest.
#[derive(Debug)]
pub(super) struct Checker<'a> {
    options: &'a Options,
    layout: &'a Layout,
    random: &'a mut Random,
    mismatches: u64,
    told: Vec<String>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(options: &'a Options, layout: &'a Layout, random: &'a mut Random) -> Self {
        Self {
            options,
            layout,
            random,
            mismatches: 0,
            told: Vec::new(),
        }
    }

    /// Makes the map and compares it.
    pub(super) fn check(mut self, qemu: &mut Qemu) -> anyhow::Result<Findings> {
        let map = self.map(qemu)?;
        let mut times = vec![map.elapsed_us];
        for _ in 1..self.options.maps {
            times.push(self.map(qemu)?.elapsed_us);
        }
        times.sort_unstable();
        let inside = self.inside(&map.ranges);
        let outside = self.outside(&map.ranges);
        self.compare_patterns(qemu, &inside)?;
        self.compare_inside(qemu, &inside)?;
        self.compare_outside(qemu, &outside)?;
        self.compare_ranges(qemu, &map.ranges)?;
        Ok(Findings {
            ranges: map.ranges.len(),
            bytes: map.ranges.iter().map(|range| range.len).sum(),
            translations: map.translations,
            elapsed_us: times[times.len() / 2],
            inside: inside.len(),
            outside: outside.len(),
            mismatches: self.mismatches,
            told: self.told,
        })
    }

    fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.mismatches += 1;
        if self.told.len() < TOLD {
            self.told.push(what());
        }
    }

    fn map(&self, qemu: &Qemu) -> anyhow::Result<MapJson> {
        let mut command = Command::new(&self.options.program);
        command
            .arg("map")
            .arg("--json")
            .arg("--qmp")
            .arg(qemu.map_socket());
        let text = output_of(&mut command, Duration::from_secs(60)).context("vmm-tier map")?;
        let map: MapJson = serde_json::from_str(&text).context("what vmm-tier map printed")?;
        ensure!(
            map.pid == qemu.pid(),
            "the map is of process {}, QEMU is {}",
            map.pid,
            qemu.pid()
        );
        ensure!(!map.ranges.is_empty(), "the map is empty");
        Ok(map)
    }

    /// Addresses in the map, multiples of 8, and where the map says they are: both ends of each range,
    /// both sides of single pages and 2 MiB boundaries near them, and random ones.
    fn inside(&mut self, ranges: &[RangeJson]) -> BTreeMap<u64, u64> {
        let mut addresses = BTreeMap::new();
        let share = self.options.addresses / ranges.len() + 1;
        for range in ranges {
            let words = range.len / WORD;
            let mut add = |word: u64| {
                if word < words {
                    addresses.insert(range.gpa + word * WORD, range.hva + word * WORD);
                }
            };
            for step in [1, 512, 2 * MIB / WORD] {
                for word in [0, step - 1, step, words - 1, words.saturating_sub(step)] {
                    add(word);
                }
            }
            for _ in 0..share {
                add(self.random.below(words));
            }
        }
        // Random addresses fall together now and then, in small ranges mostly.
        let total: u64 = ranges.iter().map(|range| range.len).sum();
        while addresses.len() < self.options.addresses {
            let mut at = self.random.below(total / WORD) * WORD;
            for range in ranges {
                if at < range.len {
                    addresses.insert(range.gpa + at, range.hva + at);
                    break;
                }
                at -= range.len;
            }
        }
        addresses
    }

    /// Addresses outside the map: around the ends of each range, where devices are, and random ones
    /// in the first 16 GiB, just above the map, and up to 1 TiB.
    fn outside(&mut self, ranges: &[RangeJson]) -> BTreeSet<u64> {
        let is_outside = |gpa: u64| {
            ranges
                .iter()
                .all(|range| !(range.gpa..range.end()).contains(&gpa))
        };
        let mut addresses = BTreeSet::new();
        let mut around: Vec<u64> = DEVICES.to_vec();
        around.extend(&self.layout.places);
        around.extend(ranges.iter().flat_map(|range| [range.gpa, range.end()]));
        for place in around {
            for distance in [0, WORD, 4096, 2 * MIB, 16 * MIB, GIB] {
                for gpa in [
                    place.saturating_sub(distance.max(WORD)),
                    place.saturating_add(distance),
                ] {
                    addresses.insert(gpa & !(WORD - 1));
                }
            }
        }
        addresses.retain(|&gpa| is_outside(gpa));
        let top = ranges.iter().map(RangeJson::end).max().unwrap_or(0);
        let least = addresses.len() + self.options.addresses;
        while addresses.len() < least {
            let gpa = match self.random.below(4) {
                0 => self.random.below(16 * GIB),
                1 => top + self.random.below(4 * GIB),
                2 => self.random.below(GIB) + 3 * GIB,
                _ => self.random.below(HIGHEST),
            } & !(WORD - 1);
            if is_outside(gpa) {
                addresses.insert(gpa);
            }
        }
        addresses
    }

    /// All patterns are written before one is read, so that two addresses at the same place show.
    fn compare_patterns(
        &mut self,
        qemu: &mut Qemu,
        inside: &BTreeMap<u64, u64>,
    ) -> anyhow::Result<()> {
        let words: Vec<(u64, u64)> = inside.keys().map(|&gpa| (gpa, self.random.any())).collect();
        qemu.qtest()?.write_words(&words)?;
        let places: Vec<u64> = inside.values().copied().collect();
        let found = qemu.read_words(&places)?;
        for (((gpa, pattern), hva), found) in words.into_iter().zip(places).zip(found) {
            if found != Some(pattern) {
                self.wrong(|| {
                    format!("{pattern:#x} written at {gpa:#x}, at {hva:#x} of QEMU is {found:x?}")
                });
            }
        }
        Ok(())
    }

    /// QEMU says the same place, and that it is RAM of the layout.
    fn compare_inside(&mut self, qemu: &Qemu, inside: &BTreeMap<u64, u64>) -> anyhow::Result<()> {
        let gpas: Vec<u64> = inside.keys().copied().collect();
        let answers = qemu.translate(&gpas)?;
        for ((gpa, hva), answer) in inside.iter().zip(answers) {
            let is_right = matches!(&answer, Gpa2Hva::Mapped { hva: there, region }
                if there == hva && self.layout.ram_of(region).is_some());
            if !is_right {
                self.wrong(|| {
                    format!(
                        "mapped but not RAM: {gpa:#x} at {hva:#x}; {}",
                        said(&answer)
                    )
                });
            }
        }
        Ok(())
    }

    /// QEMU has no RAM of the layout there, and nothing that the layout does not name.
    fn compare_outside(&mut self, qemu: &Qemu, outside: &BTreeSet<u64>) -> anyhow::Result<()> {
        let gpas: Vec<u64> = outside.iter().copied().collect();
        let answers = qemu.translate(&gpas)?;
        for (gpa, answer) in gpas.into_iter().zip(answers) {
            let Gpa2Hva::Mapped { region, .. } = &answer else {
                continue;
            };
            if gpa >= LOWEST && !self.layout.is_other(region) {
                self.wrong(|| format!("RAM not mapped: {gpa:#x}; {}", said(&answer)));
            }
        }
        Ok(())
    }

    /// The map has exactly the ranges of the flat view, and of each region the bytes of the layout.
    fn compare_ranges(&mut self, qemu: &Qemu, ranges: &[RangeJson]) -> anyhow::Result<()> {
        let starts: Vec<u64> = ranges.iter().map(|range| range.gpa).collect();
        let answers = qemu.translate(&starts)?;
        let mapped = ranges.iter().zip(answers).map(|(range, answer)| Piece {
            gpa: range.gpa,
            len: range.len,
            region: match answer {
                Gpa2Hva::Mapped { region, .. } => short_name(&region).to_owned(),
                _ => String::new(),
            },
            offset: range.offset,
        });
        let mapped: Vec<Piece> = mapped.collect();
        for ram in &self.layout.ram {
            let of_region = |piece: &&Piece| piece.region == ram.region;
            let bytes: u64 = mapped.iter().filter(of_region).map(|piece| piece.len).sum();
            if bytes != ram.bytes {
                self.wrong(|| format!("{bytes} bytes of {} mapped, not {}", ram.region, ram.bytes));
            }
            for (piece, range) in mapped.iter().zip(ranges) {
                if of_region(&piece) && range.page_size != ram.page {
                    self.wrong(|| {
                        format!(
                            "pages of {} have {} bytes, not {}",
                            ram.region, range.page_size, ram.page
                        )
                    });
                }
            }
        }
        let seen = flat_view::parse(&qemu.human("info mtree -f")?);
        ensure!(!seen.is_empty(), "QEMU's flat view can't be read");
        let is_ram = |piece: &Piece| self.layout.ram_of(&piece.region).is_some();
        let seen: Vec<Piece> = seen
            .iter()
            .filter(|piece| is_ram(piece))
            .filter_map(|piece| piece.from(LOWEST))
            .collect();
        let mapped = flat_view::merged(mapped);
        let (missing, extra) = (difference(&seen, &mapped), difference(&mapped, &seen));
        for (what, pieces) in [("not mapped", missing), ("mapped", extra)] {
            for piece in pieces {
                self.wrong(|| {
                    format!(
                        "{what}, against the flat view: {:#x} + {:#x} of {} at {:#x}",
                        piece.gpa, piece.len, piece.region, piece.offset
                    )
                });
            }
        }
        Ok(())
    }
}

fn difference(all: &[Piece], without: &[Piece]) -> Vec<Piece> {
    let rest = all.iter().filter(|piece| !without.contains(piece));
    rest.cloned().collect()
}

fn said(answer: &Gpa2Hva) -> String {
    match answer {
        Gpa2Hva::Mapped { hva, region } => format!("QEMU has {region} there, at {hva:#x}"),
        Gpa2Hva::Unmapped => "QEMU has nothing there".to_owned(),
        Gpa2Hva::NotRam => "QEMU has a device there".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::AtomicBool;

    use super::*;

    static STOP: AtomicBool = AtomicBool::new(false);

    fn split() -> [RangeJson; 2] {
        let range = |gpa, len, offset| RangeJson {
            gpa,
            len,
            offset,
            hva: 0x7f00_0000_0000 + offset,
            page_size: 4096,
        };
        [range(MIB, 2047 * MIB, MIB), range(4 * GIB, 4096, 2 * GIB)]
    }

    #[test]
    fn addresses_when_a_range_is_small_are_enough_and_hold_all_ends() {
        let options = Options {
            program: PathBuf::new(),
            maps: 1,
            addresses: 1000,
            seed: 1,
            stop: &STOP,
        };
        let layout = Layout::new("x", "");
        let mut random = Random::new(1);
        let mut checker = Checker::new(&options, &layout, &mut random);
        let ranges = split();

        let inside = checker.inside(&ranges);
        let outside = checker.outside(&ranges);

        assert!(inside.len() >= 1000 && outside.len() >= 1000);
        for range in &ranges {
            assert_eq!(inside[&range.gpa], range.hva);
            assert_eq!(inside[&(range.end() - 8)], range.hva + range.len - 8);
            assert!(outside.contains(&(range.gpa - 8)) && outside.contains(&range.end()));
        }
        for (gpa, hva) in &inside {
            assert!(gpa.is_multiple_of(8) && !outside.contains(gpa));
            let of = |range: &&RangeJson| (range.gpa..range.end()).contains(gpa);
            let range = ranges.iter().find(of).unwrap();
            assert_eq!(gpa - range.gpa, hva - range.hva);
        }
        assert!(outside.contains(&0xfec0_0000));
    }
}
