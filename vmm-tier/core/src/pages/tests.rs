//! The page index: addresses to pages and back, folding, runs.

use super::*;

const MIB: u64 = 1 << 20;

const fn huge(hva: u64) -> Page {
    Page {
        hva: Hva(hva),
        bytes: HUGE_PAGE,
    }
}

fn index() -> PageIndex {
    PageIndex::new([
        Span {
            hva: Hva(16 * MIB),
            bytes: 8 * MIB,
            frame_bytes: BASE_PAGE,
        },
        Span {
            hva: Hva(32 * MIB),
            bytes: 8 * MIB,
            frame_bytes: HUGE_PAGE,
        },
    ])
    .unwrap()
}

fn runs(index: &PageIndex, hva: u64, len: u64) -> Vec<(Range<u32>, f32)> {
    let mut all = Vec::new();
    index.for_runs(Hva(hva), len, |run| all.push((run.ids, run.share)));
    all
}

#[test]
fn page_when_looked_up_by_address_has_that_address() {
    let mut index = index();
    index.fold(huge(18 * MIB)).unwrap();
    for hva in [16 * MIB, 17 * MIB + 4096, 18 * MIB, 32 * MIB, 36 * MIB] {
        let id = index.id_at(Hva(hva)).unwrap();
        assert_eq!(index.page(id).unwrap().hva, Hva(hva));
    }
    assert_eq!(index.id_at(Hva(24 * MIB)), None);
    assert_eq!(index.id_at(Hva(15 * MIB)), None);
    assert_eq!(index.frames(), 2048 + 4);
}

#[test]
fn tail_when_its_huge_page_is_folded_resolves_to_the_head() {
    let mut index = index();
    assert_eq!(index.fold(huge(18 * MIB)), Some(512..1024));
    assert_eq!(index.fold(huge(18 * MIB)), None, "folded already");
    assert_eq!(index.fold(huge(18 * MIB + 4096)), None, "unaligned");
    assert_eq!(index.fold(huge(32 * MIB)), None, "hugetlb");
    assert_eq!(index.id_at(Hva(19 * MIB)), Some(PageId(512)));
    assert_eq!(index.page(PageId(512)).unwrap().bytes, HUGE_PAGE);
    assert_eq!(
        index.folded_in(Hva(16 * MIB), 8 * MIB),
        vec![huge(18 * MIB)]
    );
    assert_eq!(index.unfold(Hva(18 * MIB)), Some(512..1024));
    assert_eq!(index.id_at(Hva(19 * MIB)), Some(PageId(768)));
}

#[test]
fn access_when_it_lies_in_one_frame_is_the_run_of_that_frame() {
    let mut index = index();
    assert!(index.fold(huge(18 * MIB)).is_some());
    let ends: Vec<u64> = index
        .spans()
        .flat_map(|span| [span.hva.0, span.hva.0 + span.bytes])
        .collect();
    let end = ends.last().unwrap() + 2 * BASE_PAGE;
    let near = ends.iter().flat_map(|&end| [end.saturating_sub(1), end]);
    for at in (0..end).step_by(3 * BASE_PAGE as usize + 8).chain(near) {
        for len in [0, 1, 8, BASE_PAGE, BASE_PAGE + 1] {
            let mut runs = runs(&index, at, len);
            let single = (at % BASE_PAGE + len.max(1) <= BASE_PAGE)
                .then(|| runs.pop())
                .flatten()
                .map(|(ids, share)| (PageId(ids.start), share));
            assert_eq!(
                index.page_of_access(Hva(at), len),
                single,
                "{len} at {at:#x}"
            );
        }
    }
}

#[test]
fn runs_when_a_range_crosses_folded_pages_cover_it_once() {
    let mut index = index();
    index.fold(huge(18 * MIB)).unwrap();
    assert_eq!(
        runs(&index, 17 * MIB, 4 * MIB),
        vec![(256..512, 1.0), (512..513, 1.0), (1024..1280, 1.0)]
    );
    assert_eq!(runs(&index, 19 * MIB, MIB), vec![(512..513, 0.5)]);
    assert_eq!(runs(&index, 16 * MIB + 100, 1), vec![(0..1, 1.0)]);
}

