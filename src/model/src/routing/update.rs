//! Changes of a route table on their way to a gateway: made by a server, applied by the gateway. Pure; knows nothing of sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::table::{RouteTable, RoutesHash, ServiceKey, ServiceRoute, Weights};
use crate::rollout::assignment::Generation;

/// The most frames of one update. With frames of 4 MiB this bounds a table at 1 GiB.
pub const UPDATE_FRAMES_MAX: usize = 256;

/// What one instance takes in a frame at most, in bytes: its names are bounded.
const INSTANCE_BYTES_MAX: usize = 320;

/// What a service takes besides its instances and host names, and a release besides its instances, in bytes.
const ENTRY_BYTES_MAX: usize = 512;

/// A change of a route table, or a whole one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteUpdate {
    /// Generation of the table that this changes; `None` for a whole table.
    pub from: Option<Generation>,
    /// Generation of the table after the change.
    pub to: Generation,
    /// Hash of the table after the change.
    pub hash: RoutesHash,
    /// Services that changed, whole.
    pub services: BTreeMap<ServiceKey, Arc<ServiceRoute>>,
    /// Services that are gone.
    pub removed: BTreeSet<ServiceKey>,
    /// Services of which only the weights changed.
    pub weights: BTreeMap<ServiceKey, Weights>,
    /// Whether the update goes on in the next frame. It is applied when it is complete.
    pub more: bool,
}

/// Why an update was not applied. The table held stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The update is older than the table held, as a lagging server would send it.
    #[error("the routes of generation {offered} are not newer than the current ones, {current}")]
    Outdated { offered: Generation, current: Generation },
    /// The update changes another table than the one held.
    #[error("the update changes routes of generation {from}, not the current ones, {current}")]
    Gap { from: Generation, current: Generation },
    /// The result is not what the server holds.
    #[error("the routes of generation {to} do not have the hash that the server announced")]
    HashDiffers { to: Generation },
    /// Frames of different updates are mixed, or there are more than [`UPDATE_FRAMES_MAX`].
    #[error("the frames of the update to generation {to} do not belong together")]
    Frames { to: Generation },
}

impl UpdateError {
    /// Whether the whole table would help.
    pub fn needs_snapshot(&self) -> bool {
        !matches!(self, UpdateError::Outdated { .. })
    }
}

impl RouteUpdate {
    /// All of `table`, as the update of a gateway that holds anything else.
    pub fn snapshot(table: &RouteTable) -> Self {
        Self {
            from: None,
            to: table.generation,
            hash: table.hash(),
            services: table.services().clone(),
            removed: BTreeSet::new(),
            weights: BTreeMap::new(),
            more: false,
        }
    }

    /// Adds the next frame of the same update.
    ///
    /// # Errors
    /// [`UpdateError::Frames`] when `next` belongs to another update, or this one was complete.
    pub fn add_frame(&mut self, next: RouteUpdate) -> Result<(), UpdateError> {
        if !self.more || (next.from, next.to, next.hash) != (self.from, self.to, self.hash) {
            return Err(UpdateError::Frames { to: next.to });
        }
        self.services.extend(next.services);
        self.removed.extend(next.removed);
        self.weights.extend(next.weights);
        self.more = next.more;
        Ok(())
    }

