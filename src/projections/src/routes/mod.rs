//! Routes, so that a gateway is sent only what changed: the instances of every service that takes traffic ([`Routes`]), and what one
//! gateway holds of them ([`GatewayRoutes`]). Knows nothing of sessions or of how traffic is balanced.

mod changes;
mod gateway;
mod instances;
mod projection;

pub use gateway::{GatewayRoutes, Step};
pub use projection::Routes;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
