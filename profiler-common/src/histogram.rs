//! A histogram of times with 16 buckets for each power of two: any value is known to within a sixteenth.
//!
//! Filled in the kernel, read in user space. Source of the idea: G. Tene, `HdrHistogram`.

/// Buckets: from 0 ns, by 4 ns, to [`HISTOGRAM_END`].
pub const HISTOGRAM_BUCKETS: usize = 512;

/// No bucket goes further: 137 s in ns. Longer times are in the last one.
pub const HISTOGRAM_END: u64 = 1 << 37;

/// Width of the narrowest buckets, 2^2 ns: what comes below says nothing of what takes a system call.
const UNIT_SHIFT: u32 = 2;
/// Buckets for a power of two, 2^4.
const SUB_SHIFT: u32 = 4;
const SUBS: u64 = 1 << SUB_SHIFT;

/// The bucket of a value.
#[inline(always)]
#[must_use]
pub const fn bucket_of(value: u64) -> usize {
    let value = if value < HISTOGRAM_END { value } else { HISTOGRAM_END - 1 };
    let units = value >> UNIT_SHIFT;
    if units < SUBS {
        return units as usize;
    }
    let exponent = 63 - units.leading_zeros();
    let octave = (exponent - SUB_SHIFT + 1) as u64;
    ((octave << SUB_SHIFT) + ((units >> (exponent - SUB_SHIFT)) & (SUBS - 1))) as usize
}

/// The least value of a bucket, and the first that is above it.
#[must_use]
pub const fn bucket_range(bucket: usize) -> (u64, u64) {
    let (octave, sub) = (bucket as u64 >> SUB_SHIFT, bucket as u64 & (SUBS - 1));
    let (start, width) = match octave {
        0 => (sub, 1),
        _ => ((SUBS + sub) << (octave - 1), 1 << (octave - 1)),
    };
    (start << UNIT_SHIFT, (start + width) << UNIT_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_range_of_its_bucket() {
        let mut value = 0;
        while value < 2 * HISTOGRAM_END {
            let bucket = bucket_of(value);
            let (start, end) = bucket_range(bucket);
            assert!(start <= value && (value < end || value >= HISTOGRAM_END), "{value}: {bucket} {start} {end}");
            value += 1 + value / 97;
        }
        for bucket in 1..HISTOGRAM_BUCKETS {
            let (start, end) = bucket_range(bucket);
            assert_eq!(bucket_range(bucket - 1).1, start);
            assert_eq!((bucket_of(start), bucket_of(end - 1)), (bucket, bucket));
            assert!(end - start <= 4 || (end - start) * 16 <= start);
        }
        assert_eq!(bucket_range(HISTOGRAM_BUCKETS - 1).1, HISTOGRAM_END);
        assert_eq!(bucket_of(u64::MAX), HISTOGRAM_BUCKETS - 1);
    }
}
