//! Who uses a release, and when an artifact that nobody uses expires: counts that follow from every record that names a release. They are
//! brought up to date once a command, from the records that it wrote, so that no rule can forget to count.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    archive::{Archivable, ArchiveEntry},
    change::RecordingTables,
    digest::Digest,
    ids::{PipelineName, ReleaseId},
    pipeline::{Pipeline, Retention},
    release::{Artifact, Release, release_key},
    tables::{Key, Record, Table, Tables, TablesError, key},
    units::{Millis, Timestamp},
};

/// What a record says of releases and of its own end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    /// Releases whose artifacts must stay.
    pub needed: BTreeSet<ReleaseId>,
    /// Releases whose records must stay, besides those that are needed.
    pub named: BTreeSet<ReleaseId>,
    /// What can leave state for the archive, its pipeline, and when it ended.
    pub ended: Option<(Archivable, PipelineName, Timestamp)>,
}

/// How many records use a release. Gone while none does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseUse {
    pub release: ReleaseId,
    /// Records that need its artifact: what runs, what could be gone back to, the newest ones of its pipeline.
    pub needed: u32,
    /// Records that name it, those that need it among them.
    pub named: u32,
}

impl Record for ReleaseUse {
    const TABLE: Table = Table::ReleaseUses;

    fn key(&self) -> Key {
        release_key(&self.release)
    }
}

/// How many releases have an artifact. Gone while none has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactUse {
    pub digest: Digest,
    /// Releases in state.
    pub releases: u32,
    /// Releases that something needs; while there is one, the artifact is never deleted.
    pub needed: u32,
}

impl Record for ArtifactUse {
    const TABLE: Table = Table::ArtifactUses;

    fn key(&self) -> Key {
        key(self.digest.hex().as_str())
    }
}

/// An artifact that nothing needs, by the time from which on it may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactExpiry {
    pub expires_at: Timestamp,
    pub digest: Digest,
}

impl Record for ArtifactExpiry {
    const TABLE: Table = Table::ArtifactExpiries;

    fn key(&self) -> Key {
        key(self.expires_at.0).then(self.digest.hex().as_str())
    }
}

/// How long the records of `pipeline` stay after their end; of one that was removed, for the default time.
fn history_of<T: Tables>(tables: &T, pipeline: &PipelineName) -> Result<Millis, TablesError> {
    let pipeline: Option<Pipeline> = tables.get(&key(pipeline.as_str()))?;
    Ok(pipeline.map_or(Retention::default(), |pipeline| pipeline.retention).history)
}

/// Counts what one command changed. `at` is its time.
pub(crate) fn settle<T: Tables>(tables: &mut RecordingTables<'_, T>, at: Timestamp) -> Result<(), TablesError> {
    let mut changes: BTreeMap<ReleaseId, (i64, i64)> = BTreeMap::new();
    for (before, after) in tables.take_uses() {
        if before.ended.is_none()
            && let Some((what, pipeline, ended_at)) = &after.ended
        {
            let due_at = ended_at.plus(history_of(tables, pipeline)?);
            tables.put(&ArchiveEntry { due_at, what: what.clone() })?;
        }
        for (uses, by) in [(before, -1), (after, 1)] {
            for release in &uses.needed {
                changes.entry(release.clone()).or_default().0 += by;
            }
            for release in uses.named.union(&uses.needed) {
                changes.entry(release.clone()).or_default().1 += by;
            }
        }
    }
    for (release, (needed, named)) in changes {
        if (needed, named) != (0, 0) {
            count_release(tables, release, needed, named, at)?;
        }
    }
    Ok(())
}

fn count_release<T: Tables>(
    tables: &mut T,
    release: ReleaseId,
    needed: i64,
    named: i64,
    at: Timestamp,
) -> Result<(), TablesError> {
    let kept: Option<ReleaseUse> = tables.get(&release_key(&release))?;
    let before = kept.unwrap_or(ReleaseUse { release, needed: 0, named: 0 });
    let add = |count: u32, by: i64| u32::try_from(i64::from(count) + by).unwrap_or(0);
    let after =
        ReleaseUse { release: before.release.clone(), needed: add(before.needed, needed), named: add(before.named, named) };
    if after.named == 0 {
        tables.delete::<ReleaseUse>(&after.key())?
    } else {
        tables.put(&after)?
    }
    let Some(release) = tables.get::<Release>(&release_key(&after.release))? else { return Ok(()) };
    if before.named > 0 && after.named == 0 {
        let due_at = at.plus(history_of(tables, &release.id.pipeline)?);
        tables.put(&ArchiveEntry { due_at, what: Archivable::Release(release.id) })?;
    }
    match (before.needed, after.needed) {
        (0, 1..) => count_artifact(tables, release.artifact, |artifact| artifact.needed += 1),
        (1.., 0) => count_artifact(tables, release.artifact, |artifact| artifact.needed = artifact.needed.saturating_sub(1)),
        _ => Ok(()),
    }
}

/// Changes the count of an artifact, and whether it can expire.
pub(super) fn count_artifact<T: Tables>(
    tables: &mut T,
    digest: Digest,
    change: impl FnOnce(&mut ArtifactUse),
) -> Result<(), TablesError> {
    let kept: Option<ArtifactUse> = tables.get(&key(digest.hex().as_str()))?;
    let mut after = kept.unwrap_or(ArtifactUse { digest, releases: 0, needed: 0 });
    let needed_before = after.needed;
    change(&mut after);
    let is_gone = after.releases == 0 && after.needed == 0;
    if is_gone {
        tables.delete::<ArtifactUse>(&after.key())?
    } else {
        tables.put(&after)?
    }
    let artifact: Option<Artifact> = tables.get(&key(digest.hex().as_str()))?;
    let Some(Artifact { expires_at, deleted_at: None, .. }) = artifact else { return Ok(()) };
    let entry = ArtifactExpiry { expires_at, digest };
    match (needed_before, after.needed) {
        (1.., 0) => tables.put(&entry),
        (0, 1..) => tables.delete::<ArtifactExpiry>(&entry.key()),
        _ => Ok(()),
    }
}

/// One more release has the artifact.
pub(crate) fn add_release<T: Tables>(tables: &mut T, digest: Digest) -> Result<(), TablesError> {
    count_artifact(tables, digest, |artifact| artifact.releases += 1)
}

/// A release of the artifact left state. The artifact's record goes with the last one, once its bytes are deleted.
pub(crate) fn remove_release<T: Tables>(tables: &mut T, digest: Digest) -> Result<(), TablesError> {
    count_artifact(tables, digest, |artifact| artifact.releases = artifact.releases.saturating_sub(1))?;
    let artifact: Option<Artifact> = tables.get(&key(digest.hex().as_str()))?;
    if tables.get::<ArtifactUse>(&key(digest.hex().as_str()))?.is_none()
        && artifact.is_some_and(|artifact| artifact.deleted_at.is_some())
    {
        tables.delete::<Artifact>(&key(digest.hex().as_str()))?;
    }
    Ok(())
}
