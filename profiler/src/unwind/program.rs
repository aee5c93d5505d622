//! Call-frame instructions to the rules that hold at each address.
//!
//! Input: the bytes of a program, and the state it begins in. Output: each row as it is complete. Of the registers only
//! those are kept that the walk needs; the others' instructions are read and forgotten. Allocates nothing.
//! Source: DWARF 5, section 6.4.2; Linux Standard Base 5, section 10.5.3 (the GNU instructions).

use super::cursor::{Bases, Cursor, FrameError};

/// DWARF's numbers of registers. Source: System V ABI, AMD64 supplement, figure 3.36.
pub(super) mod register {
    pub(in crate::unwind) const RBX: u16 = 3;
    pub(in crate::unwind) const RBP: u16 = 6;
    pub(in crate::unwind) const RSP: u16 = 7;
    pub(in crate::unwind) const RETURN_ADDRESS: u16 = 16;
    /// Their names, by number.
    pub(in crate::unwind) const NAMES: [&str; 17] = [
        "rax",
        "rdx",
        "rcx",
        "rbx",
        "rsi",
        "rdi",
        "rbp",
        "rsp",
        "r8",
        "r9",
        "r10",
        "r11",
        "r12",
        "r13",
        "r14",
        "r15",
        "the return address",
    ];
}

/// States that may be remembered at once: compilers remember one or two.
const MAX_STATES: usize = 16;

/// An expression: where in the section its size stands, which its bytes follow. Sections are bounded, so that 32 bits are
/// enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block(pub(super) u32);

impl Block {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, FrameError> {
        let at = u32::try_from(cursor.at()).map_err(|_| FrameError::Truncated)?;
        let size = cursor.unsigned()?;
        cursor.split(size)?;
        Ok(Self(at))
    }

    /// Its bytes.
    pub(super) fn of(self, section: &[u8]) -> &[u8] {
        let mut cursor = Cursor::new(section, self.0 as usize);
        let size = cursor.unsigned().unwrap_or_default();
        cursor.split(size).map(Cursor::rest).unwrap_or_default()
    }
}

/// Stands for an offset of more than 32 bits, which no frame has.
pub(super) const FAR: i32 = i32::MIN;

fn near(offset: i64) -> i32 {
    i32::try_from(offset).unwrap_or(FAR)
}

/// How the frame address is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    Register { register: u16, offset: i32 },
    Expression(Block),
}

/// Where a register's value for the caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing was said.
    Unsaid,
    Undefined,
    Same,
    /// In another register.
    Register(u16),
    /// In memory, at the frame address plus the offset.
    Offset(i32),
    /// In memory, at an address that is calculated.
    Expression(Block),
    /// In another register, or calculated.
    Other,
}

/// The rules that hold at an address. Small, since it is copied and compared for every row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) cfa: Cfa,
    pub(super) return_address: Place,
    pub(super) rbp: Place,
    pub(super) rbx: Place,
}

impl State {
    /// Before a common entry's instructions.
    pub(super) const EMPTY: Self = Self {
        cfa: Cfa::Register { register: 0, offset: 0 },
        return_address: Place::Unsaid,
        rbp: Place::Unsaid,
        rbx: Place::Unsaid,
    };

    /// The place of a register; of one that is not kept nothing is known.
    #[inline(always)]
    const fn get(&self, register: u16) -> Place {
        match register {
            register::RBP => self.rbp,
            register::RETURN_ADDRESS => self.return_address,
            register::RBX => self.rbx,
            _ => Place::Unsaid,
        }
    }

    /// The place of a register that is kept, to be changed.
    #[inline(always)]
    const fn place(&mut self, register: u16) -> Option<&mut Place> {
        match register {
            register::RBP => Some(&mut self.rbp),
            register::RETURN_ADDRESS => Some(&mut self.return_address),
            register::RBX => Some(&mut self.rbx),
            _ => None,
        }
    }
}

