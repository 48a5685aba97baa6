//! An attempt from its beginning, or from where it stood, to its end: the order of things, and what is told to whom. What each phase does
//! stands in `checkout`, `phase` and `upload`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::io::ReaderStream;

use super::{
    AttemptJob, AttemptKey, Hold, Inner, chain,
    folder::{Ending, Folder, FolderError, Record},
    log::{Found, LogReader, LogWriter},
    now,
    report::{Answer, Reporter},
};
use swell_artifacts::{
    log::LogEncoder,
    store::{ByteStream, StoreError},
};
use swell_model::{
    build::{AttemptEnd, Phase, PhaseRecord},
    command::{BuildAction, StoredArtifact},
    digest::Digest,
    pipeline_file::PipelineFile,
    principal::{Principal, Role},
    units::Millis,
};
use swell_sandbox::shim::boot_id;
use swell_system::files::failed;

/// How long to wait for an answer of state before giving up until called again: longer than electing a leader takes.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a file that are read at once on its way into the content store.
const READ_BYTES: usize = 256 << 10;

/// How often storing is tried where trying again may help, and how long between.
const STORE_TRIES: u32 = 3;
const STORE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Why an attempt does not go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// It ended, like this.
    End(AttemptEnd),
    /// It is not the live one.
    Fenced,
    /// Nobody could be told: later.
    Later(String),
}

impl From<FolderError> for Stop {
    fn from(error: FolderError) -> Self {
        lost(format!("the runner's disk: {}", chain(&error)))
    }
}

/// The infrastructure's fault.
pub(super) fn lost(why: impl Into<String>) -> Stop {
    Stop::End(AttemptEnd::Lost(why.into()))
}

/// One attempt that is worked on.
pub(super) struct Run {
    pub inner: Arc<Inner>,
    pub job: AttemptJob,
    pub folder: Folder,
    pub record: Record,
    pub log: LogWriter,
    stopped: watch::Receiver<bool>,
    reporter: Reporter,
    hold: Hold,
}

impl Run {
    pub fn new(inner: Arc<Inner>, job: AttemptJob, stopped: watch::Receiver<bool>, hold: Hold) -> Self {
        let folder = inner.folder((job.build.id, job.attempt));
        let principal = Principal::new(Role::Runner, inner.options.runner.as_str());
        let reporter = Reporter::start(inner.proposer.clone(), principal);
        let record = Record::new(&job.build, job.attempt);
        let log = LogWriter::open(folder.log());
        Self { inner, job, folder, record, log, stopped, reporter, hold }
    }

    fn key(&self) -> AttemptKey {
        (self.job.build.id, self.job.attempt)
    }

    /// Runs it, and tells state how it ended. The error is why nobody could be told.
    pub async fn until_its_end(mut self) -> Result<(), String> {
        let (build, attempt) = self.key();
        let unisolated = self.inner.unisolated.clone();
        self.reporter.say(BuildAction::Acknowledge { build, attempt, unisolated }).await;
        swell_system::crash::point("attempt::acknowledging");
        let told = match self.ending().await {
            Ok(ending) => self.tell(ending).await,
            Err(stop) => Err(stop),
        };
        match told {
            Ok(()) => Ok(()),
            Err(Stop::Fenced) => {
                tracing::info!(%build, attempt, "attempt was fenced, discarding it");
                self.inner.discard(self.key(), self.hold.clone()).await;
                Ok(())
            }
            Err(Stop::Later(why)) => Err(why),
            Err(Stop::End(end)) => Err(format!("it ended ({end:?}), but that could not be kept")),
        }
    }

    /// How it ended, durably.
    async fn ending(&mut self) -> Result<Ending, Stop> {
        match self.resume().await {
            Ok(Some(ending)) => return Ok(ending),
            Ok(None) => {}
            Err(stop) => return self.conclude(stop).await,
        }
        match self.work().await {
            Ok((artifact, file)) => {
                let log = self.store_log().await;
                self.keep(Ending::Succeeded { artifact, file: Box::new(file), log }).await
            }
            Err(stop) => self.conclude(stop).await,
        }
    }

