//! The output directory: made, checked before any work, and written so that no file is ever half there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};

use crate::output::OutputFile;

/// A directory that files can be written to.
#[derive(Debug)]
pub(super) struct OutputDirectory {
    path: PathBuf,
    /// Whether it was not there before.
    is_new: bool,
}

impl Drop for OutputDirectory {
    /// A recording that failed leaves nothing: only an empty directory can be removed so.
    fn drop(&mut self) {
        if self.is_new {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl OutputDirectory {
    /// Makes the directory when it is missing, readable by its owner alone, and makes sure that it takes files.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let is_new = !path.exists();
        let failed =
            |error: io::Error| anyhow!("cannot write to {}: {error}; choose another directory with -o", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let directory = Self { path: path.clone(), is_new };
        let (file, name) = directory.temporary("check").map_err(failed)?;
        drop(file);
        fs::remove_file(name).map_err(failed)?;
        Ok(directory)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A new file for its owner alone. Never follows a link, never opens what is there already.
    fn temporary(&self, name: &str) -> io::Result<(File, PathBuf)> {
        let path = self.path.join(format!(".{name}.{}.tmp", std::process::id()));
        let file =
            OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).mode(0o600).open(&path)?;
        Ok((file, path))
    }

    /// Writes a file: whole under its name, or not at all.
    fn write_one(&self, file: &OutputFile) -> io::Result<()> {
        let (mut temporary, path) = self.temporary(&file.name)?;
        let written = temporary.write_all(&file.bytes).and_then(|()| fs::rename(&path, self.path.join(&file.name)));
        if written.is_err() {
            // The error that matters is the first.
            let _ = fs::remove_file(&path);
        }
        written
    }

    /// Writes files. One that cannot be written does not keep the others from it.
    pub(super) fn write(&self, files: &[OutputFile]) -> Result<()> {
        let failures: Vec<String> = files
            .iter()
            .filter_map(|file| self.write_one(file).err().map(|error| format!("{}: {error}", file.name)))
            .collect();
        if !failures.is_empty() {
            bail!(
                "cannot write {} of {} files to {} ({}): free some space there, or choose another directory with -o",
                failures.len(),
                files.len(),
                self.path.display(),
                failures.join("; ")
            );
        }
        Ok(())
    }
}

/// A name by target and time, such as `profile-redis-server-20261120T121530Z`.
pub(super) fn default_name(target: &str) -> PathBuf {
    let plain: String = target
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() || "._-".contains(character) { character } else { '-' })
        .take(40)
        .collect();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("profile-{}-{}", plain.trim_matches('-'), compact_time(seconds)).into()
}

/// Seconds since the Unix epoch as `YYYYMMDDTHHMMSSZ`.
///
/// Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn compact_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn times_are_utc() {
        assert_eq!(compact_time(0), "19700101T000000Z");
        assert_eq!(compact_time(1_709_210_096), "20240229T123456Z");
        assert_eq!(compact_time(1_795_176_930), "20261120T121530Z");
    }

    #[test]
    fn default_names_are_plain() {
        let name = default_name("a/b; rm -rf $HOME").display().to_string();
        assert!(name.starts_with("profile-a-b--rm--rf--HOME-2"), "{name}");
    }

    #[test]
    fn files_are_private_and_replace_links() {
        let base = tempfile::tempdir().unwrap();
        let elsewhere = base.path().join("elsewhere");
        fs::write(&elsewhere, "untouched").unwrap();
        let directory = OutputDirectory::create(base.path().join("new/deep")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("a.txt")).unwrap();
        directory.write(&[OutputFile { name: "a.txt".to_owned(), bytes: b"text".to_vec() }]).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "untouched");
        let written = directory.path().join("a.txt");
        assert_eq!(fs::read_to_string(&written).unwrap(), "text");
        assert_eq!(fs::symlink_metadata(&written).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(directory.path()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_directory_that_stays_empty_is_removed() {
        let base = tempfile::tempdir().unwrap();
        drop(OutputDirectory::create(base.path().join("new")).unwrap());
        drop(OutputDirectory::create(base.path().to_owned()).unwrap());
        assert!(!base.path().join("new").exists());
        assert!(base.path().exists());
    }

    #[test]
    fn a_path_below_a_file_is_refused_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = OutputDirectory::create(file.path().join("x")).unwrap_err();
        assert!(format!("{error:#}").contains("choose another directory"));
    }
}
