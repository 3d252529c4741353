//! The map of every recorded guest equals the RAM that QEMU itself listed.

use std::{fs, path::Path};

use serde_json::Value;
use tier_core::{
    addr::{Gpa, Hva},
    map::{
        BlockRow, Discovery, GpaProbe, GuestMemoryMap, Inputs, MemoryDevice, Probe, Vma, discover,
    },
};

/// A piece of the recorded flat view.
struct Piece {
    gpa: u64,
    len: u64,
    ram: bool,
    region: String,
    hva: u64,
}

/// Answers from the recorded flat view.
struct Recorded(Vec<Piece>);

impl GpaProbe for Recorded {
    type Error = std::convert::Infallible;

    fn gpa_to_hva(&mut self, gpa: Gpa) -> Result<Probe, Self::Error> {
        let piece = self
            .0
            .iter()
            .find(|piece| (piece.gpa..piece.gpa + piece.len).contains(&gpa.0));
        Ok(piece.map_or(Probe::Unmapped, |piece| Probe::Mapped {
            hva: Hva(piece.hva + (gpa.0 - piece.gpa)),
            region_name: piece.region.clone(),
        }))
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

fn read_flatview(path: &Path) -> Vec<Piece> {
    let value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let pieces = value.as_array().unwrap().iter();
    pieces
        .map(|piece| Piece {
            gpa: piece["gpa"].as_u64().unwrap(),
            len: piece["len"].as_u64().unwrap(),
            ram: piece["type"] == "ram",
            region: piece["region"].as_str().unwrap().to_owned(),
            hva: piece["hva"].as_u64().unwrap(),
        })
        .collect()
}

fn read_blocks(path: &Path) -> Vec<BlockRow> {
    let text = fs::read_to_string(path).unwrap();
    let has_hva = text.lines().next().unwrap().contains("HVA");
    let row = |line: &str| {
        // The name is empty or the first field; the unit is a field of its own.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let named = fields.len() - if has_hva { 7 } else { 5 };
        let numbers = &fields[named..];
        let unit = if numbers[1] == "KiB" {
            1 << 10
        } else if numbers[1] == "MiB" {
            1 << 20
        } else {
            1 << 30
        };
        BlockRow {
            name: fields[..named].join(" "),
            page_size: numbers[0].parse::<u64>().unwrap() * unit,
            used: hex(numbers[3]),
            total: hex(numbers[4]),
            hva: has_hva.then(|| Hva(hex(numbers[5]))),
            read_only: has_hva && numbers[6] == "ro",
        }
    };
    text.lines().skip(1).map(row).collect()
}

fn read_devices(path: &Path) -> Vec<MemoryDevice> {
    let value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let number =
        |data: &Value, keys: [&str; 2]| keys.iter().find_map(|key| data[key].as_u64()).unwrap();
    let devices = value["return"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| &device["data"]);
    devices
        .map(|data| MemoryDevice {
            gpa: number(data, ["addr", "memaddr"]),
            len: number(data, ["max-size", "size"]),
            has_holes: false,
        })
        .collect()
}

fn read_vmas(path: &Path) -> Vec<Vma> {
    let Ok(text) = fs::read_to_string(path) else {
        return Vec::new();
    };
    let vma = |line: &str| {
        let (start, rest) = line.split_once('-').unwrap();
        Vma {
            start: hex(start),
            end: hex(rest.split(' ').next().unwrap()),
        }
    };
    text.lines().map(vma).collect()
}

/// All recorded states: a label and the path without its endings.
fn states() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/map");
    let mut states = Vec::new();
    for version in ["7.2", "10.0"] {
        for shape in fs::read_dir(root.join(version)).unwrap() {
            for file in fs::read_dir(shape.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                if let Some(state) = path.to_str().unwrap().strip_suffix(".flatview.json") {
                    states.push(state.to_owned());
                }
            }
        }
    }
    states.sort();
    states
}

fn found(state: &str) -> (Vec<Piece>, Discovery) {
    let file = |ending: &str| Path::new(&format!("{state}.{ending}")).to_owned();
    let inputs = Inputs {
        blocks: read_blocks(&file("ramblock.txt")),
        devices: read_devices(&file("memory-devices.json")),
        vmas: read_vmas(&file("maps.txt")),
    };
    let discovery = discover(
        &inputs,
        1,
        &mut Recorded(read_flatview(&file("flatview.json"))),
    )
    .unwrap_or_else(|error| panic!("{state}: {error}"));
    (read_flatview(&file("flatview.json")), discovery)
}

fn ram_above_1_mib(pieces: &[Piece]) -> Vec<(u64, u64, u64)> {
    let ram = pieces
        .iter()
        .filter(|piece| piece.ram && piece.gpa >= 1 << 20 && piece.region != "pc.bios");
    ram.map(|piece| (piece.gpa, piece.len, piece.hva)).collect()
}

fn as_tuples(map: &GuestMemoryMap) -> Vec<(u64, u64, u64)> {
    map.ranges()
        .iter()
        .map(|range| (range.gpa.0, range.len, range.hva.0))
        .collect()
}

#[test]
fn map_when_made_from_a_recorded_guest_is_the_ram_that_qemu_lists() {
    let states = states();
    // 12 shapes × 2 versions, 2 states each or more.
    assert!(states.len() >= 48, "{} states", states.len());
    for state in &states {
        let (truth, discovery) = found(state);
        assert_eq!(
            as_tuples(&discovery.map),
            ram_above_1_mib(&truth),
            "{state}"
        );
        assert!(discovery.map.is_valid(), "{state}");
        println!(
            "{}: {} probes",
            state.rsplit("map/").next().unwrap(),
            discovery.probes
        );
        assert!(
            discovery.probes <= 64,
            "{state}: {} probes",
            discovery.probes
        );
    }
}

#[test]
fn page_size_when_a_backend_is_hugetlb_is_that_of_its_block() {
    for (shape, expected) in [
        ("d-memfd-hugetlb-2m", vec![2 << 20]),
        ("d3-memfd-hugetlb-1g", vec![1 << 30]),
        ("f-two-numa", vec![4 << 10, 2 << 20]),
    ] {
        for version in ["7.2", "10.0"] {
            let state = format!(
                "{}/tests/data/map/{version}/{shape}/ran",
                env!("CARGO_MANIFEST_DIR")
            );
            let (_, Discovery { map, .. }) = found(&state);
            let sizes: Vec<u64> = map
                .ranges()
                .iter()
                .map(|range| map.block(range.block).page_size)
                .collect();
            assert_eq!(sizes, expected, "{state}");
        }
    }
}

#[test]
fn unmapped_when_a_backend_is_not_plugged_names_its_bytes() {
    // hp0 was taken out of the running guest; its backend of 256 MiB remains under an empty name.
    for version in ["7.2", "10.0"] {
        let state = format!(
            "{}/tests/data/map/{version}/g-pcdimm/ran",
            env!("CARGO_MANIFEST_DIR")
        );
        let (_, discovery) = found(&state);
        assert_eq!(discovery.unmapped, [(String::new(), 256 << 20)], "{state}");
    }
}