    /// Takes up what is on disk; an ending where there is one already.
    async fn resume(&mut self) -> Result<Option<Ending>, Stop> {
        let folder = self.folder.clone();
        let (kept, ending) = self
            .aside(move || {
                folder.create()?;
                Ok::<_, FolderError>((folder.read_record()?, folder.read_end()?))
            })
            .await??;
        swell_system::crash::point("attempt::begun");
        if let Some(record) = &kept
            && !record.is_of(&self.job.build, self.job.attempt)
        {
            tracing::warn!(folder = %self.folder.path().display(), "discarding an attempt of another cluster with the same name");
            self.inner.discard(self.key(), self.hold.clone()).await;
            let folder = self.folder.clone();
            self.aside(move || folder.create()).await??;
            self.log = LogWriter::open(self.folder.log());
        } else {
            let is_fresh = kept.is_none();
            self.record = kept.unwrap_or_else(|| self.record.clone());
            self.log = LogWriter::open(self.folder.log());
            if ending.is_some() {
                return Ok(ending);
            }
            if self.record.boot_id != boot_id() {
                return Err(lost("the runner's machine restarted"));
            }
            self.repeat_phases().await;
            if !is_fresh {
                return Ok(None);
            }
        }
        self.keep_record().await?;
        if let Some(why) = self.inner.unisolated.clone() {
            self.line(
                Phase::Checkout,
                &format!("WARNING: NOT ISOLATED: {why}; what this build runs can do whatever the runner can"),
            )?;
        }
        Ok(None)
    }

    /// Says again what may not have been heard before a crash.
    async fn repeat_phases(&mut self) {
        let attempts = &self.job.build.attempts;
        let known = attempts.iter().find(|known| known.number == self.job.attempt).map_or(&[][..], |known| &known.phases);
        let unknown: Vec<_> = self.record.phases.iter().filter(|phase| !known.contains(phase)).cloned().collect();
        for phase in unknown {
            self.say_phase(phase).await;
        }
    }

    /// Everything from the checkout to the stored artifact; what was done already is passed over.
    async fn work(&mut self) -> Result<(StoredArtifact, PipelineFile), Stop> {
        let checkout = self.check_out().await?;
        let file = checkout.file;
        let scripts = [
            (Phase::Build, file.build.run.as_deref(), None),
            (Phase::Test, file.test.as_ref().map(|test| test.run.as_str()), file.test.as_ref().map(|test| &test.env)),
            (
                Phase::Package,
                file.package.as_ref().map(|package| package.run.as_str()),
                file.package.as_ref().map(|package| &package.env),
            ),
        ];
        for (phase, script, env) in scripts {
            match script {
                Some(script) => self.run_phase(phase, script, env, &file, checkout.committed_at_s).await?,
                None => self.skip_phase(phase).await?,
            }
        }
        let artifact = self.upload(checkout.committed_at_s).await?;
        Ok((artifact, file))
    }

    /// Ends what was begun, and keeps how the attempt ended.
    async fn conclude(&mut self, stop: Stop) -> Result<Ending, Stop> {
        let Stop::End(end) = stop else { return Err(stop) };
        let open = self.record.phases.iter().filter(|phase| phase.ended_at.is_none()).cloned().collect::<Vec<_>>();
        for phase in open {
            let ended = PhaseRecord { ended_at: Some(now()), ..phase };
            self.record.set_phase(ended.clone());
            self.say_phase(ended).await;
        }
        let (phase, text) = last_line(&end, self.record.phases.last().map_or(Phase::Checkout, |phase| phase.phase));
        if let Err(error) = self.log.line(phase, &text) {
            tracing::warn!(error = %chain(&error), "failed to write the last line of a build's log");
        }
        let log = self.store_log().await;
        let ending = Ending::Ended { end, log };
        match self.keep(ending.clone()).await {
            // On a full disk it can still be told, if not kept.
            Err(Stop::End(_)) => Ok(ending),
            kept => kept,
        }
    }

