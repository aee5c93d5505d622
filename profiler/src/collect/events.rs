//! The perf events that records come from: opened together, following CPUs that come and go, and counted at the end.

use super::target::RecordConfig;
use crate::bpf::{BpfError, Counts, FaultPrograms, Faults, Kernel, Sampler, SamplingEvent};
use profiler_common::event::Origin;

/// Programs that are loaded, for events that are not there yet.
pub(super) struct LoadedEvents {
    sampling: Option<(SamplingEvent, std::os::fd::OwnedFd)>,
    faults: Option<FaultPrograms>,
}

/// Events that run.
#[derive(Default)]
pub(super) struct Events {
    sampler: Option<Sampler>,
    faults: Option<Faults>,
    /// CPUs that came or went, and faults, as they were told last.
    told: (u32, u64),
}

/// What the events counted themselves.
#[derive(Debug, Default)]
pub(super) struct EventCounts {
    /// Of the sampling events.
    pub(super) sampled: Option<Counts>,
    /// Page faults of whatever task.
    pub(super) faults: Option<u64>,
    /// The highest period of their events.
    pub(super) fault_period: u64,
    /// CPUs that came or went while there was sampling.
    pub(super) cpus_changed: u32,
}

impl LoadedEvents {
    /// Loads the programs of the events that were asked for. `event`: what samples are taken by, where they are.
    pub(super) fn load(
        kernel: &mut Kernel,
        config: &RecordConfig,
        event: Option<SamplingEvent>,
    ) -> Result<Self, BpfError> {
        let sampling = event.map(|event| Ok::<_, BpfError>((event, kernel.load_sampling_program()?))).transpose()?;
        let faults = config.origins.contains(&Origin::Fault).then(|| kernel.load_fault_programs()).transpose()?;
        Ok(Self { sampling, faults })
    }

    /// Opens and starts the events. `rate_hz`: how often to sample.
    pub(super) fn start(self, rate_hz: u64) -> Result<Events, BpfError> {
        let sampler = self.sampling.map(|(event, program)| Sampler::start(event, rate_hz, program)).transpose()?;
        let faults = self.faults.map(Faults::start).transpose()?;
        Ok(Events { sampler, faults, ..Events::default() })
    }
}

impl Events {
    /// Follows CPUs that were plugged or unplugged, and the load. Call it once a window.
    pub(super) fn follow(&mut self) -> Result<(), BpfError> {
        if let Some(sampler) = &mut self.sampler {
            sampler.follow_cpus()?;
        }
        if let Some(faults) = &mut self.faults {
            faults.follow()?;
        }
        Ok(())
    }

    /// Samples so often from now on, where there is sampling.
    pub(super) fn set_rate(&mut self, rate_hz: u64) -> Result<(), BpfError> {
        self.sampler.as_mut().map_or(Ok(()), |sampler| sampler.set_rate(rate_hz))
    }

    /// What they have counted since the last call, or the start.
    pub(super) fn since_last(&mut self) -> EventCounts {
        let (sampled, faults) =
            (self.sampler.as_mut().map(Sampler::since_last), self.faults.as_ref().map(Faults::count));
        let (cpus_changed, fault_period) = self.changes();
        let told = std::mem::replace(&mut self.told, (cpus_changed, faults.unwrap_or(0)));
        EventCounts {
            sampled,
            faults: faults.map(|faults| faults.saturating_sub(told.1)),
            fault_period,
            cpus_changed: cpus_changed - told.0,
        }
    }

    /// Stops them all; what they have counted since [`Events::since_last`].
    pub(super) fn stop(self) -> EventCounts {
        let ((cpus_changed, fault_period), told) = (self.changes(), self.told);
        let (sampled, faults) = (self.sampler.map(Sampler::stop), self.faults.map(Faults::stop));
        EventCounts {
            sampled,
            faults: faults.map(|faults| faults.saturating_sub(told.1)),
            fault_period,
            cpus_changed: cpus_changed - told.0,
        }
    }

    /// CPUs that came or went, and the highest period of faults.
    fn changes(&self) -> (u32, u64) {
        let cpus_changed = self.sampler.as_ref().map_or(0, |sampler| sampler.cpus_changed);
        (cpus_changed, self.faults.as_ref().map_or(1, Faults::highest_period))
    }
}
