//! Tables of what a process maps, and the step by them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use profiler::process::ObjectFile;
use profiler::unwind::{Compiled, Rules, compile};
use profiler_common::unwind::{Packed, Registers, Special, Step, step};

/// An object's file and what was made of it.
pub(crate) struct Object {
    pub(crate) file: ObjectFile,
    pub(crate) compiled: Compiled,
}

/// The objects of a process, by path.
#[derive(Default)]
pub(crate) struct Objects {
    rules: Rules,
    objects: HashMap<String, Option<Object>>,
    mappings: Vec<(u64, u64, u64, String)>,
}

impl Objects {
    /// Takes the text of /proc/PID/maps.
    pub(crate) fn map(&mut self, maps: &str) {
        self.mappings = maps.lines().filter_map(executable).collect();
        for (_, _, _, path) in &self.mappings {
            if !self.objects.contains_key(path) {
                let object = Self::open(path, &mut self.rules);
                self.objects.insert(path.clone(), object);
            }
        }
    }

    fn open(path: &str, rules: &mut Rules) -> Option<Object> {
        let file = if path == "[vdso]" { vdso() } else { File::open(path).ok()? };
        let compiled = compile(&file, rules).ok()?;
        Some(Object { file: ObjectFile::read(file, path.to_owned()).ok()?, compiled })
    }

    /// One object on its own, placed at its own addresses.
    pub(crate) fn of_file(path: &Path) -> Option<(Self, Compiled)> {
        let mut rules = Rules::default();
        let object = Self::open(path.to_str()?, &mut rules)?;
        Some((Self { rules, ..Self::default() }, object.compiled))
    }

    /// The object that an address is in, and the address there.
    pub(crate) fn find(&self, address: u64) -> Option<(&str, &Object, u64)> {
        let (start, _, offset, path) =
            self.mappings.iter().find(|(start, end, _, _)| (*start..*end).contains(&address))?;
        let object = self.objects.get(path)?.as_ref()?;
        Some((path, object, object.file.address_of(address - start + offset)?))
    }

    /// A short name of the object that an address is in.
    pub(crate) fn name(&self, address: u64) -> String {
        let path = self.mappings.iter().find(|(start, end, _, _)| (*start..*end).contains(&address));
        path.map_or("?", |(_, _, _, path)| path.rsplit('/').next().unwrap_or(path)).to_owned()
    }

    /// The rule for a frame's ip, which is a return address unless `exact`.
    pub(crate) fn rule(&self, ip: u64, exact: bool) -> Packed {
        let none = Packed::special(Special::None);
        let Some((_, object, address)) = self.find(ip.wrapping_sub(u64::from(!exact))) else { return none };
        object.compiled.table.find(address).unwrap_or(none)
    }

    /// Steps to the caller by a rule.
    pub(crate) fn step(
        &self,
        registers: &mut Registers,
        rule: Packed,
        leaf: impl Fn(u8) -> Option<u64>,
        read: impl Fn(u64) -> Option<u64>,
    ) -> Step {
        let read = |address, to: &mut u64| read(address).map(|word| *to = word).is_some();
        step(registers, rule, |number| self.rules.rules().get(number as usize).copied(), leaf, read)
    }
}

/// Start, end, file offset and path of an executable mapping.
fn executable(line: &str) -> Option<(u64, u64, u64, String)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if !fields.next()?.contains('x') {
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let offset = number(fields.next()?)?;
    Some((number(start)?, number(end)?, offset, fields.nth(2)?.to_owned()))
}

/// Our own vDSO, which is every process's.
fn vdso() -> File {
    let maps = fs::read_to_string("/proc/self/maps").expect("read our mappings");
    let (start, end, ..) =
        maps.lines().filter_map(executable).find(|(.., path)| path == "[vdso]").expect("a vDSO is mapped");
    let mut memory = File::open("/proc/self/mem").expect("open our memory");
    memory.seek(SeekFrom::Start(start)).expect("seek in our memory");
    let mut file = tempfile::tempfile().expect("create a temporary file");
    std::io::copy(&mut memory.take(end - start), &mut file).expect("copy the vDSO");
    file
}
