//! Hot pages that lie apart: one in eight of every 2 MiB, as GPAC's authors found them in real guests.

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    random::{Random, scaled},
    sample::AccessKind,
};

use super::{
    Plan, Scale,
    generator::{Pattern, line_in, store_if},
};

/// 4 KiB pages of a huge page.
const FRAMES: u32 = (HUGE_PAGE / BASE_PAGE) as u32;
/// Hot ones of them.
const HOT_FRAMES: u32 = FRAMES / 8;
/// Of 256 accesses, those that go to hot pages: 9 in 10.
const HOT: u8 = 230;
/// Of 256 accesses, those that write.
const STORES: u8 = 64;

struct Scattered {
    hot: Vec<u32>,
    pages: u32,
}

impl Pattern for Scattered {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        let bits = random.draw();
        let high = (bits >> 32) as u32;
        let page = if (bits as u8) < HOT {
            self.hot[scaled(high, self.hot.len() as u32) as usize]
        } else {
            scaled(high, self.pages)
        };
        (
            line_in(page, bits >> 16),
            store_if(((bits >> 8) as u8) < STORES),
        )
    }
}

/// A heap whose live objects lie scattered: in every 2 MiB, 64 of 512 pages of 4 KiB get nine of ten
/// accesses. Page by page an eighth of memory holds the heat.
pub(super) fn scattered(scale: &Scale, random: &mut Random) -> Plan {
    let mut frames: Vec<u32> = (0..FRAMES).collect();
    let mut hot = Vec::with_capacity(scale.share(1, 8) as usize);
    for huge in 0..scale.pages / FRAMES {
        random.shuffle(&mut frames);
        hot.extend(
            frames[..HOT_FRAMES as usize]
                .iter()
                .map(|frame| huge * FRAMES + frame),
        );
    }
    Plan::steady(Scattered {
        hot,
        pages: scale.pages,
    })
}

/// The same accesses in a guest on huge pages, where all pages look alike: the best share of DRAM is
/// that of its size. The difference to [`scattered`] is what splitting huge pages would bring.
pub(super) fn scattered_huge(scale: &Scale, random: &mut Random) -> Plan {
    Plan {
        page_bytes: HUGE_PAGE,
        ..scattered(scale, random)
    }
}
