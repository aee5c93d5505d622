//! The objects that were seen, each opened once, at first sight, and numbered.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::jit_dump::pid_of;
use super::mapping::{Backing, FileKey, Mapping, read_mappings};
use super::object::{ObjectError, ObjectFile, open_backing};

/// Objects that are kept open. A whole host has a few hundred; the limit is what a hostile process can reach.
const MAX_OBJECTS: usize = 8192;

/// Largest vDSO that is copied: it has two pages of code.
const MAX_VDSO_BYTES: u64 = 1 << 20;

/// Path of the vDSO's object.
const VDSO: &str = "[vdso]";

/// Objects by number and by what identifies them.
#[derive(Debug, Default)]
pub struct ObjectTable {
    by_file: HashMap<FileKey, u32>,
    vdso: Option<u32>,
    objects: Vec<Arc<ObjectFile>>,
    /// Numbers of those that were forgotten, for others to have.
    free: Vec<u32>,
    /// Files that could not be used, with the reason, each once.
    pub failures: Vec<ObjectError>,
    failed: HashMap<FileKey, ()>,
}

impl ObjectTable {
    /// The objects by number.
    #[must_use]
    pub fn objects(&self) -> &[Arc<ObjectFile>] {
        &self.objects
    }

    /// The number of the object behind a mapping of `pid`, which is opened when it is new.
    ///
    /// `None` for memory that is no file and for files that could not be opened: these are in
    /// [`ObjectTable::failures`], and are not tried again.
    pub fn open(&mut self, pid: u32, mapping: &Mapping) -> Option<u32> {
        match &mapping.backing {
            Backing::File(key, path) => {
                if let Some(&object) = self.by_file.get(key) {
                    return Some(object);
                }
                // A dump of run-time code is mapped to be found, and is no ELF file.
                let is_dump = pid_of(path).is_some();
                if is_dump || self.failed.contains_key(key) || self.len() >= MAX_OBJECTS {
                    return None;
                }
                let opened = open_backing(pid, mapping.start, mapping.end, *key, path)
                    .and_then(|file| ObjectFile::read(file, path.clone()));
                match opened {
                    Ok(object) => {
                        let number = self.push(object);
                        self.by_file.insert(*key, number);
                        Some(number)
                    }
                    Err(error) => {
                        self.failed.insert(*key, ());
                        self.failures.push(error);
                        None
                    }
                }
            }
            Backing::Vdso => {
                if self.vdso.is_none() {
                    self.vdso = copy_vdso().ok().map(|object| self.push(object));
                }
                self.vdso
            }
            Backing::Anonymous(_) => None,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the files that are neither `mapped` nor `kept` by their number, and closes them once nobody else has them;
    /// returns their numbers, which others will have. Those that could not be used may be tried again.
    pub fn forget(&mut self, mapped: &HashSet<FileKey>, kept: &HashSet<u32>) -> Vec<u32> {
        self.failed.clear();
        let mut forgotten = Vec::new();
        self.by_file.retain(|key, &mut number| {
            let stays = mapped.contains(key) || kept.contains(&number);
            if !stays {
                forgotten.push(number);
            }
            stays
        });
        let Ok(nothing) = ObjectFile::nothing() else { return Vec::new() };
        let nothing = Arc::new(nothing);
        for &number in &forgotten {
            self.objects[number as usize] = Arc::clone(&nothing);
        }
        self.free.extend(&forgotten);
        forgotten
    }

    fn push(&mut self, object: ObjectFile) -> u32 {
        if let Some(number) = self.free.pop() {
            self.objects[number as usize] = Arc::new(object);
            return number;
        }
        let number = u32::try_from(self.objects.len()).unwrap_or(u32::MAX);
        self.objects.push(Arc::new(object));
        number
    }

    /// Places an address of a process: the object's number and the virtual address in it.
    pub fn place(&mut self, pid: u32, mapping: &Mapping, address: u64) -> Option<(u32, u64)> {
        let object = self.open(pid, mapping)?;
        let file_offset = mapping.file_offset.checked_add(address.checked_sub(mapping.start)?)?;
        Some((object, self.objects[object as usize].address_of(file_offset)?))
    }
}

/// Copies our own vDSO, which is every process's, into memory that looks like a file.
fn copy_vdso() -> Result<ObjectFile, ObjectError> {
    let failed = |cause: io::Error| ObjectError::Io { path: VDSO.to_owned(), cause };
    let mappings = read_mappings(std::process::id()).map_err(|error| failed(io::Error::other(error)))?;
    let mapping = mappings
        .iter()
        .find(|mapping| mapping.backing == Backing::Vdso)
        .filter(|mapping| mapping.end - mapping.start <= MAX_VDSO_BYTES)
        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
    let memory = File::open("/proc/self/mem").map_err(failed)?;
    memory.read_exact_at(&mut bytes, mapping.start).map_err(failed)?;
    // SAFETY: the name is a C string; the flag closes the descriptor on exec.
    let fd = unsafe { libc::memfd_create(c"vdso".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(&bytes).map_err(failed)?;
    ObjectFile::read(file, VDSO.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_maps_is_closed_and_its_number_given_to_another() {
        let pid = std::process::id();
        let mappings = read_mappings(pid).unwrap();
        let mut table = ObjectTable::default();
        let files = mappings.iter().filter_map(|mapping| match &mapping.backing {
            Backing::File(key, _) => table.open(pid, mapping).map(|number| (*key, number, mapping)),
            _ => None,
        });
        let files: Vec<_> = files.collect();
        let (kept, gone) = (files.first().unwrap(), files.last().unwrap());
        assert_ne!(kept.1, gone.1);
        let (count, watched) = (table.len(), Arc::downgrade(&table.objects()[gone.1 as usize]));
        let forgotten = table.forget(&HashSet::from([kept.0]), &HashSet::new());
        assert!(forgotten.contains(&gone.1) && !forgotten.contains(&kept.1));
        assert_eq!((table.len(), watched.strong_count()), (count - forgotten.len(), 0));
        // The same file is another one to the table, with a number that was free.
        assert!(forgotten.contains(&table.open(pid, gone.2).unwrap()));
        assert_eq!(table.open(pid, kept.2), Some(kept.1));
    }

    #[test]
    fn every_file_and_the_vdso_of_our_own_are_opened_once() {
        let pid = std::process::id();
        let mappings = read_mappings(pid).unwrap();
        let mut table = ObjectTable::default();
        let first: Vec<_> = mappings.iter().map(|mapping| table.open(pid, mapping)).collect();
        let second: Vec<_> = mappings.iter().map(|mapping| table.open(pid, mapping)).collect();
        assert_eq!(first, second);
        assert!(table.objects().iter().any(|object| object.path == VDSO));
        assert!(table.failures.is_empty(), "{:?}", table.failures);
    }
}
