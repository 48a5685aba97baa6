//! The fleet: targets, environments, what agents observe.

pub(crate) mod apply;
pub(crate) mod environment_apply;
pub mod observation;
pub mod port_leases;
mod state;

pub use self::state::{
    Environment, Freeze, LABELS_MAX, PolicyLimits, PortLease, PortRange, Presence, TARGET_GRACE, Target, TargetByName,
    TargetInfo, lease_key,
};
