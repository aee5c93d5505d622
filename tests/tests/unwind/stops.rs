//! Real programs, stopped at many addresses: one step, and the whole stack.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use profiler_common::unwind::{Registers, Step};
use profiler_tests::Workload;

use crate::objects::Objects;
use crate::outcome::Outcome;
use crate::stepper::{Record, Stepper, Stop};

/// Variable with how many stops to make in each program; without it a few thousand in all.
const STOPS_VARIABLE: &str = "PROFILER_UNWIND_STOPS";

/// Frames of the deepest stack that is compared.
const MAX_FRAMES: usize = 256;

/// Steps once from a stop's leaf, and says how the result differs from elfutils'.
fn compare_step(objects: &Objects, stop: &Stop) -> Result<(), String> {
    let mut registers = stop.registers;
    let rule = objects.rule(registers.ip, true);
    let step = objects.step(&mut registers, rule, |number| stop.register(number), |address| stop.read(address));
    match (step, stop.frames.get(1)) {
        (Step::Root, None) if stop.whole => Ok(()),
        (Step::Caller | Step::Switched | Step::Interrupted, Some([ip, sp, fp])) => {
            let differences = [("return address", registers.ip != *ip), ("CFA", registers.sp != *sp)];
            let rbp = ("rbp", registers.fp != *fp);
            let names: Vec<_> = differences.into_iter().chain([rbp]).filter(|(_, differs)| *differs).collect();
            if names.is_empty() {
                return Ok(());
            }
            Err(names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
        }
        (step, Some(_)) => Err(format!("they find a caller, we {step:?}")),
        (Step::NoRule, None) if !stop.whole => Ok(()),
        (step, None) => Err(format!("they find no caller (whole: {}), we {step:?}", stop.whole)),
    }
}

/// Walks the whole stack; the addresses of its frames and how it ended.
fn walk(objects: &Objects, stop: &Stop) -> (Vec<u64>, Step) {
    let mut registers: Registers = stop.registers;
    let mut exact = true;
    let mut frames = vec![registers.ip];
    loop {
        let rule = objects.rule(registers.ip, exact);
        let leaf = |number| stop.register(number).filter(|_| frames.len() == 1);
        let step = objects.step(&mut registers, rule, leaf, |address| stop.read(address));
        exact = step == Step::Interrupted;
        match step {
            Step::Caller | Step::Switched | Step::Interrupted if frames.len() < MAX_FRAMES => frames.push(registers.ip),
            _ => return (frames, step),
        }
    }
}

fn compare_stack(objects: &Objects, stop: &Stop) -> Result<(), String> {
    let (ours, end) = walk(objects, stop);
    let theirs: Vec<u64> = stop.frames.iter().map(|[ip, ..]| *ip).collect();
    match (ours == theirs, end == Step::Root, stop.whole) {
        // ld.so's own entry has no call-frame information: neither can say that it is the outermost frame.
        (true, true, true) | (true, false, false) => Ok(()),
        (true, ours, theirs) => Err(format!("equal frames; outermost reached: we {ours}, they {theirs}; {end:?}")),
        (false, ours_whole, theirs_whole) => {
            let at = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            let last = objects.name(ours[at - 1]);
            let shape = if ours.len() == at {
                "we end"
            } else if theirs.len() == at {
                "they end"
            } else {
                "we differ"
            };
            Err(format!("{shape} after a frame in {last} (outermost reached: we {ours_whole}, they {theirs_whole})"))
        }
    }
}

/// Follows a program and compares; `None` where it cannot be followed.
fn follow(program: &Path, argument: &str, skip: u32, stride: u32, stops: u64) -> Option<(Outcome, Outcome)> {
    let visits = if stride == 1 { 5 } else { 1 };
    let numbers = [skip, stride, visits].map(|number| number.to_string());
    let stops = stops.to_string();
    let path = program.to_str().expect("UTF-8");
    let mut stepper = Stepper::start(&[&numbers[0], &numbers[1], &numbers[2], &stops, path, argument])?;
    let mut objects = Objects::default();
    let (mut steps, mut stacks) = (Outcome::default(), Outcome::default());
    let mut addresses = HashSet::new();
    let mut by_object = BTreeMap::<String, (u64, u64)>::new();
    let instructions = loop {
        match stepper.record() {
            Record::Mappings(maps) => objects.map(&maps),
            Record::End(count) => break count,
            Record::Stop(stop) => {
                addresses.insert(stop.registers.ip);
                let object = objects.name(stop.registers.ip);
                let place = || {
                    let found = objects.find(stop.registers.ip);
                    found.map_or("?".to_owned(), |(_, _, address)| format!("{object}+{address:#x}"))
                };
                let result = compare_step(&objects, &stop);
                let counts = by_object.entry(object.clone()).or_default();
                counts.0 += u64::from(result.is_ok());
                counts.1 += 1;
                steps.add(result.map_err(|class| format!("{object}: {class}")), place);
                stacks.add(compare_stack(&objects, &stop), || {
                    let theirs: Vec<u64> = stop.frames.iter().map(|[ip, ..]| *ip).collect();
                    format!("{}: we {:x?}, they {theirs:x?}", place(), walk(&objects, &stop).0)
                });
            }
        }
    };
    println!("{path}: {instructions} instructions, {} stops at {} addresses", steps.compared(), addresses.len());
    for (object, (equal, all)) in by_object {
        println!("  {object}: {equal} of {all} steps equal");
    }
    Some((steps, stacks))
}

#[test]
fn steps_and_stacks_are_those_of_elfutils() {
    let asked = std::env::var(STOPS_VARIABLE).ok().map(|text| text.parse::<u64>().expect("a number of stops"));
    // Up to five visits of an address: to the same code on other stacks. Few stops are spread over the program by taking one address of many.
    let (stride, stops) = asked.map_or((2, 1_250), |stops| (1, stops));
    let c = Workload::c("varied").flag("-fomit-frame-pointer").flag("-Wl,--no-as-needed").flag("-lm").build();
    let cpp = Workload::cpp("varied").flag("-fomit-frame-pointer").build();
    let rust = Workload::rust("varied").flag("-C").flag("force-frame-pointers=no").build();
    let (mut steps, mut stacks) = (Outcome::default(), Outcome::default());
    // The first write is "ready": what comes before it is the dynamic linker, which one program is enough for.
    for (program, skip) in [(&rust, 0), (&c, 1), (&cpp, 1), (&rust, 1)] {
        let Some((step, stack)) = follow(program, "1", skip, stride, stops) else { return };
        steps.merge(step);
        stacks.merge(stack);
    }
    println!("{}{}", steps.text("steps"), stacks.text("stacks"));
    assert!(steps.compared() >= asked.unwrap_or(4_000), "only {} stops", steps.compared());
    assert!(steps.share() >= 0.999, "{}", steps.text("steps"));
    assert!(stacks.unexplained() <= 0.001, "{}", stacks.text("stacks"));
}
