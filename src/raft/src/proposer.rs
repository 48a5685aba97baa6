//! Groups waiting proposals into log entries, so that throughput is not one disk sync a command; answers each one by itself. A proposal
//! that finds nobody waiting goes to consensus from its own task: no other task stands between it and its answer.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures::stream::{FuturesUnordered, StreamExt};
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    Options,
    health::Health,
    types::{Commands, Raft, Types},
};
use swell_model::{
    clock::MonotonicTime,
    command::{Command, Outcome},
    interfaces::{Proposal, ProposeError},
    units::{Millis, Timestamp},
};

/// How many entries are under way at once: while one is synced and applied, the next is gathered and sent.
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
    entries: Entries,
    options: Options,
    clock: RunClock,
}

/// The monotonic clock of this run.
struct RunClock {
    run: u64,
    began: Instant,
}

impl RunClock {
    fn new() -> Self {
        Self { run: RandomState::new().build_hasher().finish(), began: Instant::now() }
    }

    fn now(&self) -> MonotonicTime {
        MonotonicTime { run: self.run, elapsed: Millis(self.began.elapsed().as_millis() as u64) }
    }
}

impl Queue {
    pub fn new(raft: Raft, options: Options, health: Arc<Health>) -> Self {
        let (queue, waiting) = mpsc::channel(options.waiting_max);
        let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX));
        let entries = Entries { raft, health, in_flight };
        let grouper =
            Grouper { entries: entries.clone(), commands_max: options.group_commands_max, bytes_max: options.group_bytes_max };
        tokio::spawn(grouper.run(waiting));
        Self { queue, entries, options, clock: RunClock::new() }
    }

    pub async fn propose(&self, proposal: Proposal) -> Answer {
        if let Some(why) = self.entries.health.stopped() {
            return Err(ProposeError::Stopped(why));
        }
        let Proposal { action, principal, idempotency_key, fingerprint, epoch, if_revision } = proposal;
        let command = Command {
            action,
            principal,
            at: now(),
            monotonic: self.clock.now(),
            idempotency_key,
            fingerprint,
            epoch,
            if_revision,
        };
        match tokio::time::timeout(self.options.propose_timeout, self.answer(command)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.entries.health.stopped().map_or(ProposeError::TimedOut, ProposeError::Stopped)),
        }
    }

    async fn answer(&self, command: Command) -> Answer {
        let nobody_waits = self.queue.capacity() == self.queue.max_capacity();
        if nobody_waits && let Ok(_permit) = self.entries.in_flight.try_acquire() {
            let mut answers = self.entries.write(vec![command]).await;
            return answers.pop().unwrap_or_else(|| Err(self.stopped()));
        }
        let bytes = size_of(&command);
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { command, bytes, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => self.stopped(),
        })?;
        answered.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    fn stopped(&self) -> ProposeError {
        ProposeError::Stopped(self.entries.health.stopped().unwrap_or_else(|| "it was shut down".to_owned()))
    }
}

/// The wall clock of this server. `apply` adopts it only as far as it is plausible.
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

/// The way of entries into the log and back.
#[derive(Clone)]
struct Entries {
    raft: Raft,
    health: Arc<Health>,
    in_flight: Arc<Semaphore>,
}

impl Entries {
    /// Proposes one entry; the answers to its commands, in their order.
    async fn write(&self, commands: Vec<Command>) -> Vec<Answer> {
        let count = commands.len();
        match self.raft.client_write(Commands(commands.into())).await {
            Ok(written) => written.data.0.into_iter().map(|answer| answer.map_err(ProposeError::from)).collect(),
            Err(error) => vec![Err(self.refused(error)); count],
        }
    }

    fn refused(&self, error: RaftError<Types, ClientWriteError<Types>>) -> ProposeError {
        match error {
            // Discarded: another leader came. Whether the entry is agreed on all the same is not known.
            RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_)) => {
                ProposeError::NoLeader
            }
            RaftError::APIError(other) => ProposeError::Stopped(other.to_string()),
            RaftError::Fatal(fatal) => ProposeError::Stopped(self.health.stopped().unwrap_or_else(|| fatal.to_string())),
        }
    }
}

struct Grouper {
    entries: Entries,
    commands_max: usize,
    bytes_max: usize,
}

impl Grouper {
    async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut under_way = FuturesUnordered::new();
        let mut first = None;
        loop {
            // Entries under way are polled by this task and none of their own, which saves each answer a hop.
            let (next, permit) = tokio::select! {
                gathered = self.next(&mut waiting, &mut first) => match gathered {
                    Some(gathered) => gathered,
                    None => break,
                },
                Some(()) = under_way.next() => continue,
            };
            let group = self.gather(next, &mut waiting, &mut first);
            under_way.push(async {
                let _permit = permit;
                self.write(group).await;
            });
        }
        while under_way.next().await.is_some() {}
    }

    /// The proposal that begins the next entry, once it may go. While all entries are under way, more proposals gather. Cancel safe.
    async fn next<'s>(
        &'s self,
        waiting: &mut mpsc::Receiver<Waiting>,
        first: &mut Option<Waiting>,
    ) -> Option<(Waiting, tokio::sync::SemaphorePermit<'s>)> {
        if first.is_none() {
            *first = Some(waiting.recv().await?);
        }
        let permit = self.entries.in_flight.acquire().await.ok()?;
        Some((first.take()?, permit))
    }

    /// Whoever waits besides `first`, as many as one entry may carry; the one that did not fit begins the next.
    fn gather(&self, first: Waiting, waiting: &mut mpsc::Receiver<Waiting>, held_over: &mut Option<Waiting>) -> Vec<Waiting> {
        let mut bytes = first.bytes;
        let mut group = vec![first];
        while group.len() < self.commands_max
            && let Ok(next) = waiting.try_recv()
        {
            if bytes + next.bytes > self.bytes_max {
                *held_over = Some(next);
                break;
            }
            bytes += next.bytes;
            group.push(next);
        }
        group
    }

    /// Proposes one entry and answers everyone in it.
    async fn write(&self, group: Vec<Waiting>) {
        // Whoever has given up waiting is left out: nothing is known there anyway.
        let group = group.into_iter().filter(|waiting| !waiting.answer.is_closed());
        let (commands, waiting): (Vec<_>, Vec<_>) = group.map(|waiting| (waiting.command, waiting.answer)).unzip();
        if commands.is_empty() {
            return;
        }
        let answers = self.entries.write(commands).await;
        for (waiting, answer) in waiting.into_iter().zip(answers) {
            // Whoever has given up meanwhile proposes again with the same idempotency key.
            waiting.send(answer).ok();
        }
    }
}
