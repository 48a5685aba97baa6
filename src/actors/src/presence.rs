//! Since when each target's agent has been gone, by the monotonic clock of this leader. A new leader gives everyone the whole grace.

use std::{collections::BTreeMap, sync::Mutex, time::Instant};

use roaring::RoaringBitmap;

use swell_model::fleet::TARGET_GRACE;

/// Who is connected, and since when the others are not.
#[derive(Debug)]
pub(super) struct Presence {
    began: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    connected: RoaringBitmap,
    gone_since: BTreeMap<u32, Instant>,
}

impl Presence {
    /// Nobody was seen yet.
    pub fn new() -> Self {
        Self { began: Instant::now(), seen: Mutex::new(Seen::default()) }
    }

    /// These are connected now.
    pub fn update(&self, connected: RoaringBitmap) {
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        let went = &seen.connected - &connected;
        seen.gone_since.extend(went.iter().map(|target| (target, now)));
        seen.gone_since.retain(|target, _| !connected.contains(*target));
        seen.connected = connected;
    }

    /// Those of `targets` that are connected, and those that have been gone for longer than the grace.
    pub fn of(&self, targets: &RoaringBitmap) -> (RoaringBitmap, RoaringBitmap) {
        let seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let connected = targets & &seen.connected;
        let is_lost = |target: &u32| seen.gone_since.get(target).unwrap_or(&self.began).elapsed() > TARGET_GRACE.as_duration();
        let lost = (targets - &seen.connected).into_iter().filter(is_lost).collect();
        (connected, lost)
    }
}
