//! The one shape of the leader's actors: look at state, take the step that follows, wait for a change or for a while.
//!
//! A look is caused by an event about the subject or by the timer that the last look asked for; however many causes pile up, one look
//! serves them all, so the mailbox stays small.

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};

use super::leader::Leading;
use swell_model::{interfaces::ProposeError, tables::TablesError};

/// What a look led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing to do until something changes.
    Wait,
    /// Look again after so long, or when something changes.
    Look(Duration),
    /// The subject has ended: so does the actor.
    Done,
}

/// Why a look failed. The supervisor restarts the actor from state.
#[derive(Debug, thiserror::Error)]
pub(super) enum DriveError {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Something that the leader moves forward.
pub(super) trait Drive: Send + Sync + 'static {
    /// What the actor is called: in what it proposes, and where tests let it panic.
    const NAME: &'static str;

    /// Looks at state and takes the step that follows.
    fn look(&mut self, leading: &Leading) -> impl Future<Output = Result<After, DriveError>> + Send;
}

/// How long a look waits before it tries again when the cluster is busy or has no leader.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Look at state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look;

/// An actor that drives one subject.
pub(super) struct Driver<D>(PhantomData<D>);

pub(super) struct Driven<D> {
    drive: D,
    leading: Arc<Leading>,
    wanted: Arc<AtomicBool>,
    timer: Option<tokio::task::JoinHandle<()>>,
}

impl<D> Drop for Driven<D> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
    }
}

/// A way to make a driver look. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Waker {
    actor: ActorRef<Look>,
    wanted: Arc<AtomicBool>,
}

impl Waker {
    /// Makes it look soon; at most one look waits.
    pub fn wake(&self) {
        if !self.wanted.swap(true, Ordering::AcqRel) && self.actor.send_message(Look).is_err() {
            tracing::debug!(actor = %self.actor.get_id(), "an actor that has stopped was woken");
        }
    }

    /// The actor's identity within the process.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }
}

/// Starts an actor that drives `drive`, supervised by `supervisor`.
pub(super) async fn spawn<D: Drive>(drive: D, leading: Arc<Leading>, supervisor: ActorCell) -> Result<Waker, SpawnErr> {
    let wanted = Arc::new(AtomicBool::new(false));
    let arguments = (drive, leading, Arc::clone(&wanted));
    let (actor, _) = Actor::spawn_linked(None, Driver(PhantomData), arguments, supervisor).await?;
    let waker = Waker { actor, wanted };
    waker.wake();
    Ok(waker)
}

impl<D: Drive> Actor for Driver<D> {
    type Msg = Look;
    type State = Driven<D>;
    type Arguments = (D, Arc<Leading>, Arc<AtomicBool>);

    async fn pre_start(
        &self,
        _: ActorRef<Look>,
        (drive, leading, wanted): Self::Arguments,
    ) -> Result<Driven<D>, ActorProcessingErr> {
        Ok(Driven { drive, leading, wanted, timer: None })
    }

    async fn handle(&self, myself: ActorRef<Look>, _: Look, state: &mut Driven<D>) -> Result<(), ActorProcessingErr> {
        // Before looking, so that a change during the look causes another one.
        state.wanted.store(false, Ordering::Release);
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        swell_system::crash::panic_point(D::NAME);
        let after = match state.drive.look(&state.leading).await {
            Ok(after) => after,
            Err(DriveError::Propose(ProposeError::Rejected(rejection))) => {
                // State moved on between the look and the proposal, or another leader took over: the next look sees why.
                tracing::debug!(%rejection, "a step was rejected");
                After::Look(AGAIN_AFTER)
            }
            Err(DriveError::Propose(error)) if error.retryable() => {
                tracing::warn!(%error, "a step must wait");
                After::Look(AGAIN_AFTER)
            }
            Err(error) => return Err(error.into()),
        };
        match after {
            After::Wait => {}
            After::Done => myself.stop(None),
            After::Look(delay) => {
                let waker = Waker { actor: myself, wanted: Arc::clone(&state.wanted) };
                state.timer = Some(tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    waker.wake();
                }));
            }
        }
        Ok(())
    }
}
