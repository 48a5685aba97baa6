//! `POST /v1/pipelines/{name}/artifacts`: imports an artifact built elsewhere, with its pipeline file. The archive is stored and
//! hashed as it arrives, then read back once to validate its contents; it is never in memory as a whole.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use hyper::StatusCode;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::builds::build_id;
use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{At, Guards, Params},
    problem::Problem,
    views::build::BuildView,
};
use swell_artifacts::{
    archive::Packed,
    manifest::{Manifest, Origin},
    pieces::{Content, ContentHasher},
    store::{ContentStore, Stored, stream_of},
    unpack::{self, Limits, UnpackError},
};
use swell_model::{
    build::queue::queue_waits,
    command::{BuildAction, StoredArtifact},
    digest::Digest,
    event::Subject,
    ids::PipelineName,
    pipeline::Pipeline,
    pipeline_file::{FILE_BYTES_MAX, PipelineFile, render_all},
    repository::CommitId,
    tables::key,
    units::{ByteSize, Timestamp},
};

/// Origin of an imported artifact.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PushQuery {
    /// Commit that the artifact was built from.
    #[param(value_type = String)]
    commit: CommitId,
    /// Full name of the commit's ref, such as `refs/heads/main`. A branch named in `auto` is deployed.
    #[serde(rename = "ref", default = "head")]
    git_ref: String,
    /// Size of the pipeline file at the start of the body; the archive follows.
    file_bytes: usize,
}

fn head() -> String {
    "HEAD".to_owned()
}

/// Imports an artifact built elsewhere and makes a release of it. The body is the pipeline file followed by the archive: a tar
/// compressed with Zstandard, as `swell artifact push` packs it.
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/artifacts", tag = "artifacts",
    params(("name" = String, Path), PushQuery),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = CREATED, body = BuildView)),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(pipeline): At<PipelineName>,
    Params(query): Params<PushQuery>,
    body: Body,
) -> Result<Answer<BuildView>, Problem> {
    let name = pipeline.clone();
    // Before receiving gigabytes.
    app.read(move |view| existing::<Pipeline>(view, &key(name.as_str()), || Subject::Pipeline(name.clone()))).await?;
    let mut chunks = incoming(&app, body);
    let (file, file_digest, rest) = pipeline_file(&mut chunks, query.file_bytes).await?;
    let archive = stream::iter([Ok(rest)]).chain(chunks);
    let (stored, content) = store(&app, archive).await?;
    let (unpacked_digest, unpacked_size) = unpacked(&*app.content, stored).await?;
    let packed = Packed {
        digest: content.digest,
        size: content.size,
        piece_length: content.piece_length,
        pieces: content.pieces,
        unpacked_digest,
        unpacked_size,
        // Not part of the manifest.
        files: 0,
    };
    let (commit, git_ref) = (query.commit, query.git_ref);
    let origin = Origin {
        pipeline: pipeline.clone(),
        build: None,
        commit: commit.to_string(),
        git_ref: Some(git_ref.clone()),
        created_at: now(),
        host_fingerprint: None,
        provenance: None,
    };
    let manifest = Manifest::new(packed, origin);
    let manifest_digest = app.content.put(stream_of(manifest.to_bytes()), None).await?.digest;
    let artifact = StoredArtifact {
        digest: stored.digest,
        size: ByteSize(stored.size),
        unpacked_size: ByteSize(unpacked_size),
        manifest: manifest_digest,
    };
    let guards = guards.and(file_digest).and(stored.digest);
    let outcome = app.propose(caller, guards, BuildAction::ImportArtifact { pipeline, commit, git_ref, artifact, file }).await?;
    let id = build_id(&outcome)?;
    let answer = app
        .read(move |view| {
            let build = super::builds::of(view, id)?;
            let revision = build.revision;
            let waits = queue_waits(view)?.remove(&id);
            Ok(Answer::read(view, BuildView::full(build, waits), Some(revision)))
        })
        .await?;
    Ok(answer.after(&outcome).created(format!("/v1/builds/{id}")))
}

fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since_1970.as_millis() as u64)
}

type Chunks = futures::stream::BoxStream<'static, io::Result<Bytes>>;

