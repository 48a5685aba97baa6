//! Gathers what the agents of this server report into one command after another, at most every 100 ms, bounded in count and bytes; says
//! to each session what was applied, and later what gateways obey.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::{
    outbox::{End, Outbox},
    trim::trim_output,
};
use swell_artifacts::store::ContentStore;
use swell_model::{
    command::FleetAction,
    fleet::observation::{Report, ReportOrigin, TargetReports},
    ids::PipelineName,
    interfaces::{Proposal, ProposeError, Proposer},
    principal::Principal,
    rejection::Rejection,
    units::Millis,
    wire::Refusal,
};
use swell_raft::Node;

/// Between two commands; more reports gather meanwhile.
const BATCH_EVERY: Duration = Duration::from_millis(100);

/// Reports in one command.
const BATCH_REPORTS_MAX: usize = 5000;

/// Size of one command, roughly, in bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Size of what waits on this server, roughly, in bytes; beyond it sessions read no further.
pub(super) const WAITING_BYTES_MAX: usize = 64 << 20;

/// Messages that wait for the next command.
const MESSAGES_MAX: usize = 1024;

/// Applied batches whose sessions wait for gateways. At one batch in 100 ms, more than gateways may take.
const ROUTING_BATCHES_MAX: usize = 1024;

/// How long a command may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);

/// Between a command that failed and the next try.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Tells a session what became of its message. Dropped without an answer, it ends the session: the agent repeats the message in the next.
struct Answer {
    outbox: Arc<Outbox>,
    sequence: u64,
    is_given: bool,
}

impl Answer {
    fn acknowledge(mut self) -> (Arc<Outbox>, u64) {
        self.is_given = true;
        self.outbox.acknowledge(self.sequence);
        (Arc::clone(&self.outbox), self.sequence)
    }

    fn refuse(mut self, rejection: &Rejection) {
        self.is_given = true;
        let (code, reason) = (rejection.code().to_owned(), rejection.to_string());
        self.outbox.end(End::Refused(Refusal::Rejected { code, reason }));
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_given {
            self.outbox.end(End::Busy { retry_after: Millis::from_secs(1) });
        }
    }
}

/// One message of an agent, with the credits that it took; they return when it was answered.
pub(super) struct Message {
    target: u32,
    origin: ReportOrigin,
    reports: Vec<Report>,
    answer: Answer,
    _credits: [OwnedSemaphorePermit; 2],
}

/// Where sessions hand over what their agents report. Cheap to clone.
#[derive(Clone)]
pub(super) struct ReportsInbox {
    messages: mpsc::Sender<Message>,
    bytes: Arc<Semaphore>,
}

impl ReportsInbox {
    /// An inbox, and what the task that empties it needs.
    pub fn new() -> (Self, Arc<Mutex<mpsc::Receiver<Message>>>) {
        let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
        (Self { messages, bytes: Arc::new(Semaphore::new(WAITING_BYTES_MAX)) }, Arc::new(Mutex::new(receiver)))
    }

    /// Whether so much waits that no further agent should come.
    pub fn is_overloaded(&self) -> bool {
        self.bytes.available_permits() < WAITING_BYTES_MAX / 4
    }

    /// Hands over one message, as soon as there is room for it; `credit` is the agent's own. False: the server stops.
    pub async fn send(
        &self,
        target: u32,
        origin: ReportOrigin,
        reports: Vec<Report>,
        outbox: &Arc<Outbox>,
        credit: OwnedSemaphorePermit,
    ) -> bool {
        let size = reports.iter().map(size_of).sum::<usize>().min(WAITING_BYTES_MAX) as u32;
        let Ok(bytes) = Arc::clone(&self.bytes).acquire_many_owned(size).await else { return false };
        let answer = Answer { outbox: Arc::clone(outbox), sequence: origin.sequence, is_given: false };
        let message = Message { target, origin, reports, answer, _credits: [credit, bytes] };
        self.messages.send(message).await.is_ok()
    }
}

/// The size of a report in a command, roughly, in bytes.
fn size_of(report: &Report) -> usize {
    let failure = report.failure.as_ref().map_or(0, |failure| {
        let texts = [failure.exit.as_ref(), failure.probe.as_ref()].into_iter().flatten().map(String::len).sum::<usize>();
        failure.reason.len() + failure.hint.len() + failure.output.len() + texts
    });
    256 + 128 * report.instances.len() + failure
}

/// A message whose reports are in a batch.
struct Answered {
    target: u32,
    answer: Answer,
    _credits: [OwnedSemaphorePermit; 2],
}

