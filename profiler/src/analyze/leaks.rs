//! Leaks told from caches: a verdict for each site that holds memory.
//!
//! A leak grows, and frees nothing of what is old; that is asked of each half of the second half of the recording, so that
//! what fills at the start of a program is none. Growth alone is not enough, since a cache grows until it is full; nor is
//! old memory, since a program keeps much of what it makes at its start. All figures are estimates from blocks chosen by
//! chance, so growth has an interval, and only one that is above zero as a whole counts.

use profiler_common::event::Origin;

use crate::profile::{Capture, Leak, LeakVerdict, Live, LiveSite, NamedFrame, Peak, PeakSite, Profile};

/// Times that are needed to tell.
const LEAST_TIMES: usize = 5;

/// Of what was there in the middle a leak still has this part at the end.
const KEPT: f64 = 0.9;

/// What has less of what it has allocated than this at the end frees it soon.
const CHURN: f64 = 0.1;

/// Two-sided quantile of the normal distribution, 19 in 20.
const Z: f64 = 1.96;

/// Frames of a site that are named.
const FRAMES: usize = 16;

/// Sites with their verdicts: leaks first, those that grow fastest first.
pub(super) fn leaks(capture: &Capture) -> Vec<Leak> {
    let Some(live) = &capture.index.live else { return Vec::new() };
    let Some(profile) = capture.profiles.iter().find(|profile| profile.origin == Origin::Live) else {
        return Vec::new();
    };
    let by_span = profile.by_span();
    let named = live.sites.iter().filter_map(|site| {
        let sample = by_span.get(&number(&site.span)?)?;
        let thread = profile.threads.get(sample.thread as usize)?;
        let judged = judge(live, site);
        Some(Leak {
            site: functions(profile, sample.stack),
            process: thread.process_name.clone(),
            pid: thread.pid,
            verdict: judged.verdict,
            confidence: rounded(judged.confidence, 1e3),
            reason: judged.reason.to_owned(),
            live_bytes: site.bytes.last().copied().unwrap_or(0),
            allocated_bytes: site.allocated_bytes,
            growth_bytes_per_s: rounded(judged.growth, 10.0),
            interval: judged.interval.map(|end| rounded(end, 10.0)),
        })
    });
    let mut leaks: Vec<Leak> = named.collect();
    leaks.sort_by(|a, b| {
        let is_leak = |leak: &Leak| leak.verdict == LeakVerdict::Leak;
        is_leak(b)
            .cmp(&is_leak(a))
            .then(b.interval[0].total_cmp(&a.interval[0]))
            .then(b.live_bytes.cmp(&a.live_bytes))
            .then_with(|| a.site.cmp(&b.site))
    });
    leaks
}

/// When most was in use, and who held it.
pub(super) fn peak(capture: &Capture) -> Option<Peak> {
    let peak = capture.index.live.as_ref()?.peak.as_ref()?;
    let profile = capture.profiles.iter().find(|profile| profile.origin == Origin::Live)?;
    let by_span = profile.by_span();
    let named = peak.sites.iter().filter_map(|(span, bytes)| {
        let sample = by_span.get(&number(span)?)?;
        let thread = profile.threads.get(sample.thread as usize)?;
        let (process, pid) = (thread.process_name.clone(), thread.pid);
        Some(PeakSite { site: functions(profile, sample.stack), process, pid, bytes: *bytes })
    });
    Some(Peak { at_ns: peak.at_ns, bytes: peak.bytes, sites: named.collect() })
}

/// The number of a span.
fn number(span: &str) -> Option<u64> {
    u64::from_str_radix(span.strip_prefix("0x")?, 16).ok()
}

/// Names of the frames of a stack, leaf first, without the function of the allocator, which is the leaf.
fn functions(profile: &Profile, stack: u32) -> Vec<String> {
    let is_library = |frame: &NamedFrame<'_>| {
        frame.object.is_some_and(|object| object.short_name().starts_with("libprofiler_alloc"))
    };
    let frames = profile.frames(stack).enumerate().skip_while(|(place, frame)| *place == 0 || is_library(frame));
    let frames = frames.map(|(_, frame)| frame).take(FRAMES);
    frames.map(|frame| format!("{}{}", frame.name, frame.suffix())).collect()
}

