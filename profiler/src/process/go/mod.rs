//! The table that the Go runtime makes its own stack traces with: names of code, and how large its frames are.
//!
//! Input: an open file, and addresses. Output: functions with file and line, inlined calls included; and for every
//! address how far the stack pointer is from the return address.
//! The table (`pclntab`) is part of every Go program, stripped or not. Reads it by `pread`, piece by piece; a damaged
//! one costs names, and no more than a bounded time. Knows the tables of Go 1.16 and later.
//!
//! Source: src/runtime/symtab.go, symtabinl.go, runtime2.go and src/cmd/link/internal/ld/pcln.go of Go 1.16 to 1.27.

mod image;
mod switches;

use std::fs::File;

use image::Image;
use switches::Switches;

/// What a table begins with: version, two zeros, the size of the smallest instruction (1), that of a pointer (8).
const START: u64 = 0x0801_0000_0000_0000;
/// Versions by the first four bytes.
const MAGIC_1_16: u64 = 0xffff_fffa;
const MAGIC_1_18: u64 = 0xffff_fff0;
const MAGIC_1_20: u64 = 0xffff_fff1;

/// Most functions: ten times what the largest known programs have.
const MAX_FUNCTIONS: u64 = 1 << 24;
/// Bytes of a function's or file's name that are taken.
const MAX_NAME_BYTES: usize = 4096;
/// Calls inlined in each other that are followed: the compiler's budget ends long before.
const MAX_INLINED: usize = 256;
/// Steps of line programs that are taken in one object, which is about a second.
const MAX_STEPS: u64 = 1 << 26;

/// Bytes of the function through which the kernel returns from a signal handler: two instructions and padding.
const MAX_SIGNAL_RETURN_BYTES: u64 = 64;

/// `PCDATA_InlTreeIndex` and `FUNCDATA_InlTree`.
const INLINE_INDEX: u64 = 2;
const INLINE_TREE: u64 = 3;

/// Offsets in `moduledata`: pointers to the function names, to the code, and to the types.
const MODULE_NAMES: u64 = 8;
const MODULE_TEXT: u64 = 176;

/// How tables of a version are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// Addresses of 8 bytes; Go 1.16 and 1.17.
    Go116,
    /// Offsets of 4 bytes; Go 1.18 and 1.19.
    Go118,
    /// The line at which a function starts, and shorter inline trees; Go 1.20 and later.
    Go120,
}

impl Version {
    fn of(start: u64) -> Option<Self> {
        match start ^ START {
            MAGIC_1_16 => Some(Self::Go116),
            MAGIC_1_18 => Some(Self::Go118),
            MAGIC_1_20 => Some(Self::Go120),
            _ => None,
        }
    }
}

/// A function at an address, and the line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoFrame {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) line: u32,
}

/// How a piece of code's caller is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GoCode {
    /// The return address is so many bytes above the stack pointer.
    Depth(u32),
    /// Nobody calls it, or somebody on another stack.
    Root,
    /// The kernel returns from a signal handler through it.
    SignalReturn,
    /// It sets the stack pointer to what only it knows.
    Unknown,
    /// The frame pointer leads to the caller, on whichever stack that is.
    OtherStack,
    /// The caller is where the thread's goroutine was left: see [`profiler_common::unwind::Rule::goroutine`].
    Goroutine { thread: i32, current: i32, frame_pointer: i16, resumes: bool },
}

/// Functions that nobody calls on the stack they run on: where goroutines and threads start, and those that go on on
/// the system's stack, where `switches` does not know better.
/// Source: src/runtime/asm_amd64.s, src/runtime/sys_linux_amd64.s.
const ROOTS: [&str; 9] = [
    "runtime.goexit",
    "runtime.mstart",
    "runtime.rt0_go",
    "runtime.systemstack",
    "runtime.mcall",
    "runtime.morestack",
    "runtime.asmcgocall",
    "runtime.cgocallback",
    "runtime.asmcgocall_landingpad",
];

/// Flags of a function: it writes the stack pointer, it is the first of its stack.
const WRITES_SP: u8 = 2;
const FIRST: u8 = 1;

/// A Go program's table.
pub(crate) struct LineTable<'f> {
    image: Image<'f>,
    parts: Parts,
    /// What inline trees are relative to; `None` where it could not be found.
    function_data: Option<u64>,
    steps_left: u64,
}

/// A function of the table.
#[derive(Clone, Copy)]
struct GoFunction {
    entry: u64,
    /// Address of its `_func`.
    at: u64,
}

