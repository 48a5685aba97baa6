//! Brings a release to the disk: manifest, room, archive, unpacking. Goes on where it was interrupted. Must not know what happens with
//! the release afterwards.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use swell_artifacts::{
    fetch::{FetchError, FetchOptions, Source, fetch},
    manifest::{MANIFEST_BYTES_MAX, Manifest},
    unpack::{Limits, UnpackError, unpack},
};
use swell_model::{
    digest::Digest,
    rollout::assignment::DesiredRelease,
    units::{ByteSize, Millis},
};
use swell_system::disk_space;
use swell_system::error_chain::chain;

/// How long a manifest, or an upload of evidence, may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// What stat(2) counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// The servers, as a source of bytes. Not `Debug`: it holds the token.
#[derive(Clone)]
pub(super) struct Origin {
    pub client: reqwest::Client,
    pub token: String,
    /// `http://ADDRESS:PORT`, the likeliest first.
    pub servers: Vec<String>,
}

/// The folders that the delivery of one release writes to.
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

/// Removes archives in `archives`, also partial ones, of every release but `desired`. Blocking.
pub(super) fn forget_others(archives: &Path, desired: Option<Digest>) -> io::Result<()> {
    for (path, _) in on_the_way(archives, |name| desired.is_none_or(|desired| !name.contains(&desired.hex())))? {
        remove_file(&path)?;
    }
    Ok(())
}

/// The files in `archives` whose names are `of_interest`, with what they take of the disk.
fn on_the_way(archives: &Path, of_interest: impl Fn(&str) -> bool) -> io::Result<Vec<(PathBuf, u64)>> {
    let entries = match fs::read_dir(archives) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // What vanishes meanwhile takes nothing.
    let sized = |entry: fs::DirEntry| Some((entry.path(), entry.metadata().ok()?.blocks() * BLOCK_BYTES));
    Ok(entries.flatten().filter(|entry| of_interest(&entry.file_name().to_string_lossy())).filter_map(sized).collect())
}

