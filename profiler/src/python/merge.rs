//! The native and the Python chain of a stack, made one.
//!
//! A native frame of the function that evaluates Python frames stands for a run of them: all up to the one that native
//! code called. The runs take the places of these frames; native frames between them stay where they are.

/// A Python chain, leaf first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The runs. The last one of a chain that was cut ends with the frame that says why.
    pub runs: Vec<Vec<u32>>,
    /// Whether it was cut.
    pub is_cut: bool,
}

/// Merges the chains of a stack.
///
/// `native`: frames, leaf first, and whether each evaluates Python frames; `cut`: the frame that says why that chain was
/// cut, if it was.
///
/// Chains that are whole are held together at the root: the leaf may be in an evaluation that has not taken its frame
/// on yet. Where one is cut, they are held together at the leaf. Runs for which there is no native frame follow the
/// native frames, on the side of the cut; where the native chain is whole, they go before the innermost that has one.
#[must_use]
pub fn merge(native: &[(u32, bool)], cut: Option<u32>, python: Chain) -> Vec<u32> {
    let evaluations = native.iter().filter(|(_, evaluates)| *evaluates).count();
    let mut merged = Vec::with_capacity(native.len() + 1);
    let mut runs = python.runs.into_iter();
    let is_whole = cut.is_none() && !python.is_cut;
    let mut unmatched = if is_whole { evaluations.saturating_sub(runs.len()) } else { 0 };
    let surplus = if is_whole && evaluations > 0 { runs.len().saturating_sub(evaluations) } else { 0 };
    let mut early: Vec<u32> = runs.by_ref().take(surplus).flatten().collect();
    for &(frame, evaluates) in native {
        if !evaluates || unmatched > 0 {
            unmatched -= usize::from(evaluates);
            merged.push(frame);
            continue;
        }
        merged.append(&mut early);
        match runs.next() {
            Some(run) => merged.extend(run),
            None => merged.push(frame),
        }
    }
    merged.extend(runs.flatten());
    merged.extend(cut);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVAL: u32 = 100;

    fn check(native: &[u32], cut: Option<u32>, runs: &[&[u32]], is_cut: bool, expected: &[u32]) {
        let native: Vec<_> = native.iter().map(|&frame| (frame, frame == EVAL)).collect();
        let runs = runs.iter().map(|run| run.to_vec()).collect();
        assert_eq!(merge(&native, cut, Chain { runs, is_cut }), expected);
    }

    #[test]
    fn runs_take_the_places_of_the_frames_that_evaluate_them() {
        check(&[1, EVAL, 2, 3, EVAL, 4], None, &[&[11, 12], &[13]], false, &[1, 11, 12, 2, 3, 13, 4]);
        check(&[1, 2], None, &[], false, &[1, 2]);
    }

    #[test]
    fn an_evaluation_that_has_not_begun_stays_native() {
        check(&[EVAL, 2, EVAL, 4], None, &[&[11]], false, &[EVAL, 2, 11, 4]);
    }

    #[test]
    fn chains_that_are_cut_are_held_together_at_the_leaf() {
        check(&[1, EVAL, 2, EVAL], Some(9), &[&[11], &[12], &[13, 14]], false, &[1, 11, 2, 12, 13, 14, 9]);
        check(&[1, EVAL, 2, EVAL, 3], None, &[&[11, 8]], true, &[1, 11, 8, 2, EVAL, 3]);
    }

    #[test]
    fn no_frame_is_lost_where_the_chains_do_not_fit() {
        check(&[1, EVAL, 4], None, &[&[11], &[12]], false, &[1, 11, 12, 4]);
        check(&[1, 4], None, &[&[11], &[12]], false, &[1, 4, 11, 12]);
    }
}