/// What a common entry says of its functions' programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factors {
    /// Bytes of code in one step.
    pub(super) code: u64,
    /// Bytes of stack in one step.
    pub(super) data: i64,
    /// How addresses are encoded.
    pub(super) pointer: u8,
}

/// Takes rows. A trait and no closure: what takes them is to become part of the loop that makes them.
pub(super) trait Rows {
    /// Takes a row.
    ///
    /// `changed`: whether it says anything else than the row before; `start` and `end`: its addresses. The last row has
    /// no end of its own: `u64::MAX`.
    fn row(&mut self, state: &State, changed: bool, start: u64, end: u64);
}

/// Runs programs. Keeps room for remembered states from one to the next.
#[derive(Debug)]
pub(super) struct Machine {
    states: Vec<State>,
    tracks_rbx: bool,
}

impl Machine {
    /// `tracks_rbx`: whether states are to say where rbx is. Most objects need it nowhere, and have fewer states so.
    pub(super) fn new(tracks_rbx: bool) -> Self {
        Self { states: Vec::with_capacity(MAX_STATES), tracks_rbx }
    }

    /// Runs a program.
    ///
    /// `initial`: the state that `restore` goes back to, which is none while a common entry's own program runs;
    /// `address`: where the function begins.
    ///
    /// # Errors
    ///
    /// At the first instruction that cannot be followed. The rows before it are right.
    #[inline(always)]
    pub(super) fn run(
        &mut self,
        mut cursor: Cursor<'_>,
        factors: Factors,
        bases: &Bases,
        initial: Option<&State>,
        mut address: u64,
        rows: &mut impl Rows,
    ) -> Result<State, FrameError> {
        let mut state = initial.copied().unwrap_or(State::EMPTY);
        let mut changed = true;
        self.states.clear();
        let factored = |offset: u64| Place::Offset(near(offset.cast_signed().wrapping_mul(factors.data)));
        macro_rules! set {
            ($register:expr, $place:expr) => {{
                let (register, place) = ($register, $place);
                if let Some(slot) = state.place(register)
                    && (register != register::RBX || self.tracks_rbx)
                {
                    *slot = place;
                    changed = true;
                }
            }};
        }
        let step = |address: u64, delta: u64| {
            address.checked_add(delta.wrapping_mul(factors.code)).map(Some).ok_or(FrameError::Address)
        };
        loop {
            let next = loop {
                let Some(code) = cursor.next() else { break None };
                let low = code & 0x3f;
                match code >> 6 {
                    1 => break step(address, u64::from(low))?,
                    2 => {
                        let offset = cursor.unsigned()?;
                        set!(u16::from(low), factored(offset));
                    }
                    3 => {
                        let initial = initial.ok_or(FrameError::OutOfPlace)?;
                        set!(u16::from(low), initial.get(u16::from(low)));
                    }
                    _ => match code {
                        // DW_CFA_nop
                        0x00 => {}
                        // DW_CFA_set_loc
                        0x01 => {
                            let next = cursor.pointer(factors.pointer, bases)?;
                            break Some(Some(next).filter(|&next| next >= address).ok_or(FrameError::Address)?);
                        }
                        // DW_CFA_advance_loc1, 2, 4
                        0x02 => break step(address, u64::from(cursor.byte()?))?,
                        0x03 => break step(address, u64::from(cursor.u16()?))?,
                        0x04 => break step(address, u64::from(cursor.u32()?))?,
                        // DW_CFA_offset_extended
                        0x05 => {
                            let register = cursor.register()?;
                            let offset = cursor.unsigned()?;
                            set!(register, factored(offset));
                        }
                        // DW_CFA_restore_extended
                        0x06 => {
                            let register = cursor.register()?;
                            let initial = initial.ok_or(FrameError::OutOfPlace)?;
                            set!(register, initial.get(register));
                        }
                        // DW_CFA_undefined, DW_CFA_same_value
                        0x07 => set!(cursor.register()?, Place::Undefined),
                        0x08 => set!(cursor.register()?, Place::Same),
                        // DW_CFA_register
                        0x09 => {
                            let register = cursor.register()?;
                            set!(register, Place::Register(cursor.register()?));
                        }
                        // DW_CFA_remember_state
                        0x0a => {
                            if self.states.len() == MAX_STATES {
                                return Err(FrameError::States);
                            }
                            self.states.push(state);
                        }
                        // DW_CFA_restore_state
                        0x0b => {
                            state = self.states.pop().ok_or(FrameError::States)?;
                            changed = true;
                        }
                        // DW_CFA_def_cfa
                        0x0c => {
                            let register = cursor.register()?;
                            let offset = near(cursor.unsigned()?.cast_signed());
                            (state.cfa, changed) = (Cfa::Register { register, offset }, true);
                        }
                        // DW_CFA_def_cfa_register
                        0x0d => {
                            let new = cursor.register()?;
                            let Cfa::Register { register, .. } = &mut state.cfa else {
                                return Err(FrameError::OutOfPlace);
                            };
                            (*register, changed) = (new, true);
                        }
                        // DW_CFA_def_cfa_offset
                        0x0e => {
                            let new = near(cursor.unsigned()?.cast_signed());
                            let Cfa::Register { offset, .. } = &mut state.cfa else {
                                return Err(FrameError::OutOfPlace);
                            };
                            (*offset, changed) = (new, true);
                        }
                        // DW_CFA_def_cfa_expression
                        0x0f => (state.cfa, changed) = (Cfa::Expression(Block::read(&mut cursor)?), true),
                        // DW_CFA_expression
                        0x10 => {
                            let register = cursor.register()?;
                            set!(register, Place::Expression(Block::read(&mut cursor)?));
                        }
                        // DW_CFA_offset_extended_sf
                        0x11 => {
                            let register = cursor.register()?;
                            let offset = cursor.signed()?;
                            set!(register, Place::Offset(near(offset.wrapping_mul(factors.data))));
                        }
                        // DW_CFA_def_cfa_sf
                        0x12 => {
                            let register = cursor.register()?;
                            let offset = near(cursor.signed()?.wrapping_mul(factors.data));
                            (state.cfa, changed) = (Cfa::Register { register, offset }, true);
                        }
                        // DW_CFA_def_cfa_offset_sf
                        0x13 => {
                            let new = near(cursor.signed()?.wrapping_mul(factors.data));
                            let Cfa::Register { offset, .. } = &mut state.cfa else {
                                return Err(FrameError::OutOfPlace);
                            };
                            (*offset, changed) = (new, true);
                        }
                        // DW_CFA_val_offset, DW_CFA_val_offset_sf
                        0x14 | 0x15 => {
                            let register = cursor.register()?;
                            if code == 0x14 {
                                cursor.unsigned()?;
                            } else {
                                cursor.signed()?;
                            }
                            set!(register, Place::Other);
                        }
                        // DW_CFA_val_expression
                        0x16 => {
                            let register = cursor.register()?;
                            Block::read(&mut cursor)?;
                            set!(register, Place::Other);
                        }
                        // DW_CFA_GNU_args_size: bytes of arguments pushed, which the frame address allows for.
                        0x2e => {
                            cursor.unsigned()?;
                        }
                        // DW_CFA_GNU_negative_offset_extended
                        0x2f => {
                            let register = cursor.register()?;
                            let offset = cursor.unsigned()?.cast_signed();
                            set!(register, Place::Offset(near(offset.wrapping_mul(factors.data).wrapping_neg())));
                        }
                        _ => return Err(FrameError::Instruction(code)),
                    },
                }
            };
            rows.row(&state, changed, address, next.unwrap_or(u64::MAX));
            let Some(next) = next else { return Ok(state) };
            (address, changed) = (next, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Seen(Vec<(u64, Cfa, Place)>);

    impl Rows for Seen {
        fn row(&mut self, state: &State, _: bool, start: u64, end: u64) {
            assert!(start <= end);
            self.0.push((start, state.cfa, state.rbp));
        }
    }

    /// A function's rows: the frame address and rbp's place where they begin.
    fn rows(program: &[u8]) -> Result<Vec<(u64, Cfa, Place)>, FrameError> {
        let initial = State {
            cfa: Cfa::Register { register: register::RSP, offset: 8 },
            return_address: Place::Offset(-8),
            ..State::EMPTY
        };
        let factors = Factors { code: 1, data: -8, pointer: 0 };
        let mut rows = Seen(Vec::new());
        let cursor = Cursor::new(program, 0);
        Machine::new(true).run(cursor, factors, &Bases::default(), Some(&initial), 0x100, &mut rows)?;
        Ok(rows.0)
    }

    #[test]
    fn a_prologue_and_two_epilogues_make_their_rows() {
        let by = |register, offset| Cfa::Register { register, offset };
        // push rbp; mov rbp, rsp; remember; pop rbp, ret; restore state.
        let program =
            [0x41, 0x0e, 0x10, 0x86, 0x02, 0x43, 0x0d, 0x06, 0x02, 0x80, 0x0a, 0xc6, 0x0c, 0x07, 0x08, 0x42, 0x0b, 0];
        let expected = vec![
            (0x100, by(7, 8), Place::Unsaid),
            (0x101, by(7, 16), Place::Offset(-16)),
            (0x104, by(6, 16), Place::Offset(-16)),
            (0x184, by(7, 8), Place::Unsaid),
            (0x186, by(6, 16), Place::Offset(-16)),
        ];
        assert_eq!(rows(&program), Ok(expected));
        let negative = [0x2f, 0x06, 0x02, 0x11, 0x03, 0x7e, 0x12, 0x06, 0x7d];
        assert_eq!(rows(&negative), Ok(vec![(0x100, by(6, 24), Place::Offset(16))]));
    }

    #[test]
    fn every_instruction_that_is_cut_off_is_an_error() {
        let with_operands: [&[u8]; 19] = [
            &[0x01, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x02, 1],
            &[0x03, 1, 0],
            &[0x04, 1, 0, 0, 0],
            &[0x05, 6, 2],
            &[0x06, 6],
            &[0x07, 6],
            &[0x08, 6],
            &[0x09, 6, 7],
            &[0x0c, 7, 8],
            &[0x0d, 7],
            &[0x0e, 8],
            &[0x0f, 2, 0x77, 8],
            &[0x10, 6, 2, 0x76, 0],
            &[0x11, 6, 2],
            &[0x14, 6, 2],
            &[0x16, 6, 2, 0x76, 0],
            &[0x2e, 8],
            &[0x86, 2],
        ];
        for whole in with_operands {
            assert!(rows(whole).is_ok(), "{whole:x?}");
            for size in 1..whole.len() {
                assert_eq!(rows(&whole[..size]), Err(FrameError::Truncated), "{:x?}", &whole[..size]);
            }
        }
    }

    #[test]
    fn what_is_out_of_place_is_an_error() {
        assert_eq!(rows(&[0x0b]), Err(FrameError::States));
        assert_eq!(rows(&[0x0a; MAX_STATES + 1]), Err(FrameError::States));
        assert_eq!(rows(&[0x0f, 1, 0x30, 0x0e, 8]), Err(FrameError::OutOfPlace));
        assert_eq!(rows(&[0x0f, 1, 0x30, 0x0d, 7]), Err(FrameError::OutOfPlace));
        assert_eq!(rows(&[0x2d]), Err(FrameError::Instruction(0x2d)));
        assert_eq!(rows(&[0x01, 0, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::Address));
        assert_eq!(rows(&[0x0d, 0x80, 0x80, 0x04]), Err(FrameError::Number));
        let factors = Factors { code: 1, data: -8, pointer: 0 };
        let common =
            Machine::new(true).run(Cursor::new(&[0xc6], 0), factors, &Bases::default(), None, 0, &mut Seen(Vec::new()));
        assert_eq!(common, Err(FrameError::OutOfPlace));
    }
}