impl<'f> LineTable<'f> {
    /// The table of a file; `None` when it is no Go program, or none whose table can be read.
    pub(crate) fn find(file: &'f File) -> Option<Self> {
        let mut image = Image::open(file)?;
        let places = image.line_tables(|word| Version::of(word).is_some());
        let (start, mut table) = places.into_iter().find_map(|start| Some((start, Parts::read(&mut image, start)?)))?;
        let module = table.module(&mut image, start);
        if let Some(module) = module {
            [table.text] = image.pointers([module + MODULE_TEXT])?;
        }
        let function_data = module.and_then(|module| table.function_data(&mut image, module));
        let mut table = Self { image, parts: table, function_data, steps_left: MAX_STEPS };
        // The code that it speaks of must be code.
        let first = table.entry(0)?;
        table.image.is_code(first).then_some(table)
    }

    /// Whether inlined calls can be told.
    pub(crate) fn knows_inlined(&self) -> bool {
        self.function_data.is_some() || self.parts.version == Version::Go116
    }

    /// The functions at an address, innermost first; `None` outside the code that Go's compiler made.
    pub(crate) fn look_up(&mut self, address: u64) -> Option<Vec<GoFrame>> {
        let function = self.function(address)?;
        // A piece of C that was linked in has an entry, but no lines.
        if self.field(function, Field::Line)? == 0 {
            return None;
        }
        let tree = self.inline_tree(function);
        let mut found = Vec::new();
        let mut pc = address;
        while found.len() < MAX_INLINED {
            let (file, line) = self.position(function, pc).unwrap_or_default();
            let inlined = tree.and_then(|(index, tree)| self.inlined(function, index, tree, pc));
            let offset = match inlined {
                Some((offset, _)) => offset,
                None => self.image.u32(function.at.checked_add(self.field_offset(Field::Name))?)?,
            };
            let name = self.image.text(self.parts.names.checked_add(u64::from(offset))?, MAX_NAME_BYTES)?;
            if name.is_empty() {
                return None;
            }
            found.push(GoFrame { name, file, line });
            match inlined {
                Some((_, parent)) => pc = function.entry.checked_add(parent)?,
                None => return Some(found),
            }
        }
        // A tree that does not end is damaged.
        None
    }

    /// The code of the function of that name.
    pub(crate) fn find_function(&mut self, wanted: &str) -> Option<std::ops::Range<u64>> {
        for number in 0..self.parts.function_count {
            let function = self.numbered(number)?;
            let offset = self.field(function, Field::Name)?;
            let name = self.image.text(self.parts.names.checked_add(u64::from(offset))?, wanted.len() + 1)?;
            if name == wanted {
                let code = function.entry..self.entry(number + 1)?;
                return (code.start < code.end).then_some(code);
            }
        }
        None
    }

    /// The code of the table, from its first address to its last.
    pub(crate) fn code(&mut self) -> Option<std::ops::Range<u64>> {
        let code = self.entry(0)?..self.entry(self.parts.function_count)?;
        (code.start < code.end && self.image.is_code(code.end - 1)).then_some(code)
    }

    /// Tells how callers are found, by ranges of addresses, which ascend; code that Go's compiler did not make is left
    /// out. Ends early where the table is damaged.
    pub(crate) fn each_frame(&mut self, mut visit: impl FnMut(u64, u64, GoCode)) -> Option<()> {
        let mut done = 0;
        let mut switches = Switches::default();
        for number in 0..self.parts.function_count {
            let (start, end) = (self.entry(number)?, self.entry(number + 1)?);
            if start < done || start >= end {
                continue;
            }
            done = end;
            let function = self.numbered(number)?;
            let program = self.field(function, Field::Depth)?;
            if program == 0 {
                continue;
            }
            let flags = self.image.u8(function.at.checked_add(self.func_size() - 3)?)?;
            // Go 1.16 has no flags yet.
            if flags & (FIRST | WRITES_SP) != 0 || self.parts.version == Version::Go116 {
                let offset = self.field(function, Field::Name)?;
                let name = self.image.text(self.parts.names.checked_add(u64::from(offset))?, MAX_NAME_BYTES)?;
                let known = ROOTS.contains(&name.as_str()) || flags & FIRST != 0;
                let ranges = self.code_of(&name, start, end).and_then(|code| switches.of(&name, &code));
                if let Some(ranges) = ranges {
                    self.each_depth(program, start, end, &mut |from, to, code| {
                        switches::split(from..to, code, start, &ranges, &mut visit);
                    })?;
                    continue;
                }
                if known || flags & WRITES_SP != 0 {
                    visit(start, end, if known { GoCode::Root } else { GoCode::Unknown });
                    continue;
                }
            }
            // The kernel returns to its first byte, and callers are looked up one byte before: it has lines, but no frame.
            if end - start <= MAX_SIGNAL_RETURN_BYTES && self.is_signal_return(function)? {
                visit(start.saturating_sub(1), end, GoCode::SignalReturn);
                continue;
            }
            self.each_depth(program, start, end, &mut visit)?;
        }
        Some(())
    }

