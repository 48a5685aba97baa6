//! How an event looks from outside. Knows nothing of how events are followed.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use swell_model::event::Event;

/// Something that happened, once and for all.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EventView {
    /// Its place in the log, such as `120.3`: the cursor with which to go on after it.
    pub seq: String,
    /// When, by the leader's clock.
    pub at: u64,
    /// Who did it, such as `developer:ada`.
    pub by: String,
    /// What it is about, such as `build/b42`.
    pub subject: String,
    /// What kind of thing happened, such as `build.queued`. Stable.
    pub kind: String,
    /// The state before, where it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The state after, where it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Small facts: names and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// The hash over everything before it.
    pub previous: String,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            seq: event.seq.to_string(),
            at: event.at.0,
            by: event.principal.to_string(),
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            from: event.from,
            to: event.to,
            note: event.note,
            data: event.data.into_iter().map(|(key, value)| (key.to_string(), value)).collect(),
            previous: event.previous.to_string(),
        }
    }
}
