//! Which routes the gateways obey, connected or lost. Pure; knows nothing of sessions.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use swell_model::{rollout::assignment::Generation, routing::messages::GatewayId};

/// How long a gateway counts after its session ended: it still routes by the last table that it was sent.
pub const LOST_GATEWAY_GRACE: Duration = Duration::from_secs(60);

/// The most lost gateways that count. Beyond it those lost first no longer do.
const LOST_MAX: usize = 4096;

#[derive(Debug, Default)]
pub struct ObeyedRoutes {
    next_session: u64,
    connected: BTreeMap<u64, Gateway>,
    lost: Vec<(Instant, Gateway)>,
}

#[derive(Debug, Clone)]
struct Gateway {
    id: GatewayId,
    obeyed: Generation,
}

impl ObeyedRoutes {
    /// How many sessions there are.
    pub fn connected(&self) -> usize {
        self.connected.len()
    }

    /// Counts a gateway that holds the table of generation `obeyed`, and returns the number of its session.
    pub fn connect(&mut self, id: &GatewayId, obeyed: Generation) -> u64 {
        self.lost.retain(|(_, lost)| lost.id != *id);
        self.next_session += 1;
        self.connected.insert(self.next_session, Gateway { id: id.clone(), obeyed });
        self.next_session
    }

    /// Notes what the gateway of a session obeys, and returns whether that is new.
    pub fn obey(&mut self, session: u64, obeyed: Generation) -> bool {
        let gateway = self.connected.get_mut(&session);
        gateway.is_some_and(|gateway| std::mem::replace(&mut gateway.obeyed, obeyed) != obeyed)
    }

    /// Ends a session. The gateway counts for [`LOST_GATEWAY_GRACE`] more, unless it has another session.
    pub fn disconnect(&mut self, session: u64, now: Instant) {
        let Some(gateway) = self.connected.remove(&session) else { return };
        if self.connected.values().all(|other| other.id != gateway.id) {
            self.lost.push((now, gateway));
            let surplus = self.lost.len().saturating_sub(LOST_MAX);
            self.lost.drain(..surplus);
        }
    }

    /// What every gateway that counts obeys; `None` when none counts.
    pub fn lowest(&mut self, now: Instant) -> Option<Generation> {
        self.lost.retain(|(since, _)| now.saturating_duration_since(*since) < LOST_GATEWAY_GRACE);
        self.connected.values().chain(self.lost.iter().map(|(_, gateway)| gateway)).map(|gateway| gateway.obeyed).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Generation {
        Generation { cluster: 1, index }
    }

    #[test]
    fn lost_gateway_counts_until_its_grace_is_over_or_it_is_back() {
        let (start, mut gateways) = (Instant::now(), ObeyedRoutes::default());
        let (slow, fast) = (GatewayId("slow".into()), GatewayId("fast".into()));
        assert_eq!(gateways.lowest(start), None);
        let (first, second) = (gateways.connect(&slow, at(5)), gateways.connect(&fast, at(9)));
        assert!(gateways.obey(second, at(10)) && !gateways.obey(second, at(10)));
        assert_eq!(gateways.lowest(start), Some(at(5)));

        gateways.disconnect(first, start);
        assert_eq!(gateways.lowest(start + LOST_GATEWAY_GRACE - Duration::from_secs(1)), Some(at(5)));
        let back = gateways.connect(&slow, at(7));
        assert_eq!(gateways.lowest(start), Some(at(7)));
        gateways.disconnect(back, start);
        assert_eq!(gateways.lowest(start + LOST_GATEWAY_GRACE), Some(at(10)));
    }

    #[test]
    fn gateway_with_a_newer_session_is_not_lost() {
        let (now, mut gateways) = (Instant::now(), ObeyedRoutes::default());
        let id = GatewayId("edge".into());
        let (old, _new) = (gateways.connect(&id, at(5)), gateways.connect(&id, at(9)));
        gateways.disconnect(old, now);
        assert_eq!(gateways.lowest(now), Some(at(9)));
        assert_eq!(gateways.connected(), 1);
    }

    #[test]
    fn lost_gateways_are_bounded() {
        let (now, mut gateways) = (Instant::now(), ObeyedRoutes::default());
        for number in 0..2 * LOST_MAX as u64 {
            let session = gateways.connect(&GatewayId(number.to_string()), at(number));
            gateways.disconnect(session, now);
        }
        assert_eq!(gateways.lost.len(), LOST_MAX);
        assert_eq!(gateways.lowest(now), Some(at(LOST_MAX as u64)));
    }
}
