//! What a map promises, on small maps made by hand.

use super::*;

const MIB: u64 = 1 << 20;

fn block(hva: u64, total: u64, page_size: u64) -> RamBlock {
    RamBlock {
        name: "ram".to_owned(),
        hva: Hva(hva),
        used: total,
        total,
        page_size,
        backing: None,
    }
}

fn range(gpa: u64, len: u64, block: u32, offset: u64, block_hva: u64) -> MapRange {
    MapRange {
        gpa: Gpa(gpa),
        len,
        block: BlockIndex(block),
        offset,
        hva: Hva(block_hva + offset),
    }
}

/// 4 MiB of 2 MiB pages; the guest sees its last MiB at 1 MiB and again at 8 MiB.
fn doubled() -> GuestMemoryMap {
    let blocks = vec![block(0x4000_0000, 4 * MIB, 2 * MIB)];
    let ranges = vec![
        range(8 * MIB, MIB, 0, 3 * MIB, 0x4000_0000),
        range(MIB, MIB, 0, 3 * MIB, 0x4000_0000),
    ];
    GuestMemoryMap::new(1, blocks, ranges).unwrap()
}

#[test]
fn hva_to_gpa_when_the_guest_sees_a_byte_twice_gives_the_lowest() {
    let map = doubled();

    let (gpa, found) = map.hva_to_gpa(Hva(0x4000_0000 + 3 * MIB + 5)).unwrap();

    assert_eq!(gpa, Gpa(MIB + 5));
    assert_eq!(found.gpa, Gpa(MIB));
}

#[test]
fn pieces_when_asked_for_a_stretch_are_cut_to_it_and_leave_holes_out() {
    let map = doubled();
    let cut = |start, end| {
        let pieces = map.pieces(start, end);
        pieces
            .map(|piece| (piece.gpa.0, piece.len, piece.offset, piece.hva.0))
            .collect::<Vec<_>>()
    };
    let hva = 0x4000_0000 + 3 * MIB;

    assert_eq!(
        cut(MIB + 4096, 8 * MIB + 5),
        [
            (MIB + 4096, MIB - 4096, 3 * MIB + 4096, hva + 4096),
            (8 * MIB, 5, 3 * MIB, hva)
        ]
    );
    assert_eq!(cut(MIB + 1, MIB + 3), [(MIB + 1, 2, 3 * MIB + 1, hva + 1)]);
    for (start, end) in [(2 * MIB, 8 * MIB), (MIB + 7, MIB + 7), (9 * MIB, MIB)] {
        assert_eq!(cut(start, end), []);
    }
}

#[test]
fn unique_hva_ranges_when_the_guest_sees_a_page_twice_have_it_once_and_whole() {
    let map = doubled();

    let unique = map.unique_hva_ranges();

    // The MiB lies in the block's second page.
    let expected = HvaRange {
        start: Hva(0x4000_0000 + 2 * MIB),
        len: 2 * MIB,
        page_size: 2 * MIB,
        block: BlockIndex(0),
    };
    assert_eq!(unique, [expected]);
    assert_eq!(map.total_bytes(), 2 * MIB);
}

#[test]
fn hva_to_gpa_when_ranges_overlap_partly_covers_their_union() {
    let hva = 0x4000_0000;
    let ranges = vec![
        range(MIB, MIB, 0, MIB, hva),
        range(8 * MIB, 3 * MIB, 0, 0, hva),
    ];
    let map = GuestMemoryMap::new(1, vec![block(hva, 4 * MIB, 4096)], ranges).unwrap();

    let gpa = |offset| map.hva_to_gpa(Hva(hva + offset)).map(|(gpa, _)| gpa.0);

    assert_eq!(gpa(0), Some(8 * MIB));
    assert_eq!(gpa(MIB), Some(MIB));
    assert_eq!(gpa(2 * MIB), Some(10 * MIB));
    assert_eq!(gpa(3 * MIB), None);
    assert_eq!(map.unique_hva_ranges().len(), 1);
    assert_eq!(map.unique_hva_ranges()[0].len, 3 * MIB);
}

#[test]
fn look_ups_when_outside_find_nothing() {
    let map = doubled();

    for gpa in [0, MIB - 1, 2 * MIB, 9 * MIB, u64::MAX] {
        assert!(map.gpa_to_hva(Gpa(gpa)).is_none(), "{gpa:#x}");
    }
    for hva in [0, 0x4000_0000, 0x4000_0000 + 4 * MIB, u64::MAX] {
        assert!(map.hva_to_gpa(Hva(hva)).is_none(), "{hva:#x}");
    }
}

#[test]
fn map_when_its_parts_contradict_each_other_is_refused() {
    let hva = 0x4000_0000;
    let good = || {
        (
            vec![block(hva, 4 * MIB, 4096)],
            vec![range(MIB, MIB, 0, MIB, hva)],
        )
    };
    let refused = |change: &dyn Fn(&mut Vec<RamBlock>, &mut Vec<MapRange>)| {
        let (mut blocks, mut ranges) = good();
        change(&mut blocks, &mut ranges);
        GuestMemoryMap::new(1, blocks, ranges)
            .unwrap_err()
            .to_string()
    };

    assert!(GuestMemoryMap::new(1, good().0, good().1).is_ok());
    assert!(refused(&|b, _| b.push(block(hva + MIB, MIB, 4096))).contains("overlap in QEMU"));
    assert!(refused(&|b, _| b[0].page_size = 3000).contains("page size"));
    assert!(refused(&|b, _| b[0].page_size = 1 << 31).contains("multiple of its page size"));
    assert!(refused(&|b, _| b[0].used = 5 * MIB).contains("more is in use"));
    assert!(refused(&|b, _| b[0].total = u64::MAX - 4096).contains("past the address space"));
    assert!(refused(&|_, r| r[0].block = BlockIndex(1)).contains("does not exist"));
    assert!(refused(&|_, r| r[0].len = 0).contains("empty"));
    assert!(refused(&|_, r| r[0].len = 100).contains("aligned"));
    assert!(refused(&|_, r| r[0].gpa = Gpa(0)).contains("below 1 MiB"));
    assert!(refused(&|_, r| r[0].gpa = Gpa(u64::MAX - 4095)).contains("past the address space"));
    assert!(refused(&|_, r| r[0].len = 4 * MIB).contains("past its block"));
    assert!(refused(&|_, r| r[0].hva = Hva(hva)).contains("plus its offset"));
    assert!(
        refused(&|_, r| r.push(range(MIB + 4096, MIB, 0, 0, hva)))
            .contains("overlap at guest-physical")
    );
    assert!(
        refused(&|_, r| *r = vec![r[0]; MAX_RANGES + 1]).contains("more than a guest can have")
    );
}

#[test]
fn generation_when_the_layout_is_the_same_stays_and_when_it_changed_grows() {
    let map = doubled();
    let renamed = {
        let mut blocks = map.blocks().to_vec();
        blocks[0].name = String::new();
        GuestMemoryMap::new(0, blocks, map.ranges().to_vec()).unwrap()
    };
    let shrunk = GuestMemoryMap::new(0, map.blocks().to_vec(), map.ranges()[..1].to_vec()).unwrap();

    assert_eq!(map.succeeded_by(renamed).generation(), 1);
    assert_eq!(map.succeeded_by(shrunk).generation(), 2);
}
