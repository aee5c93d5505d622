//! Stores equal things once and numbers them.

use std::collections::HashMap;
use std::hash::Hash;

/// Numbers values in the order they are first seen.
#[derive(Clone, Debug)]
pub struct Interner<T> {
    ids: HashMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { ids: HashMap::new(), values: Vec::new() }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    /// The number of `value`, which is stored when it is new.
    pub fn intern(&mut self, value: T) -> u32 {
        if let Some(&id) = self.ids.get(&value) {
            return id;
        }
        // More than 2^32 distinct things cannot come out of bounded maps.
        let id = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.values.push(value.clone());
        self.ids.insert(value, id);
        id
    }

    /// The values by number.
    #[must_use]
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// The values by number, without the index.
    #[must_use]
    pub fn into_values(self) -> Vec<T> {
        self.values
    }
}
