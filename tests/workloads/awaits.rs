//! An async function that burns CPU time, polled by hand: what runs is a closure that the compiler made of it.
//!
//! Arguments: CPU seconds.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

#[inline(never)]
fn burn(rounds: u64) -> u64 {
    let mut value = 1_u64;
    for round in 0..rounds {
        value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round));
    }
    value
}

/// Gives way once, so that it is left and entered again.
struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

async fn answer_request(number: u64) -> u64 {
    let half = burn(200_000);
    Yield(false).await;
    // Something after the call, so that it is none in tail position.
    black_box(half) ^ burn(200_000) ^ number
}

#[inline(never)]
fn drive(number: u64) -> u64 {
    // Through a table of functions, as an executor polls its tasks: so it is not inlined.
    let mut future: Pin<Box<dyn Future<Output = u64>>> = black_box(Box::pin(answer_request(number)));
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return black_box(value);
        }
    }
}

fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1.0);
    println!("ready");
    let start = Instant::now();
    let mut sum = 0;
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        sum ^= drive(sum);
    }
    println!("{{\"sum\": {}}}", sum % 2);
}
