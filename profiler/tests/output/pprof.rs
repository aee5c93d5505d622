//! pprof files: complete, within the format's rules, and safe to read whoever wrote them.

use profiler::output::pprof::{DecodeError, Meta, decode, decode_message, encode, encode_message};
use profiler::profile::Profile;
use profiler_common::event::Origin;
use prost::Message as _;

use crate::example;
use crate::random::{self, Random};

const META: Meta =
    Meta { started_at_ns: 1_793_709_296_123_456_789, duration_ns: 5_000_000_000, rate_hz: 99, comments: Vec::new() };

#[test]
fn decoding_gives_back_what_was_encoded() {
    let mut profiles = vec![example::profile(), example::waits(), Profile::new(Origin::Cpu)];
    let mut random = Random(1);
    profiles.extend((0..500).map(|_| random::profile(&mut random)));
    for profile in profiles {
        let bytes = encode(&profile, &META);
        let decoded = decode(&bytes).unwrap();
        assert_eq!(decoded.canonical(), profile.canonical());
        assert_eq!(encode(&decoded, &META), bytes);
    }
}

#[test]
fn mappings_hold_their_locations_and_do_not_overlap() {
    let message = encode_message(&example::profile(), &META);
    let mut ranges: Vec<_> =
        message.mapping.iter().map(|mapping| (mapping.memory_start, mapping.memory_limit)).collect();
    for location in &message.location {
        if let Some(mapping) = message.mapping.iter().find(|mapping| mapping.id == location.mapping_id) {
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
        }
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ranges:x?}");
    let main = &message.mapping[0];
    assert_eq!(message.string_table[usize::try_from(main.filename).unwrap()], "/opt/app/server");
    assert!(main.has_functions && main.has_filenames && main.has_line_numbers && main.has_inline_frames);
    // What disassemblers compute: address - start + offset is where the code is in the file.
    let offsets: Vec<_> = message
        .location
        .iter()
        .filter(|location| location.mapping_id == main.id)
        .map(|location| location.address - main.memory_start + main.file_offset)
        .collect();
    assert_eq!(offsets, [0x1234, 0x2345, 0x3456].map(|address| address - 0x1000 + 0x400));
}

#[test]
fn the_header_says_what_was_sampled() {
    let message = encode_message(&example::profile(), &META);
    let string = |id: i64| message.string_table[usize::try_from(id).unwrap()].as_str();
    let types: Vec<_> = message.sample_type.iter().map(|found| (string(found.r#type), string(found.unit))).collect();
    assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
    let period_type = message.period_type.unwrap();
    assert_eq!((string(period_type.r#type), string(period_type.unit)), ("cpu", "nanoseconds"));
    assert_eq!(message.period, 10_101_010);
    assert_eq!(string(message.default_sample_type), "samples");
    assert_eq!(message.duration_nanos, 5_000_000_000);
    assert_eq!(message.string_table[0], "");
}

#[test]
fn private_fields_are_not_needed() {
    let mut message = encode_message(&example::profile(), &META);
    for mapping in &mut message.mapping {
        (mapping.bias, mapping.object) = (0, None);
    }
    for location in &mut message.location {
        location.kind = 0;
    }
    let profile = decode_message(&message).unwrap();
    assert_eq!(profile.totals(), example::profile().totals());
}

#[test]
fn damaged_files_are_errors_and_nothing_worse() {
    let message = encode_message(&example::profile(), &META).encode_to_vec();
    let gzipped = encode(&example::profile(), &META);
    let mut random = Random(2);
    for bytes in [&message, &gzipped] {
        for length in 0..bytes.len() {
            if let Ok(profile) = decode(&bytes[..length]) {
                use_all(&profile);
            }
        }
        for _ in 0..5_000 {
            let mut damaged = bytes.clone();
            for _ in 0..=random.below(3) {
                let index = usize::try_from(random.below(damaged.len() as u64)).unwrap();
                damaged[index] ^= 1 << random.below(8);
            }
            if let Ok(profile) = decode(&damaged) {
                use_all(&profile);
            }
        }
    }
    assert!(decode(b"").is_err());
}

/// A profile that was read is safe to use: every id is in range and no sum overflows.
fn use_all(profile: &Profile) {
    let canonical = profile.canonical();
    assert_eq!(decode(&encode(&canonical, &META)).unwrap().canonical(), canonical);
    let mut folded = Vec::new();
    profiler::output::folded::write(profile, &mut folded).unwrap();
}

#[test]
fn references_to_nothing_and_impossible_values_are_named() {
    let changed = |change: &dyn Fn(&mut profiler::output::pprof_proto::Profile)| {
        let mut message = encode_message(&example::profile(), &META);
        change(&mut message);
        decode_message(&message).unwrap_err().to_string()
    };
    assert_eq!(changed(&|m| m.sample[0].location_id[0] = 77), "location 77 is referred to and not defined");
    assert_eq!(changed(&|m| m.location[0].mapping_id = 9), "mapping 9 is referred to and not defined");
    assert_eq!(changed(&|m| m.function[0].name = -1), "string -1 is referred to and not defined");
    assert_eq!(changed(&|m| m.sample[0].value[0] = -5), "a value is out of range: -5");
    assert!(changed(&|m| m.sample.iter_mut().for_each(|s| s.value[0] = i64::MAX)).starts_with("the sum of the values"));
    assert!(changed(&|m| m.sample[0].value.push(1)).starts_with("the number of values"));
    assert!(changed(&|m| m.sample_type.clear()).starts_with("unknown origin"));
    assert!(matches!(decode(&[0x1f, 0x8b, 0]), Err(DecodeError::Gzip(_))));
}
