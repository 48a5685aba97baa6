//! The route table that gateways follow, and how it follows from state.

pub mod derive;
pub mod table;