fn rounded(value: f64, by: f64) -> f64 {
    (value * by).round() / by
}

struct Judged {
    verdict: LeakVerdict,
    confidence: f64,
    reason: &'static str,
    growth: f64,
    interval: [f64; 2],
}

/// How much more is there at one time than at another, and the standard error of that.
///
/// Between the end and an earlier time it is known which blocks are the same; between two earlier times it is not, and the
/// error is that of the sum.
#[expect(clippy::cast_precision_loss, reason = "estimates, of which few digits say something")]
fn growth(site: &LiveSite, from: usize, to: usize) -> (f64, f64) {
    let change = site.bytes[to] as f64 - site.bytes[from] as f64;
    let last = site.bytes.len() - 1;
    let shared = if to == last { site.kept_variance_kib2[from] } else { 0 };
    let variance_kib2 = site.variance_kib2[to] as f64 + site.variance_kib2[from] as f64 - 2.0 * shared as f64;
    (change, variance_kib2.max(0.0).sqrt() * 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "estimates, of which few digits say something")]
fn judge(live: &Live, site: &LiveSite) -> Judged {
    let undecided =
        |reason| Judged { verdict: LeakVerdict::Undecided, confidence: 0.0, reason, growth: 0.0, interval: [0.0; 2] };
    if !live.undecided.is_empty() {
        return undecided("frees not observed");
    }
    let times = &live.at_ns;
    if times.len() < LEAST_TIMES {
        return undecided("the recording is too short");
    }
    let last = times.len() - 1;
    let at = |share: f64| {
        let wanted = times[0] as f64 + (times[last] - times[0]) as f64 * share;
        times.partition_point(|&time| (time as f64) < wanted).min(last - 1)
    };
    let (middle, later) = (at(0.5), at(0.75));
    let seconds = ((times[last] - times[middle]) as f64 / 1e9).max(1e-9);
    let (change, error) = growth(site, middle, last);
    let (change_before, _) = growth(site, middle, later);
    let (change_after, error_after) = growth(site, later, last);
    let interval = [(change - Z * error) / seconds, (change + Z * error) / seconds];
    let judged = |verdict, confidence: f64, reason| Judged {
        verdict,
        confidence: confidence.clamp(0.0, 1.0),
        reason,
        growth: change / seconds,
        interval,
    };
    let (held, kept) = (site.bytes[middle] as f64, site.kept_bytes[middle] as f64);
    let kept = if held > 0.0 { (kept / held).min(1.0) } else { 1.0 };
    let of_allocated = site.bytes[last] as f64 / (site.allocated_bytes as f64).max(1.0);
    let grows = interval[0] > 0.0;
    let is_steady = change_before > 0.0 && change_after - error_after > 0.0;
    if of_allocated < CHURN && !(grows && kept > KEPT) {
        return judged(LeakVerdict::Churn, 1.0 - of_allocated, "nearly all of it has been freed");
    }
    if grows && is_steady && kept >= KEPT {
        let sure = normal(change / error.max(f64::MIN_POSITIVE));
        return judged(LeakVerdict::Leak, sure * kept, "it grows all the time, and what is old is not freed");
    }
    if grows {
        let reason =
            if kept < KEPT { "it grows, but what is old is freed" } else { "it has grown, but not all the time" };
        return judged(if kept < KEPT { LeakVerdict::Cache } else { LeakVerdict::Undecided }, 1.0 - kept, reason);
    }
    // How sure it is that it does not grow by a tenth in as long again.
    let margin = held / 10.0 - change;
    let sure = if error > 0.0 { normal(margin / error) } else { 1.0 };
    if kept < KEPT {
        return judged(LeakVerdict::Cache, sure, "what is new takes the place of what is old");
    }
    let early = site.bytes[at(0.1)] as f64;
    if early >= KEPT * held {
        judged(LeakVerdict::LongLived, sure, "it was allocated early, and is kept")
    } else {
        judged(LeakVerdict::Cache, sure, "it has filled, and does not grow any more")
    }
}

