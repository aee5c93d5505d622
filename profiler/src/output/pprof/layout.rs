//! Gives every object a range of addresses of its own.

use crate::output::pprof_proto as proto;
use crate::profile::{Object, Profile};

/// Addresses from here on are the kernel's, the same for everyone: never moved.
const KERNEL_START: u64 = 1 << 63;
/// Granularity of a bias: the largest page size of the supported machines, so that offsets in a page stay.
const ALIGNMENT: u64 = 64 << 10;

/// Where one object's addresses are in the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// First address, moved.
    pub(super) start: u64,
    /// One past the last address, moved.
    pub(super) limit: u64,
    /// File offset of `start`.
    pub(super) file_offset: u64,
    /// What was added.
    pub(super) bias: u64,
    /// The object's own range, when the mapping is wider.
    pub(super) object: Option<proto::ObjectRange>,
}

/// The order of the objects in the file, by object id, and where each is placed, by object id.
///
/// The main program comes first, since pprof takes the first mapping for it: a file called like a process, the one
/// with most frames if there are several.
pub(super) fn place(profile: &Profile) -> (Vec<usize>, Vec<Placement>) {
    let mut covers: Vec<_> = profile.objects.iter().map(|object| (object.start, object.end)).collect();
    let mut weights = vec![0_u64; covers.len()];
    for location in &profile.locations {
        let Some(object) = location.object else { continue };
        let (start, end) = &mut covers[object as usize];
        weights[object as usize] += 1;
        if *end <= *start {
            (*start, *end) = (location.address, location.address.saturating_add(1));
        }
        *start = (*start).min(location.address);
        *end = (*end).max(location.address.saturating_add(1));
    }
    let mut order: Vec<_> = (0..profile.objects.len()).collect();
    order.sort_by_key(|&id| {
        let object = &profile.objects[id];
        let rank = if object.path.starts_with('[') {
            2
        } else if is_program(object, profile) {
            0
        } else {
            1
        };
        (rank, std::cmp::Reverse(weights[id]), object)
    });
    let mut placements: Vec<_> =
        profile.objects.iter().zip(&covers).map(|(object, &cover)| placement(object, cover)).collect();
    let mut cursor = ALIGNMENT;
    for &id in &order {
        let placement = &mut placements[id];
        if placement.start >= KERNEL_START {
            continue;
        }
        if placement.start < cursor {
            placement.bias = cursor - placement.start / ALIGNMENT * ALIGNMENT;
            placement.start = placement.start.wrapping_add(placement.bias);
            placement.limit = placement.limit.wrapping_add(placement.bias);
        }
        // The gap keeps pprof from joining neighbours.
        cursor =
            placement.limit.checked_next_multiple_of(ALIGNMENT).map_or(cursor, |end| end.saturating_add(ALIGNMENT));
    }
    (order, placements)
}

/// `cover`: the object's range, widened to hold its locations.
fn placement(object: &Object, (start, limit): (u64, u64)) -> Placement {
    let widened = (start, limit) != (object.start, object.end);
    Placement {
        start,
        limit,
        file_offset: if widened {
            object.file_offset.saturating_sub(object.start.saturating_sub(start))
        } else {
            object.file_offset
        },
        bias: 0,
        object: widened.then_some(proto::ObjectRange {
            start: object.start,
            end: object.end,
            file_offset: object.file_offset,
        }),
    }
}

/// Whether the object is called like one of the processes, whose names the kernel cuts at 15 bytes.
fn is_program(object: &Object, profile: &Profile) -> bool {
    let name = object.short_name();
    profile.threads.iter().any(|thread| {
        let process = thread.process_name.as_str();
        !process.is_empty() && (name == process || (process.len() >= 15 && name.starts_with(process)))
    })
}
