//! Which services changed lately, gone ones among them. Bounded: what is older is not known any more.

use std::collections::{BTreeSet, VecDeque};

use swell_model::routing::table::ServiceKey;

/// How many changes are remembered. A gateway that is further behind is compared service by service.
const CHANGES_MAX: usize = 16_384;

#[derive(Debug, Default)]
pub struct RecentChanges {
    /// Every change after this log index is among `changes`.
    complete_after: u64,
    /// By log index, ascending.
    changes: VecDeque<(u64, ServiceKey)>,
}

impl RecentChanges {
    /// Nothing changed yet after `index`.
    pub fn since(index: u64) -> Self {
        Self { complete_after: index, changes: VecDeque::new() }
    }

    /// Adds what changed at `index`, which is not before any index added so far.
    pub fn push(&mut self, index: u64, services: impl Iterator<Item = ServiceKey>) {
        self.changes.extend(services.map(|service| (index, service)));
        while self.changes.len() > CHANGES_MAX {
            self.complete_after = self.changes.pop_front().map_or(index, |(index, _)| index);
        }
    }

    /// Services that changed after `index`; `None` when that is too long ago.
    pub fn after(&self, index: u64) -> Option<BTreeSet<&ServiceKey>> {
        if index < self.complete_after {
            return None;
        }
        let first = self.changes.partition_point(|(changed_at, _)| *changed_at <= index);
        Some(self.changes.range(first..).map(|(_, service)| service).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn old_changes_are_forgotten_and_known_to_be() {
        let mut recent = RecentChanges::since(5);
        let key = |number: u64| -> ServiceKey { format!("shop/production/web-{number}").parse().unwrap() };
        assert_eq!(recent.after(4), None);
        assert_eq!(recent.after(5), Some(BTreeSet::new()));
        recent.push(6, [key(1), key(2)].into_iter());
        recent.push(7, [key(1)].into_iter());
        assert_eq!(recent.after(6), Some(BTreeSet::from([&key(1)])));
        assert_eq!(recent.after(5).unwrap().len(), 2);
        recent.push(8, (0..CHANGES_MAX as u64 - 1).map(key));
        assert_eq!(recent.after(5), None, "one of the changes at 6 is forgotten");
        assert_eq!(recent.after(7).unwrap().len(), CHANGES_MAX - 1);
    }
}