    /// The machine code of a function that may go on on another stack.
    fn code_of(&mut self, name: &str, start: u64, end: u64) -> Option<Vec<u8>> {
        let size = end.checked_sub(start).filter(|&size| switches::is_one(name) && size <= switches::MAX_BYTES)?;
        let mut code = vec![0; usize::try_from(size).ok()?];
        self.image.read(start, &mut code).map(|()| code)
    }

    fn is_signal_return(&mut self, function: GoFunction) -> Option<bool> {
        let offset = self.field(function, Field::Name)?;
        let name = self.image.text(self.parts.names.checked_add(u64::from(offset))?, MAX_NAME_BYTES)?;
        Some(name.starts_with("runtime.sigreturn"))
    }

    /// Goes through a function's program of depths.
    fn each_depth(
        &mut self,
        program: u32,
        start: u64,
        end: u64,
        visit: &mut impl FnMut(u64, u64, GoCode),
    ) -> Option<()> {
        let mut at = self.parts.programs.checked_add(u64::from(program))?;
        let (mut depth, mut from) = (-1_i32, start);
        while from < end {
            self.steps_left = self.steps_left.checked_sub(1)?;
            let change = self.number(&mut at)?;
            if change == 0 && from > start {
                return Some(());
            }
            depth = depth.wrapping_add(((change >> 1) ^ (change & 1).wrapping_neg()).cast_signed());
            let to = from.checked_add(u64::from(self.number(&mut at)?))?;
            if let (Ok(depth), true) = (u32::try_from(depth), from < to) {
                visit(from, to.min(end), GoCode::Depth(depth));
            }
            from = to;
        }
        Some(())
    }

    /// The address of a function by number; that after the last is where the code ends.
    fn entry(&mut self, number: u64) -> Option<u64> {
        match self.parts.version {
            Version::Go116 => self.image.u64(self.parts.functions.checked_add(16 * number)?),
            _ => Some(
                self.parts.text.wrapping_add(u64::from(self.image.u32(self.parts.functions.checked_add(8 * number)?)?)),
            ),
        }
    }