    /// Splits the update into frames of which none takes more than `bytes_max`, unless one service alone does.
    pub fn into_frames(self, bytes_max: usize) -> Vec<RouteUpdate> {
        let (from, to, hash) = (self.from, self.to, self.hash);
        let empty = || RouteUpdate {
            from,
            to,
            hash,
            services: BTreeMap::new(),
            removed: BTreeSet::new(),
            weights: BTreeMap::new(),
            more: true,
        };
        let (mut frames, mut frame, mut bytes) = (Vec::new(), empty(), 0);
        let mut begin_frame_for = |frame: &mut RouteUpdate, size: usize| {
            if bytes > 0 && bytes + size > bytes_max {
                frames.push(std::mem::replace(frame, empty()));
                bytes = 0;
            }
            bytes += size;
        };
        for (key, route) in self.services {
            begin_frame_for(&mut frame, service_bytes_max(&route));
            frame.services.insert(key, route);
        }
        for (key, weights) in self.weights {
            begin_frame_for(&mut frame, ENTRY_BYTES_MAX * (1 + weights.shares.len()));
            frame.weights.insert(key, weights);
        }
        for key in self.removed {
            begin_frame_for(&mut frame, ENTRY_BYTES_MAX);
            frame.removed.insert(key);
        }
        frame.more = false;
        frames.push(frame);
        frames
    }
}

fn service_bytes_max(route: &ServiceRoute) -> usize {
    let instances: usize = route.releases.values().map(Vec::len).sum();
    let hosts: usize = route.hosts.iter().map(|host| host.len() + 8).sum();
    let entries = 1 + route.releases.len() + route.weights.shares.len();
    INSTANCE_BYTES_MAX * instances + ENTRY_BYTES_MAX * entries + hosts
}

