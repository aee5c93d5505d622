//! Programs whose truth is known, built when they are first needed.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::{build_directory, find_program};

/// What a workload is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// C, by `cc`.
    C,
    /// C++, by `c++`.
    Cpp,
    /// Rust, by `rustc`.
    Rust,
    /// Go, by `go build`.
    Go,
    /// Go that calls C.
    Cgo,
    /// C with the C library musl linked in, by `musl-gcc`.
    Musl,
    /// A package of Rust, by `cargo build`.
    Package,
}

/// A program in tests/workloads and how to build it. With frame pointers and debug information, unless told otherwise.
#[derive(Clone, Debug, Hash)]
pub struct Workload {
    name: String,
    file: String,
    language: Language,
    flags: Vec<String>,
}

impl Workload {
    /// The C program of that name.
    #[must_use]
    pub fn c(name: &str) -> Self {
        Self::new(name, Language::C, "c")
    }

    /// The C++ program of that name.
    #[must_use]
    pub fn cpp(name: &str) -> Self {
        Self::new(name, Language::Cpp, "cpp")
    }

    /// The Rust program of that name.
    #[must_use]
    pub fn rust(name: &str) -> Self {
        Self::new(name, Language::Rust, "rs")
    }

    /// The Go program of that name; `None`, and why, where there is no Go.
    #[must_use]
    pub fn go(name: &str) -> Option<Self> {
        find_program("go").map(|_| Self::new(name, Language::Go, "go"))
    }

    /// The program of that name in Go and C; `None`, and why, where there is no Go.
    #[must_use]
    pub fn cgo(name: &str) -> Option<Self> {
        find_program("go").map(|_| Self::new(name, Language::Cgo, "go"))
    }

    /// The C program of that name with musl linked in; `None`, and why, where there is no musl.
    #[must_use]
    pub fn musl(name: &str) -> Option<Self> {
        let workload = || Self::new(name, Language::Musl, "c").flag("-static");
        find_program("musl-gcc").map(|_| workload())
    }

    /// What a package makes: a program or a library of that file name, optimized. `directory`: of the package, from that of the
    /// workloads.
    #[must_use]
    pub fn package(file: &str, directory: &str) -> Self {
        Self { file: directory.to_owned(), ..Self::new(file, Language::Package, "") }
    }

    /// The library that samples a program's allocations, for `LD_PRELOAD`.
    #[must_use]
    pub fn preload_library() -> Self {
        Self::package("libprofiler_alloc.so", "../../profiler/alloc").flag("--features").flag("preload")
    }

    fn new(name: &str, language: Language, extension: &str) -> Self {
        Self { name: name.to_owned(), file: format!("{name}.{extension}"), language, flags: Vec::new() }
    }

    /// Names the binary, and with it the process.
    #[must_use]
    pub fn called(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds an option of the compiler.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Builds it, unless the same sources have been built in the same way before, and returns the binary.
    ///
    /// # Panics
    ///
    /// When the compiler fails.
    #[must_use]
    pub fn build(&self) -> PathBuf {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        for file in self.sources(&sources) {
            fs::read(file).expect("read a workload's source").hash(&mut hasher);
        }
        // A directory for each build: the file's name is the process's.
        let directory = build_directory().join(format!("{:016x}", hasher.finish()));
        let binary = directory.join(&self.name);
        if binary.exists() {
            return binary;
        }
        fs::create_dir_all(&directory).expect("create a workload's directory");
        // Another test may be building the same.
        let thread = std::thread::current().id();
        let unfinished = directory.join(format!("unfinished-{}-{thread:?}", std::process::id()));
        let mut compiler = self.compiler();
        compiler.args(&self.flags);
        let is_package = self.language == Language::Package;
        // What other packages it needs stays for the next build; of a library that another needs, there is another one.
        let package = Path::new(&self.file).file_name().unwrap_or_default();
        let target = build_directory().join("packages").join(package);
        if is_package {
            compiler.arg("--manifest-path").arg(sources.join(&self.file).join("Cargo.toml"));
            compiler.arg("--target-dir").arg(&target);
        } else {
            compiler.arg("-o").arg(&unfinished).arg(sources.join(&self.file));
        }
        let output = compiler.output().unwrap_or_else(|error| panic!("cannot start {compiler:?}: {error}"));
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{compiler:?} failed:\n{complaints}");
        if is_package {
            fs::copy(target.join("release").join(&self.name), &unfinished).expect("copy what the package has made");
        }
        fs::rename(unfinished, &binary).expect("name a built workload");
        binary
    }

    /// The files that it is made of, packages of others left out.
    fn sources(&self, workloads: &Path) -> Vec<PathBuf> {
        if self.language != Language::Package {
            return [self.file.as_str(), "workload.h"].map(|file| workloads.join(file)).into();
        }
        let package = workloads.join(&self.file);
        let directory = fs::read_dir(package.join("src")).expect("read a package's directory");
        let mut files: Vec<PathBuf> = directory.map(|entry| entry.expect("read its entries").path()).collect();
        files.sort();
        files.push(package.join("Cargo.toml"));
        // What packages share with a workload that is none.
        files.push(workloads.join("allocs.rs"));
        files
    }

    fn compiler(&self) -> Command {
        let variable = |name, default: &str| std::env::var_os(name).unwrap_or_else(|| default.into());
        match self.language {
            Language::C | Language::Cpp | Language::Musl => {
                let mut command = match self.language {
                    Language::C => Command::new(variable("CC", "cc")),
                    Language::Musl => Command::new("musl-gcc"),
                    _ => {
                        let mut command = Command::new(variable("CXX", "c++"));
                        command.arg("-std=c++17");
                        command
                    }
                };
                command.args(["-O2", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-pthread"]);
                command.args(["-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]);
                command
            }
            Language::Rust => {
                let mut command = Command::new(variable("RUSTC", "rustc"));
                command.args(["--edition=2024", "--crate-name", &self.name.replace('-', "_"), "-O", "-g"]);
                command.args(["-C", "force-frame-pointers=yes"]);
                command
            }
            Language::Go | Language::Cgo => {
                let mut command = Command::new("go");
                command.arg("build");
                // Nothing of the user's, and nothing from a network.
                command.env("GOCACHE", build_directory().join("go-cache")).env("GO111MODULE", "off");
                command.env("GOTOOLCHAIN", "local").env("GOFLAGS", "");
                command.env("CGO_ENABLED", if self.language == Language::Cgo { "1" } else { "0" });
                command
            }
            Language::Package => {
                let mut command = Command::new(variable("CARGO", "cargo"));
                command.args(["build", "--quiet", "--locked", "--release"]);
                command
            }
        }
    }
}
