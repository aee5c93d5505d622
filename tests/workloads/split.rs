//! Three functions that burn CPU time as 50 : 30 : 20 beneath a chain of 20 callers, in Rust.
//!
//! Argument: CPU seconds. Prints the CPU time each function really took.

use std::arch::asm;

/// Iterations of the loops in one part: about 1 ms.
const CHUNK: u64 = 800_000;

macro_rules! hot {
    ($name:ident, $multiplier:expr) => {
        #[inline(never)]
        fn $name(n: u64) -> u64 {
            let mut value = n;
            for i in 0..n {
                value = value.wrapping_mul($multiplier).wrapping_add(i);
                // SAFETY: no instruction, only a value the compiler cannot know.
                unsafe { asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack)) };
            }
            value
        }
    };
}

hot!(hot50, 6_364_136_223_846_793_005_u64);
hot!(hot30, 2_862_933_555_777_941_757_u64);
hot!(hot20, 3_202_034_522_624_059_733_u64);

macro_rules! caller {
    ($name:ident, $callee:ident, $number:expr) => {
        #[inline(never)]
        fn $name(hot: fn(u64) -> u64, n: u64) -> u64 {
            // Keeps the call from becoming a jump and equal callers from being merged.
            std::hint::black_box($callee(hot, n)).wrapping_add($number)
        }
    };
}

#[inline(never)]
fn c20(hot: fn(u64) -> u64, n: u64) -> u64 {
    std::hint::black_box(hot(n)).wrapping_add(20)
}

caller!(c19, c20, 19);
caller!(c18, c19, 18);
caller!(c17, c18, 17);
caller!(c16, c17, 16);
caller!(c15, c16, 15);
caller!(c14, c15, 14);
caller!(c13, c14, 13);
caller!(c12, c13, 12);
caller!(c11, c12, 11);
caller!(c10, c11, 10);
caller!(c09, c10, 9);
caller!(c08, c09, 8);
caller!(c07, c08, 7);
caller!(c06, c07, 6);
caller!(c05, c06, 5);
caller!(c04, c05, 4);
caller!(c03, c04, 3);
caller!(c02, c03, 2);
caller!(c01, c02, 1);

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

fn thread_cpu_ns() -> u64 {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the structure is the one the C library expects on 64-bit Linux.
    unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.seconds.cast_unsigned() * 1_000_000_000 + time.nanoseconds.cast_unsigned()
}

fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let limit_ns = (seconds * 1e9) as u64;
    let hot: [(fn(u64) -> u64, u64); 3] = [(hot50, 5), (hot30, 3), (hot20, 2)];
    let mut spent_ns = [0_u64; 3];
    println!("ready");
    let mut before_ns = thread_cpu_ns();
    while before_ns < limit_ns {
        for (spent_ns, (function, parts)) in spent_ns.iter_mut().zip(hot) {
            std::hint::black_box(c01(function, parts * CHUNK));
            let now_ns = thread_cpu_ns();
            *spent_ns += now_ns - before_ns;
            before_ns = now_ns;
        }
    }
    println!("{{\"hot50\": {}, \"hot30\": {}, \"hot20\": {}}}", spent_ns[0], spent_ns[1], spent_ns[2]);
}
