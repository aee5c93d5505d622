//! Names of files, as the processes see them that use them.

use std::collections::{BTreeMap, HashMap, HashSet};

use profiler_common::file::FileId;

use crate::bpf::NamedFile;
use crate::process::{Mounts, mount_namespace, working_directory};

/// Bytes of all names together: what is above has none.
const MAX_BYTES: usize = 32 << 20;

/// Mounts that are kept, of all namespaces.
const MAX_MOUNTS: usize = 1 << 18;

/// Devices that are looked for, in all namespaces.
const MAX_LOOKED_FOR: usize = 1_024;

/// The names that are known.
#[derive(Debug, Default)]
pub(super) struct FileNames {
    names: HashMap<FileId, String>,
    bytes: usize,
    /// By namespace.
    mounts: HashMap<u64, Mounts>,
    /// Namespaces and devices for which they were read: what is not mounted then, as memory that has a name, is not looked for
    /// again.
    looked_for: HashSet<(u64, (u32, u32))>,
    /// How often processes, by pid, gave a file a name.
    renames: BTreeMap<(u32, String), u64>,
}

impl FileNames {
    /// Takes in what was sent. Called while the processes still run, if they do.
    pub(super) fn add(&mut self, files: &[NamedFile]) {
        for file in files {
            if let Some(directory) = file.renamed_in {
                self.add_renamed(file, directory);
                continue;
            }
            // Another name of the same file, or the same again.
            if self.names.contains_key(&file.id) || self.bytes >= MAX_BYTES {
                continue;
            }
            let name = self.path_of(file);
            self.bytes += name.len();
            self.names.insert(file.id, name);
        }
    }

    /// The name of a file: its path where a process sees it, with `(deleted)` behind it when it has been; numbers where no
    /// name is known.
    pub(super) fn name(&self, id: &FileId) -> String {
        self.names.get(id).cloned().unwrap_or_else(|| without_name(id))
    }

    /// How often processes, by pid, gave a file a name since the last call, as far as names are known.
    pub(super) fn take_renames(&mut self) -> BTreeMap<(u32, String), u64> {
        let renames = std::mem::take(&mut self.renames);
        self.bytes -= renames.keys().map(|(_, path)| path.len()).sum::<usize>().min(self.bytes);
        renames
    }

    /// Whether so much is known that there is hardly room for more.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.bytes >= MAX_BYTES / 2 || self.looked_for.len() >= MAX_LOOKED_FOR
    }

    /// Forgets all names: those of files that are used on come again, once the programs have forgotten them too.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes in a new name, relative to where the process is, if it is still there.
    fn add_renamed(&mut self, file: &NamedFile, directory: i32) {
        let path = text(&file.path);
        let path = if path.starts_with('/') {
            path
        } else {
            working_directory(file.pid, directory)
                .map_or(path.clone(), |within| within.join(&path).display().to_string())
        };
        let bytes = path.len();
        if self.bytes < MAX_BYTES {
            let renames = self.renames.entry((file.pid, path)).or_insert_with(|| {
                self.bytes += bytes;
                0
            });
            *renames += 1;
        }
    }

    fn path_of(&mut self, file: &NamedFile) -> String {
        let device = file.id.device_numbers();
        if file.is_cut {
            return format!("...{}", text(&file.path));
        }
        let path = match self.place(file.pid, device, &file.path) {
            Some(placed) => text(&placed),
            None if file.path.is_empty() => return of_device(&file.id).unwrap_or_else(|| without_name(&file.id)),
            None => format!("{}:{}:{}", device.0, device.1, text(&file.path)),
        };
        if file.is_deleted { format!("{path} (deleted)") } else { path }
    }

    /// Where a process sees a path of a file system; where we do, when it is gone or sees nothing of it.
    fn place(&mut self, pid: u32, device: (u32, u32), path: &[u8]) -> Option<Vec<u8>> {
        [pid, std::process::id()].into_iter().find_map(|pid| {
            let namespace = mount_namespace(pid)?;
            if let Some(placed) = self.mounts.get(&namespace).and_then(|mounts| mounts.place(device, path)) {
                return Some(placed);
            }
            // Mounted since, or not looked at yet.
            if self.looked_for.len() >= MAX_LOOKED_FOR || !self.looked_for.insert((namespace, device)) {
                return None;
            }
            let mounts = Mounts::of(pid)?;
            let placed = mounts.place(device, path);
            let held: usize = self.mounts.values().map(Mounts::len).sum();
            if held + mounts.len() <= MAX_MOUNTS {
                self.mounts.insert(namespace, mounts);
            }
            placed
        })
    }
}

/// A file of which there is no name.
fn without_name(id: &FileId) -> String {
    let (major, minor) = id.device_numbers();
    format!("[inode {} on {major}:{minor}]", id.inode)
}

/// The name of a block device as the file that the kernel keeps for it, which is on no file system and whose number is the
/// device's: what a file system keeps of itself is read and written through it.
fn of_device(id: &FileId) -> Option<String> {
    let number = FileId { device: u32::try_from(id.inode).ok()?, ..*id };
    let (major, minor) = number.device_numbers();
    let is_device = std::fs::exists(format!("/sys/dev/block/{major}:{minor}")).unwrap_or(false);
    is_device.then(|| format!("[block device {major}:{minor}]"))
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn names_are_paths_where_they_can_be() {
        let device = std::fs::metadata("/proc/self").unwrap().dev();
        let device = libc::major(device) << 20 | libc::minor(device);
        let file = |inode, path: &[u8], is_deleted, is_cut| NamedFile {
            id: FileId { inode, device, generation: 0 },
            pid: std::process::id(),
            path: path.to_vec(),
            is_deleted,
            is_cut,
            renamed_in: None,
        };
        let mut names = FileNames::default();
        names.add(&[file(1, b"/stat", false, false), file(1, b"/other", false, false), file(2, b"/gone", true, false)]);
        names.add(&[file(3, b"/deep", false, true)]);
        let name = |inode| names.name(&FileId { inode, device, generation: 0 });
        assert_eq!(name(1), "/proc/stat");
        assert_eq!(name(2), "/proc/gone (deleted)");
        assert_eq!(name(3), ".../deep");
        for path in ["/new", "/new", "other"] {
            names.add(&[NamedFile { renamed_in: Some(-100), ..file(0, path.as_bytes(), false, false) }]);
        }
        let here = std::env::current_dir().unwrap().join("other").display().to_string();
        let ours = |path: &str| (std::process::id(), path.to_owned());
        let renames = names.take_renames();
        assert_eq!((renames.get(&ours("/new")), renames.get(&ours(&here))), (Some(&2), Some(&1)), "{renames:?}");
        assert!(names.take_renames().is_empty());
        assert_eq!(names.name(&FileId { inode: 9, device: 254 << 20, generation: 0 }), "[inode 9 on 254:0]");
    }
}
