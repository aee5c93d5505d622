//! The messages of pprof's `profile.proto`, written out by hand so that no `protoc` is needed.
//!
//! Source: <https://github.com/google/pprof/blob/main/proto/profile.proto>. The fields numbered from 1001 on are this
//! profiler's own; readers that do not know them skip them, as protobuf asks for. Ids start at 1, strings are indices
//! into `Profile::string_table`, whose first entry is empty.

/// A profile: samples and what they refer to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Profile {
    /// What the values of a sample are, in order.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// Values on stacks.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// Objects; the first is the main program.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// Addresses.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// Functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// Every string, the empty one first.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// Regular expression of functions whose callees are dropped.
    #[prost(int64, tag = "7")]
    pub drop_frames: i64,
    /// Regular expression of functions that are kept although `drop_frames` matches.
    #[prost(int64, tag = "8")]
    pub keep_frames: i64,
    /// Start, ns since the Unix epoch.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// Length, ns.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What passes between two samples.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// How much of it.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Free text.
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// Name of the sample type to show first.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
    /// Where the profile is explained.
    #[prost(int64, tag = "15")]
    pub doc_url: i64,
}

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ValueType {
    /// Its name.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// Its unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// Values on a stack.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Sample {
    /// Locations, leaf first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One value for each sample type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// What else is known.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A named string or number.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Label {
    /// Its name.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// The string, or 0.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// The number, when there is no string.
    #[prost(int64, tag = "3")]
    pub num: i64,
    /// The number's unit.
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

/// An object in memory.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Mapping {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// First address.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// One past the last address.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// File offset of the first address.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// Path.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// Build ID.
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Whether its locations have functions.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// Whether its functions have source files.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// Whether its lines have numbers.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// Whether its locations show inlined functions.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
    /// Private: what was added to the object's own addresses so that no two mappings overlap; wraps.
    #[prost(uint64, tag = "1001")]
    pub bias: u64,
    /// Private: what [`Object`](crate::profile::Object) says, where the mapping had to be widened to hold all of its
    /// locations.
    #[prost(message, optional, tag = "1002")]
    pub object: Option<ObjectRange>,
}

/// Private: an object's range as its file states it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ObjectRange {
    /// First address.
    #[prost(uint64, tag = "1")]
    pub start: u64,
    /// One past the last address.
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// File offset of `start`.
    #[prost(uint64, tag = "3")]
    pub file_offset: u64,
}

/// An address.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Location {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its mapping; 0 for none.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// The address, within the mapping.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// Functions, innermost inlined first.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
    /// Whether the linker folded several functions into one here.
    #[prost(bool, tag = "5")]
    pub is_folded: bool,
    /// Private: 1 + the index in `FrameKind::ALL`; 0 where it follows from the mapping and the names.
    #[prost(uint32, tag = "1001")]
    pub kind: u32,
}

/// A function at an address.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Line {
    /// The function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// Source line.
    #[prost(int64, tag = "2")]
    pub line: i64,
    /// Source column.
    #[prost(int64, tag = "3")]
    pub column: i64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Function {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name for people.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// Name for the linker.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// Source file.
    #[prost(int64, tag = "4")]
    pub filename: i64,
    /// Line at which it starts.
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}
