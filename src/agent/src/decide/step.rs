//! What a decision may be. Pure data.

use std::collections::BTreeMap;

use swell_model::{
    digest::Digest,
    ids::{PortName, ServiceName},
};

/// What is wrong with a new instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Fault {
    /// Its process ended without being asked to.
    Died,
    /// No probe passed within `start_timeout`.
    NeverAnswered,
    /// It answered, then no longer.
    StoppedAnswering,
    /// It answers now and then, and did not become healthy in time.
    Unsteady,
}

/// One thing to do. Numbers are ids of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Step {
    /// Begins to bring the desired release to the disk.
    Fetch,
    /// Records and starts a new instance of the desired release.
    Start { service: ServiceName, ports: BTreeMap<PortName, u16> },
    /// The service cannot be started, because it has no port.
    NoPort { service: ServiceName, port: PortName },
    /// The service cannot be started, because an instance that left it does not end and has its ports.
    Blocked { service: ServiceName, by: u64 },
    /// Starts an instance again whose process is gone.
    Restart(u64),
    /// Records a failure with its evidence; new instances that started beside leave.
    Fail { id: u64, fault: Fault },
    /// New instances become current, the rest leaves.
    Switch,
    /// Lets an instance leave: it drains, then stops.
    Leave(u64),
    /// Takes back an instance that is leaving and still runs.
    Return(u64),
    /// Lets a leaving instance drain, now that its departure is confirmed.
    Drain(u64),
    /// Asks an instance to end.
    Stop(u64),
    /// Clears what an instance left whose process is gone.
    Forget(u64),
    /// Records that no release is active, now that nothing runs.
    Retire,
    /// Removes a release from the disk.
    Remove(Digest),
}

impl Step {
    /// The instance that alone is to blame when the step cannot be taken: its process, say, hangs in the kernel and does not die.
    pub fn of_one(&self) -> Option<u64> {
        match self {
            Step::Forget(id) | Step::Restart(id) => Some(*id),
            _ => None,
        }
    }
}

/// A decision of the rules: one step, or a wait.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Next {
    Do(Step),
    /// Nothing before this moment, in monotonic milliseconds, unless something happens.
    Wait(Option<u64>),
}
