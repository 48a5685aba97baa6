//! `swell artifact`: the output of builds, and artifacts built elsewhere.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::{LIST_MAX, finish};
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Failure, Result, file_error},
    follow::{FollowArgs, ResourceKind},
    human,
    output::{info, table},
    views::{self, Artifact},
};
use swell_model::{
    digest::Digest,
    pipeline_file::{FILE_BYTES_MAX, PipelineFile, render_all},
};

/// The shortest accepted prefix of a digest, in digits.
const PREFIX_MIN: usize = 4;

/// Subcommands of `swell artifact`
#[derive(Debug, clap::Subcommand)]
pub enum ArtifactCommand {
    /// Uploads an artifact built elsewhere and makes a release of it
    Push(PushArgs),
    /// Lists the artifacts of all pipelines or of one, newest first
    Ls(ListArgs),
    /// Shows an artifact
    Show {
        /// Digest of the artifact, or a unique prefix
        digest: String,
    },
}

/// `swell artifact push PIPELINE DIR`
#[derive(Debug, clap::Args)]
pub struct PushArgs {
    /// Name of the pipeline
    pub pipeline: String,
    /// Folder to upload
    pub dir: PathBuf,
    /// Commit that the artifact was built from, in full
    #[arg(long, value_name = "SHA")]
    pub commit: String,
    /// Ref of the commit, such as refs/heads/main; a branch named in `auto` is deployed
    #[arg(long = "ref", value_name = "REF")]
    pub git_ref: Option<String>,
    /// Pipeline file of that commit
    #[arg(long, default_value = "swell.toml", value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// `swell artifact ls`
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// List only artifacts of this pipeline
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
}

/// Runs `swell artifact`.
pub async fn run(context: &Context, command: ArtifactCommand) -> Result<Exit> {
    let client = context.client()?;
    match command {
        ArtifactCommand::Push(args) => push(context, &client, args).await,
        ArtifactCommand::Ls(args) => {
            let query: Vec<_> = args.pipeline.map(|name| ("pipeline", name)).into_iter().collect();
            let items = client.list(&["v1", "artifacts"], &query, LIST_MAX).await?;
            let mut artifacts: Vec<Artifact> = views::read_all(&items)?;
            artifacts.sort_by_key(|artifact| std::cmp::Reverse(artifact.created_at));
            let now = context.now_ms();
            let row = |artifact: Artifact| {
                let bytes = if artifact.deleted_at.is_some() { "deleted" } else { "stored" }.to_owned();
                let digest = human::short(&artifact.digest).to_owned();
                let commit = human::short(&artifact.commit).to_owned();
                [
                    digest,
                    artifact.pipeline,
                    commit,
                    human::bytes(artifact.size_bytes),
                    human::ago(artifact.created_at, now),
                    bytes,
                ]
            };
            let header = ["DIGEST", "PIPELINE", "COMMIT", "SIZE", "STORED", "BYTES"];
            context.output.result(&json!({ "items": items }), || {
                table(header, artifacts.into_iter().map(row), "no artifacts; build one with `swell build PIPELINE`")
            })?;
            Ok(Exit::Done)
        }
        ArtifactCommand::Show { digest } => {
            let value = client.get(&["v1", "artifacts", &whole_digest(&client, &digest).await?], &[]).await?;
            let artifact: Artifact = views::read(&value)?;
            let now = context.now_ms();
            context.output.result(&value, || {
                info([
                    ("digest", artifact.digest),
                    ("pipeline", artifact.pipeline),
                    ("commit", artifact.commit),
                    (
                        "size",
                        format!("{}, {} unpacked", human::bytes(artifact.size_bytes), human::bytes(artifact.unpacked_bytes)),
                    ),
                    ("manifest", artifact.manifest),
                    ("stored", human::ago(artifact.created_at, now)),
                    ("deleted", artifact.deleted_at.map(|at| human::ago(at, now)).unwrap_or_default()),
                ])
            })?;
            Ok(Exit::Done)
        }
    }
}