#[test]
fn folio_of_a_few_frames_when_folded_is_one_page_of_its_size() {
    let mut index = index();
    let folio = |at: u64, kib: u64| Page {
        hva: Hva(at),
        bytes: kib << 10,
    };
    let at = 18 * MIB + (64 << 10);
    assert_eq!(index.fold(folio(at, 64)), Some(528..544));
    assert_eq!(index.fold(folio(at + (32 << 10), 64)), None, "overlaps");
    assert_eq!(index.fold(folio(at - (32 << 10), 64)), None, "overlaps");
    assert_eq!(index.fold(huge(18 * MIB)), None, "overlaps");
    assert_eq!(
        index.fold(folio(20 * MIB - (32 << 10), 64)),
        None,
        "in two blocks"
    );
    assert_eq!(index.id_at(Hva(at + 5000)), Some(PageId(528)));
    assert_eq!(index.page(PageId(528)), Some(folio(at, 64)));
    assert_eq!(
        index.page_of_access(Hva(at + 5000), 8),
        Some((PageId(528), 1.0 / 16.0))
    );
    assert_eq!(
        runs(&index, at - 8192, 8192 + (32 << 10)),
        vec![(526..528, 1.0), (528..529, 0.5)]
    );
    assert_eq!(index.folded_in(Hva(16 * MIB), 8 * MIB), vec![folio(at, 64)]);
    assert_eq!(index.unfold(Hva(at)), Some(528..544));
    assert_eq!(index.folded(), 0);
}

#[test]
fn touched_when_a_folded_page_reaches_into_the_range_names_its_head() {
    let mut index = index();
    let touched = |index: &PageIndex, hva, len| index.touched(Hva(hva), len);
    assert_eq!(touched(&index, 19 * MIB, MIB), vec![768..1024]);
    index.fold(huge(18 * MIB)).unwrap();
    assert_eq!(touched(&index, 19 * MIB, MIB), vec![512..513, 768..1024]);
    assert_eq!(
        touched(&index, 23 * MIB, 10 * MIB),
        vec![1792..2048, 2048..2049]
    );
    assert_eq!(touched(&index, 25 * MIB, MIB), vec![]);
}

#[test]
fn runs_when_hugetlb_pages_are_partly_covered_tell_the_share() {
    let index = index();
    assert_eq!(
        runs(&index, 33 * MIB, 4 * MIB),
        vec![(2048..2049, 0.5), (2049..2050, 1.0), (2050..2051, 0.5)]
    );
    assert_eq!(runs(&index, 33 * MIB, MIB / 2), vec![(2048..2049, 0.25)]);
    assert_eq!(
        runs(&index, 33 * MIB, 2 * MIB),
        vec![(2048..2049, 0.5), (2049..2050, 0.5)]
    );
    let outside = index.for_runs(Hva(u64::MAX - 10), 100, |_| panic!("outside"));
    assert_eq!(outside, 0);
    assert_eq!(index.for_runs(Hva(0), u64::MAX / 2, |_| ()), 16 * MIB);
}

#[test]
fn index_when_spans_are_wrong_is_refused() {
    let span = |hva, bytes, frame_bytes| Span {
        hva: Hva(hva),
        bytes,
        frame_bytes,
    };
    let empty = PageIndex::new([span(4096, 0, 4096), span(8192, 4096, 4096)]).unwrap();
    assert_eq!(empty.for_runs(Hva(0), 1 << 20, |_| ()), 4096);
    assert!(PageIndex::new([span(4096, 4096, 3000)]).is_err());
    assert!(PageIndex::new([span(4096, HUGE_PAGE, HUGE_PAGE)]).is_err());
    assert!(PageIndex::new([span(8192, 8192, 4096), span(12288, 4096, 4096)]).is_err());
    assert!(PageIndex::new([span(0, 1 << 46, 4096)]).is_err());
}
