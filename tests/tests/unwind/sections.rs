//! Where call-frame information is found: without section headers, in .debug_frame, compressed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use profiler::unwind::{Compiled, Rules, UnwindError, compile};
use profiler_tests::{Workload, missing};

fn compiled(path: &Path) -> Result<Compiled, UnwindError> {
    compile(&File::open(path).expect("open an object"), &mut Rules::default())
}

/// A copy of a file that objcopy has changed; `None` where it is not installed or cannot do that, which has been printed.
fn changed(from: &Path, arguments: &[&str]) -> Option<tempfile::TempPath> {
    let to = tempfile::NamedTempFile::new().expect("create a temporary file").into_temp_path();
    let status = Command::new("objcopy").args(arguments).arg(from).arg(&to).status();
    if !status.is_ok_and(|status| status.success()) {
        missing("objcopy is not installed, or does not know its arguments");
        return None;
    }
    Some(to)
}

/// A copy without section headers: Elf64_Ehdr has e_shoff at 40, e_shnum at 60 and e_shstrndx at 62.
fn without_section_headers(from: &Path) -> tempfile::TempPath {
    let mut bytes = fs::read(from).expect("read an object");
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    let mut to = tempfile::NamedTempFile::new().expect("create a temporary file");
    to.write_all(&bytes).expect("write a temporary file");
    to.into_temp_path()
}

#[test]
fn a_file_without_section_headers_has_the_same_table() {
    let programs = [
        Workload::c("split").called("split-sections").flag("-s").build(),
        Workload::cpp("varied").flag("-fomit-frame-pointer").build(),
        Path::new("/lib64/ld-linux-x86-64.so.2").to_owned(),
    ];
    for program in programs {
        let whole = compiled(&program).expect("a table");
        let stripped = compiled(&without_section_headers(&program)).expect("a table without section headers");
        assert!(whole.functions > 0);
        assert_eq!(stripped.table, whole.table, "{}", program.display());
        assert_eq!((stripped.section, stripped.functions), (whole.section, whole.functions));
    }
}

/// A program with nothing but .debug_frame.
fn bare() -> std::path::PathBuf {
    let mut bare = Workload::c("bare");
    for flag in
        ["-nostdlib", "-static", "-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fcf-protection=none"]
    {
        bare = bare.flag(flag);
    }
    bare.flag("-fno-stack-protector").build()
}

#[test]
fn compressed_debug_frames_have_the_same_table() {
    let bare = bare();
    let whole = compiled(&bare).expect("a table of .debug_frame");
    assert_eq!((whole.section, whole.functions), (".debug_frame", 3));
    let Some(compressed) = changed(&bare, &["--compress-debug-sections=zlib-gabi"]) else { return };
    let (small, large) = (fs::metadata(&compressed).expect("a file").len(), fs::metadata(&bare).expect("a file").len());
    assert!(small < large, "nothing was compressed");
    let compiled = compiled(&compressed).expect("a table of a compressed section");
    assert_eq!(compiled.table, whole.table);
    assert_eq!(compiled.frame_bytes, whole.frame_bytes);
}

#[test]
fn a_damaged_compressed_section_is_an_error() {
    let Some(compressed) = changed(&bare(), &["--compress-debug-sections=zlib-gabi"]) else { return };
    let sound = fs::read(&compressed).expect("read an object");
    // Elf64_Chdr: ch_type 1, reserved, ch_size, ch_addralign 8; then zlib's own header.
    let start =
        sound.windows(4).enumerate().filter(|&(at, bytes)| bytes == [1, 0, 0, 0] && sound.get(at + 24) == Some(&0x78));
    let mut errors = 0;
    for (at, _) in start {
        for (place, byte) in [(0, 2), (0, 9), (8, 0xff), (14, 0xff), (24, 0), (30, 0xff)] {
            let mut bytes = sound.clone();
            bytes[at + place] = byte;
            let mut file = tempfile::tempfile().expect("create a temporary file");
            file.write_all(&bytes).expect("write a temporary file");
            errors += u32::from(matches!(compile(&file, &mut Rules::default()), Err(UnwindError::Compressed(_))));
        }
    }
    // Other sections are compressed too: of those nothing is read.
    assert!(errors >= 5, "{errors} errors");
}