    fn function(&mut self, address: u64) -> Option<GoFunction> {
        let (mut low, mut high) = (0, self.parts.function_count);
        if address < self.entry(0)? || address >= self.entry(high)? {
            return None;
        }
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.entry(middle)? <= address {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.numbered(low)
    }

    fn numbered(&mut self, number: u64) -> Option<GoFunction> {
        let offset = match self.parts.version {
            Version::Go116 => self.image.u64(self.parts.functions.checked_add(16 * number + 8)?)?,
            _ => u64::from(self.image.u32(self.parts.functions.checked_add(8 * number + 4)?)?),
        };
        Some(GoFunction { entry: self.entry(number)?, at: self.parts.functions.checked_add(offset)? })
    }

    /// Bytes of a `_func`; the last is the number of its data, the third but last its flags.
    fn func_size(&self) -> u64 {
        let size = if self.parts.version == Version::Go120 { 44 } else { 40 };
        size + if self.parts.version == Version::Go116 { 4 } else { 0 }
    }

    fn field_offset(&self, field: Field) -> u64 {
        // The first field is the entry, which was a whole address.
        field as u64 + if self.parts.version == Version::Go116 { 4 } else { 0 }
    }

    fn field(&mut self, function: GoFunction, field: Field) -> Option<u32> {
        self.image.u32(function.at.checked_add(self.field_offset(field))?)
    }

    /// File and line of an address.
    fn position(&mut self, function: GoFunction, pc: u64) -> Option<(String, u32)> {
        let line = self.field(function, Field::Line)?;
        let line = self.value(line, function, pc)?;
        let file = self.field(function, Field::File)?;
        let file = u32::try_from(self.value(file, function, pc)?).ok()?;
        let unit = self.field(function, Field::Unit)?;
        let index = u64::from(unit).checked_add(u64::from(file))?;
        let offset = self.image.u32(self.parts.units.checked_add(4 * index)?)?;
        let name = match offset {
            u32::MAX => String::new(),
            offset => self.image.text(self.parts.files.checked_add(u64::from(offset))?, MAX_NAME_BYTES)?,
        };
        Some((name, u32::try_from(line).unwrap_or(0)))
    }

    /// The program that tells which inlined call an address is in, and the address of the tree of these calls.
    fn inline_tree(&mut self, function: GoFunction) -> Option<(u32, u64)> {
        let size = self.func_size();
        let programs = u64::from(self.field(function, Field::Programs)?);
        let data = u64::from(self.image.u8(function.at.checked_add(size - 1)?)?);
        if programs <= INLINE_INDEX || data <= INLINE_TREE {
            return None;
        }
        let lists = function.at.checked_add(size)?;
        let program = self.image.u32(lists + 4 * INLINE_INDEX)?;
        let after = lists.checked_add(4 * programs)?;
        let tree = if self.parts.version == Version::Go116 {
            // Pointers, of which those of a relocatable program are zero here.
            self.image.u64(after.next_multiple_of(8).checked_add(8 * INLINE_TREE)?)?
        } else {
            match self.image.u32(after.checked_add(4 * INLINE_TREE)?)? {
                u32::MAX => return None,
                offset => self.function_data?.checked_add(u64::from(offset))?,
            }
        };
        (program != 0 && tree != 0).then_some((program, tree))
    }

    /// The inlined call an address is in: offset of its name, and the offset in the function of the call itself.
    fn inlined(&mut self, function: GoFunction, program: u32, tree: u64, pc: u64) -> Option<(u32, u64)> {
        let index = u64::try_from(self.value(program, function, pc)?).ok()?;
        let (size, name, parent) = if self.parts.version == Version::Go120 { (16, 4, 8) } else { (20, 12, 16) };
        let call = tree.checked_add(size * index)?;
        let name = self.image.u32(call.checked_add(name)?)?;
        let parent = self.image.u32(call.checked_add(parent)?)?;
        i32::try_from(parent).ok()?;
        Some((name, u64::from(parent)))
    }

    /// The value that a program has at an address.
    ///
    /// A program is a list of steps: how much the value changes, then for how many bytes of code it stays.
    fn value(&mut self, program: u32, function: GoFunction, pc: u64) -> Option<i32> {
        let mut at = self.parts.programs.checked_add(u64::from(program))?;
        let (mut value, mut end) = (-1_i32, function.entry);
        let mut is_first = true;
        loop {
            self.steps_left = self.steps_left.checked_sub(1)?;
            let change = self.number(&mut at)?;
            if change == 0 && !is_first {
                return None;
            }
            is_first = false;
            let change = (change >> 1) ^ (change & 1).wrapping_neg();
            value = value.wrapping_add(change.cast_signed());
            end = end.checked_add(u64::from(self.number(&mut at)?))?;
            if pc < end {
                return Some(value);
            }
        }
    }

    /// A number of seven bits a byte, the lowest first.
    fn number(&mut self, at: &mut u64) -> Option<u32> {
        let mut number = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.image.u8(*at)?;
            *at = at.checked_add(1)?;
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

/// Fields of `_func`, by their offset since Go 1.18.
#[derive(Clone, Copy)]
enum Field {
    Name = 4,
    Depth = 16,
    File = 20,
    Line = 24,
    Programs = 28,
    Unit = 32,
}

/// Where the parts of a table are.
struct Parts {
    version: Version,
    names: u64,
    units: u64,
    files: u64,
    programs: u64,
    functions: u64,
    function_count: u64,
    /// What function addresses are relative to.
    text: u64,
}

impl Parts {
    /// Reads and checks the header of a table.
    fn read(image: &mut Image<'_>, start: u64) -> Option<Self> {
        let version = Version::of(image.u64(start)?)?;
        let function_count = image.u64(start.checked_add(8)?)?;
        let (text, first) =
            if version == Version::Go116 { (0, 24) } else { (image.pointers([start.checked_add(24)?])?[0], 32) };
        let mut part = |number: u64| {
            let address = start.checked_add(image.u64(start + first + 8 * number)?)?;
            image.has(address).then_some(address)
        };
        let (names, units, files, programs, functions) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
        let entry_bytes = if version == Version::Go116 { 16 } else { 8 };
        let last = function_count.checked_sub(1).filter(|&last| last < MAX_FUNCTIONS)?;
        image.has(functions.checked_add(entry_bytes * last)?).then_some(Self {
            version,
            names,
            units,
            files,
            programs,
            functions,
            function_count,
            text,
        })
    }

    /// The address of `moduledata`, which begins with pointers to the table and to its names.
    fn module(&self, image: &mut Image<'_>, start: u64) -> Option<u64> {
        if self.version == Version::Go116 {
            return None;
        }
        image.pointers_to(start).into_iter().find(|&at| {
            let addresses = at.checked_add(MODULE_NAMES).filter(|_| at < u64::MAX - 512);
            addresses.and_then(|names| image.pointers([names])).is_some_and(|[names]| names == self.names)
        })
    }

    /// What inline trees are relative to, the field `gofunc` of `moduledata`, whose place depends on the version.
    fn function_data(&self, image: &mut Image<'_>, module: u64) -> Option<u64> {
        let address = if self.version == Version::Go118 {
            image.pointers([module + 304])?[0]
        } else {
            // Since Go 1.27 the types are followed by a size, before by their end.
            let [types, end, gofunc, later] =
                image.pointers([module + 296, module + 304, module + 320, module + 344])?;
            if end >= types { gofunc } else { later }
        };
        image.has(address).then_some(address)
    }
}

#[cfg(test)]
mod tests;
