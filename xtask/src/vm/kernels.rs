//! Debian's kernels: a beginning of a version -> a kernel to boot. Nothing is installed.
//!
//! The machine's own package sources are asked first. What they do not have is looked for in Debian's other suites, on
//! the same mirror, with package lists of our own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::quiet;
use crate::command::{command, output};

/// Suites to look in, for kernels older and newer than the machine's own.
const SUITES: [&str; 5] = ["bullseye", "bookworm", "bookworm-backports", "trixie", "sid"];

/// Which kernels: those for virtual machines are half as large as the general ones.
const FLAVOUR: &str = "-cloud-amd64";

/// A kernel to boot.
pub(crate) struct Kernel {
    /// What it calls itself: `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    /// Its image.
    pub(crate) image: PathBuf,
}

/// Where packages come from: options of apt-get and apt-cache.
struct Source(Vec<String>);

impl Source {
    /// The machine's own sources.
    fn own() -> Self {
        Self(Vec::new())
    }

    /// Debian's suites, by package lists in `directory`.
    fn suites(directory: &Path) -> anyhow::Result<Self> {
        let mirrors = output(command("apt-get").args(["indextargets", "--format", "$(SITE)", "Created-By: Packages"]))?;
        let mirror = mirrors.lines().find(|site| site.ends_with("/debian")).context("apt has no Debian mirror")?;
        let [lists, cache] = ["lists", "cache"].map(|name| directory.join(name));
        for directory in [lists.join("partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let sources = directory.join("sources.list");
        let lines = SUITES.map(|suite| format!("deb {key} {mirror} {suite} main\n")).concat();
        fs::write(&sources, lines).with_context(|| format!("cannot write {}", sources.display()))?;
        let option = |name: &str, value: &Path| ["-o".to_owned(), format!("{name}={}", value.display())];
        let own = Self(
            [
                option("Dir::Etc::sourcelist", &sources),
                option("Dir::Etc::sourceparts", Path::new("-")),
                option("Dir::State::lists", &lists),
                option("Dir::Cache", &cache),
            ]
            .concat(),
        );
        // A suite that the mirror no longer has is an error to apt-get, after it has read the others.
        if let Err(error) = quiet(own.apt("apt-get").args(["update", "--quiet=2"])) {
            println!("warning: {error:#}");
        }
        Ok(own)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = command(program);
        // Its unprivileged user may not write to our directory.
        command.args(&self.0).args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    /// The newest package of a kernel whose version begins like that.
    fn newest(&self, version: &str) -> anyhow::Result<Option<String>> {
        let packages = output(self.apt("apt-cache").args(["search", "--names-only", "^linux-image-[0-9]"]))?;
        let names = packages.lines().filter_map(|line| line.split(' ').next());
        let fitting = names.filter(|name| release_of(name).is_some_and(|release| begins(release, version)));
        Ok(fitting.max_by_key(|name| numbers(name)).map(str::to_owned))
    }

    /// Downloads and unpacks a package into `directory`.
    fn unpack(&self, package: &str, directory: &Path) -> anyhow::Result<()> {
        let downloaded = || -> Option<PathBuf> {
            let entries = fs::read_dir(directory).ok()?.flatten();
            let mut files =
                entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "deb"));
            files.find(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
            })
        };
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        if downloaded().is_none() {
            quiet(self.apt("apt-get").args(["download", "--quiet=2", package]).current_dir(directory))?;
        }
        let file = downloaded().with_context(|| format!("apt-get left no {package} in {}", directory.display()))?;
        quiet(command("dpkg").arg("-x").arg(file).arg(directory))
    }
}

/// Gets the newest kernel whose version begins with `version`, into a directory of its own below `directory`.
///
/// Errors: there is none, or it cannot be downloaded.
pub(crate) fn fetch(version: &str, directory: &Path) -> anyhow::Result<Kernel> {
    let mut source = Source::own();
    let mut package = source.newest(version)?;
    if package.is_none() {
        source = Source::suites(&directory.join("apt"))?;
        package = source.newest(version)?;
    }
    let Some(package) = package else { bail!("Debian has no kernel {version}: see `apt-cache search linux-image`") };
    let release = release_of(&package).unwrap_or_default().to_owned();
    let directory = directory.join(&release);
    if image(&directory, &release).is_none() {
        source.unpack(&package, &directory)?;
    }
    if image(&directory, &release).is_none() {
        // Since Linux 7 the image is in a package that this one depends on.
        source.unpack(&format!("linux-binary-{release}"), &directory)?;
    }
    let image = image(&directory, &release).with_context(|| format!("{package} has no vmlinuz"))?;
    Ok(Kernel { release, image })
}

/// Where the image is, once unpacked.
fn image(directory: &Path, release: &str) -> Option<PathBuf> {
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    places.into_iter().map(|place| directory.join(place)).find(|path| path.is_file())
}

/// `6.1.0-56-cloud-amd64` of `linux-image-6.1.0-56-cloud-amd64`; `None` for other flavours.
fn release_of(package: &str) -> Option<&str> {
    package.strip_prefix("linux-image-").filter(|release| release.ends_with(FLAVOUR))
}

/// Whether a release is of a version: `6.1` is not the beginning of `6.12.3`, and a package without more than the
/// version is no kernel but depends on the newest.
fn begins(release: &str, version: &str) -> bool {
    let rest = release.strip_prefix(version).and_then(|rest| rest.strip_suffix(FLAVOUR));
    rest.is_some_and(|rest| (rest.is_empty() && version.contains(['-', '+'])) || rest.starts_with(['.', '-', '+']))
}

/// The numbers in a name, which order versions.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_only_its_own_releases() {
        assert!(begins("6.1.0-56-cloud-amd64", "6.1"));
        assert!(begins("6.12.117+deb12-cloud-amd64", "6.12"));
        assert!(begins("6.1.0-56-cloud-amd64", "6.1.0-56"));
        assert!(!begins("6.12.117+deb12-cloud-amd64", "6.1"));
        assert!(!begins("6.12-cloud-amd64", "6.12"));
        assert_eq!(release_of("linux-image-6.1.0-56-amd64"), None);
    }

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        assert!(numbers("6.1.0-9") < numbers("6.1.0-10"));
        assert!(numbers("6.12.95+deb12") < numbers("6.12.117+deb12"));
    }
}
