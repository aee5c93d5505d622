//! Every address of an object's code, executed or not: one step from registers and a stack that are made up.

use std::path::{Path, PathBuf};

use profiler_common::unwind::{Base, Packed, Registers, Special, Step, Unpacked};
use profiler_tests::Workload;

use crate::objects::Objects;
use crate::outcome::Outcome;
use crate::stepper::Stepper;

/// Variable with more objects to sweep, separated by colons.
const OBJECTS_VARIABLE: &str = "PROFILER_UNWIND_OBJECTS";

/// As in stepper.c: where the made-up registers point.
const FIRST_REGISTER: u64 = 0x7000_0000_0000;

/// As in stepper.c: what the made-up memory holds.
fn word_at(address: u64) -> u64 {
    FIRST_REGISTER + 0x20_0000 + ((address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 36) << 3)
}

/// A DWARF register's value.
fn register(number: u64) -> u64 {
    FIRST_REGISTER + (number + 1) * 0x1_0000
}

/// As in stepper.c: there is no call-frame information for an address.
const NOT_DESCRIBED: u64 = 2;

/// Sweeps an object.
fn sweep(path: &Path) -> Option<Outcome> {
    let mut stepper = Stepper::start(&["--sweep", path.to_str().expect("UTF-8")])?;
    let (objects, compiled) = Objects::of_file(path).expect("an object with call-frame information");
    let mut outcome = Outcome::default();
    while let Some([address, result, ip, sp, fp]) = stepper.words() {
        let rule = compiled.table.find(address).unwrap_or(Packed::special(Special::None));
        let mut registers = Registers { ip: address, sp: FIRST_REGISTER, fp: register(6), bx: register(3) };
        let leaf = |number: u8| Some(if number == 7 { FIRST_REGISTER } else { register(u64::from(number)) });
        let step = objects.step(&mut registers, rule, leaf, |address| Some(word_at(address)));
        let ours = match step {
            Step::Caller | Step::Switched | Step::Interrupted => 1,
            Step::Root => 0,
            Step::NoRule | Step::Stop(_) => u64::MAX,
        };
        let same = (registers.ip, registers.sp, registers.fp) == (ip, sp, fp);
        let class = match (ours, result) {
            (1, 1) if same => Ok(()),
            (0, 0) => Ok(()),
            (_, NOT_DESCRIBED) => {
                let rule = if step == Step::NoRule { "none by ours" } else { "padding, by ours" };
                *outcome.left_out.entry(format!("no call-frame information by their account, {rule}")).or_default() +=
                    1;
                continue;
            }
            (1, 1) => Err("other values".to_owned()),
            _ => Err(format!("we {step:?}, they {}", i64::from_le_bytes(result.to_le_bytes()))),
        };
        outcome.add(class.map_err(|class| format!("{class}, {}", kind(rule))), || {
            format!("{address:#x}: we {:x?}, they {ip:x} {sp:x} {fp:x}", registers)
        });
    }
    Some(outcome)
}

fn kind(rule: Packed) -> String {
    match rule.unpack() {
        Unpacked::Plain(rule) if rule.base == Base::Rsp as u8 => "by rsp".to_owned(),
        Unpacked::Plain(_) => "by rbp".to_owned(),
        Unpacked::Dictionary(_) => "by dictionary".to_owned(),
        Unpacked::Special(code) => format!("special {code}"),
    }
}

#[test]
fn every_address_of_a_library_has_the_rule_of_elfutils() {
    let mut paths = vec![PathBuf::from("/lib64/ld-linux-x86-64.so.2")];
    paths.push(Workload::cpp("varied").flag("-fomit-frame-pointer").build());
    if let Some(more) = std::env::var_os(OBJECTS_VARIABLE) {
        paths.extend(std::env::split_paths(&more));
    }
    let mut all = Outcome::default();
    for path in paths {
        let Some(outcome) = sweep(&path) else { return };
        println!("{}", outcome.text(&path.display().to_string()));
        // OpenSSL's assembly is the exception: 2 % of its bytes are refused.
        assert!(outcome.share() >= 0.97, "{}", outcome.text(&path.display().to_string()));
        all.merge(outcome);
    }
    assert!(all.compared() > 100_000, "only {} addresses", all.compared());
    assert!(all.unexplained() <= 0.0001, "{}", all.text("all objects"));
}
