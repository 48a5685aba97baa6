//! The agents' sessions of this server, in shards by target number, so that whoever looks for one does not wait for all others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use roaring::RoaringBitmap;

use super::outbox::{End, Outbox};
use swell_model::{
    fleet::TARGET_GRACE,
    ids::AgentId,
    wire::{HEARTBEAT_EVERY, SILENCE_MAX},
};

const SHARDS: usize = 8;

/// How often the wheel turns by one slot.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Slots of the wheel: each session hears a heartbeat once a turn.
const SLOTS: usize = (HEARTBEAT_EVERY.0 / 1000) as usize;

/// Ticks of silence after which a session ends.
const SILENT_TICKS_MAX: u32 = (SILENCE_MAX.0 / 1000) as u32;

struct Session {
    number: u64,
    agent: AgentId,
    address: IpAddr,
    outbox: Arc<Outbox>,
}

/// An agent whose session ended lately.
struct Departed {
    agent: AgentId,
    address: IpAddr,
    at: Instant,
}

#[derive(Default)]
struct Shard {
    /// By slot of the wheel and target number.
    slots: [HashMap<u32, Session>; SLOTS],
    departed: HashMap<u32, Departed>,
}

/// All sessions of agents on this server.
pub(super) struct SessionTable {
    shards: [Mutex<Shard>; SHARDS],
    next_number: AtomicU64,
    sessions: AtomicUsize,
    now: AtomicU32,
}

impl SessionTable {
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            next_number: AtomicU64::new(1),
            sessions: AtomicUsize::new(0),
            now: AtomicU32::new(0),
        }
    }

    /// Ticks since the start.
    pub fn now(&self) -> u32 {
        self.now.load(Ordering::Relaxed)
    }

    pub fn len(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Where another agent is that serves the target, or did so within the grace of a lost target.
    pub fn other_agent(&self, target: u32, agent: &AgentId) -> Option<IpAddr> {
        self.shard(target).other_agent(target, agent)
    }

    /// Opens the session of an agent and returns its number; the same agent's session before it ends. `Err`: where another agent is that
    /// serves the target.
    pub fn open(&self, target: u32, agent: AgentId, address: IpAddr, outbox: Arc<Outbox>) -> Result<u64, IpAddr> {
        let mut shard = self.shard(target);
        if let Some(other) = shard.other_agent(target, &agent) {
            return Err(other);
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        shard.departed.remove(&target);
        match shard.slots[slot(target)].insert(target, Session { number, agent, address, outbox }) {
            Some(before) => before.outbox.end(End::Replaced),
            None => {
                self.sessions.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(number)
    }

    /// Forgets a session, unless another took its place.
    pub fn close(&self, target: u32, number: u64) {
        let mut shard = self.shard(target);
        let sessions = &mut shard.slots[slot(target)];
        if sessions.get(&target).is_none_or(|session| session.number != number) {
            return;
        }
        if let Some(Session { agent, address, .. }) = sessions.remove(&target) {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            shard.departed.insert(target, Departed { agent, address, at: Instant::now() });
        }
    }

    /// Tells the sessions of `targets` that their desired state may have changed.
    pub fn desired_changed(&self, targets: &RoaringBitmap) {
        for target in targets {
            if let Some(session) = self.shard(target).slots[slot(target)].get(&target) {
                session.outbox.desired_changed();
            }
        }
    }

    /// The targets that have a session.
    pub fn connected(&self) -> RoaringBitmap {
        let mut targets: Vec<u32> = Vec::with_capacity(self.len());
        self.for_each(|target, _| targets.push(target));
        targets.into_iter().collect()
    }

    /// Does something with every session.
    pub fn for_each(&self, mut each: impl FnMut(u32, &Outbox)) {
        for shard in &self.shards {
            for (target, session) in lock(shard).slots.iter().flatten() {
                each(*target, &session.outbox);
            }
        }
    }

    /// Turns the wheel by one slot: its sessions are due a heartbeat, and those that were silent for too long end.
    pub fn turn(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for shard in &self.shards {
            let mut shard = lock(shard);
            for session in shard.slots[now as usize % SLOTS].values() {
                if session.outbox.silence(now) > SILENT_TICKS_MAX {
                    session.outbox.end(End::Silent);
                } else {
                    session.outbox.heartbeat();
                }
            }
            if (now as usize).is_multiple_of(SLOTS) {
                shard.departed.retain(|_, departed| departed.at.elapsed() < TARGET_GRACE.as_duration());
            }
        }
    }

    fn shard(&self, target: u32) -> MutexGuard<'_, Shard> {
        lock(&self.shards[target as usize % SHARDS])
    }
}

impl Shard {
    fn other_agent(&self, target: u32, agent: &AgentId) -> Option<IpAddr> {
        if let Some(open) = self.slots[slot(target)].get(&target).filter(|open| !open.outbox.is_ending()) {
            return (open.agent != *agent).then_some(open.address);
        }
        let departed = self.departed.get(&target)?;
        let is_other = departed.agent != *agent && departed.at.elapsed() < TARGET_GRACE.as_duration();
        is_other.then_some(departed.address)
    }
}

/// Neighbors in one shard are in different slots.
fn slot(target: u32) -> usize {
    target as usize / SHARDS % SLOTS
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId(name.to_owned())
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn second_agent_of_a_target_is_refused_and_the_same_agent_replaces_its_session() {
        let table = SessionTable::new();
        let outbox = || Arc::new(Outbox::new(0));
        let first = outbox();
        let number = table.open(9, agent("a"), address(1), Arc::clone(&first)).unwrap();
        assert_eq!(table.open(9, agent("b"), address(2), outbox()), Err(address(1)));
        let again = table.open(9, agent("a"), address(1), outbox()).unwrap();
        assert!(first.is_ending());
        table.close(9, number);
        assert_eq!(table.connected(), RoaringBitmap::from([9]), "the session that was replaced is not the target's any more");
        table.close(9, again);
        assert_eq!((table.len(), table.connected()), (0, RoaringBitmap::new()));
        assert_eq!(table.other_agent(9, &agent("b")), Some(address(1)), "the grace of a lost target is not over");
        assert_eq!(table.other_agent(9, &agent("a")), None);
    }

    #[tokio::test]
    async fn wheel_sends_a_heartbeat_a_turn_and_ends_sessions_that_are_silent() {
        let table = SessionTable::new();
        let (silent, held_back) = (Arc::new(Outbox::new(0)), Arc::new(Outbox::new(0)));
        table.open(1, agent("a"), address(1), Arc::clone(&silent)).unwrap();
        table.open(2, agent("b"), address(2), Arc::clone(&held_back)).unwrap();
        held_back.hold_back(true);
        (0..SLOTS).for_each(|_| table.turn());
        let pending = silent.take().await;
        assert!(pending.heartbeat && pending.end.is_none(), "{pending:?}");
        (0..SILENT_TICKS_MAX).for_each(|_| table.turn());
        assert_eq!(silent.take().await.end, Some(End::Silent));
        assert_eq!(held_back.take().await.end, None, "it is this server that does not listen");
    }
}
