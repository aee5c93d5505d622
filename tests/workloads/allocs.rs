//! Allocates vectors of known sizes, each size in a function of its own, for as many seconds as it is told, and keeps one kind.

use std::hint::black_box;
use std::time::{Duration, Instant};

#[inline(never)]
fn small_here() {
    black_box(Vec::<u8>::with_capacity(black_box(300)));
}

#[inline(never)]
fn zeroed_here() {
    black_box(vec![0_u8; black_box(900)]);
}

/// What it returns is kept: mapped, but for its beginning not touched.
#[inline(never)]
fn kept_here() -> Vec<u8> {
    black_box(Vec::with_capacity(black_box(100_000)))
}

pub fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("seconds");
    println!("ready");
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (mut small, mut zeroed, mut rounds, mut kept) = (0, 0, 0, Vec::with_capacity(1 << 10));
    while Instant::now() < end {
        for _ in 0..20 {
            small_here();
            zeroed_here();
            small += 300;
            zeroed += 900;
        }
        rounds += 1;
        if rounds % 10 == 0 {
            kept.push(kept_here());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let held = 100_000 * kept.len();
    std::mem::forget(kept);
    println!("{{\"small\": {small}, \"zeroed\": {zeroed}, \"kept\": {held}}}");
}