    async fn keep(&mut self, ending: Ending) -> Result<Ending, Stop> {
        swell_system::crash::point("attempt::log_stored");
        let (folder, kept) = (self.folder.clone(), ending.clone());
        self.aside(move || folder.write_end(&kept)).await??;
        swell_system::crash::point("attempt::end_recorded");
        Ok(ending)
    }

    /// Tells state how it ended, until there is an answer.
    async fn tell(&mut self, ending: Ending) -> Result<(), Stop> {
        let (build, attempt) = self.key();
        let log = match &ending {
            Ending::Succeeded { log, .. } | Ending::Ended { log, .. } => *log,
        };
        let action = match ending {
            Ending::Succeeded { artifact, file, log } => BuildAction::Succeed { build, attempt, artifact, file, log },
            Ending::Ended { end, log } => BuildAction::End { build, attempt, end, log },
        };
        self.reporter.say(action).await;
        let mut answer = self.reporter.answer(ANSWER_PATIENCE).await;
        if answer == Answer::Refused {
            let end =
                AttemptEnd::Lost("state refused how the attempt ended; this is a defect, the server's log has more".to_owned());
            self.reporter.say(BuildAction::End { build, attempt, end, log }).await;
            answer = self.reporter.answer(ANSWER_PATIENCE).await;
        }
        swell_system::crash::point("attempt::end_told");
        match answer {
            Answer::Applied => Ok(()),
            Answer::Fenced => Err(Stop::Fenced),
            Answer::Refused => Err(Stop::Later("state refuses how it ended".to_owned())),
            Answer::Silence => Err(Stop::Later(format!("no answer within {ANSWER_PATIENCE:?}"))),
        }
    }

    /// Until state has acknowledged that the attempt is this runner's: before that, nothing of the repository's is executed.
    pub async fn acknowledged(&mut self) -> Result<(), Stop> {
        match self.reporter.first_answer(ANSWER_PATIENCE).await {
            Answer::Applied | Answer::Refused => Ok(()),
            Answer::Fenced => Err(Stop::Fenced),
            Answer::Silence => Err(Stop::Later(format!("no answer within {ANSWER_PATIENCE:?}"))),
        }
    }

    /// Records and says that a phase begins; the same as before where it had begun.
    pub async fn begin(&mut self, phase: Phase) -> Result<PhaseRecord, Stop> {
        if let Some(begun) = self.record.phase(phase) {
            return Ok(begun.clone());
        }
        let begun = new_phase(phase);
        self.record.set_phase(begun.clone());
        self.keep_record().await?;
        self.say_phase(begun.clone()).await;
        Ok(begun)
    }

    /// Records and says that a phase ended well after `took`.
    pub async fn end_well(&mut self, ended: PhaseRecord, took: Millis) -> Result<(), Stop> {
        self.record.set_phase(ended.clone());
        self.record.spent.0 += took.0;
        self.record.running = None;
        self.keep_record().await?;
        self.say_phase(ended).await;
        Ok(())
    }

    async fn skip_phase(&mut self, phase: Phase) -> Result<(), Stop> {
        if self.record.has_ended(phase) {
            return Ok(());
        }
        let begun = new_phase(phase);
        self.end_well(PhaseRecord { skipped: true, ended_at: Some(begun.started_at), ..begun }, Millis(0)).await
    }

    pub async fn say_phase(&mut self, phase: PhaseRecord) {
        let (build, attempt) = self.key();
        self.reporter.say(BuildAction::Progress { build, attempt, phase }).await;
    }

    pub async fn keep_record(&self) -> Result<(), Stop> {
        let (folder, record) = (self.folder.clone(), self.record.clone());
        Ok(self.aside(move || folder.write_record(&record)).await??)
    }

    pub fn line(&mut self, phase: Phase, text: &str) -> Result<(), Stop> {
        Ok(self.log.line(phase, text)?)
    }

