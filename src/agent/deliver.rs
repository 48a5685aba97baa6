//! Brings a release to the disk: manifest, room, archive, unpacking. Goes on where it was interrupted. Must not know what happens with
//! the release afterwards.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::{
        fetch::{FetchError, FetchOptions, Source, fetch},
        manifest::{MANIFEST_BYTES_MAX, Manifest},
        space,
        unpack::{Limits, UnpackError, unpack},
    },
    crash,
    model::{
        desired::DesiredRelease,
        digest::Digest,
        units::{ByteSize, Millis},
    },
};

/// How long a manifest, or an upload of evidence, may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The servers, as a source of bytes. Not `Debug`: it holds the token.
#[derive(Clone)]
pub(super) struct Origin {
    pub client: reqwest::Client,
    pub token: String,
    /// `http://ADDRESS:PORT`, the likeliest first.
    pub servers: Vec<String>,
}

/// Where one release goes.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The folder of the release, which is made.
    pub release: PathBuf,
    /// Where archives are kept meanwhile.
    pub archives: PathBuf,
    /// Bytes that stay free.
    pub reserve: ByteSize,
}

/// Why a release is not on the disk.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct DeliverError {
    pub reason: String,
    pub hint: String,
    /// Whether it may succeed by itself: then the release has not failed yet.
    pub retryable: bool,
}

impl DeliverError {
    fn new(reason: impl Into<String>, hint: &str, retryable: bool) -> Self {
        Self { reason: reason.into(), hint: hint.to_owned(), retryable }
    }
}

const UNREACHABLE: &str = "see whether this target reaches the servers; it tries again by itself";
const DAMAGED: &str = "have the content store scrubbed, or build again";

/// What the archive of `artifact` is called while it is fetched; what was fetched of it so far has more around this name.
pub(super) fn archive_name(artifact: Digest) -> String {
    format!("{}.tar.zst", artifact.hex())
}

/// Removes what was fetched of other releases than `wanted`: they were given up half-way, and nobody else comes back for it.
pub(super) fn remove_others(archives: &Path, wanted: Option<Digest>) -> io::Result<()> {
    let entries = match std::fs::read_dir(archives) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let wanted = wanted.map(archive_name);
    for entry in entries {
        let entry = entry?;
        let is_wanted = wanted.as_ref().is_some_and(|wanted| entry.file_name().to_string_lossy().contains(wanted));
        if !is_wanted {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Fetches and unpacks `release`. What was fetched of others goes; bytes that an earlier attempt left are not fetched again. `stop` ends it between pieces.
pub(super) async fn deliver(
    origin: &Origin,
    release: &DesiredRelease,
    place: &Place,
    stop: &CancellationToken,
) -> Result<(), DeliverError> {
    let (archives, wanted) = (place.archives.clone(), release.artifact);
    let removed = tokio::task::spawn_blocking(move || {
        remove_others(&archives, Some(wanted)).inspect_err(|error| {
            tracing::warn!(%error, folder = %archives.display(), "what was fetched of other releases is not removed");
        })
    });
    // Room is what it makes, and no reason not to fetch.
    removed.await.ok();
    let mut last = DeliverError::new("no server is known", "name servers in the agent's configuration", true);
    for server in &origin.servers {
        let tried = tokio::select! {
            () = stop.cancelled() => Err(DeliverError::new("another release is wanted now", "", true)),
            tried = archive(origin, server, release, place) => tried,
        };
        match tried {
            Ok((archive, manifest)) => {
                crash::point("agent::fetched");
                return lay_out(archive, place.release.clone(), manifest).await;
            }
            Err(error) if error.retryable && !stop.is_cancelled() => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn archive(
    origin: &Origin,
    server: &str,
    release: &DesiredRelease,
    place: &Place,
) -> Result<(PathBuf, Manifest), DeliverError> {
    let manifest = manifest(origin, server, release).await?;
    let archive = place.archives.join(archive_name(release.artifact));
    has_room(place, &manifest, &archive).await?;
    let base_url = format!("{server}/v1/artifacts/{{digest}}/content");
    let source = Source { client: &origin.client, base_url: &base_url, token: Some(&origin.token) };
    let options = FetchOptions { piece_timeout: Millis::from_secs(30), attempts_max: 3, ..FetchOptions::default() };
    let fetched = fetch(source, &manifest, &archive, &options, &fastrand::f64, &|_| ()).await.map_err(not_fetched)?;
    tracing::info!(artifact = %release.artifact, bytes = fetched.fetched_bytes, resumed = fetched.resumed_bytes, "fetched");
    Ok((archive, manifest))
}

fn not_fetched(error: FetchError) -> DeliverError {
    let hint = match &error {
        FetchError::NoSpace(_) => "free some space on this target, or give it a larger disk",
        FetchError::Io { .. } => "check the disk of this target",
        _ if error.retryable() => UNREACHABLE,
        _ => DAMAGED,
    };
    // A server that has lost its copy may be the only one that has: another is asked, later this one again.
    let retryable = error.retryable() || matches!(error, FetchError::Status { .. });
    DeliverError::new(with_causes(&error), hint, retryable)
}

async fn manifest(origin: &Origin, server: &str, release: &DesiredRelease) -> Result<Manifest, DeliverError> {
    let url = format!("{server}/v1/artifacts/{}/manifest", release.artifact);
    let failed = |error: reqwest::Error| {
        DeliverError::new(
            format!("cannot fetch the manifest from {url}: {}", with_causes(&error.without_url())),
            UNREACHABLE,
            true,
        )
    };
    let request = origin.client.get(&url).bearer_auth(&origin.token).timeout(REQUEST_TIMEOUT);
    let mut response = request.send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(DeliverError::new(format!("{url} answered {}", response.status()), UNREACHABLE, true));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        bytes.extend(chunk);
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(DeliverError::new(format!("{url} is larger than any manifest"), DAMAGED, false));
        }
    }
    if Digest::of(&bytes) != release.manifest {
        return Err(DeliverError::new(format!("{url} is not the manifest that {} names", release.release), DAMAGED, false));
    }
    let manifest = Manifest::from_bytes(&bytes).map_err(|error| DeliverError::new(with_causes(&error), DAMAGED, false))?;
    if manifest.digest != release.artifact {
        return Err(DeliverError::new(format!("{url} is the manifest of {}", manifest.digest), DAMAGED, false));
    }
    Ok(manifest)
}

/// Both the archive and what is in it must fit, with the reserve left over.
async fn has_room(place: &Place, manifest: &Manifest, archive: &Path) -> Result<(), DeliverError> {
    let (folder, archive, reserve) = (place.archives.clone(), archive.to_owned(), place.reserve);
    let needed = manifest.unpacked_size;
    let size = manifest.size;
    let asked = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&folder)?;
        let has_archive = archive.exists();
        Ok::<_, io::Error>((space::room(&folder)?, has_archive))
    });
    let (room, has_archive) = match asked.await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => {
            let reason = format!("cannot use {}: {error}", place.archives.display());
            return Err(DeliverError::new(reason, "check the disk of this target", false));
        }
        Err(_) => return Err(stopping()),
    };
    let needed = needed + if has_archive { 0 } else { size };
    let available = room.available.min(room.free.saturating_sub(reserve.0));
    if needed <= available {
        return Ok(());
    }
    let reason = format!(
        "the release needs {} on the disk of {}, which has {} beyond its reserve ({} free of {})",
        ByteSize(needed),
        place.archives.display(),
        ByteSize(available),
        ByteSize(room.free),
        ByteSize(room.capacity)
    );
    Err(DeliverError::new(reason, "free some space on this target, or give it a larger disk", false))
}

