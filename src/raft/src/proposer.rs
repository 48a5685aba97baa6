//! Groups what is waiting into log entries, so that throughput is not one disk sync a command; answers each one by itself.

use std::{
    io,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    Options,
    health::Health,
    types::{Commands, Raft},
};
use swell_model::{
    command::{Command, Outcome},
    interfaces::{Proposal, ProposeError},
    units::Timestamp,
};

/// How many entries are on their way at once: while one is synced and applied, the next is gathered and sent.
const ENTRIES_IN_FLIGHT_MAX: usize = 2;

type Answer = Result<Outcome, ProposeError>;

struct Waiting {
    command: Command,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

/// The queue of proposals. Its task ends when it is dropped.
pub struct Queue {
    queue: mpsc::Sender<Waiting>,
    health: Arc<Health>,
    options: Options,
}

impl Queue {
    pub fn new(raft: Raft, options: Options, health: Arc<Health>) -> Self {
        let (queue, waiting) = mpsc::channel(options.waiting_max);
        let grouper = Grouper {
            raft,
            health: Arc::clone(&health),
            commands_max: options.group_commands_max,
            bytes_max: options.group_bytes_max,
        };
        tokio::spawn(grouper.run(waiting));
        Self { queue, health, options }
    }

    pub async fn propose(&self, proposal: Proposal) -> Answer {
        if let Some(why) = self.health.stopped() {
            return Err(ProposeError::Stopped(why));
        }
        let Proposal { action, principal, idempotency_key, fingerprint, epoch, if_revision } = proposal;
        let command = Command { action, principal, at: now(), idempotency_key, fingerprint, epoch, if_revision };
        let bytes = size_of(&command);
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { command, bytes, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => self.stopped(),
        })?;
        match tokio::time::timeout(self.options.propose_timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(self.health.stopped().map_or(ProposeError::TimedOut, ProposeError::Stopped)),
        }
    }

    fn stopped(&self) -> ProposeError {
        ProposeError::Stopped(self.health.stopped().unwrap_or_else(|| "it was shut down".to_owned()))
    }
}

/// The wall clock of this server; what it says is only ever compared after `apply` made it monotonic.
fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since_1970.as_millis() as u64)
}

/// How many bytes the command takes in an entry.
fn size_of(command: &Command) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What cannot be encoded is refused where the entry is written.
    rmp_serde::encode::write_named(&mut count, command).ok();
    count.0
}

struct Grouper {
    raft: Raft,
    health: Arc<Health>,
    commands_max: usize,
    bytes_max: usize,
}

impl Grouper {
    async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX));
        let mut held_over = None;
        loop {
            let first = match held_over.take() {
                Some(first) => first,
                None => match waiting.recv().await {
                    Some(first) => first,
                    None => return,
                },
            };
            // While all entries are on their way, more proposals gather.
            let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
            let mut bytes = first.bytes;
            let mut group = vec![first];
            while group.len() < self.commands_max
                && let Ok(next) = waiting.try_recv()
            {
                if bytes + next.bytes > self.bytes_max {
                    held_over = Some(next);
                    break;
                }
                bytes += next.bytes;
                group.push(next);
            }
            tokio::spawn(write(self.raft.clone(), Arc::clone(&self.health), group, permit));
        }
    }
}

/// Proposes one entry and answers everyone in it. The permit ends when that is done.
async fn write(raft: Raft, health: Arc<Health>, group: Vec<Waiting>, _permit: OwnedSemaphorePermit) {
    // Whoever has given up waiting is left out: it was told that nothing is known.
    let group: Vec<_> = group.into_iter().filter(|waiting| !waiting.answer.is_closed()).collect();
    let (commands, waiting): (Vec<_>, Vec<_>) = group.into_iter().map(|waiting| (waiting.command, waiting.answer)).unzip();
    if commands.is_empty() {
        return;
    }
    let answers: Vec<Answer> = match raft.client_write(Commands(commands)).await {
        Ok(written) => written.data.0.into_iter().map(|answer| answer.map_err(ProposeError::from)).collect(),
        Err(error) => {
            let error = match error {
                // Discarded: another leader came. Whether the entry is agreed on all the same is not known.
                RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_)) => {
                    ProposeError::NoLeader
                }
                RaftError::APIError(other) => ProposeError::Stopped(other.to_string()),
                RaftError::Fatal(fatal) => ProposeError::Stopped(health.stopped().unwrap_or_else(|| fatal.to_string())),
            };
            waiting.iter().map(|_| Err(error.clone())).collect()
        }
    };
    for (waiting, answer) in waiting.into_iter().zip(answers) {
        // Whoever has given up meanwhile proposes again with the same idempotency key.
        waiting.send(answer).ok();
    }
}