/// The body, with a time-out for each chunk.
fn incoming(app: &App, body: Body) -> Chunks {
    let chunks = tokio_stream::StreamExt::timeout(body.into_data_stream(), app.options.idle_timeout);
    let ended = |_| io::Error::new(io::ErrorKind::TimedOut, "the body stalled");
    chunks.map(move |chunk| chunk.map_err(ended)?.map_err(io::Error::other)).boxed()
}

/// The pipeline file at the start of the body with its digest, and the first bytes of the archive.
async fn pipeline_file(chunks: &mut Chunks, bytes: usize) -> Result<(Box<PipelineFile>, Digest, Bytes), Problem> {
    if bytes == 0 || bytes > FILE_BYTES_MAX {
        let hint = format!("a pipeline file has 1 to {FILE_BYTES_MAX} bytes");
        return Err(Problem::invalid(format!("`file_bytes` is {bytes}"), hint));
    }
    let mut head = Vec::with_capacity(bytes);
    let broken = || Problem::invalid("the body ended within the pipeline file", "send it again");
    while head.len() < bytes {
        head.extend_from_slice(&chunks.try_next().await.map_err(|_| broken())?.ok_or_else(broken)?);
    }
    let rest = Bytes::from(head.split_off(bytes));
    let digest = Digest::of(&head);
    let text = String::from_utf8(head).map_err(|_| Problem::invalid("the pipeline file is not UTF-8", "send UTF-8 text"))?;
    let file = PipelineFile::parse(&text).map_err(|found| {
        let shown = render_all(&found, "swell.toml", &text);
        let detail = format!("the pipeline file is invalid:\n{shown}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_file", detail, "`swell validate` checks it offline")
    })?;
    Ok((Box::new(file), digest, rest))
}

/// Stores the archive, and hashes its pieces as they arrive.
async fn store(app: &App, archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Result<(Stored, Content), Problem> {
    let hasher = Arc::new(Mutex::new(ContentHasher::new(app.options.artifact_bytes_max)));
    let passing = Arc::clone(&hasher);
    let hashed = archive.and_then(move |chunk| {
        let counted = passing.lock().unwrap_or_else(PoisonError::into_inner).update(&chunk);
        std::future::ready(counted.map(|()| chunk).map_err(|too_large| io::Error::new(io::ErrorKind::FileTooLarge, too_large)))
    });
    let stored = app.content.put(hashed.boxed(), None).await?;
    let hasher = Arc::into_inner(hasher).ok_or_else(|| Problem::internal("the content store holds on to a stream"))?;
    let content = hasher.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    Ok((stored, content))
}

/// The digest and size of the tar inside. An archive that targets would refuse to unpack is refused here.
async fn unpacked(store: &dyn ContentStore, stored: Stored) -> Result<(Digest, u64), Problem> {
    let content = store.get_range(stored.digest, 0..stored.size).await?;
    let (sender, chunks) = mpsc::channel(4);
    let reading = tokio::task::spawn_blocking(move || unpack::inspect(Bridge { chunks, left: Bytes::new() }, &Limits::of_any()));
    // Fails only when the reader has seen enough: its answer says why.
    if content.map(Ok).try_for_each(|chunk| sender.send(chunk)).await.is_err() {
        tracing::debug!("an archive was not read to its end");
    }
    drop(sender);
    let inspected = reading.await.map_err(Problem::internal)?.map_err(|error| not_unpacked(&error))?;
    Ok((inspected.digest, inspected.size))
}

fn not_unpacked(error: &UnpackError) -> Problem {
    let (code, detail, hint) = match error {
        UnpackError::Damaged(why) => (
            "not_an_archive",
            format!("failed to read the archive: {why}"),
            "send an archive packed by `swell artifact push` or a package phase",
        ),
        _ => (
            "harmful_archive",
            format!("{error}; targets refuse to unpack it, so no release was made"),
            "remove it from the archive, or pack the folder with `swell artifact push`",
        ),
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail, hint)
}

/// A reader of an async stream, for a blocking thread.
struct Bridge {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    left: Bytes,
}

impl Read for Bridge {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.left = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.left.len());
        buffer[..count].copy_from_slice(&self.left.split_to(count));
        Ok(count)
    }
}
