//! A little of much of Rust's library: containers, sorting, formatting, a panic that is caught. For tests that follow it
//! instruction by instruction, so it is short.
//!
//! Argument: rounds.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hint::black_box;

#[inline(never)]
fn containers(round: u64) -> u64 {
    let mut hashed = HashMap::new();
    let mut ordered = BTreeMap::new();
    let mut list = Vec::new();
    for i in 0..60_u64 {
        let key = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        hashed.insert(key.to_string(), i);
        ordered.insert(key, i + round);
        list.push((key as f64).sqrt());
    }
    list.sort_by(f64::total_cmp);
    let mut text: Vec<String> = hashed.keys().cloned().collect();
    text.sort_unstable();
    ordered.retain(|key, _| key % 3 != 0);
    list.len() as u64 + text.len() as u64 + ordered.values().sum::<u64>()
}

#[inline(never)]
fn text(round: u64) -> usize {
    let mut out = String::new();
    for i in 0..10 {
        write!(out, "{:>8.3} {:?} {:#x} {i:e} ", i as f64 / 7.0, Some("text"), round + i).expect("a string takes all");
    }
    let parsed: f64 = out.split(' ').filter_map(|word| word.parse::<f64>().ok()).sum();
    println!("{parsed} {}", out.to_uppercase().replace("TEXT", "word"));
    out.char_indices().filter(|(_, c)| c.is_alphanumeric()).count()
}

struct Guard<'a>(&'a mut u64);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        *self.0 += 1;
    }
}

#[inline(never)]
fn panics(depth: u64, counter: &mut u64) {
    let guard = Guard(counter);
    if depth == 0 {
        panic!("at the bottom");
    }
    panics(depth - 1, guard.0);
}

#[inline(never)]
fn large_frame(n: usize) -> u8 {
    let mut space = [0_u8; 20_000];
    black_box(&mut space)[n] = 1;
    space[n + 1]
}

#[inline(never)]
fn wide(n: u128) -> u128 {
    (1 << 100) / black_box(n | 1) % black_box(1_000_003)
}

fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    std::panic::set_hook(Box::new(|_| {}));
    println!("ready");
    let mut sum = 0;
    for round in 0..rounds {
        sum += containers(round) + text(round) as u64 + u64::from(large_frame(round as usize % 100));
        let _ = std::panic::catch_unwind(|| {
            let mut counter = 0;
            panics(5, &mut counter);
        });
        sum += wide(u128::from(sum)) as u64;
    }
    println!("{{\"rounds\": {rounds}, \"sum\": {sum}}}");
}
