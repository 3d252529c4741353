//! What it costs a process to be asked for its mappings: reading `maps` beside reading `smaps`, and how
//! long an `mmap` in that process waits meanwhile for the lock. The process is this one, with 64 GiB
//! whose page tables are full: each 4 KiB page maps the shared page of zeros, which takes 128 MiB of
//! tables and no memory else.

use std::{
    env,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use tier_core::addr::Hva;
use tier_sys::{maps, smaps, sysroot::SysRoot};

const GIB: usize = 1 << 30;
/// Each file is read for so long, and once at least.
const READING: Duration = Duration::from_secs(2);

fn main() {
    let mut filters = env::args().skip(1).filter(|word| !word.starts_with('-'));
    if !filters.all(|filter| "layout-check".contains(&filter)) {
        return;
    }
    println!(
        "{:>6} {:>6} {:>12} {:>18}",
        "GiB", "file", "read in", "longest mmap wait"
    );
    for gib in [4, 64] {
        measure(gib);
    }
}

fn measure(gib: usize) {
    let (bytes, flags) = (gib * GIB, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: the kernel chooses an address that nothing else uses.
    let guest = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ, flags) };
    let Ok(guest) = guest else {
        println!("SKIPPED: no room for {gib} GiB of addresses");
        return;
    };
    for advice in [Advice::LinuxNoHugepage, Advice::LinuxPopulateRead] {
        // SAFETY: the range is the mapping made above, and neither advice changes what it holds.
        if unsafe { madvise(guest, bytes, advice) }.is_err() {
            println!("SKIPPED: page tables can't be filled (Linux 5.14)");
        }
    }
    let (root, pid, hva) = (SysRoot::real(), std::process::id(), Hva(guest as u64));
    let (time, wait) =
        beside_mmap(|| maps::read(&root, pid, |mapping| mapping.contains(hva)).map(drop));
    print(gib, "maps", time, wait);
    let (time, wait) =
        beside_mmap(|| smaps::read(&root, pid, |mapping| mapping.contains(hva)).map(drop));
    print(gib, "smaps", time, wait);
    // SAFETY: the range is the mapping made above, and nothing refers to it any more.
    let _ = unsafe { munmap(guest, bytes) };
}

fn print(gib: usize, file: &str, time: Duration, wait: Duration) {
    println!("{gib:>6} {file:>6} {time:>12.1?} {wait:>18.1?}");
}

/// The mean time of `read`, and the longest that an `mmap` beside it took.
fn beside_mmap<E>(read: impl Fn() -> Result<(), E>) -> (Duration, Duration) {
    let (longest, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let flags = MapFlags::PRIVATE;
                // SAFETY: the kernel chooses an address that nothing else uses.
                let page =
                    unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ, flags) };
                let waited = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                longest.fetch_max(waited, Ordering::Relaxed);
                if let Ok(page) = page {
                    // SAFETY: the range is the mapping made above, which nothing refers to.
                    let _ = unsafe { munmap(page, 4096) };
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        let (begin, mut rounds) = (Instant::now(), 0);
        while rounds == 0 || begin.elapsed() < READING {
            if read().is_err() {
                println!("SKIPPED: the process can't be looked at");
            }
            rounds += 1;
        }
        let time = begin.elapsed() / rounds;
        ends.store(true, Ordering::Relaxed);
        (time, Duration::from_nanos(longest.load(Ordering::Relaxed)))
    })
}
