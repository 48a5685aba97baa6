//! How a build looks from outside: where it is, its attempts, and what it waits for.

use serde::Serialize;
use utoipa::ToSchema;

use super::build_reason;
use swell_model::{
    build::{Attempt, AttemptEnd, Build, BuildFailure, Cause, PhaseRecord, queue::wait_of, schedule::BuildWait},
    units::Timestamp,
};

/// One commit being built.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BuildView {
    /// Its id, such as `b42`.
    pub id: String,
    /// Whose.
    pub pipeline: String,
    /// What is built.
    pub commit: String,
    /// The ref that led to it.
    pub git_ref: String,
    /// `push`, `manual`, or `pushed` for an artifact that was built elsewhere.
    pub cause: String,
    /// Where it is, such as `testing`.
    pub state: String,
    /// Whether nothing more will happen by itself.
    pub ended: bool,
    /// What it waits for, in a phrase; none while it works or when it ended.
    pub waits_for: Option<String>,
    /// Whether someone asked to stop it.
    pub cancel_asked: bool,
    /// Why the last attempt failed, in a sentence.
    pub failure: Option<String>,
    /// Its attempts, oldest first; empty in lists.
    pub attempts: Vec<AttemptView>,
    /// How many attempts there were.
    pub attempt_count: u32,
    /// Thousandths of a CPU that it asks for.
    pub cpu_millis: u32,
    /// Memory that it asks for.
    pub memory_bytes: u64,
    /// The artifact, once it is stored.
    pub artifact: Option<String>,
    /// The release, once it exists.
    pub release: Option<String>,
    /// Who asked for it.
    pub by: String,
    /// When it was asked for.
    pub created_at: u64,
    /// When it last entered the queue.
    pub queued_at: u64,
    /// When it ended.
    pub ended_at: Option<u64>,
    /// Its revision: the `ETag`.
    pub revision: u64,
}

/// One go at a build, on one runner.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AttemptView {
    /// From 1.
    pub number: u32,
    /// Where.
    pub runner: String,
    /// When it was assigned.
    pub assigned_at: u64,
    /// Whether the runner has it.
    pub acknowledged: bool,
    /// How its phases went so far.
    pub phases: Vec<PhaseView>,
    /// Why its phases were not isolated, where they were not.
    pub unisolated: Option<String>,
    /// Its whole log in the content store, once it ended.
    pub log: Option<String>,
    /// `succeeded`, `failed`, `timed-out`, `lost` or `canceled`, once it ended.
    pub end: Option<String>,
    /// What went wrong.
    pub failure: Option<FailureView>,
    /// When it ended.
    pub ended_at: Option<u64>,
}

/// How a phase went.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PhaseView {
    /// `checkout`, `build`, `test`, `package` or `upload`.
    pub phase: String,
    /// When it began.
    pub started_at: u64,
    /// When it ended; none while it runs.
    pub ended_at: Option<u64>,
    /// Whether the pipeline file does not give it.
    pub skipped: bool,
    /// What its main process ended with; a signal counts as 128 plus its number.
    pub exit_code: Option<i32>,
    /// The most memory that it used.
    pub memory_peak_bytes: Option<u64>,
    /// The CPU time that it used.
    pub cpu_time_ms: Option<u64>,
}

/// Why an attempt ended without an artifact.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FailureView {
    /// In which phase, where it was in one.
    pub phase: Option<String>,
    /// What happened, in a sentence.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
    /// The last output, at most 4 KiB.
    pub output: String,
}

impl BuildView {
    /// With its attempts. `queued` is what [`swell_model::build::queue::queue_waits`] says of it.
    pub fn full(build: Build, queued: Option<BuildWait>) -> Self {
        let attempts = build.attempts.iter().map(AttemptView::of).collect();
        Self { attempts, ..Self::brief(&build, queued) }
    }

    /// Without its attempts.
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
            hint: "nothing: it is the infrastructure's fault, and another attempt follows while there may be one".to_owned(),
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

/// A moment as the API writes it.
pub fn millis(at: Option<Timestamp>) -> Option<u64> {
    at.map(|at| at.0)
}