impl RouteTable {
    /// The table after `update`, which is complete. Unchanged services are shared with this table.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub fn updated(&self, update: RouteUpdate) -> Result<RouteTable, UpdateError> {
        let (current, to) = (self.generation, update.to);
        // The same generation again is a whole table for a gateway that lost track.
        if to < current || (update.from.is_some() && to == current) {
            return Err(UpdateError::Outdated { offered: to, current });
        }
        let mut next = match update.from {
            None => RouteTable::default(),
            Some(from) if from == current => self.clone(),
            Some(from) => return Err(UpdateError::Gap { from, current }),
        };
        next.generation = to;
        update.services.into_iter().for_each(|(key, route)| next.insert(key, route));
        for (key, weights) in update.weights {
            // A service that is not held shows in the hash.
            if let Some(route) = next.services().get(&key) {
                let route = ServiceRoute { weights, ..ServiceRoute::clone(route) };
                next.insert(key, Arc::new(route));
            }
        }
        update.removed.iter().for_each(|key| next.remove(key));
        if next.hash() != update.hash {
            return Err(UpdateError::HashDiffers { to });
        }
        Ok(next)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        routing::{
            messages::{GatewayToServer, ServerToGateway},
            table::{Instance, InstanceState},
        },
        units::BasisPoints,
    };

    fn generation(index: u64) -> Generation {
        Generation { cluster: 1, index }
    }

    fn key(number: u8) -> ServiceKey {
        format!("shop/production/web-{number}").parse().unwrap()
    }

    fn route(instances: u8) -> Arc<ServiceRoute> {
        let instance = |number| Instance {
            target: format!("host-{number}").parse().unwrap(),
            zone: "a".into(),
            address: ([10, 0, 0, number], 8080).into(),
            state: InstanceState::Serving,
        };
        let releases = BTreeMap::from([("shop@1".parse().unwrap(), (0..instances).map(instance).collect())]);
        Arc::new(ServiceRoute { releases, ..ServiceRoute::default() })
    }

    fn table(index: u64, instances: &[u8]) -> RouteTable {
        RouteTable::new(generation(index), (0..).zip(instances).map(|(number, count)| (key(number), route(*count))))
    }

    fn change(from: &RouteTable, to: &RouteTable) -> RouteUpdate {
        let changed = to.services().iter().filter(|(key, route)| from.services().get(*key) != Some(*route));
        RouteUpdate {
            from: Some(from.generation),
            services: changed.map(|(key, route)| (key.clone(), Arc::clone(route))).collect(),
            removed: from.services().keys().filter(|key| !to.services().contains_key(*key)).cloned().collect(),
            ..RouteUpdate::snapshot(to)
        }
    }

    #[test]
    fn updated_table_is_the_one_that_the_server_holds() {
        let (before, after) = (table(3, &[1, 2, 3]), table(5, &[1, 4]));
        let delta = change(&before, &after);
        assert_eq!((delta.services.len(), delta.removed.len()), (1, 1));
        assert_eq!(before.updated(delta).unwrap(), after);
        assert_eq!(RouteTable::default().updated(RouteUpdate::snapshot(&after)).unwrap(), after);
    }

    #[test]
    fn older_update_is_refused() {
        let held = table(5, &[1]);
        for offered in [table(4, &[]), table(5, &[1])] {
            let error = held.updated(change(&table(2, &[]), &offered)).unwrap_err();
            assert_eq!(error, UpdateError::Outdated { offered: offered.generation, current: held.generation });
            assert!(!error.needs_snapshot());
        }
        assert!(held.updated(RouteUpdate::snapshot(&table(4, &[]))).is_err());
        assert!(held.updated(RouteUpdate::snapshot(&table(5, &[]))).is_ok(), "a gateway that lost track starts over");
        let mut restored = table(1, &[]);
        restored.generation = Generation { cluster: 2, index: 1 };
        assert!(held.updated(RouteUpdate::snapshot(&restored)).is_ok(), "a restored cluster counts its log anew");
        assert!(restored.updated(RouteUpdate::snapshot(&held)).is_err());
    }

    #[test]
    fn update_of_another_table_asks_for_snapshot() {
        let (before, after) = (table(3, &[1, 2]), table(5, &[1, 3]));
        let gap = table(4, &[1, 2]).updated(change(&before, &after)).unwrap_err();
        assert_eq!(gap, UpdateError::Gap { from: generation(3), current: generation(4) });
        let differs = table(3, &[2, 2]).updated(change(&before, &after)).unwrap_err();
        assert_eq!(differs, UpdateError::HashDiffers { to: generation(5) });
        assert!(gap.needs_snapshot() && differs.needs_snapshot());
    }

    #[test]
    fn weights_change_without_instances() {
        let before = table(3, &[2]);
        let weights = Weights { version: 4, shares: BTreeMap::from([("shop@1".parse().unwrap(), BasisPoints(0))]) };
        let mut after = before.clone();
        after.generation = generation(4);
        after.insert(key(0), Arc::new(ServiceRoute { weights: weights.clone(), ..ServiceRoute::clone(&route(2)) }));
        let delta = RouteUpdate {
            from: Some(generation(3)),
            services: BTreeMap::new(),
            weights: BTreeMap::from([(key(0), weights)]),
            ..RouteUpdate::snapshot(&after)
        };
        assert_eq!(before.updated(delta).unwrap(), after);
    }

    #[test]
    fn large_update_is_sent_in_frames_and_joined() {
        let whole = RouteUpdate::snapshot(&table(9, &[100; 50]));
        let bytes_max = 200_000;
        let frames = whole.clone().into_frames(bytes_max);
        assert!(frames.len() > 2, "{}", frames.len());
        let messages = frames.into_iter().map(ServerToGateway::Routes);
        let mut received = messages.map(|message| {
            let frame = rmp_serde::to_vec_named(&message).unwrap();
            assert!(frame.len() <= bytes_max);
            match rmp_serde::from_slice(&frame).unwrap() {
                ServerToGateway::Routes(update) => update,
                other => panic!("{other:?}"),
            }
        });
        let mut joined = received.next().unwrap();
        received.for_each(|next| joined.add_frame(next).unwrap());
        assert_eq!(joined, whole);
        assert!(joined.add_frame(whole).is_err(), "it was complete");
    }

    #[test]
    fn messages_are_equal_after_messagepack() {
        let routed = GatewayToServer::Routed { generation: generation(7) };
        assert_eq!(rmp_serde::from_slice::<GatewayToServer>(&rmp_serde::to_vec_named(&routed).unwrap()).unwrap(), routed);
    }
}
