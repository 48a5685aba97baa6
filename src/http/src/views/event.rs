//! The API's view of an event.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use swell_model::event::Event;

/// Entry of the event log.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EventView {
    /// Sequence number, such as `120.3`, also the cursor to continue after it.
    pub seq: String,
    /// Time of the event, by the leader's clock.
    pub at: u64,
    /// Principal that caused it, such as `developer:ada`.
    pub by: String,
    /// Resource that it is about, such as `build/b42`.
    pub subject: String,
    /// Kind of the event, such as `build.queued`. Stable.
    pub kind: String,
    /// State before the event, if it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// State after the event, if it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Reason or details, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Details by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Hash over all earlier events.
    pub previous: String,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        let note = super::reason::event_note(&event);
        Self {
            seq: event.seq.to_string(),
            at: event.at.0,
            by: event.principal.to_string(),
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            from: event.from,
            to: event.to,
            note,
            data: event.data.into_iter().map(|(key, value)| (key.to_string(), value)).collect(),
            previous: event.previous.to_string(),
        }
    }
}