/// The digest with the prefix `text`, which must be unique.
async fn whole_digest(client: &Client, text: &str) -> Result<String> {
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    let whole = format!("sha256:{bare}");
    if whole.parse::<Digest>().is_ok() {
        return Ok(whole);
    }
    if bare.len() < PREFIX_MIN || !bare.bytes().all(|b| b.is_ascii_hexdigit()) {
        let hint = format!("write sha256: and all digits, or at least the first {PREFIX_MIN} digits");
        return Err(Failure::usage(format!("`{text}` is not a digest")).hint(hint));
    }
    let items = client.list(&["v1", "artifacts"], &[], 100 * LIST_MAX).await?;
    let digests = items.iter().filter_map(|item| item.get("digest").and_then(Value::as_str));
    let found: Vec<&str> = digests.filter(|digest| digest.starts_with(&whole)).collect();
    match found.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(Failure::new(Exit::Usage, "not_found", format!("no artifact has a digest that begins with {bare}"))
            .hint("`swell artifact ls` lists them")),
        many => {
            let detail = format!("{bare} is the prefix of {} digests: {}", many.len(), many.join(", "));
            Err(Failure::new(Exit::Usage, "ambiguous", detail).hint("write more digits"))
        }
    }
}

async fn push(context: &Context, client: &Client, args: PushArgs) -> Result<Exit> {
    let PushArgs { pipeline, dir, commit, git_ref, file, follow } = args;
    let text = pipeline_file(&file)?;
    let (epoch, built_from) = ((context.var)("SOURCE_DATE_EPOCH"), commit.clone());
    let (pack, say_dir) = (context.hooks.pack, dir.display().to_string());
    context.output.progress(format!("packing {say_dir}"));
    let file_bytes = text.len();
    let done = tokio::task::spawn_blocking(move || {
        let time = source_date(epoch, &built_from);
        packed(pack, &dir, &text, time)
    })
    .await;
    let (body, size) = done.map_err(|error| Failure::new(Exit::Failed, "pack", error.to_string()))??;
    context.output.progress(format!("sending {}", human::bytes(size)));
    let mut query = vec![("commit", commit), ("file_bytes", file_bytes.to_string())];
    query.extend(git_ref.map(|name| ("ref", name)));
    let stream = || {
        // Each try reads from the start, with its own file offset.
        let again = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&body)))?;
        Ok(reqwest::Body::wrap_stream(ReaderStream::with_capacity(tokio::fs::File::from_std(again), 256 << 10)))
    };
    let build = client.upload(&["v1", "pipelines", &pipeline, "artifacts"], &query, stream).await?;
    finish::started(context, client, ResourceKind::Build, build, &follow).await
}

/// Reads and validates the pipeline file before anything is uploaded.
fn pipeline_file(path: &Path) -> Result<String> {
    let text =
        fs::read_to_string(path).map_err(|error| file_error("read", path, &error).hint("name the pipeline file with --file"))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("`{}` exceeds {FILE_BYTES_MAX} bytes", path.display())));
    }
    match PipelineFile::parse(&text) {
        Ok(_) => Ok(text),
        Err(found) => {
            let shown = render_all(&found, &path.display().to_string(), &text);
            Err(Failure::new(Exit::Usage, "invalid_file", format!("the pipeline file is invalid\n{shown}")))
        }
    }
}

/// The modification time of every file in the archive, in seconds since 1970: SOURCE_DATE_EPOCH, else the commit's if git knows it,
/// else 0.
fn source_date(epoch: Option<String>, commit: &str) -> u64 {
    if let Some(time) = epoch.and_then(|text| text.parse().ok()) {
        return time;
    }
    let git = Command::new("git")
        .args(["show", "--no-patch", "--format=%ct", "--end-of-options", commit])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text =
        git.ok().filter(|output| output.status.success()).map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The upload, in an unnamed temporary file: the pipeline file, then the archive. Returns its size in bytes.
fn packed(
    pack: fn(&Path, &mut dyn io::Write, u64) -> anyhow::Result<()>,
    dir: &Path,
    text: &str,
    time: u64,
) -> Result<(File, u64)> {
    let temp = std::env::temp_dir();
    let path = temp.join(format!("swell-push-{}-{:016x}", std::process::id(), fastrand::u64(..)));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|error| file_error("create", &path, &error))?;
    fs::remove_file(&path).map_err(|error| file_error("remove", &path, &error))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    writer.write_all(text.as_bytes())?;
    pack(dir, &mut writer, time).map_err(|error| Failure::new(Exit::Usage, "pack", format!("{error:#}")))?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}
