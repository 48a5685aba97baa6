//! The resources that can be followed: a build or a rollout, its state, and the exit code of its end. Knows nothing of how it is
//! drawn.

use serde_json::Value;

use crate::{
    failure::{Exit, Failure, Result},
    human,
    views::{self, Build, Rollout},
};
use swell_model::{
    build::BuildState,
    ids::{BuildId, RolloutId},
    rollout::RolloutState,
};

/// The kind of resource that an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceKind {
    /// Named by an id such as `b42`.
    Build,
    /// Named by an id such as `r7`.
    Rollout,
}

impl ResourceKind {
    /// The kind that `id` names, if it is an id at all.
    pub fn of(id: &str) -> Option<Self> {
        if id.parse::<BuildId>().is_ok() {
            Some(Self::Build)
        } else if id.parse::<RolloutId>().is_ok() {
            Some(Self::Rollout)
        } else {
            None
        }
    }

    /// [`ResourceKind::of`], or a failure that says how ids are written.
    pub fn named(id: &str) -> Result<Self> {
        Self::of(id).ok_or_else(|| {
            Failure::usage(format!("`{id}` is not the id of a build or rollout"))
                .hint("write an id such as b42 or r7; `swell history` lists them")
        })
    }

    /// The collection in the API.
    pub fn collection(self) -> &'static str {
        match self {
            Self::Build => "builds",
            Self::Rollout => "rollouts",
        }
    }

    /// The word for one of them, also the key in `--json` output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Rollout => "rollout",
        }
    }

    /// The subject of its events.
    pub fn subject(self, id: &str) -> String {
        format!("{}/{id}", self.name())
    }
}

/// A build or a rollout as the server described it last.
#[derive(Debug, Clone, PartialEq)]
pub enum FollowedResource {
    Build(Box<Build>),
    Rollout(Box<Rollout>),
}

impl FollowedResource {
    /// Reads the server's answer.
    pub fn read(kind: ResourceKind, value: &Value) -> Result<Self> {
        Ok(match kind {
            ResourceKind::Build => Self::Build(Box::new(views::read(value)?)),
            ResourceKind::Rollout => Self::Rollout(Box::new(views::read(value)?)),
        })
    }

    /// Build or rollout.
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Build(_) => ResourceKind::Build,
            Self::Rollout(_) => ResourceKind::Rollout,
        }
    }

    /// Its id, such as `b42` or `r7`.
    pub fn id(&self) -> &str {
        match self {
            Self::Build(build) => &build.id,
            Self::Rollout(rollout) => &rollout.id,
        }
    }

    /// The state's name, for display.
    pub fn state(&self) -> &str {
        match self {
            Self::Build(build) => build.state.name(),
            Self::Rollout(rollout) => rollout.state.name(),
        }
    }

    /// Whether the server will change nothing more.
    pub fn ended(&self) -> bool {
        match self {
            Self::Build(build) => build.ended,
            Self::Rollout(rollout) => rollout.ended,
        }
    }

    /// What it waits for, in the server's words.
    pub fn waits_for(&self) -> Option<&str> {
        match self {
            Self::Build(build) => build.waits_for.as_deref(),
            Self::Rollout(rollout) => rollout.waits_for.as_deref(),
        }
    }

    /// What it waits for, as a clause. A blocked rollout says what blocks it, and how to cancel it.
    pub fn waiting(&self) -> Option<String> {
        let reason = self.waits_for()?;
        Some(match self {
            Self::Rollout(rollout) if rollout.state.get() == Some(RolloutState::Blocked) => {
                format!("{reason}; cancel with `swell abort {}`", rollout.id)
            }
            _ => format!("waiting for {reason}"),
        })
    }

    /// When it was requested, in milliseconds since 1970.
    pub fn created_at(&self) -> u64 {
        match self {
            Self::Build(build) => build.created_at,
            Self::Rollout(rollout) => rollout.created_at,
        }
    }

    /// The exit code of its end; none while it goes on. An end that this client does not know counts as failed.
    pub fn exit(&self) -> Option<Exit> {
        if !self.ended() {
            return None;
        }
        Some(match self {
            Self::Build(build) => match build.state.get() {
                Some(BuildState::ReadyToDeploy) => Exit::Done,
                _ => Exit::Failed,
            },
            Self::Rollout(rollout) => match rollout.state.get() {
                Some(RolloutState::Deployed) => Exit::Done,
                Some(RolloutState::RolledBack) => Exit::RolledBack,
                Some(RolloutState::Failed) => Exit::RollbackFailed,
                _ => Exit::Failed,
            },
        })
    }

    /// A line that says what it is, where it goes and how it stands.
    pub fn sentence(&self) -> String {
        match self {
            Self::Build(build) => build_sentence(build),
            Self::Rollout(rollout) => rollout_sentence(rollout),
        }
    }

    /// How to follow it again, and how to stop it.
    pub fn how_to_resume(&self) -> String {
        let id = self.id();
        format!("{id} continues. Follow it: swell status {id} --watch   Stop it: swell abort {id}")
    }
}

fn build_sentence(build: &Build) -> String {
    let what = format!("{}: {} {} ({})", build.id, build.pipeline, human::short(&build.commit), short_ref(&build.git_ref));
    if build.cancel_asked && !build.ended {
        return format!("{what} is being canceled");
    }
    let release = build.release.as_ref().map(|release| format!(", release {release}")).unwrap_or_default();
    format!("{what} {}{release}{}", build.state, took(build.created_at, build.ended_at))
}

fn rollout_sentence(rollout: &Rollout) -> String {
    let (id, release, environment) = (&rollout.id, &rollout.release, &rollout.environment);
    let targets = human::count(rollout.total, "target");
    let end = match rollout.state.get() {
        Some(RolloutState::Deployed) => format!("{environment} runs {release} on {targets}"),
        Some(RolloutState::RolledBack) => match &rollout.stable {
            Some(stable) => format!("{environment} is back on {stable}; {release} is quarantined there"),
            None => format!("{release} was stopped in {environment}; there was no earlier release to return to"),
        },
        Some(RolloutState::Failed) => {
            format!("not every target of {environment} could be returned from {release}; run `swell why {id}`")
        }
        Some(RolloutState::Preempted) => {
            let by = rollout.preempted_by.as_deref().unwrap_or("another rollout");
            format!("{by} replaced the rollout of {release} in {environment}")
        }
        Some(RolloutState::Canceled) => format!("{release} was not deployed to {environment}"),
        _ => return format!("{id}: {release} to {environment}, {targets}: {}", rollout.state),
    };
    format!("{id}: {}: {end}{}", rollout.state, took(rollout.created_at, rollout.ended_at))
}

fn took(from_ms: u64, to_ms: Option<u64>) -> String {
    to_ms.map(|to_ms| format!(" (after {})", human::duration(to_ms.saturating_sub(from_ms)))).unwrap_or_default()
}

/// A ref by its short name: a branch or tag without `refs/heads/` or `refs/tags/`.
pub fn short_ref(git_ref: &str) -> &str {
    git_ref.strip_prefix("refs/heads/").or_else(|| git_ref.strip_prefix("refs/tags/")).unwrap_or(git_ref)
}
