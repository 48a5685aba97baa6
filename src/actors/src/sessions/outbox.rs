//! What waits to be sent to one agent. Every kind has one slot and the newest wins, so that an agent that is slow to read costs no memory.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use tokio::sync::Notify;

use swell_model::{units::Millis, wire::Refusal};

/// Why a server ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The same agent opened another session.
    Replaced,
    /// Nothing was heard of it for too long.
    Silent,
    /// This server cannot record or learn anything at the moment; another may.
    Busy { retry_after: Millis },
    /// The rules reject what it reports.
    Refused(Refusal),
}

/// Messages that wait to be sent to one agent; a newer one replaces an older one of its kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// Its desired state may have changed.
    pub desired: bool,
    pub acknowledged: Option<u64>,
    pub routed: Option<u64>,
    pub heartbeat: bool,
    pub end: Option<End>,
}

/// The slots of one session, filled by the server's tasks and emptied by the session.
#[derive(Debug)]
pub(super) struct Outbox {
    pending: Mutex<Pending>,
    filled: Notify,
    /// Tick of the wheel at which the agent was heard last.
    heard_at: AtomicU32,
    /// The session does not read, because the agent has used its credits: its silence means nothing.
    is_held_back: AtomicBool,
}

impl Outbox {
    /// Empty, of an agent that was heard at tick `now`.
    pub fn new(now: u32) -> Self {
        Self {
            pending: Mutex::default(),
            filled: Notify::new(),
            heard_at: AtomicU32::new(now),
            is_held_back: AtomicBool::new(false),
        }
    }

    pub fn desired_changed(&self) {
        self.fill(|pending| pending.desired = true);
    }

    pub fn acknowledge(&self, sequence: u64) {
        self.fill(|pending| pending.acknowledged = pending.acknowledged.max(Some(sequence)));
    }

    pub fn routed(&self, sequence: u64) {
        self.fill(|pending| pending.routed = pending.routed.max(Some(sequence)));
    }

    pub fn heartbeat(&self) {
        self.fill(|pending| pending.heartbeat = true);
    }

    /// Ends the session; the first reason counts.
    pub fn end(&self, end: End) {
        self.fill(|pending| {
            pending.end.get_or_insert(end);
        });
    }

    pub fn is_ending(&self) -> bool {
        self.pending().end.is_some()
    }

    /// Waits until something is to be sent, and empties the slots. Cancel safe.
    pub async fn take(&self) -> Pending {
        loop {
            self.filled.notified().await;
            let pending = std::mem::take(&mut *self.pending());
            if pending != Pending::default() {
                return pending;
            }
        }
    }

    pub fn heard(&self, now: u32) {
        self.heard_at.store(now, Ordering::Relaxed);
    }

    pub fn hold_back(&self, is_held_back: bool) {
        self.is_held_back.store(is_held_back, Ordering::Relaxed);
    }

    /// Ticks since the agent was heard; none while this server does not listen to it.
    pub fn silence(&self, now: u32) -> u32 {
        if self.is_held_back.load(Ordering::Relaxed) {
            return 0;
        }
        now.saturating_sub(self.heard_at.load(Ordering::Relaxed))
    }

    fn fill(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending());
        self.filled.notify_one();
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
