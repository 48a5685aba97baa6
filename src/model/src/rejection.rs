//! Why a command changes nothing. Each reason is typed, has a stable code, and says what to do.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    cluster::Epoch,
    event::Subject,
    ids::{ReleaseId, RolloutId},
    rollout::availability::AvailabilityViolation,
    tables::TablesError,
};

/// Why a rule gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// The rules say no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// State cannot be read or written.
    #[error(transparent)]
    Tables(#[from] TablesError),
}

/// Why a command changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// Nothing has that name.
    #[error("there is no {0}")]
    NotFound(Subject),
    /// Something has that name already.
    #[error("{0} exists already")]
    Exists(Subject),
    /// A value cannot be what it was given as.
    #[error("{what}: {why}")]
    Invalid { what: String, why: String },
    /// The state machine has no such arrow.
    #[error("{subject} is {state}: it cannot {verb}")]
    Illegal {
        subject: Subject,
        state: String,
        /// What was asked.
        verb: String,
    },
    /// Sent by a leader that was deposed.
    #[error("sent in epoch {sent:?}, but epoch {now:?} has begun")]
    StaleEpoch {
        /// The command's.
        sent: Epoch,
        /// The present one.
        now: Epoch,
    },
    /// About an attempt that is not live.
    #[error("{0}'s attempt {1} is not the live one")]
    StaleAttempt(Subject, u32),
    /// Changed since the client looked (`If-Match`).
    #[error("{subject} has changed: it is at revision {now}, not {expected}")]
    Changed {
        subject: Subject,
        /// The revision that was expected.
        expected: u64,
        /// The present one.
        now: u64,
    },
    /// The idempotency key stands for something else.
    #[error("this Idempotency-Key was used for another request: use a new one")]
    KeyReused,
    /// A ref is not where the push thinks it is.
    #[error("{git_ref} of {subject} has moved: it is at {now}")]
    RefMoved { subject: Subject, git_ref: String, now: String },
    /// Someone else holds what it needs.
    #[error("{subject} is held by {holder}")]
    Held { subject: Subject, holder: Subject },
    /// The release was rolled back here and no person has cleared it.
    #[error("{release} is quarantined in {environment}: {rollout} went back from it")]
    Quarantined {
        release: ReleaseId,
        environment: Subject,
        /// The rollout that went back from the release.
        rollout: RolloutId,
    },
    /// Nothing may be deployed to the environment at the moment.
    #[error("{0} is frozen")]
    Frozen(Subject),
    /// There is no former release.
    #[error("{0} has no former release to go back to")]
    NoFormerRelease(Subject),
    /// The environment has no target.
    #[error("{0} has no target")]
    NoTargets(Subject),
    /// The plan is another one now.
    #[error("the plan of {subject} has changed: it is {now}")]
    PlanChanged {
        subject: Subject,
        /// Its present digest.
        now: String,
    },
    /// It cannot be now: more would be at work or away than may be.
    #[error("{subject}: {why}")]
    Unavailable { subject: Subject, why: String },
    /// More targets would be unavailable than may be.
    #[error("{subject}: {bound}")]
    TooManyUnavailable {
        /// The rollout.
        subject: Subject,
        /// The bound that it would break.
        bound: AvailabilityViolation,
    },
    /// Something still needs it.
    #[error("{subject} is still needed: {by}")]
    Needed { subject: Subject, by: String },
    /// Another target has ports at the same address: gateways could not tell them apart.
    #[error("{address} with ports {first}-{last} belongs to {holder}")]
    AddressInUse {
        address: IpAddr,
        /// First port of the other target's range.
        first: u16,
        /// Last port of the other target's range.
        last: u16,
        /// The other target.
        holder: Subject,
    },
    /// The bytes of a release's artifact are gone.
    #[error("the artifact of {0} was deleted by its pipeline's retention")]
    ArtifactDeleted(ReleaseId),
}

