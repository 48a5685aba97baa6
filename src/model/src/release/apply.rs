//! Artifacts: an artifact that anything runs or could go back to is never deleted.

use std::collections::BTreeSet;

use crate::apply::context::Context;
use crate::{
    command::ArtifactAction,
    digest::Digest,
    event::{DataKey, EventKind, Subject},
    rejection::{Rejection, RuleError},
    release::{Artifact, retention::protected_artifacts},
    tables::{Tables, key},
};

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &ArtifactAction) -> Result<Subject, RuleError> {
    match action {
        ArtifactAction::Delete { digests } => delete(context, digests),
    }
}

fn delete<T: Tables>(context: &mut Context<'_, T>, digests: &[Digest]) -> Result<Subject, RuleError> {
    let protected: BTreeSet<Digest> = protected_artifacts(context.tables)?;
    let mut subject = Subject::Cluster;
    for digest in digests {
        subject = Subject::Artifact(*digest);
        if protected.contains(digest) {
            let by = "an environment runs it or could roll back to it".to_owned();
            return Err(Rejection::Needed { subject, by }.into());
        }
        let kept: Option<Artifact> = context.tables.get(&key(digest.hex().as_str()))?;
        let mut artifact = kept.ok_or_else(|| Rejection::NotFound(subject.clone()))?;
        if artifact.deleted_at.is_none() {
            artifact.deleted_at = Some(context.at);
            context.tables.put(&artifact)?;
            context.event(subject.clone(), EventKind::ArtifactDeleted).data(DataKey::Size, artifact.size);
        }
    }
    Ok(subject)
}
