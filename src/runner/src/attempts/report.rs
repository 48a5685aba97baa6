//! Telling state how an attempt stands: in order, again while no server leads, without holding up the phases meanwhile.
//! Must not know what is told.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use swell_model::{
    command::BuildAction,
    interfaces::{Proposal, ProposeError, Proposer},
    principal::Principal,
    rejection::Rejection,
};

/// A proposal that may succeed later is repeated after so long at first, and at the most.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long one proposal may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// More than an attempt ever says at once: two for each phase, and two more.
const WAITING_MAX: usize = 16;

/// How far the telling has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    /// So many were answered.
    answered: u64,
    /// The attempt is not, or no longer, the live one.
    fenced: bool,
    /// The last answer was a rejection that repeating does not change.
    refused: bool,
}

/// What became of what was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Applied,
    /// State refuses it, whoever repeats it.
    Refused,
    /// The attempt is not the live one: nothing that it says counts.
    Fenced,
    /// Nobody answered for so long.
    Silence,
}

/// Proposes for one attempt. Dropping it forgets what was not yet told.
pub(super) struct Reporter {
    queue: mpsc::Sender<BuildAction>,
    queued: u64,
    told: watch::Receiver<Told>,
    _task: AbortOnDropHandle<()>,
}

impl Reporter {
    pub fn start(proposer: Arc<dyn Proposer>, principal: Principal) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let (tell, told) = watch::channel(Told::default());
        let task = tokio::spawn(report(proposer, principal, waiting, tell));
        Self { queue, queued: 0, told, _task: AbortOnDropHandle::new(task) }
    }

    /// Says it as soon as what was said before is applied. Waits only where more waits than an attempt has phases.
    pub async fn say(&mut self, action: BuildAction) {
        // Closed only once the attempt is fenced: then nobody cares.
        if self.queue.send(action).await.is_ok() {
            self.queued += 1;
        }
    }

    /// Until everything that was said is answered, at most `patience`; with the answer to the last.
    pub async fn answer(&mut self, patience: Duration) -> Answer {
        self.answer_to(self.queued, patience).await
    }

    /// Until the first thing that was said is answered.
    pub async fn first_answer(&mut self, patience: Duration) -> Answer {
        self.answer_to(1, patience).await
    }

    async fn answer_to(&mut self, number: u64, patience: Duration) -> Answer {
        let answered = self.told.wait_for(|told| told.fenced || told.answered >= number);
        match timeout(patience, answered).await {
            Ok(Ok(told)) if told.fenced => Answer::Fenced,
            Ok(Ok(told)) if told.refused => Answer::Refused,
            Ok(Ok(_)) => Answer::Applied,
            _ => Answer::Silence,
        }
    }

    /// Ready as soon as state says that the attempt is not the live one.
    pub fn fenced(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut told = self.told.clone();
        async move {
            if told.wait_for(|told| told.fenced).await.is_err() {
                std::future::pending().await
            }
        }
    }
}

async fn report(
    proposer: Arc<dyn Proposer>,
    principal: Principal,
    mut waiting: mpsc::Receiver<BuildAction>,
    told: watch::Sender<Told>,
) {
    while let Some(action) = waiting.recv().await {
        let answer = propose(&*proposer, action, &principal).await;
        let fenced = answer == Answer::Fenced;
        told.send_modify(|told| {
            *told = Told { answered: told.answered + 1, fenced, refused: answer == Answer::Refused };
        });
        if fenced {
            return;
        }
    }
}

/// Proposes until there is an answer.
async fn propose(proposer: &dyn Proposer, action: BuildAction, principal: &Principal) -> Answer {
    let proposal = Proposal { idempotency_key: key_of(&action), ..Proposal::new(action, principal.clone()) };
    let mut pause = RETRY_AFTER.0;
    loop {
        match timeout(PROPOSE_TIMEOUT, proposer.propose(proposal.clone())).await {
            Ok(Ok(_)) => return Answer::Applied,
            // The pipeline was removed with its builds, or another attempt took over.
            Ok(Err(ProposeError::Rejected(Rejection::StaleAttempt(..) | Rejection::NotFound(_)))) => return Answer::Fenced,
            Ok(Err(ProposeError::Rejected(rejection))) if !rejection.retryable() => {
                tracing::warn!(%rejection, action = ?proposal.action, "report of an attempt rejected");
                return Answer::Refused;
            }
            Ok(Err(error)) => tracing::debug!(%error, "failed to report an attempt, trying again"),
            Err(_) => tracing::debug!("no answer to the report of an attempt, trying again"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_AFTER.1);
    }
}

/// Only ends have one: a phase told twice is the same phase, and there are many of them.
fn key_of(action: &BuildAction) -> Option<String> {
    match action {
        BuildAction::Succeed { build, attempt, .. } | BuildAction::End { build, attempt, .. } => {
            Some(format!("attempt-end-{build}-{attempt}"))
        }
        _ => None,
    }
}
