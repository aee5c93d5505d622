//! The kernel's own types: where structures have their members. One pass over the types, no index.
//! Source: Documentation/bpf/btf.rst, section 2.

const MAGIC: u16 = 0xeb9f;
const KIND_POINTER: u32 = 2;
pub(super) const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUMERATION: u32 = 6;
pub(super) const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
pub(super) const KIND_FUNCTION: u32 = 12;
const KIND_FUNCTION_PROTOTYPE: u32 = 13;
/// Anonymous members inside a structure are followed to this depth.
pub(super) const MAX_NESTING: u32 = 8;

/// BTF, not copied.
pub(super) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type starts in `types`; type 1 is the first.
    starts: Vec<u32>,
}

/// A type's header.
#[derive(Clone, Copy)]
struct Header {
    name: u32,
    kind: u32,
    members: u32,
    /// Whether member offsets carry a bit-field size in their top byte.
    has_bit_fields: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Types<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(word(bytes, offset)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, length)? as usize)?)
        };
        let (types, strings) = (section(8, 12)?, section(16, 20)?);
        let mut starts = Vec::with_capacity(types.len() / 24);
        let mut at = 0;
        while at < types.len() {
            starts.push(u32::try_from(at).ok()?);
            let (kind, members) = kind_and_members(word(types, at + 4)?);
            at = at.checked_add(12 + extra_bytes(kind, members)?)?;
        }
        Some(Self { types, strings, starts })
    }

    fn header(&self, start: usize) -> Option<Header> {
        let info = word(self.types, start + 4)?;
        let (kind, members) = kind_and_members(info);
        Some(Header { name: word(self.types, start)?, kind, members, has_bit_fields: info >> 31 == 1 })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        self.strings
            .get(name as usize..)
            .and_then(|rest| rest.strip_prefix(wanted.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Where the structure of this name starts.
    pub(super) fn find_struct(&self, name: &str) -> Option<usize> {
        self.starts.iter().map(|&start| start as usize).find(|&start| {
            self.header(start).is_some_and(|header| {
                header.kind == KIND_STRUCT && header.members > 0 && self.is_named(header.name, name)
            })
        })
    }

    /// Number of the type of this kind and name.
    pub(super) fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let index = self.starts.iter().position(|&start| {
            self.header(start as usize).is_some_and(|header| header.kind == kind && self.is_named(header.name, name))
        })?;
        u32::try_from(index + 1).ok()
    }

    /// Which argument of a tracepoint has this name, from 1.
    pub(super) fn argument(&self, tracepoint: &str, name: &str) -> Option<u32> {
        let behind = |id: u32| Some(*self.starts.get((id as usize).checked_sub(1)?)? as usize);
        let pointer = behind(word(self.types, behind(self.find(KIND_TYPEDEF, tracepoint)?)? + 8)?)?;
        let prototype = behind(word(self.types, pointer + 8)?)?;
        let (pointer, header) = (self.header(pointer)?, self.header(prototype)?);
        if pointer.kind != KIND_POINTER || header.kind != KIND_FUNCTION_PROTOTYPE {
            return None;
        }
        // The first parameter is the tracepoint's own.
        (1..header.members).find(|&index| {
            word(self.types, prototype + 12 + 8 * index as usize).is_some_and(|at| self.is_named(at, name))
        })
    }

    /// Byte offset of a member.
    pub(super) fn member_offset(&self, start: usize, name: &str, nesting: u32) -> Option<u32> {
        self.member_bits(start, name, nesting).map(|bits| bits / 8)
    }

    /// Bit offset of a member, also of one inside anonymous structures and unions.
    pub(super) fn member_bits(&self, start: usize, name: &str, nesting: u32) -> Option<u32> {
        self.member(start, name, nesting).map(|(_, bits)| bits)
    }

    /// The type of a member, and its bit offset; also of one inside anonymous structures and unions.
    fn member(&self, start: usize, name: &str, nesting: u32) -> Option<(u32, u32)> {
        let header = self.header(start)?;
        for index in 0..header.members as usize {
            let at = start + 12 + 12 * index;
            let (member, kind, bits) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let bits = if header.has_bit_fields { bits & 0x00ff_ffff } else { bits };
            if self.is_named(member, name) && member != 0 {
                return Some((kind, bits));
            }
            if member == 0
                && nesting > 0
                && let Some(inner) = self.struct_behind(kind)
                && let Some((kind, inner_bits)) = self.member(inner, name, nesting - 1)
            {
                return Some((kind, bits + inner_bits));
            }
        }
        None
    }

    /// Byte offset of a member of a structure that is a named member itself.
    pub(super) fn inner_offset(&self, start: usize, outer: &str, inner: &str) -> Option<u32> {
        let header = self.header(start)?;
        (0..header.members as usize).find_map(|index| {
            let at = start + 12 + 12 * index;
            if !self.is_named(word(self.types, at)?, outer) {
                return None;
            }
            let structure = self.struct_behind(word(self.types, at + 4)?)?;
            let bits = word(self.types, at + 8)? & if header.has_bit_fields { 0x00ff_ffff } else { u32::MAX };
            Some(bits / 8 + self.member_offset(structure, inner, 0)?)
        })
    }

    /// Byte offset of a member of a structure, of a member of that member and so on: each is inside the one before, not
    /// behind a pointer.
    pub(super) fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let (first, inner) = path.split_first()?;
        let start = self.find_struct(structure)?;
        let (mut kind, mut bits) = self.member(start, first, MAX_NESTING)?;
        for name in inner {
            let (inner_kind, inner_bits) = self.member(self.struct_behind(kind)?, name, MAX_NESTING)?;
            (kind, bits) = (inner_kind, bits + inner_bits);
        }
        Some(bits / 8)
    }

    /// The number of a name of an enumeration.
    pub(super) fn number(&self, enumeration: &str, name: &str) -> Option<u32> {
        let index = self.find(KIND_ENUMERATION, enumeration)? as usize - 1;
        let start = *self.starts.get(index)? as usize;
        let names = (0..self.header(start)?.members as usize).map(|member| start + 12 + 8 * member);
        let mut found = names.filter(|&at| word(self.types, at).is_some_and(|here| self.is_named(here, name)));
        word(self.types, found.next()? + 4)
    }

    /// Size of a structure, bytes.
    pub(super) fn size(&self, structure: &str) -> Option<u32> {
        word(self.types, self.find_struct(structure)? + 8)
    }

    /// Where the structure or union starts that a type is, by whatever name.
    fn struct_behind(&self, mut id: u32) -> Option<usize> {
        for _ in 0..MAX_NESTING {
            let start = *self.starts.get((id as usize).checked_sub(1)?)? as usize;
            match self.header(start)?.kind {
                KIND_STRUCT | KIND_UNION => return Some(start),
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST => id = word(self.types, start + 8)?,
                _ => return None,
            }
        }
        None
    }
}

/// Kind and number of members, from a type's second word.
const fn kind_and_members(info: u32) -> (u32, u32) {
    ((info >> 24) & 0x1f, info & 0xffff)
}

/// Bytes that follow a type's header. Source: include/uapi/linux/btf.h.
fn extra_bytes(kind: u32, members: u32) -> Option<usize> {
    let members = members as usize;
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, data section, 64-bit enumeration.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumeration, function prototype.
        6 | 13 => 8 * members,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_refused() {
        assert!(Types::parse(&[]).is_none());
        assert!(Types::parse(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 255, 255, 255, 255]).is_none());
    }

    #[test]
    fn members_of_members_are_found() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let types = Types::parse(&bytes).unwrap();
        let name = types.offset("dentry", &["d_name"]).unwrap();
        // Behind the length and the hash of a name.
        assert_eq!(types.offset("dentry", &["d_name", "name"]), Some(name + 8));
        assert_eq!(types.offset("dentry", &["d_name", "nothing"]), None);
        assert_eq!(types.offset("nothing", &["d_name"]), None);
        assert_eq!(types.number("pageflags", "PG_locked"), Some(0));
        assert_eq!(types.number("pageflags", "nothing"), None);
    }
}
