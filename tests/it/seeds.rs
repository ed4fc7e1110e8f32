//! Histories made up from seeds, told on all cores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Tells the histories of these seeds until `tell` says that one is what was looked for, or all are told; how many were.
pub(crate) fn each(seeds: std::ops::Range<u64>, tell: impl Fn(u64) -> bool + Sync) -> u64 {
    let next = AtomicU64::new(seeds.start);
    let (told, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                // Tests of real processes, which run at the same time, have deadlines; this has none.
                rustix::process::nice(15).unwrap();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let stop = tell(seed);
                    told.fetch_add(1, Ordering::Relaxed);
                    if stop {
                        stopped.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    told.into_inner()
}
