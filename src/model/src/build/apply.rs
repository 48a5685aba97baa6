//! Builds: from the queue to a release, one live attempt at a time.

use std::collections::BTreeSet;

use crate::{
    apply::context::{Context, invalid},
    build::assign::{assign, assign_batch},
    pipeline::apply::consider,
    rollout::apply as rollout_apply,
};
use crate::{
    build::{
        ATTEMPTS_MAX, Attempt, AttemptEnd, Build, BuildByCommit, BuildState, Cause, PhaseRecord, QueuedByRef, Resources, index,
        queued_by_ref_prefix,
    },
    command::{BuildAction, StoredArtifact},
    digest::Digest,
    event::{DataKey, EventKind, Subject},
    ids::{BuildId, PipelineName, ReleaseId},
    pipeline::{ConsideredRef, Retention, considered_key},
    pipeline_file::PipelineFile,
    rejection::{Rejection, RuleError},
    release::{Artifact, ArtifactExpiry, Release, uses},
    repository::CommitId,
    tables::{Record, SCAN_RECORDS_MAX, Scan, Tables, key},
    units::ByteSize,
};

/// The most of a failed phase's output that state keeps; the log has the rest.
const OUTPUT_BYTES_MAX: usize = 4096;

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &BuildAction) -> Result<Subject, RuleError> {
    match action {
        BuildAction::Request { pipeline, commit, git_ref, cause, again, resources } => {
            let request = Request { pipeline, commit, git_ref, cause, again: *again, resources: *resources };
            request_build(context, request)
        }
        BuildAction::ImportArtifact { pipeline, commit, git_ref, artifact, file } => {
            let resources = Resources { cpu_millis: 0, memory: ByteSize(0) };
            let request = Request { pipeline, commit, git_ref, cause: &Cause::Import, again: true, resources };
            let subject = request_build(context, request)?;
            let Subject::Build(id) = subject else { return Ok(subject) };
            let mut build = context.build(id)?;
            move_to(context, &mut build, BuildState::Uploading, None)?;
            release(context, &mut build, artifact, file)?;
            Ok(subject)
        }
        BuildAction::Assign { build, runner } => assign(context, *build, runner),
        BuildAction::AssignBatch { assignments } => assign_batch(context, assignments),
        BuildAction::Acknowledge { build, attempt, unisolated } => {
            let mut build = live(context, *build, *attempt)?;
            last_attempt(&mut build)?.acknowledged = true;
            last_attempt(&mut build)?.unisolated = unisolated.clone();
            if build.state == BuildState::Queued {
                move_to(context, &mut build, BuildState::Building, None)?;
            }
            save(context, build)
        }
        BuildAction::Progress { build, attempt, phase } => progress(context, *build, *attempt, phase),
        BuildAction::Succeed { build, attempt, artifact, file, log } => {
            let mut build = live(context, *build, *attempt)?;
            if build.cancel_asked {
                // It was done before the runner heard of it: there is still no release, and nothing deploys itself.
                return end_attempt(context, build, AttemptEnd::Canceled, *log);
            }
            if build.state != BuildState::Uploading {
                return Err(illegal(&build, "succeed before its phases have"));
            }
            close_attempt(context, &mut build, AttemptEnd::Succeeded, *log)?;
            release(context, &mut build, artifact, file)
        }
        BuildAction::End { build, attempt, end, log } => {
            let build = live(context, *build, *attempt)?;
            end_attempt(context, build, end.clone(), *log)
        }
        BuildAction::Cancel { build } => cancel(context, *build),
        BuildAction::Retry { build } => {
            let build = context.build(*build)?;
            context.check_revision(&Subject::Build(build.id), build.revision)?;
            if !build.state.is_end() || build.state == BuildState::ReadyToDeploy {
                return Err(illegal(&build, "be retried"));
            }
            let (pipeline, commit, git_ref) = (&build.pipeline, &build.commit, &build.git_ref);
            let cause = &Cause::Manual;
            request_build(context, Request { pipeline, commit, git_ref, cause, again: true, resources: build.resources })
        }
    }
}

