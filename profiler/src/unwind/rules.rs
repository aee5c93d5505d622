//! DWARF's rules to ours: what a row of call-frame information says, in at most 16 bytes.

use std::collections::HashMap;

use profiler_common::unwind::{Base, LEAF_REGISTERS, MAX_RULES, Packed, RETURN_IN_REGISTER, Rule, Saved, Special};

use super::program::{Cfa, FAR, Place, State, register};

/// The dictionary: rules that do not fit a row, each once. Shared by all tables of a load.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    numbers: HashMap<Rule, usize>,
    rules: Vec<Rule>,
}

/// Why a row cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The frame address is a calculation that is not understood.
    CfaExpression,
    /// The frame address is relative to a register that is not tracked.
    CfaRegister(u16),
    /// rbp or the return address is saved in a way that is not understood.
    SavedRegister,
    /// A number that does not fit.
    Range,
    /// The dictionary is full.
    DictionaryFull,
}

impl Refusal {
    /// As a number, for a file.
    pub(super) fn to_number(self) -> u32 {
        match self {
            Self::CfaExpression => 1,
            Self::SavedRegister => 2,
            Self::Range => 3,
            Self::DictionaryFull => 4,
            Self::CfaRegister(register) => 1 << 16 | u32::from(register),
        }
    }

    /// From a number of a file.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::CfaExpression),
            2 => Some(Self::SavedRegister),
            3 => Some(Self::Range),
            4 => Some(Self::DictionaryFull),
            _ => u16::try_from(number.checked_sub(1 << 16)?).ok().map(Self::CfaRegister),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CfaExpression => write!(formatter, "frame address by an expression that is not understood"),
            Self::CfaRegister(register) => {
                let name = register::NAMES.get(usize::from(*register)).unwrap_or(&"an unknown register");
                write!(formatter, "frame address relative to {name}")
            }
            Self::SavedRegister => write!(formatter, "rbp or the return address saved in a way that is not understood"),
            Self::Range => write!(formatter, "an offset that is too large"),
            Self::DictionaryFull => write!(formatter, "more than {MAX_RULES} different rules"),
        }
    }
}

impl Rules {
    /// The rules by number.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Forgets the rules from a number on, which no table uses.
    pub(super) fn truncate(&mut self, count: usize) {
        for rule in self.rules.drain(count.min(self.rules.len())..) {
            self.numbers.remove(&rule);
        }
    }

    /// A rule in the bits of a row, with its number in the dictionary when it does not fit.
    pub(super) fn pack(&mut self, rule: Rule) -> Result<Packed, Refusal> {
        if let Some(packed) = rule.pack() {
            return Ok(packed);
        }
        let next = self.rules.len();
        let number = self.numbers.get(&rule).copied().unwrap_or(next);
        let packed = Packed::dictionary(number).ok_or(Refusal::DictionaryFull)?;
        if number == next {
            self.numbers.insert(rule, number);
            self.rules.push(rule);
        }
        Ok(packed)
    }
}

/// What is known of a row.
pub(super) enum Translated {
    Rule(Rule),
    Special(Special),
}

/// `DW_OP_breg7 8, DW_OP_breg16 0, DW_OP_lit15, and, DW_OP_lit<N>, ge, DW_OP_lit3, shl, plus`: the frame address in a
/// PLT entry, which is rsp + 8, and 8 more from byte N on.
const fn plt_expression(push_ends: u8) -> [u8; 11] {
    [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x30 + push_ends, 0x2a, 0x33, 0x24, 0x22]
}

