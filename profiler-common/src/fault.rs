//! Page faults: their kinds.

/// What a fault took.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No input or output: the page was made, copied or found in memory.
    Minor = 1,
    /// The page was read from a device, or waited for.
    Major = 2,
}

/// Names of the kinds, by number from 1: the reasons of the origin.
pub const FAULT_REASONS: [&str; 2] = ["minor fault", "major fault"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_as_named() {
        assert_eq!(FAULT_REASONS[Fault::Minor as usize - 1], "minor fault");
        assert_eq!(FAULT_REASONS[Fault::Major as usize - 1], "major fault");
    }
}