struct Request<'a> {
    pipeline: &'a PipelineName,
    commit: &'a CommitId,
    git_ref: &'a str,
    cause: &'a Cause,
    again: bool,
    resources: Resources,
}

/// Queues a build, unless this commit has one: the same commit is built once, however many deliveries say so.
fn request_build<T: Tables>(context: &mut Context<'_, T>, request: Request<'_>) -> Result<Subject, RuleError> {
    let pipeline = context.pipeline(request.pipeline)?;
    if request.git_ref.is_empty() || request.git_ref.len() > 250 {
        return Err(invalid("ref", "it must have between 1 and 250 bytes"));
    }
    let mut moved_here = false;
    if *request.cause == Cause::Push {
        let seen: Option<ConsideredRef> = context.tables.get(&considered_key(request.pipeline, request.git_ref))?;
        moved_here = seen.is_none_or(|seen| seen.commit != *request.commit);
        consider(context, request.pipeline, request.git_ref, Some(request.commit))?;
    }
    let commit_key = key(request.pipeline.as_str()).then(request.commit.as_str());
    let known: Option<BuildByCommit> = context.tables.get(&commit_key)?;
    if let Some(known) = known.filter(|_| !request.again) {
        let known = context.build(known.build)?;
        // A build of a pipeline that was removed says nothing of this one; one that gave way to a newer push built nothing.
        let stands = known.created_at >= pipeline.created_at && known.state != BuildState::Superseded;
        if stands && moved_here && known.git_ref != request.git_ref {
            deploy_known(context, &known, request.git_ref)?;
        }
        if stands {
            return Ok(Subject::Build(known.id));
        }
    }
    let id = BuildId(context.cluster.next_build);
    context.cluster.next_build += 1;
    if pipeline.supersede && *request.cause == Cause::Push {
        supersede(context, request.pipeline, request.git_ref, id)?;
    }
    let build = Build {
        id,
        pipeline: request.pipeline.clone(),
        commit: request.commit.clone(),
        git_ref: request.git_ref.to_owned(),
        cause: request.cause.clone(),
        state: BuildState::Queued,
        resources: request.resources,
        attempts: Vec::new(),
        cancel_asked: false,
        artifact: None,
        release: None,
        by: context.principal.clone(),
        created_at: context.at,
        queued_at: context.at,
        ended_at: None,
        revision: context.index,
    };
    context.tables.put(&BuildByCommit { pipeline: build.pipeline.clone(), commit: build.commit.clone(), build: id })?;
    let subject = Subject::Build(id);
    let event = context.event(subject.clone(), EventKind::BuildQueued).moved("", BuildState::Queued);
    event.data(DataKey::Pipeline, &build.pipeline).data(DataKey::Commit, &build.commit).data(DataKey::Ref, &build.git_ref);
    context.created.push(subject);
    save(context, build)
}

/// A branch moved to a commit that was built for another one, such as by a fast-forward merge: its release deploys itself where that
/// branch does.
fn deploy_known<T: Tables>(context: &mut Context<'_, T>, build: &Build, git_ref: &str) -> Result<(), RuleError> {
    let (Some(id), Some(branch)) = (&build.release, git_ref.strip_prefix("refs/heads/")) else { return Ok(()) };
    let release = context.release(id)?;
    let by = context.principal.clone();
    rollout_apply::start_automatically(context, &release, &[branch.to_owned()], &by)
}

/// Ends the queued builds of the same ref: a newer push takes their place.
fn supersede<T: Tables>(
    context: &mut Context<'_, T>,
    pipeline: &PipelineName,
    git_ref: &str,
    by: BuildId,
) -> Result<(), RuleError> {
    let of_ref = Scan::prefix(queued_by_ref_prefix(pipeline, git_ref));
    for queued in context.tables.scan::<QueuedByRef>(&of_ref, SCAN_RECORDS_MAX)? {
        let mut build = context.build(queued.build)?;
        move_to(context, &mut build, BuildState::Superseded, Some(&format!("{by} is newer")))?;
        save(context, build)?;
    }
    Ok(())
}