/// Reports collected for the next proposal, with the messages that it answers.
#[derive(Default)]
struct Batch {
    reports: BTreeMap<(u32, PipelineName), (ReportOrigin, Report)>,
    messages: Vec<Answered>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.reports.len() >= BATCH_REPORTS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    fn add(&mut self, message: Message) {
        let Message { target, origin, reports, answer, _credits } = message;
        for report in reports {
            let key = (target, report.pipeline.clone());
            if self.reports.get(&key).is_some_and(|(known, _)| !origin.is_newer_than(known)) {
                continue;
            }
            self.bytes += size_of(&report);
            if let Some((_, before)) = self.reports.insert(key, (origin.clone(), report)) {
                self.bytes -= size_of(&before);
            }
        }
        self.messages.push(Answered { target, answer, _credits });
    }

    fn action(&self) -> FleetAction {
        let mut targets: Vec<TargetReports> = Vec::new();
        for ((target, _), (origin, report)) in &self.reports {
            match targets.last_mut().filter(|last| last.target == *target && last.origin == *origin) {
                Some(last) => last.reports.push(report.clone()),
                None => targets.push(TargetReports { target: *target, origin: origin.clone(), reports: vec![report.clone()] }),
            }
        }
        FleetAction::Report { targets }
    }

    /// Makes the action that proposes the reports of one target alone.
    fn of_target(&self, target: u32) -> FleetAction {
        let is_its = |((of, _), _): &(&(u32, PipelineName), &(ReportOrigin, Report))| *of == target;
        let reports = self.reports.iter().filter(is_its).map(|(key, report)| (key.clone(), report.clone())).collect();
        Batch { reports, ..Batch::default() }.action()
    }

    /// Tells every session that its messages were applied, and returns who waits for gateways.
    fn acknowledge(self) -> Vec<(Arc<Outbox>, u64)> {
        self.messages.into_iter().map(|message| message.answer.acknowledge()).collect()
    }
}

/// The task that proposes what agents report.
pub(super) struct Reports {
    pub node: Node,
    pub content: Arc<dyn ContentStore>,
    pub inbox: Arc<Mutex<mpsc::Receiver<Message>>>,
    /// Who waits for gateways: the log index from which on routes must be obeyed, and sessions with the sequence to tell.
    pub routing: mpsc::Sender<Routing>,
}

impl Reports {
    /// Proposes batches until the server stops.
    pub async fn run(self) -> Result<(), ProposeError> {
        let mut inbox = self.inbox.lock().await;
        loop {
            let Some(batch) = gather(&mut inbox, &*self.content).await else { return Ok(()) };
            let began = Instant::now();
            self.record(batch).await;
            tokio::time::sleep(BATCH_EVERY.saturating_sub(began.elapsed())).await;
        }
    }

