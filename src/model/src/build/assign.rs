//! Assigning queued builds to runners: never beyond a pipeline's concurrency, never a second live attempt.

use crate::{
    apply::context::{Context, invalid},
    build::{
        ATTEMPTS_MAX, Attempt, BuildState, PipelineLoad, Runner,
        apply::{illegal, save},
    },
    event::{DataKey, EventKind, Subject},
    ids::{BuildId, RunnerName},
    rejection::{Rejection, RuleError},
    tables::{Tables, key},
};

/// The most builds that one command assigns.
pub const ASSIGNMENTS_AT_ONCE_MAX: usize = 500;

/// Assigns many builds at once. What cannot be assigned any more, such as a build that was canceled meanwhile, is left out.
pub(super) fn assign_batch<T: Tables>(
    context: &mut Context<'_, T>,
    assignments: &[(BuildId, RunnerName)],
) -> Result<Subject, RuleError> {
    if assignments.len() > ASSIGNMENTS_AT_ONCE_MAX {
        return Err(invalid("assignments", format!("at most {ASSIGNMENTS_AT_ONCE_MAX} builds are assigned at once")));
    }
    for (build, runner) in assignments {
        match assign(context, *build, runner) {
            // Nothing was written yet when an assignment is rejected.
            Ok(_) | Err(RuleError::Rejected(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Subject::Cluster)
}

pub(super) fn assign<T: Tables>(context: &mut Context<'_, T>, id: BuildId, runner: &RunnerName) -> Result<Subject, RuleError> {
    let mut build = context.build(id)?;
    if build.state != BuildState::Queued || build.live_attempt().is_some() {
        return Err(illegal(&build, "be assigned"));
    }
    if context.tables.get::<Runner>(&key(runner.as_str()))?.is_none() {
        return Err(Rejection::NotFound(Subject::Runner(runner.clone())).into());
    }
    let pipeline = context.pipeline(&build.pipeline)?;
    let load: Option<PipelineLoad> = context.tables.get(&key(build.pipeline.as_str()))?;
    let at_work = load.map_or(0, |load| load.running);
    if at_work >= pipeline.concurrency {
        let why = format!("{at_work} of its builds are running, as many as its concurrency allows");
        return Err(Rejection::Unavailable { subject: Subject::Pipeline(pipeline.name), why }.into());
    }
    if build.attempts.len() >= ATTEMPTS_MAX {
        return Err(illegal(&build, "have another attempt"));
    }
    let number = build.attempts.len() as u32 + 1;
    build.attempts.push(Attempt {
        number,
        runner: runner.clone(),
        assigned_at: context.at,
        acknowledged: false,
        phases: Vec::new(),
        unisolated: None,
        log: None,
        end: None,
        ended_at: None,
    });
    context.event(Subject::Build(id), EventKind::BuildAssigned).data(DataKey::Attempt, number).data(DataKey::Runner, runner);
    save(context, build)
}
