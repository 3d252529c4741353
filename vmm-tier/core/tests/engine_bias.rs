//! The engine fed by a source that sees the tiers differently.

use tier_core::{addr::BASE_PAGE, engine::Event, random::Random, sample::SourceKind};

use crate::{
    accesses::{SPAN, accesses},
    common::{FAST, settings},
    lab::{Lab, gups},
};

const FRAMES: u32 = 32_768;
const DRAM: u32 = 8_192;
const HOT: u64 = 2_048;
/// Spans until other pages are hot: pages are promoted all the time.
const PHASE: u64 = 20;

/// Plays a guest nine tenths of whose accesses go to hot pages, and a source that reports one in `bias`
/// of those to the slow tier. Returns the share of accesses that DRAM served in the last half phase.
fn play(lab: &mut Lab, bias: u64, spans: u64) -> f64 {
    let mut random = Random::new(5);
    let (mut hits, mut all) = (0, 0);
    for span in 0..spans {
        lab.now = lab.now + SPAN;
        let first = span / PHASE * 5 * HOT;
        let mut sampled = Vec::new();
        for _ in 0..6000 {
            let frame = match random.below(10) {
                0 => random.below(u64::from(FRAMES)),
                _ => (first + random.below(HOT)) % u64::from(FRAMES),
            };
            let is_fast = lab.kernel.frames[frame as usize] == Some(FAST);
            if span + PHASE / 2 >= spans {
                hits += u32::from(is_fast);
                all += 1;
            }
            if is_fast || random.below(bias) == 0 {
                sampled.push(frame);
            }
        }
        lab.step(accesses(SourceKind::Pebs, lab.now, sampled));
    }
    f64::from(hits) / f64::from(all)
}

fn lab() -> Lab {
    let mut lab = Lab::new(gups(FRAMES, DRAM), settings());
    lab.step(Event::Source(Some(SourceKind::Pebs)));
    lab
}

#[test]
fn slow_memory_when_it_is_sampled_less_has_its_bias_measured_and_shown() {
    let mut lab = lab();
    let served = play(&mut lab, 4, 20 * PHASE);
    let snapshot = lab.engine.snapshot();
    let found = snapshot.tier_bias.unwrap();
    let ratio = found.fast_to_slow.unwrap();
    assert!((2.5..6.5).contains(&ratio), "{found:?}");
    assert!(found.significant, "{found:?}");
    // The hit ratio is that of the records, of which more went to DRAM than of the accesses: 0.97 where
    // 0.9 were served.
    let hit_ratio = snapshot.hit_ratio.unwrap();
    let of_records = 1.0 / (1.0 + (1.0 / served - 1.0) / 4.0);
    assert!(
        (hit_ratio - of_records).abs() < (served - hit_ratio).abs(),
        "{hit_ratio} told, {served} served, {of_records} of the records"
    );
    assert_eq!(lab.engine.check(), Ok(()));
}

#[test]
fn tiers_when_they_are_seen_alike_are_judged_alike() {
    let mut lab = lab();
    play(&mut lab, 1, 20 * PHASE);
    let found = lab.engine.snapshot().tier_bias.unwrap();
    let ratio = found.fast_to_slow.unwrap();
    assert!((0.75..1.33).contains(&ratio), "{found:?}");
    assert!(!found.significant, "{found:?}");
    assert_eq!(lab.engine.check(), Ok(()));
}

#[test]
fn tiers_when_page_tables_are_read_have_no_bias_to_be_told() {
    let mut lab = Lab::new(gups(2048, 500), settings());
    for round in 0..60 {
        let hot = if round < 30 { 1792..2048 } else { 1024..1280 };
        lab.observe(|frame| if hot.contains(&frame) { 20.0 } else { 1.0 });
    }
    assert!(
        lab.moved() > 512 * BASE_PAGE,
        "there were moves to learn from"
    );
    assert_eq!(lab.engine.snapshot().tier_bias, None);
}