fn progress<T: Tables>(
    context: &mut Context<'_, T>,
    id: BuildId,
    attempt: u32,
    phase: &PhaseRecord,
) -> Result<Subject, RuleError> {
    let mut build = live(context, id, attempt)?;
    if !last_attempt(&mut build)?.acknowledged {
        return Err(illegal(&build, "report a phase before it was acknowledged"));
    }
    let next = phase.phase.state();
    if build.state != next {
        move_to(context, &mut build, next, None)?;
    }
    let phases = &mut last_attempt(&mut build)?.phases;
    match phases.iter_mut().find(|kept| kept.phase == phase.phase) {
        // Said twice, or overtaken: what ended has ended.
        Some(kept) if kept.ended_at.is_some() => return Ok(Subject::Build(id)),
        Some(kept) => *kept = phase.clone(),
        None => phases.push(phase.clone()),
    }
    if phase.ended_at.is_some() {
        let event = context.event(Subject::Build(id), EventKind::BuildPhaseEnded).data(DataKey::Phase, phase.phase);
        match phase.exit_code {
            _ if phase.skipped => event.data(DataKey::Skipped, true),
            Some(code) => event.data(DataKey::ExitCode, code),
            None => event,
        };
    }
    save(context, build)
}

/// Stores what the build made, and makes the release. Environments that deploy this branch by themselves get their rollouts at once.
fn release<T: Tables>(
    context: &mut Context<'_, T>,
    build: &mut Build,
    stored: &StoredArtifact,
    file: &PipelineFile,
) -> Result<Subject, RuleError> {
    let mut pipeline = context.pipeline(&build.pipeline)?;
    let manifest = store_artifact(context, build, stored, pipeline.retention)?;
    let id = ReleaseId { pipeline: build.pipeline.clone(), number: pipeline.next_release };
    pipeline.next_release += 1;
    context.tables.put(&pipeline)?;
    let release = Release {
        id: id.clone(),
        artifact: stored.digest,
        manifest,
        build: build.id,
        commit: build.commit.clone(),
        git_ref: build.git_ref.clone(),
        file: file.clone(),
        by: build.by.clone(),
        created_at: context.at,
    };
    context.tables.put(&release)?;
    uses::add_release(context.tables, stored.digest)?;
    build.artifact = Some(stored.digest);
    build.release = Some(id.clone());
    move_to(context, build, BuildState::ReadyToDeploy, None)?;
    let event = context.event(Subject::Release(id.clone()), EventKind::ReleaseCreated);
    event.data(DataKey::Build, build.id).data(DataKey::Artifact, stored.digest).data(DataKey::Commit, &build.commit);
    context.created.push(Subject::Release(id));
    // Other branches may have come to the commit while it was built.
    let seen: Vec<ConsideredRef> = context.tables.scan(&Scan::prefix(key(build.pipeline.as_str())), SCAN_RECORDS_MAX)?;
    let here = seen.iter().filter(|seen| seen.commit == build.commit).map(|seen| seen.git_ref.as_str());
    // Whoever builds an old commit once more does not mean to put it in the place of what the branch has now.
    let moved_on = |seen: &&ConsideredRef| seen.git_ref == build.git_ref && seen.commit != build.commit;
    let head = seen.iter().find(moved_on).filter(|_| build.cause == Cause::Manual).map(|seen| &seen.commit);
    let refs = here.chain(head.is_none().then_some(build.git_ref.as_str()));
    let branches: BTreeSet<String> = refs.filter_map(|git_ref| git_ref.strip_prefix("refs/heads/")).map(str::to_owned).collect();
    if let Some(head) = head {
        let event = context.event(Subject::Release(release.id.clone()), EventKind::ReleaseDeploySkipped);
        event.data(DataKey::Code, "moved_on").note(format!(
            "{} is at {} by now: deploy it by hand if it is meant",
            build.git_ref,
            head.short()
        ));
    }
    let subject = save(context, build.clone())?;
    rollout_apply::start_automatically(context, &release, &Vec::from_iter(branches), &release.by)?;
    Ok(subject)
}