impl Rejection {
    /// The stable code, as the API and `--json` print it.
    pub fn code(&self) -> &'static str {
        match self {
            Rejection::NotFound(_) => "not_found",
            Rejection::Exists(_) => "exists",
            Rejection::Invalid { .. } => "invalid",
            Rejection::Illegal { .. } => "illegal_transition",
            Rejection::StaleEpoch { .. } => "stale_epoch",
            Rejection::StaleAttempt(..) => "stale_attempt",
            Rejection::Changed { .. } => "changed",
            Rejection::KeyReused => "key_reused",
            Rejection::RefMoved { .. } => "ref_moved",
            Rejection::Held { .. } => "held",
            Rejection::Quarantined { .. } => "quarantined",
            Rejection::Frozen(_) => "frozen",
            Rejection::NoFormerRelease(_) => "no_former_release",
            Rejection::NoTargets(_) => "no_targets",
            Rejection::PlanChanged { .. } => "plan_changed",
            Rejection::Unavailable { .. } | Rejection::TooManyUnavailable { .. } => "unavailable",
            Rejection::Needed { .. } => "needed",
            Rejection::AddressInUse { .. } => "address_in_use",
            Rejection::ArtifactDeleted(_) => "artifact_deleted",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Rejection::NotFound(Subject::Pipeline(_)) => {
                "`swell pipeline ls` lists them; `swell pipeline create` registers one".into()
            }
            Rejection::NotFound(Subject::Environment(_)) => "`swell env ls` lists them; `swell env create` makes one".into(),
            Rejection::NotFound(Subject::Target(_)) => "`swell fleet ls` lists them".into(),
            Rejection::NotFound(_) => "`swell status` and `swell history` list what there is".into(),
            Rejection::Exists(_) => "choose another name, or use what is there".into(),
            Rejection::Invalid { .. } => "correct the value and try again".into(),
            Rejection::Illegal { subject, .. } => format!("`swell status {}` shows where it is", id_of(subject)),
            Rejection::StaleEpoch { .. } | Rejection::StaleAttempt(..) => "nothing: whoever took over goes on".into(),
            Rejection::Changed { .. } => "look again, then repeat the command if it still applies".into(),
            Rejection::KeyReused => "a key is for one request and its retries: choose a new one, such as a UUID".into(),
            Rejection::RefMoved { .. } => "fetch, merge or rebase, and push again".into(),
            Rejection::Held { holder: Subject::Release(newer), .. } => {
                format!("nothing, if the newer one is meant; else `swell deploy {} --release` with the other", newer.pipeline)
            }
            Rejection::Held { holder, .. } => format!("wait for {} or stop it: `swell abort {}`", id_of(holder), id_of(holder)),
            Rejection::Quarantined { release, environment, .. } => {
                format!("deploy another release, or clear it: `swell env clear {} {release}`", id_of(environment))
            }
            Rejection::Frozen(environment) => format!("wait, or unfreeze it: `swell env unfreeze {}`", id_of(environment)),
            Rejection::NoFormerRelease(_) => "name a release with --to (`swell history` lists them); a first deploy that is at work is stopped by `swell abort`".into(),
            Rejection::NoTargets(_) => {
                "start an agent whose labels match, or uncordon a target: `swell env show` prints the selector, `swell fleet ls` the targets".into()
            }
            Rejection::PlanChanged { .. } => "look at the new plan with `swell plan` and deploy with its hash".into(),
            Rejection::Unavailable { .. } | Rejection::TooManyUnavailable { .. } => "nothing: the rollout goes on when targets are back".into(),
            Rejection::Needed { .. } => "remove what needs it first".into(),
            Rejection::AddressInUse { holder, .. } => format!(
                "give this agent another address or port range, or remove the other target with `swell fleet rm {}`",
                id_of(holder)
            ),
            Rejection::ArtifactDeleted(_) => "build its commit again: `swell build PIPELINE --ref COMMIT --again`".into(),
        }
    }

    /// Whether the same command can succeed later without anyone changing it.
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Rejection::Held { .. } | Rejection::Unavailable { .. } | Rejection::TooManyUnavailable { .. } | Rejection::Frozen(_)
        )
    }
}

/// The subject's own id or name, as commands take it.
fn id_of(subject: &Subject) -> String {
    let text = subject.to_string();
    text.split_once('/').map_or(text.clone(), |(_, id)| id.to_owned())
}