async fn lay_out(archive: PathBuf, folder: PathBuf, manifest: Manifest) -> Result<(), DeliverError> {
    let work = move || {
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).map_err(|error| (error.to_string(), "check the disk of this target"))?;
        }
        let file = File::open(&archive).map_err(|error| (error.to_string(), "check the disk of this target"))?;
        match unpack(file, &folder, &Limits::of(&manifest)) {
            // By an attempt that was interrupted just afterwards.
            Ok(_) | Err(UnpackError::Exists(_)) => {}
            Err(error) => {
                let hint = match error {
                    UnpackError::NoSpace(_) => "free some space on this target, or give it a larger disk",
                    UnpackError::Io { .. } => "check the disk of this target",
                    _ => DAMAGED,
                };
                return Err((with_causes(&error), hint));
            }
        }
        crash::point("agent::unpacked");
        remove_file(&archive).map_err(|error| (error.to_string(), "check the disk of this target"))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|(reason, hint)| DeliverError::new(reason, hint, false)),
        Err(_) => Err(stopping()),
    }
}

fn stopping() -> DeliverError {
    DeliverError::new("the agent is stopping", "start it again", true)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Puts evidence into the content store, if a server takes it. Best effort.
pub(super) async fn upload(origin: &Origin, bytes: Vec<u8>) -> Option<Digest> {
    let digest = Digest::of(&bytes);
    for server in &origin.servers {
        let request = origin.client.post(format!("{server}/v1/blobs")).bearer_auth(&origin.token).body(bytes.clone());
        match request.header("content-type", "application/octet-stream").timeout(REQUEST_TIMEOUT).send().await {
            Ok(response) if response.status().is_success() => return Some(digest),
            Ok(response) => tracing::debug!(%server, status = %response.status(), "evidence was not taken"),
            Err(error) => tracing::debug!(%server, %error, "evidence could not be sent"),
        }
    }
    None
}

/// The error and its causes in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_release_that_is_no_longer_wanted_leaves_nothing_of_its_download() {
        let dir = tempfile::tempdir().unwrap();
        let archives = dir.path().join("fetch");
        std::fs::create_dir(&archives).unwrap();
        let wanted = Digest::of(b"wanted");
        let kept = [archive_name(wanted), format!(".{}.partial", archive_name(wanted))];
        let given_up = Digest::of(b"given up");
        for name in kept.iter().cloned().chain([archive_name(given_up), format!(".{}.partial", archive_name(given_up))]) {
            std::fs::write(archives.join(name), "bytes").unwrap();
        }
        let names = || {
            let names = std::fs::read_dir(&archives).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let origin = Origin { client: reqwest::Client::new(), token: String::new(), servers: Vec::new() };
        let place = Place { release: dir.path().join("release"), archives: archives.clone(), reserve: ByteSize(0) };
        let release = DesiredRelease {
            release: "shop@1".parse().unwrap(),
            environment: "production".parse().unwrap(),
            artifact: wanted,
            artifact_size: ByteSize(5),
            unpacked_size: ByteSize(5),
            manifest: wanted,
            services: Default::default(),
        };
        deliver(&origin, &release, &place, &CancellationToken::new()).await.unwrap_err();
        assert_eq!(names(), kept.iter().cloned().collect(), "what is wanted goes on where it stopped");
        remove_others(&archives, None).unwrap();
        assert!(names().is_empty());
        remove_others(&dir.path().join("nothing"), None).unwrap();
    }
}
