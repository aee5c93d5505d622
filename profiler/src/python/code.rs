//! Code objects, read from a process's memory: names, file, lines.

use super::lines::line_of;
use super::runtime::Interpreter;
use profiler_common::python::UNKNOWN_INSTRUCTION;

/// Characters of a name that are kept; generated ones may be longer.
const MAX_NAME: u64 = 1024;
/// Characters of a path: Linux has none that are longer.
const MAX_PATH: u64 = 4096;
/// Bytes of a line table: more than any function's whose instructions can be told apart.
const MAX_LINES: u64 = 1 << 20;
/// Bytes of a code object that are read: all versions keep what is read within these.
const CODE_BYTES: usize = 192;
/// Bytes of an object's head that are read: reference count, type, length, hash and, of a string, its kind.
const HEAD_BYTES: usize = 40;
/// `PyBytesObject.ob_sval`.
const BYTES_HEADER: u64 = 32;
/// `PyASCIIObject.state`, and what its bits say.
const STATE: usize = 32;
const KIND_SHIFT: u32 = 2;
const COMPACT: u32 = 1 << 5;
const ASCII: u32 = 1 << 6;

/// A Python function, or the body of a module or class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Qualified name from 3.11 on, the bare one before.
    pub name: String,
    /// Source file, as the interpreter has it.
    pub file: String,
    first_line: u32,
    lines: Vec<u8>,
    identity: Identity,
}

/// What tells one code object from another at the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    name: u64,
    file: u64,
    lines: u64,
    first_line: u32,
}

impl Function {
    /// The line of an instruction, which is counted in code units; the first when it is not known.
    #[must_use]
    pub fn line(&self, interpreter: &Interpreter, instruction: u64) -> u32 {
        if instruction >= UNKNOWN_INSTRUCTION {
            return self.first_line;
        }
        line_of(interpreter.code.line_format, &self.lines, self.first_line, instruction).unwrap_or(self.first_line)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads what identifies a code object; `None` where there is none.
///
/// `bias`: what to add to the interpreter's addresses to get the process's.
fn identify(
    read: &impl Fn(u64, &mut [u8]) -> bool,
    interpreter: &Interpreter,
    bias: u64,
    address: u64,
) -> Option<Identity> {
    let mut code = [0; CODE_BYTES];
    let layout = &interpreter.code;
    if !read(address, &mut code) || word(&code, 8)? != interpreter.code_type.wrapping_add(bias) {
        return None;
    }
    Some(Identity {
        name: word(&code, layout.name)?,
        file: word(&code, layout.file)?,
        lines: word(&code, layout.lines)?,
        first_line: half(&code, layout.first_line)?,
    })
}

/// Whether there is another function now where one was read. Where there is none, the process has let go of it.
pub fn was_replaced(
    function: &Function,
    read: &impl Fn(u64, &mut [u8]) -> bool,
    interpreter: &Interpreter,
    bias: u64,
    address: u64,
) -> bool {
    identify(read, interpreter, bias, address).is_some_and(|identity| identity != function.identity)
}

/// Reads the function whose code object is at `address`; `None` where there is none, or a damaged one.
///
/// `read`: fills its second argument from the process's memory, false when it cannot; `bias`: what to add to the
/// interpreter's addresses to get the process's.
pub fn read_function(
    read: &impl Fn(u64, &mut [u8]) -> bool,
    interpreter: &Interpreter,
    bias: u64,
    address: u64,
) -> Option<Function> {
    let identity = identify(read, interpreter, bias, address)?;
    let name = text(read, interpreter, identity.name, MAX_NAME)?;
    let file = text(read, interpreter, identity.file, MAX_PATH)?;
    // A function without lines is one all the same.
    let lines = line_table(read, identity.lines).unwrap_or_default();
    Some(Function { name, file, first_line: identity.first_line, lines, identity })
}

fn line_table(read: &impl Fn(u64, &mut [u8]) -> bool, address: u64) -> Option<Vec<u8>> {
    let mut head = [0; BYTES_HEADER as usize];
    if !read(address, &mut head) {
        return None;
    }
    let length = word(&head, 16).filter(|&length| length <= MAX_LINES)?;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    read(address.checked_add(BYTES_HEADER)?, &mut bytes).then_some(bytes)
}

/// A string, of at most `limit` characters. Source: Include/cpython/unicodeobject.h.
fn text(read: &impl Fn(u64, &mut [u8]) -> bool, interpreter: &Interpreter, address: u64, limit: u64) -> Option<String> {
    let mut head = [0; HEAD_BYTES];
    if !read(address, &mut head) {
        return None;
    }
    let (length, state) = (word(&head, 16)?.min(limit), half(&head, STATE)?);
    if state & COMPACT == 0 {
        return None;
    }
    let size = (state >> KIND_SHIFT) & 7;
    let header = if state & ASCII != 0 { interpreter.code.ascii_header } else { interpreter.code.text_header };
    let mut bytes = vec![0; usize::try_from(length * u64::from(size)).ok()?];
    if !read(address.checked_add(header)?, &mut bytes) {
        return None;
    }
    let character = |number: u32| char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER);
    Some(match size {
        1 => bytes.iter().map(|&byte| char::from(byte)).collect(),
        2 => bytes.as_chunks::<2>().0.iter().map(|&pair| character(u16::from_le_bytes(pair).into())).collect(),
        4 => bytes.as_chunks::<4>().0.iter().map(|&four| character(u32::from_le_bytes(four))).collect(),
        _ => return None,
    })
}
