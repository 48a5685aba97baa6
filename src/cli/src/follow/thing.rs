//! What can be followed: a build or a rollout, where it is, and what its end means. Knows nothing of how it is drawn.

use serde_json::Value;

use crate::{
    failure::{Exit, Failure, Result},
    human,
    views::{self, Build, Rollout},
};
use swell_model::ids::{BuildId, RolloutId};

/// Which kind of thing an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `b42`
    Build,
    /// `r7`
    Rollout,
}

impl Kind {
    /// The kind that `id` names, if any.
    pub fn of(id: &str) -> Option<Self> {
        if id.parse::<BuildId>().is_ok() {
            Some(Self::Build)
        } else if id.parse::<RolloutId>().is_ok() {
            Some(Self::Rollout)
        } else {
            None
        }
    }

    /// [`Kind::of`], or the failure that it is none.
    pub fn named(id: &str) -> Result<Self> {
        Self::of(id).ok_or_else(|| {
            Failure::usage(format!("`{id}` is neither a build nor a rollout"))
                .hint("write an id such as `b42` or `r7`; `swell history` lists them")
        })
    }

    /// The collection in the API.
    pub fn collection(self) -> &'static str {
        match self {
            Self::Build => "builds",
            Self::Rollout => "rollouts",
        }
    }

    /// What events about it have as subject.
    pub fn subject(self, id: &str) -> String {
        match self {
            Self::Build => format!("build/{id}"),
            Self::Rollout => format!("rollout/{id}"),
        }
    }
}

/// A build or a rollout as the server showed it.
#[derive(Debug, Clone, PartialEq)]
pub enum Thing {
    /// A build.
    Build(Box<Build>),
    /// A rollout.
    Rollout(Box<Rollout>),
}

impl Thing {
    /// Reads what the server said.
    pub fn read(kind: Kind, value: &Value) -> Result<Self> {
        Ok(match kind {
            Kind::Build => Self::Build(Box::new(views::read(value)?)),
            Kind::Rollout => Self::Rollout(Box::new(views::read(value)?)),
        })
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Build(_) => Kind::Build,
            Self::Rollout(_) => Kind::Rollout,
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        match self {
            Self::Build(build) => &build.id,
            Self::Rollout(rollout) => &rollout.id,
        }
    }

    /// Where it is.
    pub fn state(&self) -> &str {
        match self {
            Self::Build(build) => &build.state,
            Self::Rollout(rollout) => &rollout.state,
        }
    }

    /// Whether nothing more will happen.
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

    /// When it was asked for.
    pub fn created_at(&self) -> u64 {
        match self {
            Self::Build(build) => build.created_at,
            Self::Rollout(rollout) => rollout.created_at,
        }
    }

    /// What its state means for whoever waited; none: it goes on.
    pub fn exit(&self) -> Option<Exit> {
        match (self, self.state()) {
            (_, "awaiting-approval") => Some(Exit::AwaitsApproval),
            _ if !self.ended() => None,
            (Self::Build(_), "ready-to-deploy") | (Self::Rollout(_), "deployed") => Some(Exit::Done),
            (Self::Rollout(_), "rolled-back") => Some(Exit::RolledBack),
            (Self::Rollout(_), "failed") => Some(Exit::RollbackFailed),
            _ => Some(Exit::Failed),
        }
    }

    /// It in a line: what, where to, where it is.
    pub fn sentence(&self) -> String {
        match self {
            Self::Build(build) => {
                let what =
                    format!("{}: {} {} ({})", build.id, build.pipeline, human::short(&build.commit), short_ref(&build.git_ref));
                let release = build.release.as_ref().map(|release| format!(", release {release}")).unwrap_or_default();
                let took = took(build.created_at, build.ended_at);
                format!("{what} {}{release}{took}", build.state)
            }
            Self::Rollout(rollout) => {
                let (release, environment) = (&rollout.release, &rollout.environment);
                let took = took(rollout.created_at, rollout.ended_at);
                let targets = human::count(rollout.total, "target");
                let end = match rollout.state.as_str() {
                    "deployed" => format!("{environment} runs {release} on {targets}"),
                    "rolled-back" => match &rollout.stable {
                        Some(stable) => format!("{environment} is back on {stable}; {release} is quarantined there"),
                        None => format!("what {release} started in {environment} was stopped; there was nothing to go back to"),
                    },
                    "failed" => format!("{environment} could not go back from {release} everywhere: a person is needed"),
                    "preempted" => {
                        let by = rollout.preempted_by.as_deref().unwrap_or("another rollout");
                        format!("{by} took the place of {release} in {environment}")
                    }
                    "canceled" => format!("{release} was not deployed to {environment}"),
                    state => return format!("{}: {release} to {environment}, {targets}: {state}", rollout.id),
                };
                format!("{}: {}: {end}{took}", rollout.id, rollout.state)
            }
        }
    }

    /// How to go on looking, and how to stop it.
    pub fn how_to_go_on(&self) -> String {
        let id = self.id();
        format!("{id} goes on. Follow it: swell status {id} --watch   Stop it: swell abort {id}")
    }
}

fn took(from_ms: u64, to_ms: Option<u64>) -> String {
    to_ms.map(|to_ms| format!(" (after {})", human::duration(to_ms.saturating_sub(from_ms)))).unwrap_or_default()
}

/// A ref as people call it.
pub fn short_ref(git_ref: &str) -> &str {
    git_ref.strip_prefix("refs/heads/").or_else(|| git_ref.strip_prefix("refs/tags/")).unwrap_or(git_ref)
}