    /// Proposes the batch until it is applied or rejected.
    async fn record(&self, batch: Batch) {
        loop {
            match self.propose(batch.action()).await {
                Ok(index) => return self.applied(index, batch).await,
                Err(ProposeError::Rejected(rejection)) if !rejection.retryable() => {
                    tracing::warn!(%rejection, "batch of reports rejected, proposing each target's alone");
                    return self.record_each(batch).await;
                }
                Err(error) => {
                    tracing::warn!(%error, reports = batch.reports.len(), "failed to record reports, trying again");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// One target's report that the rules reject must not keep others from being recorded.
    async fn record_each(&self, mut batch: Batch) {
        while let Some(message) = batch.messages.pop() {
            match self.propose(batch.of_target(message.target)).await {
                Ok(index) => {
                    let one = Batch { messages: vec![message], ..Batch::default() };
                    self.applied(index, one).await;
                }
                Err(ProposeError::Rejected(rejection)) if !rejection.retryable() => message.answer.refuse(&rejection),
                // Its session ends, and the next one repeats it.
                Err(error) => tracing::warn!(target = message.target, %error, "failed to record reports"),
            }
        }
    }

    async fn applied(&self, index: u64, batch: Batch) {
        let sessions = batch.acknowledge();
        if self.routing.send(Routing { index, sessions }).await.is_err() {
            tracing::debug!("server stops before gateways obeyed");
        }
    }

    /// Returns the log index up to which it was applied.
    async fn propose(&self, action: FleetAction) -> Result<u64, ProposeError> {
        let proposal = Proposal::new(action, Principal::system("reports"));
        let proposed = tokio::time::timeout(PROPOSE_WITHIN, self.node.propose(proposal)).await;
        swell_system::crash::panic_point("fleet");
        proposed.unwrap_or(Err(ProposeError::TimedOut)).map(|outcome| outcome.last_event.index)
    }
}

/// Waits for a message and takes all that are there, up to the bounds.
async fn gather(inbox: &mut mpsc::Receiver<Message>, content: &dyn ContentStore) -> Option<Batch> {
    let mut batch = Batch::default();
    let mut next = inbox.recv().await;
    while let Some(mut message) = next.take() {
        for report in &mut message.reports {
            trim_output(report, content).await;
        }
        batch.add(message);
        next = if batch.is_full() { None } else { inbox.try_recv().ok() };
    }
    (!batch.messages.is_empty()).then_some(batch)
}

/// Sessions whose reports were applied at a log index.
pub(super) struct Routing {
    index: u64,
    sessions: Vec<(Arc<Outbox>, u64)>,
}

/// A channel for [`tell_routed`].
pub(super) fn routing_channel() -> (mpsc::Sender<Routing>, Arc<Mutex<mpsc::Receiver<Routing>>>) {
    let (sender, receiver) = mpsc::channel(ROUTING_BATCHES_MAX);
    (sender, Arc::new(Mutex::new(receiver)))
}

/// Tells sessions when gateways obey routes that take their reports into account. `obeyed` is the log index that all gateways obey;
/// `None`: there is no gateway.
pub(super) async fn tell_routed(
    applied: Arc<Mutex<mpsc::Receiver<Routing>>>,
    mut obeyed: watch::Receiver<Option<u64>>,
) -> Result<(), ProposeError> {
    let mut applied = applied.lock().await;
    while let Some(Routing { index, sessions }) = applied.recv().await {
        if obeyed.wait_for(|obeyed| obeyed.is_none_or(|obeyed| obeyed >= index)).await.is_err() {
            return Ok(());
        }
        for (outbox, sequence) in sessions {
            outbox.routed(sequence);
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use swell_model::{fleet::observation::Progress, ids::AgentId};

    fn message(target: u32, sequence: u64, pipeline: &str, progress: Progress, outbox: &Arc<Outbox>) -> Message {
        let origin = ReportOrigin { agent: AgentId("a".to_owned()), incarnation: 1, sequence };
        let pipeline = pipeline.parse().unwrap();
        let report = Report { pipeline, release: None, progress, serving: true, instances: Vec::new(), failure: None };
        let answer = Answer { outbox: Arc::clone(outbox), sequence, is_given: false };
        let permit = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Message { target, origin, reports: vec![report], answer, _credits: [permit(), permit()] }
    }

    #[tokio::test]
    async fn batch_keeps_the_newest_report_of_each_pipeline_whatever_order_messages_come_in() {
        let outbox = Arc::new(Outbox::new(0));
        let mut batch = Batch::default();
        batch.add(message(1, 6, "shop", Progress::Healthy, &outbox));
        batch.add(message(1, 5, "shop", Progress::Failed, &outbox));
        batch.add(message(1, 4, "blog", Progress::Fetching, &outbox));
        let FleetAction::Report { targets } = batch.action() else { panic!("not reports") };
        let said = targets.iter().map(|said| (said.origin.sequence, said.reports[0].progress)).collect::<Vec<_>>();
        assert_eq!(said, [(4, Progress::Fetching), (6, Progress::Healthy)]);
        batch.acknowledge();
        assert_eq!(outbox.take().await.acknowledged, Some(6));
    }

    #[tokio::test]
    async fn session_ends_when_its_message_is_lost_before_it_was_answered() {
        let outbox = Arc::new(Outbox::new(0));
        drop(message(1, 1, "shop", Progress::Healthy, &outbox));
        assert!(matches!(outbox.take().await.end, Some(End::Busy { .. })));
    }

    #[tokio::test]
    async fn session_hears_of_routes_once_every_gateway_obeys_them() {
        let (sender, receiver) = routing_channel();
        let (obeyed, watched) = watch::channel(Some(4));
        let told = tokio::spawn(tell_routed(receiver, watched));
        let outbox = Arc::new(Outbox::new(0));
        sender.send(Routing { index: 5, sessions: vec![(Arc::clone(&outbox), 9)] }).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(outbox.take().now_or_never(), None);
        obeyed.send_replace(Some(5));
        assert_eq!(outbox.take().await.routed, Some(9));
        drop(sender);
        told.await.unwrap().unwrap();
    }
}
