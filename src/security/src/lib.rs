//! Who may ask: identities and what proves them. Knows nothing of how they arrive.

pub mod at_work;
pub mod tokens;
