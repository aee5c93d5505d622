//! OpenTelemetry's profiles signal, `ProfilesData` in protobuf. Experimental: the signal is in development and changes.
//!
//! Each value column is a profile of its own. Index 0 of every table is the zero value, as the specification asks for.
//!
//! Source: opentelemetry-proto, `profiles/v1development/profiles.proto`.

use std::hash::Hash;

use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::profiles::v1development as otlp;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::plain;
use crate::profile::{FrameKind, Index, Interner, Profile};

pub(super) fn encode(profile: &Profile, index: &Index) -> Vec<u8> {
    let row = profile.origin.row();
    let mut tables = Tables::new();
    let mut samples: Vec<Vec<otlp::Sample>> = vec![Vec::new(); row.columns.len()];
    for sample in &profile.samples {
        let locations = &profile.stacks[sample.stack as usize];
        let locations = locations.iter().map(|&location| tables.location(profile, location)).collect();
        let stack_index = tables.stack(locations);
        let thread = &profile.threads[sample.thread as usize];
        let attribute_indices = vec![
            tables.attribute("process.pid", any_value::Value::IntValue(thread.pid.into())),
            tables.attribute("process.executable.name", text(&thread.process_name)),
            tables.attribute("thread.id", any_value::Value::IntValue(thread.tid.into())),
            tables.attribute("thread.name", text(&thread.thread_name)),
        ];
        for (samples, value) in samples.iter_mut().zip(sample.values).filter(|(_, value)| *value > 0) {
            samples.push(otlp::Sample {
                stack_index,
                attribute_indices: attribute_indices.clone(),
                link_index: 0,
                values: vec![i64::try_from(value).unwrap_or(i64::MAX)],
                timestamps_unix_nano: Vec::new(),
            });
        }
    }
    let profiles = row.columns.iter().zip(samples).map(|(&(name, unit), samples)| {
        let sample_type = Some(tables.value_type(name, unit));
        // The same profile has the same id.
        let digest =
            Sha256::digest(format!("{} {} {} {name}", index.started_at_ns, index.target.description, row.name));
        otlp::Profile {
            sample_type,
            samples,
            time_unix_nano: index.started_at_ns,
            duration_nano: index.duration_ns,
            profile_id: digest[..16].to_vec(),
            ..otlp::Profile::default()
        }
    });
    let profiles = profiles.collect();
    let value = |value| Some(AnyValue { value: Some(value) });
    let attribute = |key: &str, found| KeyValue { key: key.to_owned(), value: value(found), ..KeyValue::default() };
    let resource = Resource {
        attributes: vec![
            attribute("service.name", text(&index.target.description)),
            attribute("host.name", text(&index.host.name)),
            attribute("host.arch", text(&index.host.architecture)),
            attribute("os.version", text(&index.host.kernel)),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "profiler".to_owned(),
        version: plain(&index.profiler_version),
        ..InstrumentationScope::default()
    };
    let scope_profiles = vec![otlp::ScopeProfiles { scope: Some(scope), profiles, ..otlp::ScopeProfiles::default() }];
    let data = otlp::ProfilesData {
        resource_profiles: vec![otlp::ResourceProfiles {
            resource: Some(resource),
            scope_profiles,
            ..otlp::ResourceProfiles::default()
        }],
        dictionary: Some(tables.into_dictionary()),
    };
    data.encode_to_vec()
}

fn text(text: &str) -> any_value::Value {
    any_value::Value::StringValue(plain(text))
}

/// Mapping, address, lines (function and number) and attributes.
type Location = (i32, u64, Vec<(i32, i64)>, Vec<i32>);

/// What everything is an index into. Numbers of 31 bits are enough for what a profile numbers by 32.
struct Tables {
    strings: Interner<String>,
    functions: Interner<(i32, i32)>,
    mappings: Interner<(u64, u64, u64, i32, Vec<i32>)>,
    locations: Interner<Location>,
    stacks: Interner<Vec<i32>>,
    /// By what is the same: key, and the value as text.
    attributes: Interner<(i32, String)>,
    values: Vec<otlp::KeyValueAndUnit>,
}

impl Tables {
    fn new() -> Self {
        let mut tables = Self {
            strings: Interner::default(),
            functions: Interner::default(),
            mappings: Interner::default(),
            locations: Interner::default(),
            stacks: Interner::default(),
            attributes: Interner::default(),
            values: vec![otlp::KeyValueAndUnit::default()],
        };
        tables.strings.intern(String::new());
        tables.functions.intern((0, 0));
        tables.mappings.intern((0, 0, 0, 0, Vec::new()));
        tables.locations.intern((0, 0, Vec::new(), Vec::new()));
        tables.stacks.intern(Vec::new());
        tables.attributes.intern((0, String::new()));
        tables
    }

    fn string(&mut self, text: &str) -> i32 {
        intern(&mut self.strings, plain(text))
    }

    fn value_type(&mut self, name: &str, unit: &str) -> otlp::ValueType {
        otlp::ValueType { type_strindex: self.string(name), unit_strindex: self.string(unit) }
    }

    fn attribute(&mut self, key: &str, value: any_value::Value) -> i32 {
        let key_strindex = self.string(key);
        let number = intern(&mut self.attributes, (key_strindex, format!("{value:?}")));
        if usize::try_from(number).is_ok_and(|number| number == self.values.len()) {
            let value = Some(AnyValue { value: Some(value) });
            self.values.push(otlp::KeyValueAndUnit { key_strindex, value, unit_strindex: 0 });
        }
        number
    }

    fn stack(&mut self, locations: Vec<i32>) -> i32 {
        intern(&mut self.stacks, locations)
    }

    fn location(&mut self, profile: &Profile, location: u32) -> i32 {
        let found = &profile.locations[location as usize];
        let lines = profile.location_frames(location).filter(|_| !found.lines.is_empty());
        let lines: Vec<_> = lines
            .map(|frame| {
                let function = (self.string(&frame.name), self.string(frame.file));
                (intern(&mut self.functions, function), i64::from(frame.line))
            })
            .collect();
        let mapping = found.object.map_or(0, |object| {
            let object = &profile.objects[object as usize];
            let path = self.string(&object.path);
            let build_id = if object.build_id.is_empty() {
                Vec::new()
            } else {
                vec![self.attribute("process.executable.build_id.gnu", text(&object.build_id))]
            };
            intern(&mut self.mappings, (object.start, object.end, object.file_offset, path, build_id))
        });
        // Source: OpenTelemetry's semantic conventions, `profile.frame.type`.
        let kind = match found.kind {
            FrameKind::Native => Some("native"),
            FrameKind::Kernel => Some("kernel"),
            FrameKind::Interpreted => Some("cpython"),
            FrameKind::Jit => Some("jit"),
            FrameKind::Marker | FrameKind::Reason => None,
        };
        let kind = kind.map(|kind| self.attribute("profile.frame.type", text(kind))).into_iter().collect();
        intern(&mut self.locations, (mapping, found.address, lines, kind))
    }

    fn into_dictionary(self) -> otlp::ProfilesDictionary {
        let function = |(name_strindex, filename_strindex)| otlp::Function {
            name_strindex,
            filename_strindex,
            ..otlp::Function::default()
        };
        let mapping = |(memory_start, memory_limit, file_offset, filename_strindex, attribute_indices)| otlp::Mapping {
            memory_start,
            memory_limit,
            file_offset,
            filename_strindex,
            attribute_indices,
        };
        let line = |(function_index, line)| otlp::Line { function_index, line, column: 0 };
        let location = |(mapping_index, address, lines, attribute_indices): Location| {
            let lines = lines.into_iter().map(line).collect();
            otlp::Location { mapping_index, address, lines, attribute_indices }
        };
        let stack = |location_indices| otlp::Stack { location_indices };
        otlp::ProfilesDictionary {
            mapping_table: self.mappings.into_values().into_iter().map(mapping).collect(),
            location_table: self.locations.into_values().into_iter().map(location).collect(),
            function_table: self.functions.into_values().into_iter().map(function).collect(),
            link_table: vec![otlp::Link::default()],
            string_table: self.strings.into_values(),
            attribute_table: self.values,
            stack_table: self.stacks.into_values().into_iter().map(stack).collect(),
        }
    }
}

fn intern<T: Eq + Hash>(table: &mut Interner<T>, value: T) -> i32 {
    i32::try_from(table.intern(value)).unwrap_or(i32::MAX)
}
