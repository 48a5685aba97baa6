//! Deleting artifacts: one that anything runs or could go back to, or that a retention keeps, is never deleted, whatever view of state led
//! to the command.

use crate::apply::context::Context;
use crate::{
    command::ArtifactAction,
    digest::Digest,
    event::{DataKey, EventKind, Subject},
    rejection::{Rejection, RuleError},
    release::{Artifact, ArtifactExpiry, ArtifactUse},
    tables::{Record, Tables, key},
};

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &ArtifactAction) -> Result<Subject, RuleError> {
    match action {
        ArtifactAction::Delete { digests } => delete(context, digests),
    }
}

fn delete<T: Tables>(context: &mut Context<'_, T>, digests: &[Digest]) -> Result<Subject, RuleError> {
    let mut subject = Subject::Cluster;
    for digest in digests {
        subject = Subject::Artifact(*digest);
        let by_digest = key(digest.hex().as_str());
        let uses: Option<ArtifactUse> = context.tables.get(&by_digest)?;
        if uses.as_ref().is_some_and(|uses| uses.needed > 0) {
            let by = "an environment runs it or could roll back to it, or it is among the newest of its pipeline".to_owned();
            return Err(Rejection::Needed { subject, by }.into());
        }
        let kept: Option<Artifact> = context.tables.get(&by_digest)?;
        let mut artifact = kept.ok_or_else(|| Rejection::NotFound(subject.clone()))?;
        if artifact.deleted_at.is_some() {
            continue;
        }
        if artifact.expires_at > context.at {
            let by = "the retention of a pipeline that built it keeps it".to_owned();
            return Err(Rejection::Needed { subject, by }.into());
        }
        let entry = ArtifactExpiry { expires_at: artifact.expires_at, digest: *digest };
        context.tables.delete::<ArtifactExpiry>(&entry.key())?;
        context.event(subject.clone(), EventKind::ArtifactDeleted).data(DataKey::Size, artifact.size);
        artifact.deleted_at = Some(context.at);
        match uses {
            Some(_) => context.tables.put(&artifact)?,
            // Its last release left state before.
            None => context.tables.delete::<Artifact>(&by_digest)?,
        }
    }
    Ok(subject)
}
