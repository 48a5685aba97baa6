//! Which artifacts may be deleted, and which never: what an environment runs, or could go back to, is kept. And which content is garbage:
//! what no record names.

use std::collections::BTreeSet;

use crate::{
    build::Build,
    digest::Digest,
    fleet::observation::Observation,
    release::{Artifact, ArtifactExpiry},
    repository::Bundle,
    rollout::Rollout,
    tables::{ReadTables, Scan, TablesError},
    units::Timestamp,
};

pub use crate::rollout::FORMER_RELEASES_KEPT;

/// The artifacts that nothing needs and that no retention keeps at `now`, at most `limit`. Reads no more than it returns.
///
/// # Errors
/// When state cannot be read.
pub fn expired_artifacts<T: ReadTables>(tables: &T, now: Timestamp, limit: usize) -> Result<Vec<Digest>, TablesError> {
    let entries: Vec<ArtifactExpiry> = tables.scan(&Scan::all(), limit)?;
    Ok(entries.into_iter().take_while(|entry| entry.expires_at <= now).map(|entry| entry.digest).collect())
}

/// Those of `stored` that no record names: bytes of artifacts that were deleted or refused, bundles of pushes that lost, and the like.
/// Whoever is about to name content has put or leased it lately, so `tables` must not be older than `stored`, and what is young is kept.
pub fn unnamed_content<T: ReadTables>(tables: &T, mut stored: BTreeSet<Digest>) -> Result<BTreeSet<Digest>, TablesError> {
    tables.for_each(Scan::all(), |artifact: Artifact| {
        if artifact.deleted_at.is_none() {
            stored.remove(&artifact.digest);
            stored.remove(&artifact.manifest);
        }
    })?;
    tables.for_each(Scan::all(), |bundle: Bundle| {
        stored.remove(&bundle.digest);
    })?;
    tables.for_each(Scan::all(), |build: Build| {
        for log in build.attempts.iter().filter_map(|attempt| attempt.log) {
            stored.remove(&log);
        }
    })?;
    tables.for_each(Scan::all(), |seen: Observation| {
        if let Some(output) = seen.report.failure.and_then(|failure| failure.output_blob) {
            stored.remove(&output);
        }
    })?;
    tables.for_each(Scan::all(), |rollout: Rollout| {
        for output in rollout.failures.iter().filter_map(|failed| failed.failure.output_blob) {
            stored.remove(&output);
        }
    })?;
    Ok(stored)
}
