//! Names that were looked up before by whoever names window after window: most frames of a window are those of the one before.
//!
//! Kept in memory as long as the object is held open by somebody else; never of code that is made at run time, which changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::names::Names;
use crate::process::ObjectFile;

/// Addresses that are kept in all; some 100 bytes each.
const MAX_ADDRESSES: usize = 100_000;

/// Names by object, and of the kernel.
#[derive(Debug, Default)]
pub struct KnownNames(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    kernel: Names,
    /// By where the object is in memory, which is its own as long as it is there.
    objects: HashMap<usize, (Weak<ObjectFile>, Names)>,
    addresses: usize,
}

impl KnownNames {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is known of these addresses: of an object, or of the kernel.
    pub(super) fn of(&self, object: Option<&Arc<ObjectFile>>, addresses: &[u64]) -> Names {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = match object {
            None => Some(&known.kernel),
            Some(object) => {
                known.objects.get(&key(object)).filter(|(held, _)| is_same(held, object)).map(|(_, names)| names)
            }
        };
        let Some(names) = names else { return Names::new() };
        addresses.iter().filter_map(|address| Some((*address, names.get(address)?.clone()))).collect()
    }

    /// Keeps what was found; that an address has no name as well.
    pub(super) fn add(&self, object: Option<&Arc<ObjectFile>>, addresses: &[u64], found: &Names) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.objects.retain(|_, (held, _)| held.strong_count() > 0);
        known.addresses = known.kernel.len() + known.objects.values().map(|(_, names)| names.len()).sum::<usize>();
        if known.addresses + addresses.len() > MAX_ADDRESSES {
            *known = Known::default();
        }
        let names = match object {
            None => &mut known.kernel,
            Some(object) => {
                &mut known.objects.entry(key(object)).or_insert_with(|| (Arc::downgrade(object), Names::new())).1
            }
        };
        names.extend(addresses.iter().map(|address| (*address, found.get(address).cloned().unwrap_or_default())));
    }

    /// Forgets everything, to give the memory back.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Known::default();
    }
}

fn key(object: &Arc<ObjectFile>) -> usize {
    Arc::as_ptr(object).addr()
}

fn is_same(held: &Weak<ObjectFile>, object: &Arc<ObjectFile>) -> bool {
    std::ptr::eq(held.as_ptr(), Arc::as_ptr(object))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::names::Found;
    use super::*;

    #[test]
    fn names_go_with_their_object() {
        let known = KnownNames::new();
        let open = || Arc::new(ObjectFile::read(File::open("/proc/self/exe").unwrap(), "exe".to_owned()).unwrap());
        let object = open();
        let names = Names::from([(16, vec![Found { name: "a".into(), file: "".into(), line: 1 }])]);
        known.add(Some(&object), &[16, 32], &names);
        let found = known.of(Some(&object), &[16, 32, 48]);
        assert_eq!((found.len(), found[&16].len(), found[&32].len()), (2, 1, 0));
        assert!(known.of(None, &[16]).is_empty() && known.of(Some(&open()), &[16]).is_empty());
        drop(object);
        known.add(None, &[64], &names);
        assert_eq!(known.0.lock().unwrap().objects.len(), 0);
        let many: Vec<u64> = (0..MAX_ADDRESSES as u64).collect();
        known.add(None, &many, &Names::new());
        assert_eq!(known.of(None, &many).len(), many.len());
        assert!(known.of(None, &many[..1]).contains_key(&0) && known.0.lock().unwrap().kernel.len() == MAX_ADDRESSES);
        known.forget();
        assert!(known.of(None, &many).is_empty());
    }
}