/// Translates the rules that hold at an address.
///
/// `section`: the bytes that expressions are in; `tracks_rbx`: whether the object has frames that are relative to rbx.
pub(super) fn translate(state: &State, section: &[u8], tracks_rbx: bool) -> Result<Translated, Refusal> {
    if state.return_address == Place::Undefined {
        return Ok(Translated::Special(Special::End));
    }
    let mut rule = match state.cfa {
        Cfa::Register { register, offset } => {
            let (base, number) = match register {
                register::RSP => (Base::Rsp, 0),
                register::RBP => (Base::Rbp, 0),
                register::RBX => (Base::Rbx, 0),
                number if usize::from(number) < LEAF_REGISTERS => (Base::Leaf, number),
                number => return Err(Refusal::CfaRegister(number)),
            };
            let offset = Some(offset).filter(|&offset| offset != FAR).ok_or(Refusal::Range)?;
            Rule { added: u8::try_from(number).unwrap_or(0), ..Rule::new(base, offset) }
        }
        Cfa::Expression(block) => {
            let bytes = block.of(section);
            if bytes == plt_expression(11) {
                return Ok(Translated::Special(Special::Plt11));
            }
            if bytes == plt_expression(10) {
                return Ok(Translated::Special(Special::Plt10));
            }
            let (base, offset, added) = memory_at(bytes).ok_or(Refusal::CfaExpression)?;
            Rule { added, ..Rule::new(base, offset) }
        }
    };
    rule.return_offset = match state.return_address {
        Place::Offset(offset) => i16::try_from(offset).map_err(|_| Refusal::Range)?,
        Place::Unsaid => -8,
        Place::Register(number) if usize::from(number) < LEAF_REGISTERS => {
            RETURN_IN_REGISTER + i16::try_from(number).map_err(|_| Refusal::Range)?
        }
        _ => return Err(Refusal::SavedRegister),
    };
    match state.rbp {
        Place::Unsaid | Place::Same => {}
        Place::Undefined => rule.rbp = Saved::Undefined as u8,
        Place::Offset(offset) => {
            rule.rbp = Saved::AtCfa as u8;
            rule.rbp_offset = Some(offset).filter(|&offset| offset != FAR).ok_or(Refusal::Range)?;
        }
        Place::Expression(block) => {
            let (register, offset, rest) = register_and_offset(block.of(section)).ok_or(Refusal::SavedRegister)?;
            if register != register::RBP || !rest.is_empty() {
                return Err(Refusal::SavedRegister);
            }
            rule.rbp = Saved::AtRbp as u8;
            rule.rbp_offset = offset;
        }
        Place::Register(_) | Place::Other => return Err(Refusal::SavedRegister),
    }
    if tracks_rbx && let Place::Offset(offset) = state.rbx {
        rule.rbx = Saved::AtCfa as u8;
        rule.rbx_offset = i16::try_from(offset).map_err(|_| Refusal::Range)?;
    }
    Ok(Translated::Rule(rule))
}

/// `DW_OP_breg<N> offset`: the register, the offset and what follows.
fn register_and_offset(bytes: &[u8]) -> Option<(u16, i32, &[u8])> {
    let (&operation, rest) = bytes.split_first()?;
    let register = operation.checked_sub(0x70).filter(|register| *register < 32)?;
    let mut offset = 0_i64;
    for (index, &byte) in rest.iter().take(5).enumerate() {
        offset |= i64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let unused = 64 - 7 * (index + 1);
            let offset = i32::try_from((offset << unused) >> unused).ok()?;
            return Some((u16::from(register), offset, &rest[index + 1..]));
        }
    }
    None
}

/// `DW_OP_breg<N> offset, DW_OP_deref`: what is in memory there; a realigned stack has it so. OpenSSL's assembly goes on
/// with `DW_OP_plus_uconst added`.
fn memory_at(bytes: &[u8]) -> Option<(Base, i32, u8)> {
    const DEREFERENCE: u8 = 0x06;
    const PLUS_CONSTANT: u8 = 0x23;
    let (register, offset, rest) = register_and_offset(bytes)?;
    let base = match register {
        register::RBP => Base::AtRbp,
        register::RSP => Base::AtRsp,
        _ => return None,
    };
    match *rest {
        [DEREFERENCE] => Some((base, offset, 0)),
        [DEREFERENCE, PLUS_CONSTANT, added] if added < 0x80 => Some((base, offset, added)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_compilers_are_understood() {
        assert_eq!(memory_at(&[0x76, 0x78, 0x06]), Some((Base::AtRbp, -8, 0)));
        assert_eq!(memory_at(&[0x77, 0x90, 0x01, 0x06]), Some((Base::AtRsp, 144, 0)));
        assert_eq!(memory_at(&[0x77, 0x18, 0x06, 0x23, 0x08]), Some((Base::AtRsp, 24, 8)));
        assert_eq!(memory_at(&[0x77, 0x18, 0x06, 0x23, 0x88, 0x01]), None);
        assert_eq!(memory_at(&[0x76, 0x78]), None);
        assert_eq!(memory_at(&[0x7a, 0x00, 0x06]), None);
        assert_eq!(register_and_offset(&[0x76, 0x00]), Some((6, 0, [].as_slice())));
        assert_eq!(register_and_offset(&[0x76, 0x80, 0x80, 0x80, 0x80, 0x80]), None);
        assert_eq!(register_and_offset(&[]), None);
    }

    #[test]
    fn equal_rules_have_one_number() {
        let mut rules = Rules::default();
        let rule = Rule::new(Base::Rbx, 0);
        let first = rules.pack(rule).unwrap();
        assert_eq!(rules.pack(rule).unwrap(), first);
        assert_eq!(rules.rules(), [rule]);
        rules.pack(Rule::new(Base::Rsp, 16)).unwrap();
        assert_eq!(rules.rules().len(), 1);
    }
}
