//! Why an instance is not started. Must not know who finds out.

/// What is in the way, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Refusal {
    pub reason: String,
    pub hint: String,
}

impl Refusal {
    pub fn new(reason: impl Into<String>, hint: &str) -> Self {
        Self { reason: reason.into(), hint: hint.to_owned() }
    }
}