/// Records the artifact, and returns its manifest. While its bytes are stored, the first manifest stays, whatever builds the same bytes
/// again: what runs was told that one. The longest retention of all who built it holds.
fn store_artifact<T: Tables>(
    context: &mut Context<'_, T>,
    build: &Build,
    stored: &StoredArtifact,
    retention: Retention,
) -> Result<Digest, RuleError> {
    let expires_at = context.at.plus(retention.age);
    let kept: Option<Artifact> = context.tables.get(&key(stored.digest.hex().as_str()))?;
    let artifact = match kept {
        Some(kept) if kept.deleted_at.is_none() => {
            // The new release needs it, so it cannot expire before that changes.
            let entry = ArtifactExpiry { expires_at: kept.expires_at, digest: kept.digest };
            context.tables.delete::<ArtifactExpiry>(&entry.key())?;
            Artifact { expires_at: kept.expires_at.max(expires_at), ..kept }
        }
        kept => Artifact {
            digest: stored.digest,
            size: stored.size,
            unpacked_size: stored.unpacked_size,
            manifest: stored.manifest,
            pipeline: build.pipeline.clone(),
            commit: build.commit.clone(),
            created_at: kept.map_or(context.at, |kept| kept.created_at),
            expires_at,
            deleted_at: None,
        },
    };
    context.tables.put(&artifact)?;
    Ok(artifact.manifest)
}

/// Ends the live attempt and moves the build to where that leads.
fn end_attempt<T: Tables>(
    context: &mut Context<'_, T>,
    mut build: Build,
    end: AttemptEnd,
    log: Option<Digest>,
) -> Result<Subject, RuleError> {
    let acknowledged = build.live_attempt().is_some_and(|attempt| attempt.acknowledged);
    let (next, why) = match &end {
        AttemptEnd::Succeeded => return Err(invalid("end", "an attempt that succeeded says so with its artifact")),
        AttemptEnd::Failed(failure) => (failure.phase.failed_state(), failure.reason.clone()),
        AttemptEnd::TimedOut(failure) => (BuildState::TimedOut, failure.reason.clone()),
        AttemptEnd::Canceled => (BuildState::Canceled, "it was canceled".to_owned()),
        AttemptEnd::Lost(_) if build.cancel_asked => (BuildState::Canceled, "it was canceled".to_owned()),
        AttemptEnd::Lost(why) if build.attempts.len() >= ATTEMPTS_MAX => (BuildState::Exhausted, why.clone()),
        AttemptEnd::Lost(why) => (BuildState::Queued, why.clone()),
    };
    let end = match end {
        AttemptEnd::Failed(mut failure) => {
            failure.output = cut_front(&failure.output);
            AttemptEnd::Failed(failure)
        }
        other => other,
    };
    close_attempt(context, &mut build, end, log)?;
    match (build.state, next) {
        // Lost before the runner said that it has it: the build never left the queue.
        (BuildState::Queued, BuildState::Queued) => {
            let note = format!("attempt {} was lost: {why}", build.attempts.len());
            context.event(Subject::Build(build.id), EventKind::BuildAttemptLost).note(note);
        }
        (BuildState::Queued, BuildState::Exhausted) => {
            move_to(context, &mut build, BuildState::Building, None)?;
            move_to(context, &mut build, BuildState::Exhausted, Some(&why))?;
        }
        (BuildState::Queued, next) if !acknowledged && next != BuildState::Canceled => {
            return Err(illegal(&build, "fail before it was acknowledged"));
        }
        // A phase that fails is the one that ran: the build stands in its state, or in an earlier one where it had just begun.
        (_, next) => {
            let mut next = next;
            if let BuildState::BuildFailed | BuildState::TestFailed = next {
                catch_up(context, &mut build, next)?;
                if !build.state.may_become(next) {
                    // A phase that is over failed after all: the build fails, whichever phase stands in its way.
                    next = BuildState::BuildFailed;
                }
            }
            move_to(context, &mut build, next, Some(&why))?;
        }
    }
    if build.state == BuildState::Queued {
        build.queued_at = context.at;
    }
    save(context, build)
}

