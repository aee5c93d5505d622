//! What the trap of a probe costs on this host: measured on a function of our own.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::time::Instant;

use super::holder::{ProbeHolder, Program, Work};
use super::load::Kernel;

// A function that begins with an instruction which the kernel emulates. A probe on it is in this process alone, and ends
// with it.
std::arch::global_asm!(
    ".pushsection .text.profiler_probed, \"ax\", @progbits",
    ".globl profiler_probed",
    ".type profiler_probed, @function",
    "profiler_probed:",
    "nop",
    "ret",
    ".size profiler_probed, . - profiler_probed",
    ".popsection",
);

unsafe extern "C" {
    safe fn profiler_probed();
}

/// Calls of which the time is taken, and how often: the shortest time has the fewest interruptions.
const CALLS: u32 = 500;
const BATCHES: u32 = 8;

/// Where the function returns, bytes from its beginning.
const RETURN: u64 = 1;

/// What traps take, ns; `None` where that cannot be measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapCosts {
    /// Where the kernel emulates the instruction.
    pub emulated_ns: Option<u64>,
    /// Where it executes it in single steps.
    pub stepped_ns: Option<u64>,
}

impl Kernel {
    /// What a trap takes besides the program it runs, ns; `None` where that cannot be measured. Takes some 20 ms.
    pub fn measure_trap_ns(&mut self) -> Option<u64> {
        let program = if self.follows_blocks() { Program::Free } else { Program::Enter };
        self.measure(program, 0, |kernel| kernel.allocs.holder.as_mut(), Self::alloc_run_time)
    }

    /// What traps take where calls of functions are recorded: at an instruction that is emulated, and at a return.
    pub fn measure_function_traps(&mut self) -> TrapCosts {
        let mut measure = |program, into| {
            let spent = |kernel: &Self| {
                let runs = kernel.function_runs();
                (runs.bpf_ns, runs.entries + runs.ends)
            };
            self.measure(program, into, |kernel| kernel.functions.holder.as_mut(), spent)
        };
        let emulated_ns = measure(Program::FunctionEnter, 0);
        TrapCosts { emulated_ns, stepped_ns: measure(Program::FunctionEnd, RETURN) }
    }

    /// What the trap of a probe takes on our own function, at an offset into it.
    ///
    /// `spent`: time in the program, ns, and how often it ran.
    fn measure(
        &mut self,
        program: Program,
        into: u64,
        holder: impl Fn(&mut Self) -> Option<&mut ProbeHolder>,
        spent: impl Fn(&Self) -> (u64, u64),
    ) -> Option<u64> {
        let (file, offset) = place(profiler_probed as *const () as u64 + into)?;
        let (pid, points) = (std::process::id(), [(offset, 0)]);
        let work = Work { program, file: file.as_fd(), pid, points: &points };
        let probe = holder(self)?.attach(work).ok()?;
        let mut least_ns = None;
        for _ in 0..BATCHES {
            let (ran_ns, runs) = spent(self);
            let start = Instant::now();
            for _ in 0..CALLS {
                profiler_probed();
            }
            let took_ns = u64::try_from(start.elapsed().as_nanos()).ok()?;
            let (ran_until_ns, runs_until) = spent(self);
            // Others may have run the program too, where it is for all.
            if runs_until - runs == u64::from(CALLS) {
                let trap_ns = took_ns.saturating_sub(ran_until_ns - ran_ns) / u64::from(CALLS);
                least_ns = Some(least_ns.map_or(trap_ns, |least: u64| least.min(trap_ns)));
            }
        }
        let _ = holder(self)?.detach(probe);
        least_ns
    }
}

/// Our own file, and where an address of ours is in it.
fn place(address: u64) -> Option<(File, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let offset = maps.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let (start, end, from) = (hexadecimal(start)?, hexadecimal(end)?, hexadecimal(fields.nth(1)?)?);
        (start..end).contains(&address).then(|| address - start + from)
    })?;
    Some((File::open("/proc/self/exe").ok()?, offset))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn the_function_is_found_in_our_file() {
        let (file, offset) = place(profiler_probed as *const () as u64).unwrap();
        let mut code = [0; 2];
        file.read_exact_at(&mut code, offset).unwrap();
        // nop; ret
        assert_eq!(code, [0x90, 0xc3]);
        profiler_probed();
    }
}