    /// Blocking work, on a thread that may block. Nobody else works on this attempt before it has ended.
    pub async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
        let hold = self.hold.clone();
        let done = spawn_blocking(move || {
            let _held = hold;
            work()
        });
        done.await.map_err(|error| Stop::Later(format!("work on the disk was broken off: {error}")))
    }

    /// Ready when somebody wants the attempt stopped.
    pub fn is_stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopped = self.stopped.clone();
        async move {
            // Whoever could have stopped it is gone: then it is not stopped.
            if stopped.wait_for(|stopped| *stopped).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Whether somebody wants it stopped now.
    pub fn was_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    pub fn is_fenced(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reporter.fenced()
    }

    /// `work`, unless the attempt is stopped or fenced before it is done.
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            () = self.is_fenced() => Err(Stop::Fenced),
            () = self.is_stopped() => Err(Stop::End(AttemptEnd::Canceled)),
            done = work => Ok(done),
        }
    }

    /// Stores a file under `digest`, or under whatever it has.
    pub async fn store_file(&self, path: std::path::PathBuf, digest: Option<Digest>) -> Result<Digest, StoreError> {
        let mut tries = 1;
        loop {
            let file = tokio::fs::File::open(&path).await;
            let file = file.map_err(|source| StoreError::Io { action: "open", path: path.clone(), source })?;
            let content: ByteStream = ReaderStream::with_capacity(file, READ_BYTES).boxed();
            match self.inner.content.put(content, digest).await {
                Ok(stored) => return Ok(stored.digest),
                Err(error) if error.retryable() && tries < STORE_TRIES => {
                    tracing::warn!(error = %chain(&error), path = %path.display(), "failed to store a file, trying again");
                }
                Err(error) => return Err(error),
            }
            tries += 1;
            tokio::time::sleep(STORE_AGAIN_AFTER).await;
        }
    }

    /// Stores the whole log. A log that cannot be stored ends no build.
    async fn store_log(&mut self) -> Option<Digest> {
        let (folder, path) = (self.folder.clone(), self.folder.part("log"));
        let to = path.clone();
        let written = self.aside(move || write_log(folder, &to)).await;
        let why = match written {
            Ok(Ok(())) => match self.store_file(path, None).await {
                Ok(digest) => return Some(digest),
                Err(error) => chain(&error),
            },
            Ok(Err(error)) => chain(&error),
            Err(_) => return None,
        };
        let (build, attempt) = self.key();
        tracing::error!(%build, attempt, error = why, "failed to store the log of an attempt");
        None
    }
}

fn write_log(folder: Folder, path: &std::path::Path) -> Result<(), FolderError> {
    let failed = |source| FolderError::from(failed("write", path)(source));
    let file = BufWriter::new(File::create(path).map_err(failed)?);
    let mut encoder = LogEncoder::new(file).map_err(failed)?;
    let mut reader = LogReader::open(folder, 0);
    let mut chunks = Vec::new();
    loop {
        let found = reader.read(&mut chunks);
        if found != Found::More {
            reader.finish(&mut chunks);
        }
        for chunk in chunks.drain(..) {
            encoder.push(&chunk).map_err(failed)?;
        }
        if found != Found::More {
            return encoder.finish().and_then(|mut file| file.flush()).map_err(failed);
        }
    }
}

pub(super) fn new_phase(phase: Phase) -> PhaseRecord {
    PhaseRecord { phase, started_at: now(), ended_at: None, skipped: false, exit_code: None, memory_peak: None, cpu_time: None }
}

/// The log's last line, and in which phase.
fn last_line(end: &AttemptEnd, present: Phase) -> (Phase, String) {
    match end {
        AttemptEnd::Succeeded => (present, "done".to_owned()),
        AttemptEnd::Failed(failure) | AttemptEnd::TimedOut(failure) => {
            let shown = if failure.phase == Phase::Checkout { failure.output.as_str() } else { "" };
            let gap = if shown.is_empty() { "" } else { "\n" };
            (failure.phase, format!("{}{gap}{}; {}", shown.trim_end(), failure.reason, failure.hint))
        }
        AttemptEnd::Lost(why) => (present, format!("the attempt is lost: {why}")),
        AttemptEnd::Canceled => (present, "canceled".to_owned()),
    }
}
