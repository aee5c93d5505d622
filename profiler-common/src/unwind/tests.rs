//! Tests of packing, searching and stepping.

use super::*;

#[test]
fn plain_rules_survive_packing() {
    for base in [Base::Rsp, Base::Rbp] {
        for offset in [8, 16, 2047 * 8] {
            for slot in [0, 16, 127 * 8] {
                let mut rule = Rule::new(base, offset);
                if slot != 0 {
                    rule.rbp = Saved::AtCfa as u8;
                    rule.rbp_offset = -slot;
                }
                assert_eq!(rule.pack().unwrap().unpack(), Unpacked::Plain(rule));
            }
        }
    }
    assert_eq!(Rule::new(Base::Rsp, 2048 * 8).pack(), None);
    assert_eq!(Rule::new(Base::Rsp, 12).pack(), None);
    assert_eq!(Rule::new(Base::Rbx, 16).pack(), None);
    assert_eq!(Packed::dictionary(5).unwrap().unpack(), Unpacked::Dictionary(5));
    assert_eq!(Packed::dictionary(MAX_RULES), None);
    assert_eq!(Packed::special(Special::End).unpack(), Unpacked::Special(Special::End as u32));
}

#[test]
fn the_last_row_that_begins_before_an_address_covers_it() {
    let rule = |number| Packed::dictionary(number).unwrap();
    let rows: [u32; 100] = core::array::from_fn(|index| row(0x7000 + 16 * index as u64 + 8, rule(index)));
    for low in 0..4096 {
        let found = find_row(100, low, |index| rows.get(index as usize).copied());
        let expected = (low >= 8).then(|| ((low - 8) / 16).min(99) as usize);
        assert_eq!(found, expected.map(|index| rows[index]));
    }
    assert_eq!(find_row(0, 5, |_| None), None);
    let full: [u32; 4096] = core::array::from_fn(|index| row(index as u64, rule(0)));
    assert!(
        (0..4096).all(|low| find_row(4096, low, |index| full.get(index as usize).copied()).map(start_of) == Some(low))
    );
}

#[test]
fn a_step_reads_the_callers_registers_from_the_stack() {
    let stack = [(0x1010_u64, 0xaaaa_u64), (0x1018, 0x4321)];
    let read = |address, to: &mut u64| {
        let found = stack.iter().find(|(at, _)| *at == address).map(|(_, word)| *to = *word);
        found.is_some()
    };
    let mut rule = Rule::new(Base::Rsp, 32);
    rule.rbp = Saved::AtCfa as u8;
    rule.rbp_offset = -16;
    let before = Registers { ip: 1, sp: 0x1000, fp: 7, bx: 9 };
    let mut registers = before;
    assert_eq!(step(&mut registers, rule.pack().unwrap(), |_| None, |_| None, read), Step::Caller);
    assert_eq!(registers, Registers { ip: 0x4321, sp: 0x1020, fp: 0xaaaa, bx: 9 });
    let mut registers = before;
    let stop = step(&mut registers, Packed::special(Special::Bad), |_| None, |_| None, read);
    assert_eq!((stop, registers), (Step::Stop(Outcome::BadUnwindRule), before));
    let mut registers = Registers { sp: 0x2000, ..before };
    assert_eq!(
        step(&mut registers, rule.pack().unwrap(), |_| None, |_| None, read),
        Step::Stop(Outcome::UnreadableStack)
    );
    // As in vfork(2) of the C library: the return address was taken off the stack.
    let mut rule = Rule::new(Base::Rsp, 0);
    rule.return_offset = RETURN_IN_REGISTER + 5;
    let rules = |_| Some(rule);
    let packed = Packed::dictionary(0).unwrap();
    let rdi = |number| (number == 5).then_some(0x5555);
    let mut registers = before;
    assert_eq!(step(&mut registers, packed, rules, rdi, read), Step::Caller);
    assert_eq!(registers, Registers { ip: 0x5555, ..before });
    let stop = step(&mut registers, packed, rules, |_| None, read);
    assert_eq!(stop, Step::Stop(Outcome::BadUnwindRule), "known in the leaf only");
}
