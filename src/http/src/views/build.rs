//! The API's view of a build: its state, its attempts, and what it waits for.

use serde::Serialize;
use utoipa::ToSchema;

use super::build_reason;
use swell_model::{
    build::{Attempt, AttemptEnd, Build, BuildFailure, Cause, PhaseRecord, queue::wait_of, schedule::BuildWait},
    units::Timestamp,
};

/// Build of a commit.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BuildView {
    /// Id, such as `b42`.
    pub id: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Commit that is built.
    pub commit: String,
    /// Ref that the commit was requested by.
    pub git_ref: String,
    /// `push`, `manual`, or `import` for an artifact built elsewhere.
    pub cause: String,
    /// State, such as `testing`.
    pub state: String,
    /// Whether the state is final.
    pub ended: bool,
    /// What it waits for; null while it runs and after its end.
    pub waits_for: Option<String>,
    /// Whether it is being canceled.
    pub cancel_asked: bool,
    /// Why the last attempt failed.
    pub failure: Option<String>,
    /// Attempts, oldest first; empty in lists.
    pub attempts: Vec<AttemptView>,
    /// Number of attempts.
    pub attempt_count: u32,
    /// Requested CPU, in thousandths.
    pub cpu_millis: u32,
    /// Memory that the build requests, in bytes.
    pub memory_bytes: u64,
    /// Digest of the artifact, once it is stored.
    pub artifact: Option<String>,
    /// Id of the release, once it exists.
    pub release: Option<String>,
    /// Principal that requested it.
    pub by: String,
    /// Time of the request.
    pub created_at: u64,
    /// Time at which it last entered the queue.
    pub queued_at: u64,
    /// Time of its end.
    pub ended_at: Option<u64>,
    /// Revision, also sent as `ETag`.
    pub revision: u64,
}

/// Attempt at a build, on one runner.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AttemptView {
    /// Number of the attempt, from 1.
    pub number: u32,
    /// Name of the runner.
    pub runner: String,
    /// Time of its assignment to the runner.
    pub assigned_at: u64,
    /// Whether the runner has acknowledged it.
    pub acknowledged: bool,
    /// Phases that have started.
    pub phases: Vec<PhaseView>,
    /// Why its phases ran without isolation, if they did.
    pub unisolated: Option<String>,
    /// Digest of its log, once it has ended.
    pub log: Option<String>,
    /// `succeeded`, `failed`, `timed-out`, `lost` or `canceled`, once it has ended.
    pub end: Option<String>,
    /// Failure of the attempt, if it failed.
    pub failure: Option<FailureView>,
    /// Time of its end.
    pub ended_at: Option<u64>,
}

/// Phase of an attempt.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PhaseView {
    /// `checkout`, `build`, `test`, `package` or `upload`.
    pub phase: String,
    /// Time of its start.
    pub started_at: u64,
    /// Time of its end; null while it runs.
    pub ended_at: Option<u64>,
    /// Whether it was skipped because the pipeline file does not define it.
    pub skipped: bool,
    /// Exit code of its main process; 128 plus the number of the signal that ended it.
    pub exit_code: Option<i32>,
    /// Most memory used at once, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// CPU time used.
    pub cpu_time_ms: Option<u64>,
}

/// Failure of an attempt, with the end of its output.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FailureView {
    /// Phase that failed, if it was one.
    pub phase: Option<String>,
    /// Sentence that says what failed and why.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
    /// End of the output, at most 4 KiB.
    pub output: String,
}

impl BuildView {
    /// The build with its attempts. `queued` is its entry of [`swell_model::build::queue::queue_waits`].
    pub fn full(build: Build, queued: Option<BuildWait>) -> Self {
        let attempts = build.attempts.iter().map(AttemptView::of).collect();
        Self { attempts, ..Self::brief(&build, queued) }
    }

    /// The build without its attempts.
    pub fn brief(build: &Build, queued: Option<BuildWait>) -> Self {
        let last = build.attempts.last();
        let failure = last.and_then(failure).map(|failure| failure.reason);
        Self {
            id: build.id.to_string(),
            pipeline: build.pipeline.to_string(),
            commit: build.commit.to_string(),
            git_ref: build.git_ref.clone(),
            cause: match build.cause {
                Cause::Push => "push",
                Cause::Manual => "manual",
                Cause::Import => "import",
            }
            .to_owned(),
            state: build.state.to_string(),
            ended: build.state.is_end(),
            waits_for: wait_of(build, queued).as_ref().map(build_reason::wait),
            cancel_asked: build.cancel_asked,
            failure,
            attempts: Vec::new(),
            attempt_count: build.attempts.len() as u32,
            cpu_millis: build.resources.cpu_millis,
            memory_bytes: build.resources.memory.0,
            artifact: build.artifact.map(|digest| digest.to_string()),
            release: build.release.as_ref().map(ToString::to_string),
            by: build.by.to_string(),
            created_at: build.created_at.0,
            queued_at: build.queued_at.0,
            ended_at: millis(build.ended_at),
            revision: build.revision,
        }
    }
}

impl AttemptView {
    fn of(attempt: &Attempt) -> Self {
        Self {
            number: attempt.number,
            runner: attempt.runner.to_string(),
            assigned_at: attempt.assigned_at.0,
            acknowledged: attempt.acknowledged,
            phases: attempt.phases.iter().map(PhaseView::of).collect(),
            unisolated: attempt.unisolated.clone(),
            log: attempt.log.map(|digest| digest.to_string()),
            end: attempt.end.as_ref().map(|end| end_name(end).to_owned()),
            failure: failure(attempt),
            ended_at: millis(attempt.ended_at),
        }
    }
}

impl PhaseView {
    fn of(record: &PhaseRecord) -> Self {
        Self {
            phase: record.phase.to_string(),
            started_at: record.started_at.0,
            ended_at: millis(record.ended_at),
            skipped: record.skipped,
            exit_code: record.exit_code,
            memory_peak_bytes: record.memory_peak.map(|size| size.0),
            cpu_time_ms: record.cpu_time.map(|time| time.0),
        }
    }
}

fn end_name(end: &AttemptEnd) -> &'static str {
    match end {
        AttemptEnd::Succeeded => "succeeded",
        AttemptEnd::Failed(_) => "failed",
        AttemptEnd::TimedOut(_) => "timed-out",
        AttemptEnd::Lost(_) => "lost",
        AttemptEnd::Canceled => "canceled",
    }
}

fn failure(attempt: &Attempt) -> Option<FailureView> {
    match attempt.end.as_ref()? {
        AttemptEnd::Failed(failure) | AttemptEnd::TimedOut(failure) => Some(FailureView::of(failure)),
        AttemptEnd::Lost(why) => Some(FailureView {
            phase: None,
            reason: why.clone(),
            hint: "none: the infrastructure failed; the build is retried up to its limit of attempts".to_owned(),
            output: String::new(),
        }),
        AttemptEnd::Succeeded | AttemptEnd::Canceled => None,
    }
}

impl FailureView {
    fn of(failure: &BuildFailure) -> Self {
        Self {
            phase: Some(failure.phase.to_string()),
            reason: failure.reason.clone(),
            hint: failure.hint.clone(),
            output: failure.output.clone(),
        }
    }
}

/// A time as the API writes it.
pub fn millis(at: Option<Timestamp>) -> Option<u64> {
    at.map(|at| at.0)
}
