//! The route tables that gateways serve by: how they follow from state, how they travel, and what gateways measure.

pub mod derive;
pub mod measurement;
pub mod messages;
pub mod table;
pub mod update;
