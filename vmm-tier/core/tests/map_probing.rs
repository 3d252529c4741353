//! Probing random guests finds exactly their RAM; probing a liar ends.

use std::convert::Infallible;

use proptest::prelude::*;
use tier_core::{
    addr::{Gpa, Hva},
    map::{
        BlockRow, DiscoverError, GpaProbe, Inputs, MAX_PROBES, MemoryDevice, Probe, Vma, discover,
    },
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// A guest: backends one after the other in "low" and "high" memory, devices elsewhere.
#[derive(Clone, Debug)]
struct Guest {
    blocks: Vec<BlockRow>,
    /// (gpa, len, block, offset)
    pieces: Vec<(u64, u64, usize, u64)>,
    devices: Vec<MemoryDevice>,
    vmas: Vec<Vma>,
    starts: Vec<u64>,
    asked: u32,
}

impl GpaProbe for Guest {
    type Error = Infallible;

    fn gpa_to_hva(&mut self, gpa: Gpa) -> Result<Probe, Infallible> {
        self.asked += 1;
        let piece = self
            .pieces
            .iter()
            .find(|&&(start, len, ..)| (start..start + len).contains(&gpa.0));
        Ok(match piece {
            Some(&(start, _, block, offset)) => Probe::Mapped {
                hva: Hva(self.starts[block] + offset + (gpa.0 - start)),
                region_name: format!("/objects/{}", self.blocks[block].name),
            },
            None if gpa.0 & MIB == 0 => Probe::Unmapped,
            None => Probe::NotRam,
        })
    }
}

impl Guest {
    fn inputs(&self) -> Inputs {
        Inputs {
            blocks: self.blocks.clone(),
            devices: self.devices.clone(),
            vmas: self.vmas.clone(),
        }
    }

    fn add_block(&mut self, pages: u64, gap_pages: u64, with_hva: bool) -> usize {
        let end = self.vmas.last().map_or(0x7f00_0000_0000, |vma| vma.end);
        // One page at least between mappings, as QEMU's guard pages keep them apart.
        let start = end + (1 + gap_pages) * PAGE;
        self.vmas.push(Vma {
            start,
            end: start + pages * PAGE,
        });
        self.starts.push(start);
        self.blocks.push(BlockRow {
            name: format!("ram{}", self.blocks.len()),
            page_size: PAGE,
            used: pages * PAGE,
            total: pages * PAGE,
            hva: with_hva.then_some(Hva(start)),
            read_only: false,
        });
        self.blocks.len() - 1
    }
}

prop_compose! {
    /// RAM of one to four backends laid from 0 up, split at `split` and continued at 4 GiB or 1 TiB;
    /// devices above, some next to each other, some shorter than their backend.
    fn guests()(
        with_hva in any::<bool>(),
        ram in prop::collection::vec((300_u64..2_000_000, 0_u64..600), 1..4),
        split in 300_u64..700_000,
        high in prop::sample::select(vec![4_u64 << 30, 1 << 40]),
        devices in prop::collection::vec((2_u64..500_000, 0_u64..600, prop::option::of(0_u64..100_000), 0_u64..3), 0..6),
    ) -> Guest {
        let mut guest = Guest {
            blocks: Vec::new(), pieces: Vec::new(), devices: Vec::new(), vmas: Vec::new(), starts: Vec::new(), asked: 0,
        };
        let (mut low, mut top) = (0, high);
        for (pages, gap) in ram {
            let block = guest.add_block(pages, gap, with_hva);
            let len = pages * PAGE;
            let below = len.min(split * PAGE - low);
            for (gpa, len, offset) in [(low, below, 0), (top, len - below, below)] {
                if len > 0 {
                    guest.pieces.push((gpa, len, block, offset));
                }
            }
            low += below;
            top += len - below;
        }
        for (pages, gap, labels, hole) in devices {
            let block = guest.add_block(pages, gap, with_hva);
            let len = (pages - labels.unwrap_or(0).min(pages - 1)) * PAGE;
            top += hole * 2 * MIB;
            guest.pieces.push((top, len, block, 0));
            guest.devices.push(MemoryDevice { gpa: top, len, has_holes: false });
            top += len;
        }
        // Firmware at the top of 4 GiB and a backend that is not plugged.
        let bios = guest.add_block(64, 0, with_hva);
        guest.blocks[bios].name = "pc.bios".to_owned();
        if guest.pieces.iter().all(|&(gpa, len, ..)| gpa >= 4 << 30 || gpa + len <= (4 << 30) - 64 * PAGE) {
            guest.pieces.push(((4 << 30) - 64 * PAGE, 64 * PAGE, bios, 0));
        }
        guest
    }
}

/// The RAM of a guest from 1 MiB up, sorted: (gpa, len, hva).
fn truth(guest: &Guest) -> Vec<(u64, u64, u64)> {
    let mut ram: Vec<_> = guest
        .pieces
        .iter()
        .filter(|&&(gpa, len, block, _)| gpa + len > MIB && guest.blocks[block].name != "pc.bios")
        .map(|&(gpa, len, block, offset)| {
            let cut = MIB.saturating_sub(gpa);
            (gpa + cut, len - cut, guest.starts[block] + offset + cut)
        })
        .collect();
    ram.sort_unstable();
    ram
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn map_when_probed_from_a_random_guest_is_its_ram(mut guest in guests()) {
        let inputs = guest.inputs();

        let found = discover(&inputs, 7, &mut guest).unwrap();

        let ranges: Vec<_> = found.map.ranges().iter().map(|range| (range.gpa.0, range.len, range.hva.0)).collect();
        prop_assert_eq!(ranges, truth(&guest));
        prop_assert_eq!(found.probes, guest.asked);
        // A range costs its first page, a doubling and a bisection over at most 2^33 bytes: 1 + 12 + 21,
        // and a probe after its end.
        prop_assert!(found.probes <= 4 + 36 * u32::try_from(found.map.ranges().len()).unwrap());
        prop_assert!(found.map.is_valid());
        for &(gpa, len, hva) in &truth(&guest) {
            for offset in [0, len / 2, len - 1] {
                prop_assert_eq!(found.map.gpa_to_hva(Gpa(gpa + offset)).unwrap().0, Hva(hva + offset));
                prop_assert_eq!(found.map.hva_to_gpa(Hva(hva + offset)).unwrap().0, Gpa(gpa + offset));
            }
        }
        let unique: u64 = found.map.unique_hva_ranges().iter().map(|range| range.len).sum();
        prop_assert_eq!(unique, found.map.total_bytes());
    }

    #[test]
    fn discovery_when_the_answers_are_random_ends_without_panic(
        guest in guests(),
        answers in prop::collection::vec((0_u8..6, any::<u64>(), any::<bool>()), 1..64),
        junk_rows in prop::collection::vec(any::<(u64, u64, u64, Option<u64>)>(), 0..4),
        junk_devices in prop::collection::vec(any::<(u64, u64, bool)>(), 0..4),
    ) {
        let mut inputs = guest.inputs();
        inputs.blocks.extend(junk_rows.into_iter().map(|(page_size, used, total, hva)| BlockRow {
            name: String::new(), page_size, used, total, hva: hva.map(Hva), read_only: false,
        }));
        inputs.devices.extend(junk_devices.into_iter().map(|(gpa, len, has_holes)| MemoryDevice { gpa, len, has_holes }));
        let mut liar = Liar { guest, answers, asked: 0 };

        let outcome = discover(&inputs, 0, &mut liar);

        prop_assert!(liar.asked <= MAX_PROBES as usize);
        if let Ok(found) = outcome {
            prop_assert!(found.map.is_valid());
        }
    }
}

/// Answers truly, randomly, or nearly truly, in turn.
struct Liar {
    guest: Guest,
    answers: Vec<(u8, u64, bool)>,
    asked: usize,
}

impl GpaProbe for Liar {
    type Error = String;

    fn gpa_to_hva(&mut self, gpa: Gpa) -> Result<Probe, String> {
        let (kind, number, flag) = self.answers[self.asked % self.answers.len()];
        self.asked += 1;
        let region_name = if flag {
            "ram0".to_owned()
        } else {
            format!("x{number}")
        };
        Ok(match kind {
            0 => Probe::Unmapped,
            1 => Probe::NotRam,
            2 => Probe::Mapped {
                hva: Hva(number),
                region_name,
            },
            3 => Probe::Mapped {
                hva: Hva(self.guest.starts[0].wrapping_add(number % (1 << 32))),
                region_name,
            },
            _ => self.guest.gpa_to_hva(gpa).unwrap(),
        })
    }
}

#[test]
fn discovery_when_every_page_is_a_range_of_its_own_gives_up() {
    /// Every page lies one page further than it should, so no range is longer than a page.
    struct Scattered;
    impl GpaProbe for Scattered {
        type Error = Infallible;
        fn gpa_to_hva(&mut self, gpa: Gpa) -> Result<Probe, Infallible> {
            Ok(Probe::Mapped {
                hva: Hva(0x7000_0000_0000 + 2 * gpa.0),
                region_name: "ram0".to_owned(),
            })
        }
    }
    let total = 1 << 40;
    let row = BlockRow {
        name: "ram0".to_owned(),
        page_size: PAGE,
        used: total,
        total,
        hva: Some(Hva(0x7000_0000_0000)),
        read_only: false,
    };

    let error = discover(
        &Inputs {
            blocks: vec![row],
            ..Inputs::default()
        },
        0,
        &mut Scattered,
    )
    .unwrap_err();

    assert!(
        matches!(error, DiscoverError::TooManyProbes | DiscoverError::Map(_)),
        "unexpected: {error}"
    );
}

#[test]
fn discovery_when_the_block_list_is_older_than_the_layout_says_so() {
    struct Elsewhere;
    impl GpaProbe for Elsewhere {
        type Error = Infallible;
        fn gpa_to_hva(&mut self, _: Gpa) -> Result<Probe, Infallible> {
            Ok(Probe::Mapped {
                hva: Hva(0x1000),
                region_name: "dimm7".to_owned(),
            })
        }
    }
    let row = BlockRow {
        name: "ram0".to_owned(),
        page_size: PAGE,
        used: 64 * MIB,
        total: 64 * MIB,
        hva: Some(Hva(0x7000_0000_0000)),
        read_only: false,
    };

    let error = discover(
        &Inputs {
            blocks: vec![row],
            ..Inputs::default()
        },
        0,
        &mut Elsewhere,
    )
    .unwrap_err();

    assert!(
        matches!(error, DiscoverError::UnknownMemory { gpa: MIB, .. }),
        "unexpected: {error}"
    );
}

/// A guest of 512 MiB with a block of its own for each further piece: gpa, length, offset.
fn guest_with(name: &str, len: u64, pieces: &[(u64, u64, u64)], with_hva: bool) -> Guest {
    let mut guest = Guest {
        blocks: Vec::new(),
        pieces: Vec::new(),
        devices: Vec::new(),
        vmas: Vec::new(),
        starts: Vec::new(),
        asked: 0,
    };
    let ram = guest.add_block(512 * MIB / PAGE, 0, with_hva);
    guest.pieces.push((0, 512 * MIB, ram, 0));
    let block = guest.add_block(len / PAGE, 0, with_hva);
    guest.blocks[block].name = name.to_owned();
    for &(gpa, len, offset) in pieces {
        guest.pieces.push((gpa, len, block, offset));
    }
    guest
}

fn ranges(guest: &mut Guest) -> Vec<(u64, u64)> {
    let found = discover(&guest.inputs(), 1, guest).unwrap();
    let ranges = found.map.ranges().iter();
    ranges.map(|range| (range.gpa.0, range.len)).collect()
}

#[test]
fn ram_of_a_device_when_it_begins_where_the_guests_ram_ends_is_left_out() {
    // ivshmem-plain on PCI, and a BAR of a passed-through device.
    for name in ["0000:00:04.0/shmem0", ""] {
        for with_hva in [true, false] {
            for gpa in [512 * MIB, 4 << 30, 1 << 40] {
                let mut guest = guest_with(name, 64 * MIB, &[(gpa, 64 * MIB, 0)], with_hva);

                let found = ranges(&mut guest);

                assert_eq!(found, [(MIB, 511 * MIB)], "'{name}' at {gpa:#x}");
            }
        }
    }
    let mut second_node = guest_with("/objects/m1", 64 * MIB, &[(512 * MIB, 64 * MIB, 0)], true);
    assert_eq!(ranges(&mut second_node).len(), 2);
}

#[test]
fn memslots_when_some_are_plugged_are_found_and_the_holes_left_out() {
    let start: u64 = 4 << 30;
    // The slots' size is a multiple of the device's blocks, not of 1 GiB; the last is shorter.
    let (slot, len) = (1100 * MIB, 10 * 1100 * MIB + 300 * MIB);
    for (plugged, expected) in [
        (vec![], vec![]),
        (vec![0], vec![(0, slot)]),
        (vec![1], vec![(slot, slot)]),
        (vec![0, 1, 3], vec![(0, 2 * slot), (3 * slot, slot)]),
        (
            vec![2, 4, 6, 8],
            vec![
                (2 * slot, slot),
                (4 * slot, slot),
                (6 * slot, slot),
                (8 * slot, slot),
            ],
        ),
        (vec![10], vec![(10 * slot, 300 * MIB)]),
        (vec![0, 10], vec![(0, slot), (10 * slot, 300 * MIB)]),
        ((0..11).collect(), vec![(0, len)]),
    ] {
        for with_hva in [true, false] {
            let pieces: Vec<_> = plugged
                .iter()
                .map(|n| (start + n * slot, slot.min(len - n * slot), n * slot))
                .collect();
            let mut guest = guest_with("0000:00:05.0/vmem0", len, &pieces, with_hva);
            guest.devices.push(MemoryDevice {
                gpa: start,
                len,
                has_holes: true,
            });

            let found = ranges(&mut guest);

            let device: Vec<_> = expected
                .iter()
                .map(|&(at, len)| (start + at, len))
                .collect();
            assert_eq!(found[1..], device, "{plugged:?}");
            // A few for the RAM, one a slot, and two bisections over 2^18 pages a run.
            assert!(guest.asked < 20 + 12 + 40 * (1 + expected.len() as u32));
        }
    }
}
