//! Values by function and slice, from values by stack and slice.

use std::cmp::Reverse;

use super::Weighted;
use super::hotspots::Functions;
use crate::profile::{FunctionSlice, FunctionSlices, Profile, StackId};

/// Most functions that are followed slice by slice, those with the most first.
const MAX_FUNCTIONS: usize = 300;
/// Part of all values below which a function is not followed, one in as many: what it changes is too little to be found.
const LEAST_PART: u64 = 1000;

/// Adds values up by function and slice.
///
/// `lengths_ns`: of the slices; `values`: by stack of `profile` and slice.
#[must_use]
pub fn function_slices(
    profile: &Profile,
    lengths_ns: Vec<u64>,
    values: impl IntoIterator<Item = ((StackId, u32), u64)>,
) -> FunctionSlices {
    let count = lengths_ns.len();
    let functions = Functions::new(&Weighted::new(profile));
    let mut totals = vec![0; count];
    let empty = || (vec![0; count], vec![0; count]);
    let mut found: Vec<(Vec<u64>, Vec<u64>)> = std::iter::repeat_with(empty).take(functions.keys.len()).collect();
    // The last stack and slice that counted for a function: a recursive function counts once a stack.
    let mut counted = vec![(StackId::MAX, u32::MAX); functions.keys.len()];
    for ((stack, slice), value) in values {
        let (Some(total), Some(locations)) = (totals.get_mut(slice as usize), profile.stacks.get(stack as usize))
        else {
            continue;
        };
        *total += value;
        let mut is_leaf = true;
        for function in locations.iter().flat_map(|&location| &functions.locations[location as usize]) {
            let (self_values, total_values) = &mut found[*function as usize];
            if std::mem::take(&mut is_leaf) {
                self_values[slice as usize] += value;
            }
            if counted[*function as usize] != (stack, slice) {
                counted[*function as usize] = (stack, slice);
                total_values[slice as usize] += value;
            }
        }
    }
    let least = (totals.iter().sum::<u64>() / LEAST_PART).max(1);
    let mut functions: Vec<_> = functions
        .keys
        .into_iter()
        .zip(found)
        .filter(|(_, (_, totals))| totals.iter().sum::<u64>() >= least)
        .map(|(key, (self_values, total_values))| FunctionSlice {
            function: key.name,
            object: key.object,
            self_values,
            total_values,
        })
        .collect();
    let order = |slice: &FunctionSlice| {
        let total = slice.total_values.iter().sum::<u64>();
        (Reverse(total), slice.function.clone(), slice.object.clone())
    };
    functions.sort_by_cached_key(order);
    functions.truncate(MAX_FUNCTIONS);
    FunctionSlices { length_ns: lengths_ns, totals, functions }
}
