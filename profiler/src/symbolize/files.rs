//! Where the names of an object are: its debug file, the object itself, its package of split debug information.
//!
//! Input: an object that is held open. Output: files to parse, best first, each of them plain. A debug file is found by
//! build ID in directories, by debug link beside the object and in these directories, or fetched by build ID from a
//! debuginfod server, if that is asked for. What is found must state the object's build ID, or have the checksum that
//! the link states.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Options;
use super::plain::{Plain, is_needed, rewrite};
use crate::process::elf::Sections;
use crate::process::{ObjectFile, build_id};

/// Bytes of a debug link: a file name and a checksum.
const MAX_LINK_BYTES: u64 = 8192;

/// Bytes of a debug file whose checksum is computed. Those that are found by build ID need none.
const MAX_CHECKED_BYTES: u64 = 4 << 30;

/// A file that names come from.
#[derive(Debug)]
pub(super) struct NameFile {
    /// As it is: what it is known by.
    pub(super) original: File,
    /// Rewritten, where it has to be.
    pub(super) plain: Option<Plain>,
    /// The package beside it.
    pub(super) package: Option<Package>,
    /// Whether it has debug information that can be read.
    pub(super) has_debug: bool,
    /// What is missing in it, for a person.
    pub(super) problem: Option<String>,
}

impl NameFile {
    /// `trusted`: from a directory of debug files.
    fn new(original: File, package: Option<Package>, trusted: bool) -> Self {
        // What we cannot read is nothing for a parser that checks less.
        let Some(sections) = Sections::read(&original) else {
            let problem = Some("it has no section headers, or too many".to_owned());
            return Self { original, plain: None, package: None, has_debug: false, problem };
        };
        let (mut plain, mut problem) = (None, None);
        let mut has_debug =
            [".debug_info", ".zdebug_info", ".debug_line"].iter().any(|name| sections.find(name).is_some());
        // Other files are looked for by debug information alone.
        if is_needed(&sections, trusted || !has_debug) {
            match rewrite(&sections, trusted) {
                Ok(rewritten) => {
                    problem = rewritten.problem.as_ref().map(ToString::to_string);
                    plain = Some(rewritten);
                    has_debug &= problem.is_none();
                }
                Err(error) => (problem, has_debug) = (Some(error.to_string()), false),
            }
        }
        Self { original, plain, package, has_debug, problem }
    }

    /// What is parsed; `None` when it would have to be rewritten, and cannot be.
    pub(super) fn parsed(&self) -> Option<&File> {
        let plain = self.plain.as_ref().map(|plain| &plain.file);
        plain.or_else(|| self.problem.is_none().then_some(&self.original))
    }
}

/// A package of split debug information.
#[derive(Debug)]
pub(super) enum Package {
    AsItIs(File),
    Rewritten(Plain),
}

impl Package {
    /// What is parsed.
    pub(super) fn parsed(&self) -> &File {
        match self {
            Self::AsItIs(file) | Self::Rewritten(Plain { file, .. }) => file,
        }
    }
}

/// A path by which an open file can be opened again, whatever has become of its name.
pub(super) fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The files that name an object's addresses, best first.
pub(super) fn find(object: &ObjectFile, options: &Options, warnings: &mut Vec<String>) -> Vec<NameFile> {
    let debug = debug_file(object, options, warnings);
    let own = object.file.try_clone().ok();
    let package =
        absolute(object).and_then(|path| open_regular(Path::new(&format!("{path}.dwp")))).and_then(plain_package);
    let files = debug.map(|(file, trusted)| NameFile::new(file, None, trusted)).into_iter();
    files.chain(own.map(|file| NameFile::new(file, package, false))).collect()
}

/// The path of an object that has one.
fn absolute(object: &ObjectFile) -> Option<&str> {
    let path = object.path.strip_suffix(" (deleted)").unwrap_or(&object.path);
    path.starts_with('/').then_some(path)
}

/// A package that can be parsed; `None` for a damaged one.
fn plain_package(file: File) -> Option<Package> {
    let sections = Sections::read(&file)?;
    if !is_needed(&sections, false) {
        return Some(Package::AsItIs(file));
    }
    rewrite(&sections, false).ok().filter(|plain| plain.problem.is_none()).map(Package::Rewritten)
}

