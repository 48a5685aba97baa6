//! Which events a server does not have. Knows nothing of the database.

use serde::{Deserialize, Serialize};

use swell_model::event::EventSeq;

/// Events that are not here: all after one, up to and including another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The last event before the gap; `0.0` where it begins with the first of all.
    pub after: EventSeq,
    /// The last event in the gap.
    pub up_to: EventSeq,
}

/// Gaps in order; they neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gaps(Vec<Gap>);

impl Gaps {
    /// Adds a gap, and joins it with those that it touches.
    pub fn add(&mut self, mut gap: Gap) {
        if gap.up_to <= gap.after {
            return;
        }
        self.0.retain(|other| {
            let apart = other.up_to < gap.after || other.after > gap.up_to;
            if !apart {
                gap = Gap { after: gap.after.min(other.after), up_to: gap.up_to.max(other.up_to) };
            }
            apart
        });
        self.0.push(gap);
        self.0.sort_by_key(|gap| gap.after);
    }

    /// The gap in which the event after `after` would stand.
    pub fn at(&self, after: EventSeq) -> Option<Gap> {
        self.0.iter().copied().find(|gap| gap.after <= after && after < gap.up_to)
    }

    /// The first gap that begins after `after`.
    pub fn first_from(&self, after: EventSeq) -> Option<Gap> {
        self.0.iter().copied().find(|gap| gap.after > after)
    }

    /// The end of the last gap; `0.0` where there is none.
    pub fn end(&self) -> EventSeq {
        self.0.last().map_or(EventSeq::default(), |gap| gap.up_to)
    }
}
