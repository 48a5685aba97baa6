//! What the generator saw: how many sessions are open, what went over them, and when targets were assigned a release and settled on it.
//! Must not know how it came about.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use swell_model::ids::{PipelineName, ReleaseId};
use tokio::{sync::Notify, time::timeout};

use crate::Error;

/// Totals over all agents since the start, and the number of open sessions.
#[derive(Debug, Default)]
pub struct Counters {
    connected: AtomicU64,
    pub sessions: AtomicU64,
    pub failures: AtomicU64,
    pub refused: AtomicU64,
    pub busy: AtomicU64,
    pub frames_sent: AtomicU64,
    pub frames_received: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub bytes_received: AtomicU64,
    /// Frames with reports, those sent again included.
    pub report_frames: AtomicU64,
    /// Frames with a desired state.
    pub desired_frames: AtomicU64,
    timeline: Mutex<Timeline>,
    changed: Notify,
}

/// A copy of the totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    pub connected: u64,
    pub sessions: u64,
    pub failures: u64,
    pub refused: u64,
    pub busy: u64,
    pub frames_sent: u64,
    pub frames_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub report_frames: u64,
    pub desired_frames: u64,
}

/// How often something happened, with the first and the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    pub count: u64,
    pub first: Option<Instant>,
    pub last: Option<Instant>,
}

impl Span {
    fn record(&mut self, at: Instant) {
        self.count += 1;
        self.first.get_or_insert(at);
        self.last = Some(at);
    }
}

/// What happened to the targets of one release since the timeline was cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReleaseSpans {
    /// Targets to which the release was newly assigned.
    pub assigned: Span,
    /// Targets that became healthy on it.
    pub healthy: Span,
    /// Targets that failed to.
    pub failed: Span,
}

/// What happened, by release.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    releases: BTreeMap<ReleaseId, ReleaseSpans>,
    /// Targets that were told to run nothing more of a pipeline.
    removed: BTreeMap<PipelineName, Span>,
}

impl Timeline {
    /// What happened to `release`; nothing where it was never assigned.
    pub fn release(&self, release: &ReleaseId) -> ReleaseSpans {
        self.releases.get(release).copied().unwrap_or_default()
    }

    /// What happened to targets that should run nothing of `pipeline` any more.
    pub fn removed(&self, pipeline: &PipelineName) -> Span {
        self.removed.get(pipeline).copied().unwrap_or_default()
    }
}

/// Something that happened to one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It should run this release from now on.
    Assigned(ReleaseId),
    /// It should run nothing of this pipeline from now on.
    Removed(PipelineName),
    /// It became healthy on this release.
    Healthy(ReleaseId),
    /// It failed to become healthy on it.
    Failed(ReleaseId),
}

impl Counters {
    /// Adds one to one of the public totals.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn opened(&self) {
        Self::add(&self.sessions, 1);
        Self::add(&self.connected, 1);
        self.changed.notify_waiters();
    }

    /// Adds one, and lets those know who wait.
    pub(crate) fn count(&self, counter: &AtomicU64) {
        Self::add(counter, 1);
        self.changed.notify_waiters();
    }

    pub(crate) fn closed(&self) {
        self.connected.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Notes what happened to a target just now.
    pub fn record(&self, notices: Vec<Notice>) {
        if notices.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        for notice in notices {
            match notice {
                Notice::Assigned(release) => timeline.releases.entry(release).or_default().assigned.record(now),
                Notice::Removed(pipeline) => timeline.removed.entry(pipeline).or_default().record(now),
                Notice::Healthy(release) => timeline.releases.entry(release).or_default().healthy.record(now),
                Notice::Failed(release) => timeline.releases.entry(release).or_default().failed.record(now),
            }
        }
        drop(timeline);
        self.changed.notify_waiters();
    }

    /// Forgets the timeline: what comes from now on is counted from zero.
    pub fn clear_timeline(&self) {
        *self.timeline.lock().unwrap_or_else(PoisonError::into_inner) = Timeline::default();
    }

    /// A copy of the timeline.
    pub fn timeline(&self) -> Timeline {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A copy of the totals.
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            connected: read(&self.connected),
            sessions: read(&self.sessions),
            failures: read(&self.failures),
            refused: read(&self.refused),
            busy: read(&self.busy),
            frames_sent: read(&self.frames_sent),
            frames_received: read(&self.frames_received),
            bytes_sent: read(&self.bytes_sent),
            bytes_received: read(&self.bytes_received),
            report_frames: read(&self.report_frames),
            desired_frames: read(&self.desired_frames),
        }
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// [`Error::TimedOut`] after `limit`, with the totals of that moment.
    pub async fn wait(
        &self,
        doing: &str,
        limit: Duration,
        mut condition: impl FnMut(&Totals, &Timeline) -> bool,
    ) -> Result<(), Error> {
        let holds = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // From here on no change is missed, though it came before the wait.
                changed.as_mut().enable();
                {
                    let timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
                    if condition(&self.totals(), &timeline) {
                        return;
                    }
                }
                changed.await;
            }
        };
        let timed_out = |_| Error::TimedOut { doing: format!("{doing} ({:?})", self.totals()), limit };
        timeout(limit, holds).await.map_err(timed_out)
    }
}
