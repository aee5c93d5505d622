//! What the records of a recording have come to so far, by origin.

use std::time::Duration;

use profiler_common::event::Origin;

use super::live::Sites;
use super::place::{Corrections, LateChains};
use super::sliced::SlicedStacks;
use crate::profile::{RawFrame, RawProfile};

/// What the records of one origin have come to.
pub(super) struct OfOrigin {
    /// Stacks and values.
    pub(super) profile: RawProfile,
    /// What is known better now than when the programs counted it.
    pub(super) corrections: Corrections,
    /// The chains of what is under way, where that may go on in a later window.
    pub(super) late: LateChains,
    /// Where the stacks are, by how blocks of memory name them: of allocations.
    pub(super) sites: Sites,
    /// Values by stack and slice.
    pub(super) sliced: SlicedStacks,
}

/// The origins that were asked for.
pub(super) struct Gathered(Vec<OfOrigin>);

impl Gathered {
    /// Nothing yet of each origin.
    pub(super) fn new(origins: &[Origin]) -> Self {
        let of_origin = |&origin| OfOrigin {
            profile: RawProfile::new(origin),
            corrections: Corrections::default(),
            late: LateChains::default(),
            sites: Sites::default(),
            sliced: SlicedStacks::default(),
        };
        Self(origins.iter().map(of_origin).collect())
    }

    /// What there is of a record's origin; `None` for one that was not asked for.
    pub(super) fn of(&mut self, origin: u16) -> Option<&mut OfOrigin> {
        self.0.iter_mut().find(|gathered| gathered.profile.origin as u16 == origin)
    }

    /// The profile of an origin, if it was asked for.
    pub(super) fn profile(&self, origin: Origin) -> Option<&RawProfile> {
        self.0.iter().map(|gathered| &gathered.profile).find(|profile| profile.origin == origin)
    }

    /// Ends a slice of every origin. `elapsed`: since the start of the window.
    pub(super) fn end_window(&mut self, elapsed: Duration) {
        self.0.iter_mut().for_each(|gathered| gathered.sliced.end_window(elapsed));
    }

    /// Hands out the profiles and the values by slice, and begins anew. `renumber`: what a frame that is needed on is from now on;
    /// `None` for one that means nothing any more.
    pub(super) fn take(
        &mut self,
        mut renumber: impl FnMut(RawFrame) -> Option<RawFrame>,
    ) -> (Vec<RawProfile>, Vec<SlicedStacks>) {
        let take = |of_origin: &mut OfOrigin| {
            let origin = of_origin.profile.origin;
            of_origin.late.end_window(&mut renumber);
            (of_origin.corrections, of_origin.sites) = (Corrections::default(), Sites::default());
            let profile = std::mem::replace(&mut of_origin.profile, RawProfile::new(origin));
            (profile, std::mem::take(&mut of_origin.sliced))
        };
        self.0.iter_mut().map(take).unzip()
    }

    /// The frames that will be needed in a later window.
    pub(super) fn late_frames(&self) -> impl Iterator<Item = RawFrame> {
        self.0.iter().flat_map(|of_origin| of_origin.late.frames())
    }

    /// Events of all origins.
    pub(super) fn events(&self) -> u64 {
        self.0.iter().map(|gathered| gathered.profile.events()).sum()
    }

    /// One after another, in the order of their numbers.
    pub(super) fn origins(&self) -> &[OfOrigin] {
        &self.0
    }
}