/// The normal distribution. Source: Abramowitz and Stegun, 26.2.17; right to 8 digits.
fn normal(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let series =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let tail = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * series;
    if z >= 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A site that is looked at each second, of blocks of 1,000 bytes that were all chosen. `kept`: which part of what was
    /// there is there at the end.
    fn site(bytes: &[u64], kept: f64, allocated_bytes: u64) -> (Live, LiveSite) {
        let variance = |bytes: &u64| (bytes * 1_000) >> 20;
        let kept: Vec<u64> = bytes.iter().map(|&bytes| (bytes as f64 * kept) as u64).collect();
        let site = LiveSite {
            span: "0x1".to_owned(),
            allocated_bytes,
            bytes: bytes.to_vec(),
            variance_kib2: bytes.iter().map(variance).collect(),
            kept_variance_kib2: kept.iter().map(variance).collect(),
            kept_bytes: kept,
        };
        let at_ns = (0..bytes.len() as u64).map(|second| second * 1_000_000_000).collect();
        (Live { at_ns, sites: vec![site.clone()], ..Live::default() }, site)
    }

    fn check(bytes: &[u64], kept: f64, allocated_bytes: u64) -> LeakVerdict {
        let (live, site) = site(bytes, kept, allocated_bytes);
        assert!(live.is_sound());
        judge(&live, &site).verdict
    }

    #[test]
    fn what_grows_and_frees_nothing_is_a_leak() {
        let bytes: Vec<u64> = (0..21).map(|second| second * 20_000).collect();
        let (live, site) = site(&bytes, 1.0, 400_000);
        let judged = judge(&live, &site);
        assert_eq!(judged.verdict, LeakVerdict::Leak);
        assert!((judged.growth - 20_000.0).abs() < 1.0);
        assert!(judged.interval[0] > 10_000.0 && judged.interval[1] < 30_000.0, "{:?}", judged.interval);
        assert!(judged.confidence > 0.99);
    }

    #[test]
    fn what_fills_and_stays_is_a_cache() {
        let filled: Vec<u64> = (0..21).map(|second: u64| (second * 2_000_000).min(10_000_000)).collect();
        assert_eq!(check(&filled, 1.0, 10_000_000), LeakVerdict::Cache);
        // Full, and its entries replaced.
        assert_eq!(check(&[10_000_000; 21], 0.3, 30_000_000), LeakVerdict::Cache);
        // Still filling, with old entries thrown out.
        let filling: Vec<u64> = (0..21).map(|second| 1_000_000 + second * 100_000).collect();
        assert_eq!(check(&filling, 0.5, 6_000_000), LeakVerdict::Cache);
    }

    #[test]
    fn what_was_there_early_and_stays_is_long_lived() {
        assert_eq!(check(&[5_000_000; 21], 1.0, 5_000_000), LeakVerdict::LongLived);
    }

    #[test]
    fn what_is_freed_soon_is_churn() {
        let held: Vec<u64> = (0..21).map(|second| 3_000 + second % 3 * 1_000).collect();
        assert_eq!(check(&held, 0.0, 20_000_000), LeakVerdict::Churn);
    }

    #[test]
    fn without_frees_or_time_nothing_is_said() {
        let bytes: Vec<u64> = (0..21).map(|second| second * 20_000).collect();
        let (mut live, site) = site(&bytes, 1.0, 400_000);
        live.undecided = "probes were there in windows".to_owned();
        assert_eq!(judge(&live, &site).verdict, LeakVerdict::Undecided);
        assert_eq!(check(&[0, 20_000], 1.0, 20_000), LeakVerdict::Undecided);
    }

    #[test]
    fn the_normal_distribution_is_that() {
        for (z, expected) in [(0.0, 0.5), (1.96, 0.975), (-1.0, 0.158_655), (5.0, 0.999_999_7)] {
            assert!((normal(z) - expected).abs() < 1e-5, "{z}: {}", normal(z));
        }
    }
}