/// The object's debug file, and whether it is from a directory of debug files.
fn debug_file(object: &ObjectFile, options: &Options, warnings: &mut Vec<String>) -> Option<(File, bool)> {
    let sections = Sections::read(&object.file);
    let is_whole = sections
        .as_ref()
        .is_some_and(|sections| sections.find(".debug_info").is_some() || sections.find(".zdebug_info").is_some());
    let by_id = || {
        let paths = options.debug_directories.iter().filter_map(|directory| path_by_id(directory, &object.build_id));
        paths.filter_map(|path| open_regular(&path)).find(|file| build_id(file) == object.build_id)
    };
    if let Some(found) = by_id() {
        return Some((found, true));
    }
    let link = sections.as_ref().and_then(debug_link);
    if let Some(found) = link.and_then(|(name, checksum)| by_link(object, options, &name, checksum)) {
        return Some((found, false));
    }
    if is_whole || !options.debuginfod || object.build_id.is_empty() {
        return None;
    }
    match fetch(&object.build_id) {
        Ok(file) => file.map(|file| (file, false)),
        Err(problem) => {
            // Once is enough.
            if !warnings.contains(&problem) {
                warnings.push(problem);
            }
            None
        }
    }
}

/// Where the debug file of a build ID is in a directory. Source: GDB manual, "Debugging Information in Separate Files".
pub(super) fn path_by_id(directory: &Path, build_id: &str) -> Option<PathBuf> {
    let (start, name) = build_id.split_at_checked(2).filter(|(_, name)| !name.is_empty())?;
    Some(directory.join(".build-id").join(start).join(format!("{name}.debug")))
}

/// Opens a regular file: nothing that would block, or be our terminal.
fn open_regular(path: &Path) -> Option<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

/// The name and the checksum of the debug file that an object links to. Source: as for [`path_by_id`].
fn debug_link(sections: &Sections<'_>) -> Option<(Vec<u8>, u32)> {
    let bytes = sections.content(sections.find(".gnu_debuglink")?, MAX_LINK_BYTES).ok()?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let name = &bytes[..end];
    let checksum = bytes.get((end + 1).next_multiple_of(4)..)?.first_chunk()?;
    // A name, not a path.
    (!name.is_empty() && !name.contains(&b'/')).then(|| (name.to_vec(), u32::from_le_bytes(*checksum)))
}

/// Looks beside the object and in the same place below the directories.
fn by_link(object: &ObjectFile, options: &Options, name: &[u8], checksum: u32) -> Option<File> {
    let name = OsStr::from_bytes(name);
    let beside = Path::new(absolute(object)?).parent()?;
    let below = beside.strip_prefix("/").unwrap_or(beside);
    let places = [beside.to_owned(), beside.join(".debug")];
    let places = places.into_iter().chain(options.debug_directories.iter().map(|directory| directory.join(below)));
    places.filter_map(|place| open_regular(&place.join(name))).find(|file| is_linked(file, object, checksum))
}

/// Whether a file is the one that a link means: another one than the object itself, with the checksum.
fn is_linked(file: &File, object: &ObjectFile, checksum: u32) -> bool {
    let identity = |file: &File| {
        use std::os::unix::fs::MetadataExt as _;
        file.metadata().map(|metadata| (metadata.dev(), metadata.ino(), metadata.len())).ok()
    };
    let size = identity(file).map_or(u64::MAX, |(.., size)| size);
    if identity(file) == identity(&object.file) || size > MAX_CHECKED_BYTES {
        return false;
    }
    let (mut computed, mut bytes, mut at) = (flate2::Crc::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read_at(&mut bytes, at) {
            Ok(0) => return computed.sum() == checksum,
            // It may grow meanwhile.
            Ok(_) if at > MAX_CHECKED_BYTES => return false,
            Ok(read) => {
                computed.update(&bytes[..read]);
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Fetches a debug file by build ID, with the client that elfutils and distributions maintain: it knows the servers that
/// the user has named (`DEBUGINFOD_URLS`), keeps what it got, and gives up when a server does not answer.
///
/// `Ok(None)`: no server has it. Errors: for a person.
fn fetch(build_id: &str) -> Result<Option<File>, String> {
    const SERVERS: &str = "DEBUGINFOD_URLS";
    if std::env::var_os(SERVERS).is_none_or(|urls| urls.is_empty()) {
        return Err(format!("--debuginfod: {SERVERS} names no server, as in {SERVERS}=https://debuginfod.debian.net"));
    }
    let mut client = Command::new("debuginfod-find");
    client.args(["debuginfo", build_id]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = client.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "--debuginfod: debuginfod-find is not installed (Debian: debuginfod)".to_owned(),
        _ => format!("--debuginfod: cannot start debuginfod-find: {error}"),
    })?;
    let mut path = Vec::new();
    let read = child.stdout.take().map(|output| output.take(4096 + 1).read_to_end(&mut path));
    let ended = child.wait();
    if !ended.is_ok_and(|status| status.success()) || !matches!(read, Some(Ok(_))) {
        return Ok(None);
    }
    let path = Path::new(OsStr::from_bytes(path.trim_ascii_end()));
    Ok(open_regular(path).filter(|file| self::build_id(file) == build_id))
}
