//! How much of an origin's values each function had, slice by slice: what the variance of a value is estimated from.

use serde::{Deserialize, Serialize};

/// Most functions and slices of a file that is read: many times what is written.
const MAX_FUNCTIONS: usize = 10_000;
const MAX_SLICES: usize = 10_000;

/// An origin's values by function and slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSlices {
    /// Length of each slice, ns; they follow each other from the start of the recording.
    pub length_ns: Vec<u64>,
    /// Values of all functions, in the origin's primary column, slice by slice.
    pub totals: Vec<u64>,
    /// The functions that have most, most first.
    pub functions: Vec<FunctionSlice>,
}

/// A function's values by slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSlice {
    /// Name; `object+0xOFFSET` when there is none.
    pub function: String,
    /// Path of its object; empty when unknown.
    pub object: String,
    /// Values with the function as the leaf, slice by slice.
    pub self_values: Vec<u64>,
    /// Values with the function anywhere on the stack, slice by slice.
    pub total_values: Vec<u64>,
}

impl FunctionSlices {
    /// Whether every list has a value for each slice and no sum leaves 64 bits, which a damaged file may not grant.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        if self.functions.len() > MAX_FUNCTIONS || self.length_ns.len() > MAX_SLICES {
            return false;
        }
        let functions = self.functions.iter().flat_map(|function| [&function.self_values, &function.total_values]);
        [&self.length_ns, &self.totals].into_iter().chain(functions).all(|list| {
            list.len() == self.length_ns.len()
                && list.iter().try_fold(0_u64, |sum, &value| sum.checked_add(value)).is_some_and(|sum| sum < 1 << 62)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_other_lengths_and_endless_sums_are_not_sound() {
        let function = FunctionSlice { self_values: vec![1, 2], total_values: vec![1, 2], ..FunctionSlice::default() };
        let slices = FunctionSlices { length_ns: vec![1, 1], totals: vec![3, 4], functions: vec![function] };
        assert!(slices.is_sound());
        let mut short = slices.clone();
        short.functions[0].self_values.pop();
        assert!(!short.is_sound());
        assert!(!FunctionSlices { totals: vec![u64::MAX, 1], ..slices }.is_sound());
    }
}