/// Walks the build to the state from which `end` can follow, so that each transition has its event.
fn catch_up<T: Tables>(context: &mut Context<'_, T>, build: &mut Build, end: BuildState) -> Result<(), RuleError> {
    let way = [BuildState::Building, BuildState::Testing, BuildState::Packaging, BuildState::Uploading];
    for next in way {
        if build.state.may_become(end) || build.state == BuildState::Uploading {
            return Ok(());
        }
        if build.state.may_become(next) {
            move_to(context, build, next, None)?;
        }
    }
    Ok(())
}

/// Keeps the end of `output`, where the reason usually stands.
fn cut_front(output: &str) -> String {
    match output.len().saturating_sub(OUTPUT_BYTES_MAX) {
        0 => output.to_owned(),
        beyond => format!("…{}", &output[output.ceil_char_boundary(beyond)..]),
    }
}

fn cancel<T: Tables>(context: &mut Context<'_, T>, id: BuildId) -> Result<Subject, RuleError> {
    let mut build = context.build(id)?;
    context.check_revision(&Subject::Build(id), build.revision)?;
    if build.state.is_end() {
        return Err(illegal(&build, "be canceled"));
    }
    if build.live_attempt().is_some() {
        // The runner stops it first; then the attempt ends as canceled.
        if !build.cancel_asked {
            build.cancel_asked = true;
            context.event(Subject::Build(id), EventKind::BuildCancelRequested);
        }
        return save(context, build);
    }
    move_to(context, &mut build, BuildState::Canceled, Some("it was canceled"))?;
    save(context, build)
}

/// The build, if `attempt` is its live one.
fn live<T: Tables>(context: &Context<'_, T>, id: BuildId, attempt: u32) -> Result<Build, RuleError> {
    let build = context.build(id)?;
    match build.live_attempt() {
        Some(live) if live.number == attempt => Ok(build),
        _ => Err(Rejection::StaleAttempt(Subject::Build(id), attempt).into()),
    }
}

fn last_attempt(build: &mut Build) -> Result<&mut Attempt, RuleError> {
    let id = build.id;
    build.attempts.last_mut().ok_or_else(|| Rejection::StaleAttempt(Subject::Build(id), 0).into())
}

fn close_attempt<T: Tables>(
    context: &Context<'_, T>,
    build: &mut Build,
    end: AttemptEnd,
    log: Option<Digest>,
) -> Result<(), RuleError> {
    let at = context.at;
    let attempt = last_attempt(build)?;
    attempt.end = Some(end);
    attempt.log = log;
    attempt.ended_at = Some(at);
    Ok(())
}

pub(super) fn illegal(build: &Build, verb: &str) -> RuleError {
    Rejection::Illegal { subject: Subject::Build(build.id), state: build.state.to_string(), verb: verb.to_owned() }.into()
}

/// The only place where a build's state changes.
fn move_to<T: Tables>(
    context: &mut Context<'_, T>,
    build: &mut Build,
    next: BuildState,
    why: Option<&str>,
) -> Result<(), RuleError> {
    if !build.state.may_become(next) {
        return Err(illegal(build, &format!("become {next}")));
    }
    let (at, from) = (context.at, build.state);
    build.state = next;
    build.ended_at = next.is_end().then_some(at);
    let event = context
        .event(Subject::Build(build.id), EventKind::of_build_state(next))
        .moved(from, next)
        .data(DataKey::Pipeline, &build.pipeline);
    if let Some(why) = why {
        event.note(why);
    }
    Ok(())
}

pub(super) fn save<T: Tables>(context: &mut Context<'_, T>, mut build: Build) -> Result<Subject, RuleError> {
    build.revision = context.index;
    let before: Option<Build> = context.tables.get(&key(build.id.0))?;
    index::update(context.tables, before.as_ref(), Some(&build))?;
    context.tables.put(&build)?;
    Ok(Subject::Build(build.id))
}
