//! The one shape of the leader's actors: compare state with what should be, take the step that follows, wait for a change or for a while.
//!
//! A reconciliation is caused by a change that concerns the subject or by the timer that the last one asked for; however many causes pile
//! up, one reconciliation serves them all, so the mailbox stays small.

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio_util::task::AbortOnDropHandle;

use super::leader_context::LeaderContext;
use swell_model::{interfaces::ProposeError, tables::TablesError};

/// The time of the next reconciliation, as the last one asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requeue {
    OnChange,
    /// After so long, or when something changes.
    After(Duration),
    /// Never: the subject has ended, and so does the actor.
    Done,
}

/// An error that ends a reconciler; its supervisor starts the actor again from state.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Moves one subject forward.
pub(super) trait Reconciler: Send + Sync + 'static {
    /// Name of the actor: in what it proposes, and where tests let it panic.
    const NAME: &'static str;

    /// Compares state with what should be and takes the step that follows.
    fn reconcile(&mut self, context: &LeaderContext) -> impl Future<Output = Result<Requeue, ReconcileError>> + Send;
}

/// Before the first retry of a step that was refused, or while the cluster is busy; each further refusal doubles it.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Refusals in a row after which the actor fails, so that the supervisor backs off further and records why the subject stands still.
const REJECTIONS_MAX: u32 = 4;

/// Time to reconcile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reconcile;

/// An actor that reconciles one subject.
pub(super) struct ReconcilerActor<R>(PhantomData<R>);

pub(super) struct ReconcilerState<R> {
    reconciler: R,
    context: Arc<LeaderContext>,
    is_due: Arc<AtomicBool>,
    /// Refused steps since the last one that was not.
    rejections: u32,
    timer: Option<AbortOnDropHandle<()>>,
}

/// A way to make an actor reconcile. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Waker {
    actor: ActorRef<Reconcile>,
    is_due: Arc<AtomicBool>,
}

impl Waker {
    /// Makes it reconcile soon; at most one message waits.
    pub fn wake(&self) {
        if !self.is_due.swap(true, Ordering::AcqRel) && self.actor.send_message(Reconcile).is_err() {
            tracing::debug!(actor = %self.actor.get_id(), "actor that has stopped was woken");
        }
    }

    /// The actor's identity within the process.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }
}

/// Starts an actor that runs `reconciler`, supervised by `supervisor`.
pub(super) async fn spawn<R: Reconciler>(
    reconciler: R,
    context: Arc<LeaderContext>,
    supervisor: ActorCell,
) -> Result<Waker, SpawnErr> {
    let is_due = Arc::new(AtomicBool::new(false));
    let arguments = (reconciler, context, Arc::clone(&is_due));
    let (actor, _) = Actor::spawn_linked(None, ReconcilerActor(PhantomData), arguments, supervisor).await?;
    let waker = Waker { actor, is_due };
    waker.wake();
    Ok(waker)
}

impl<R: Reconciler> Actor for ReconcilerActor<R> {
    type Msg = Reconcile;
    type State = ReconcilerState<R>;
    type Arguments = (R, Arc<LeaderContext>, Arc<AtomicBool>);

    async fn pre_start(
        &self,
        _: ActorRef<Reconcile>,
        (reconciler, context, is_due): Self::Arguments,
    ) -> Result<ReconcilerState<R>, ActorProcessingErr> {
        Ok(ReconcilerState { reconciler, context, is_due, rejections: 0, timer: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Reconcile>,
        _: Reconcile,
        state: &mut ReconcilerState<R>,
    ) -> Result<(), ActorProcessingErr> {
        // Before reading state, so that a change meanwhile causes another reconciliation.
        state.is_due.store(false, Ordering::Release);
        state.timer = None;
        swell_system::crash::panic_point(R::NAME);
        let outcome = state.reconciler.reconcile(&state.context).await;
        match requeue(outcome, &mut state.rejections)? {
            Requeue::OnChange => {}
            Requeue::Done => myself.stop(None),
            Requeue::After(delay) => {
                let waker = Waker { actor: myself, is_due: Arc::clone(&state.is_due) };
                state.timer = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    waker.wake();
                })));
            }
        }
        Ok(())
    }
}

/// When to reconcile after `outcome`. A step that is refused again and again is an error: state will not come to allow it by itself.
fn requeue(outcome: Result<Requeue, ReconcileError>, rejections: &mut u32) -> Result<Requeue, ReconcileError> {
    match outcome {
        Err(ReconcileError::Propose(ProposeError::Rejected(rejection))) if *rejections < REJECTIONS_MAX => {
            // Mostly state moved on between reading it and the proposal, or another leader took over.
            tracing::debug!(%rejection, in_a_row = *rejections + 1, "step rejected, trying again");
            let delay = RETRY_AFTER * (1 << *rejections);
            *rejections += 1;
            Ok(Requeue::After(delay))
        }
        Err(ReconcileError::Propose(error)) if error.retryable() && !matches!(error, ProposeError::Rejected(_)) => {
            tracing::warn!(%error, "step must wait");
            Ok(Requeue::After(RETRY_AFTER))
        }
        Ok(requeue) => {
            *rejections = 0;
            Ok(requeue)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::rejection::Rejection;

    #[test]
    fn step_that_is_always_rejected_backs_off_and_then_fails_with_the_rejection() {
        let rejected = || {
            let rejection = Rejection::Invalid { what: "targets".to_owned(), why: "there is none".to_owned() };
            Err(ReconcileError::Propose(ProposeError::Rejected(rejection)))
        };
        let mut rejections = 0;
        let delays: Vec<_> = (0..REJECTIONS_MAX).map(|_| requeue(rejected(), &mut rejections).unwrap()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000].map(|millis| Requeue::After(Duration::from_millis(millis))));
        let error = requeue(rejected(), &mut rejections).unwrap_err();
        assert!(error.to_string().contains("there is none"), "{error}");
    }

    #[test]
    fn step_that_succeeds_forgives_rejections_before_it() {
        let mut rejections = REJECTIONS_MAX;
        assert_eq!(requeue(Ok(Requeue::OnChange), &mut rejections).unwrap(), Requeue::OnChange);
        assert_eq!(rejections, 0);
    }
}
