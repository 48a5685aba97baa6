//! The fleet: targets, environments, what agents observe.

pub(crate) mod apply;
pub(crate) mod environment_apply;
pub mod observation;
pub mod port_leases;
mod state;

pub use self::state::{
    Environment, Freeze, LABELS_MAX, LostTargets, PolicyLimits, PortLease, PortRange, Presence, TARGET_GRACE, Target,
    TargetByAddress, TargetByName, TargetInfo, lease_key,
};
