//! Stores equal things once and numbers them.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Numbers values in the order they are first seen.
#[derive(Clone, Debug)]
pub struct Interner<T> {
    values: Vec<T>,
    /// Numbers by the hash of their values.
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { values: Vec::new(), ids: HashTable::new(), hasher: DefaultHashBuilder::default() }
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// The number of `value`, which is stored when it is new.
    pub fn intern(&mut self, value: T) -> u32 {
        match self.find(&value) {
            Some(id) => id,
            None => self.push(value),
        }
    }

    /// As [`Interner::intern`], for a value that is made only when it is new.
    pub fn intern_ref<Q>(&mut self, value: &Q) -> u32
    where
        T: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = T> + ?Sized,
    {
        match self.find(value) {
            Some(id) => id,
            None => self.push(value.to_owned()),
        }
    }

    fn find<Q: Eq + Hash + ?Sized>(&self, value: &Q) -> Option<u32>
    where
        T: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(value);
        self.ids.find(hash, |&id| self.values[id as usize].borrow() == value).copied()
    }

    fn push(&mut self, value: T) -> u32 {
        // More than 2^32 distinct things cannot come out of bounded maps.
        let id = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        let Self { values, ids, hasher } = self;
        let hash = hasher.hash_one(&value);
        values.push(value);
        ids.insert_unique(hash, id, |&id| hasher.hash_one(&values[id as usize]));
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
