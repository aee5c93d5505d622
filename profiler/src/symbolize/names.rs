//! The functions at addresses, and the lookup of many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use hashbrown::{HashMap, HashSet};

/// A function found at an address, innermost first in a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: Arc<str>,
    /// Empty when unknown.
    pub(super) file: Arc<str>,
    /// 0 when unknown.
    pub(super) line: u32,
}

/// Names by address. An address that has none is not in it; where it is kept that there is none, the list is empty.
pub(super) type Names = HashMap<u64, Vec<Found>>;

/// Threads that look names up: each holds an object's symbols of its own.
const MAX_THREADS: usize = 8;

/// Texts, each stored once.
#[derive(Debug, Default)]
pub(super) struct Strings(HashSet<Arc<str>>);

impl Strings {
    /// The one that is stored.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }
}

/// Runs `work` on every item, on as many threads as there are CPUs; the results are in the items' order.
///
/// Items are begun in their order: put the long ones first.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cpus.min(MAX_THREADS).min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((number, item)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    items.get(number).map(|item| (number, item))
                } {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        assert_eq!(in_parallel(&items, |item| item * item), items.iter().map(|item| item * item).collect::<Vec<_>>());
        assert!(in_parallel(&[] as &[u64], |item| *item).is_empty());
    }

    #[test]
    fn equal_texts_are_one() {
        let mut strings = Strings::default();
        assert!(Arc::ptr_eq(&strings.intern("a"), &strings.intern("a")));
        assert!(!Arc::ptr_eq(&strings.intern("a"), &strings.intern("b")));
    }
}
