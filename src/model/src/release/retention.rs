//! Which artifacts may be deleted, and which never: what an environment runs, or could go back to, is kept. And which content is garbage:
//! what no record names.

use std::collections::BTreeSet;

use crate::{
    build::Build,
    digest::Digest,
    fleet::observation::Observation,
    ids::ReleaseId,
    pipeline::Pipeline,
    release::{Artifact, Release, release_key},
    repository::Bundle,
    rollout::{Deployment, OpenRollout, Rollout},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
    units::Timestamp,
};

pub use crate::rollout::FORMER_RELEASES_KEPT;

/// The artifacts that must stay: of every stable release, of every release in an open rollout, and of the last good releases
/// of every deployment.
pub fn protected_artifacts<T: ReadTables>(tables: &T) -> Result<BTreeSet<Digest>, TablesError> {
    let mut releases: BTreeSet<ReleaseId> = BTreeSet::new();
    for deployment in tables.scan::<Deployment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        releases.extend(deployment.rollback_candidates().into_iter().cloned());
        releases.extend(deployment.held.into_iter().filter_map(|(release, _)| release));
    }
    for open in tables.scan::<OpenRollout>(&Scan::all(), SCAN_RECORDS_MAX)? {
        if let Some(rollout) = tables.get::<Rollout>(&key(open.rollout.0))? {
            releases.extend(rollout.before.iter().filter_map(|(release, _)| release.clone()));
            releases.extend(rollout.stable);
            releases.insert(rollout.release);
        }
    }
    let mut digests = BTreeSet::new();
    for release in releases {
        digests.extend(tables.get::<Release>(&release_key(&release))?.map(|release| release.artifact));
    }
    Ok(digests)
}

/// The artifacts of `pipeline` that its retention no longer keeps and nothing protects, at most `limit`.
pub fn expired_artifacts<T: ReadTables>(
    tables: &T,
    pipeline: &Pipeline,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Digest>, TablesError> {
    let mut keep = protected_artifacts(tables)?;
    let newest_first = Scan::prefix(key(pipeline.name.as_str())).backwards();
    let releases: Vec<Release> = tables.scan(&newest_first, SCAN_RECORDS_MAX)?;
    // Two releases can have the same artifact: the younger one keeps it.
    let is_young = |release: &&Release| now.since(release.created_at) <= pipeline.retention.age;
    keep.extend(releases.iter().take(pipeline.retention.releases as usize).map(|release| release.artifact));
    keep.extend(releases.iter().filter(is_young).map(|release| release.artifact));
    let mut expired = BTreeSet::new();
    for release in releases {
        if keep.contains(&release.artifact) {
            continue;
        }
        let artifact: Option<Artifact> = tables.get(&key(release.artifact.hex().as_str()))?;
        // An artifact that two pipelines made is the last one's to delete.
        if artifact.is_some_and(|artifact| artifact.deleted_at.is_none() && artifact.pipeline == pipeline.name) {
            expired.insert(release.artifact);
        }
        if expired.len() >= limit {
            break;
        }
    }
    Ok(expired.into_iter().collect())
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
