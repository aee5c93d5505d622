//! Unwinding by table, checked against elfutils, which shares no code with it: neither parser, nor tables, nor step.
//!
//! Input: `stepper` of tests/workloads, which follows a program instruction by instruction and writes what elfutils
//! finds at each stop. Needs neither root nor BPF; needs libdw, and says why when it skips itself.

#![expect(clippy::print_stdout, reason = "libtest shows what a test measured when it fails, or with --nocapture")]

mod hostile;
mod objects;
mod outcome;
mod sections;
mod stepper;
mod stops;
mod sweep;
