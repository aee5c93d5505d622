//! An initial RAM file system: a cpio archive in the format "newc", not compressed.
//!
//! Nothing is gained by compressing: qemu reads it at once, and an emulated CPU would have to unpack it.
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;

/// File types in a mode. Source: `inode(7)`.
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const FILE: u32 = 0o100_000;

/// An archive as it is made. What is there already is not added again.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    paths: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds an empty directory.
    pub(crate) fn directory(&mut self, path: impl AsRef<Path>) {
        self.entry(path.as_ref(), DIRECTORY | 0o755, &[]);
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, permissions: u32, content: &[u8]) {
        self.entry(path.as_ref(), FILE | permissions, content);
    }

    /// Adds what this machine has at an absolute path, at that path: with the directories above it, and with every link
    /// on the way to it. Of a directory only itself.
    ///
    /// Errors: there is nothing, or it cannot be read.
    pub(crate) fn copy(&mut self, path: &Path) -> anyhow::Result<()> {
        let mut real = PathBuf::from("/");
        let mut components = path.components();
        while let Some(component) = components.next() {
            match component {
                Component::Normal(name) => real.push(name),
                Component::ParentDir => {
                    real.pop();
                    continue;
                }
                _ => continue,
            }
            if self.paths.contains(&real) && real.is_dir() && !real.is_symlink() {
                continue;
            }
            let tried = || format!("cannot read {}", real.display());
            let metadata = fs::symlink_metadata(&real).with_context(tried)?;
            if metadata.is_symlink() {
                let target = fs::read_link(&real).with_context(tried)?;
                self.entry(&real, LINK | 0o777, target.as_os_str().as_bytes());
                real.pop();
                return self.copy(&real.join(target).join(components.as_path()));
            }
            if metadata.is_dir() {
                self.entry(&real, DIRECTORY | (metadata.permissions().mode() & 0o7777), &[]);
            } else if !self.paths.contains(&real) {
                let content = fs::read(&real).with_context(tried)?;
                self.entry(&real, FILE | (metadata.permissions().mode() & 0o7777), &content);
            }
        }
        Ok(())
    }

    /// Adds every file of a directory of this machine, not those of directories in it.
    ///
    /// Errors: as for [`Archive::copy`].
    pub(crate) fn copy_files(&mut self, directory: &Path) -> anyhow::Result<()> {
        let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            self.copy(&entry?.path())?;
        }
        Ok(())
    }

    /// Adds an entry of which the directory above is there; nothing when it is there itself.
    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        if !self.paths.insert(path.to_path_buf()) {
            return;
        }
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        self.write(name, mode, content);
    }

    /// Header, name and content; each of the last two is padded to 4 bytes.
    fn write(&mut self, name: &[u8], mode: u32, content: &[u8]) {
        let inode = self.paths.len();
        // inode, mode, uid, gid, links, mtime, file size, device and special device (two each), name size, check.
        let fields = [inode, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0]
            .map(|it| format!("{it:08x}"));
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend_from_slice(fields.concat().as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Ends the archive and writes it.
    ///
    /// Errors: the file cannot be written.
    pub(crate) fn write_to(mut self, path: &Path) -> anyhow::Result<()> {
        self.write(b"TRAILER!!!", 0, &[]);
        let mut file = fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        file.write_all(&self.bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("/init", 0o755, b"#!/x\n");
        archive.file("/init", 0o755, b"not again");
        let text = String::from_utf8(archive.bytes).unwrap();
        let header = "070701\
            00000001000081ed0000000000000000000000010000000000000005\
            000000000000000000000000000000000000000500000000";
        assert_eq!(header.len(), 110);
        assert_eq!(text, format!("{header}init\0\0#!/x\n\0\0\0"));
    }
}