/// Fetches and unpacks `release`. Bytes that an earlier attempt left are not fetched again. `stop` ends it between pieces.
pub(super) async fn deliver(
    origin: &Origin,
    release: &DesiredRelease,
    place: &Place,
    stop: &CancellationToken,
) -> Result<(), DeliverError> {
    let (archives, desired) = (place.archives.clone(), release.artifact);
    match tokio::task::spawn_blocking(move || forget_others(&archives, Some(desired))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, folder = %place.archives.display(), "failed to remove archives of other releases")
        }
        Err(_) => return Err(stopping()),
    }
    let mut last = DeliverError::new("no server is known", "name servers in the agent's configuration", true);
    for server in &origin.servers {
        let tried = tokio::select! {
            () = stop.cancelled() => Err(DeliverError::new("another release is desired now", "", true)),
            tried = archive(origin, server, release, place) => tried,
        };
        match tried {
            Ok((archive, manifest)) => {
                swell_system::crash::point("agent::fetched");
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
    let archive = place.archives.join(format!("{}.tar.zst", release.artifact.hex()));
    check_space(place, &manifest).await?;
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
    DeliverError::new(chain(&error), hint, retryable)
}

async fn manifest(origin: &Origin, server: &str, release: &DesiredRelease) -> Result<Manifest, DeliverError> {
    let url = format!("{server}/v1/artifacts/{}/manifest", release.artifact);
    let failed = |error: reqwest::Error| {
        DeliverError::new(format!("failed to fetch the manifest from {url}: {}", chain(&error.without_url())), UNREACHABLE, true)
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
    let manifest = Manifest::from_bytes(&bytes).map_err(|error| DeliverError::new(chain(&error), DAMAGED, false))?;
    if manifest.digest != release.artifact {
        return Err(DeliverError::new(format!("{url} is the manifest of {}", manifest.digest), DAMAGED, false));
    }
    Ok(manifest)
}

/// What is still to be written: what came of the archive before an interruption takes its room already. Makes the folder.
fn space_needed(archives: &Path, manifest: &Manifest) -> io::Result<u64> {
    fs::create_dir_all(archives)?;
    let name = manifest.digest.hex();
    let present: u64 = on_the_way(archives, |other| other.contains(&name))?.into_iter().map(|(_, bytes)| bytes).sum();
    Ok(manifest.unpacked_size + manifest.size.saturating_sub(present))
}

/// Both the archive and what is in it must fit, with the reserve left over.
async fn check_space(place: &Place, manifest: &Manifest) -> Result<(), DeliverError> {
    let (folder, manifest, reserve) = (place.archives.clone(), manifest.clone(), place.reserve);
    let asked =
        tokio::task::spawn_blocking(move || Ok::<_, io::Error>((space_needed(&folder, &manifest)?, disk_space::room(&folder)?)));
    let (needed, room) = match asked.await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => {
            let reason = format!("cannot use {}: {error}", place.archives.display());
            return Err(DeliverError::new(reason, "check the disk of this target", false));
        }
        Err(_) => return Err(stopping()),
    };
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
            fs::create_dir_all(parent).map_err(|error| (error.to_string(), "check the disk of this target"))?;
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
                return Err((chain(&error), hint));
            }
        }
        swell_system::crash::point("agent::unpacked");
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
    match fs::remove_file(path) {
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
            Ok(response) => tracing::debug!(%server, status = %response.status(), "server refused evidence"),
            Err(error) => tracing::debug!(%server, %error, "failed to send evidence"),
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use swell_artifacts::{
        archive::{PackOptions, pack},
        manifest::Origin as MadeBy,
    };
    use swell_model::units::Timestamp;

    fn manifest() -> Manifest {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        let packed = pack(folder.path(), &mut Vec::new(), PackOptions { mtime_secs: 0 }).unwrap();
        let (pipeline, commit, created_at) = ("shop".parse().unwrap(), "0".repeat(40), Timestamp(0));
        let made_by =
            MadeBy { pipeline, build: None, commit, git_ref: None, created_at, host_fingerprint: None, provenance: None };
        Manifest::new(packed, made_by)
    }

    #[test]
    fn interrupted_archive_counts_toward_the_space_needed() {
        let root = tempfile::tempdir().unwrap();
        let archives = root.path().join("fetch");
        let manifest = Manifest { size: 3 << 20, unpacked_size: 5 << 20, ..manifest() };
        let needed = || space_needed(&archives, &manifest).unwrap();
        assert_eq!(needed(), 8 << 20);
        // Nothing of another release counts, nor a hole.
        fs::write(archives.join(".other.tar.zst.partial"), vec![1; 1 << 20]).unwrap();
        let partial = archives.join(format!(".{}.tar.zst.partial", manifest.digest.hex()));
        let file = File::create(&partial).unwrap();
        file.set_len(manifest.size).unwrap();
        assert_eq!(needed(), 8 << 20);
        file.write_all_at(&vec![1; 2 << 20], 0).unwrap();
        assert!((6 << 20..7 << 20).contains(&needed()), "{}", needed());
        fs::rename(&partial, archives.join(format!("{}.tar.zst", manifest.digest.hex()))).unwrap();
        file.write_all_at(&vec![1; 3 << 20], 0).unwrap();
        assert_eq!(needed(), 5 << 20);
    }

    #[test]
    fn archives_of_other_releases_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let archives = root.path().join("fetch");
        forget_others(&archives, None).unwrap();
        fs::create_dir(&archives).unwrap();
        let (wanted, other) = (Digest::of(b"wanted"), Digest::of(b"other"));
        for digest in [wanted, other] {
            fs::write(archives.join(format!("{}.tar.zst", digest.hex())), "").unwrap();
            fs::write(archives.join(format!(".{}.tar.zst.partial", digest.hex())), "").unwrap();
        }
        forget_others(&archives, Some(wanted)).unwrap();
        assert_eq!(fs::read_dir(&archives).unwrap().count(), 2);
        assert!(archives.join(format!("{}.tar.zst", wanted.hex())).exists());
        forget_others(&archives, None).unwrap();
        assert_eq!(fs::read_dir(&archives).unwrap().count(), 0);
    }
}
