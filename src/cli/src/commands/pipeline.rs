//! `swell pipeline`: repositories that are built and deployed.

use serde_json::{Value, json};

use super::{LIST_MAX, body, choose, or_dash};
use crate::{
    context::Context,
    failure::{Exit, Result},
    human,
    output::{info, table},
    views::{self, Pipeline},
};
use swell_model::units::Millis;

/// Subcommands of `swell pipeline`
#[derive(Debug, clap::Subcommand)]
pub enum PipelineCommand {
    /// Creates a pipeline for a repository
    Create(CreateArgs),
    /// Lists the pipelines of the cluster
    Ls,
    /// Shows a pipeline
    Show {
        /// Name of the pipeline
        name: String,
    },
    /// Removes a pipeline that is not deployed anywhere
    Rm {
        /// Name of the pipeline
        name: String,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// `swell pipeline create NAME`
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["repo", "url"])))]
pub struct CreateArgs {
    /// Name of the pipeline
    pub name: String,
    /// Repository hosted by Groundswell
    #[arg(long, value_name = "NAME")]
    pub repo: Option<String>,
    /// Address of any other git repository
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Path of the pipeline file in the repository
    #[arg(long, default_value = "swell.toml", value_name = "PATH")]
    pub file: String,
    /// Number of its builds that may run at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub concurrency: u32,
    /// Build every push, even if a newer one of the same branch is queued
    #[arg(long)]
    pub no_supersede: bool,
    /// Number of newest releases whose artifacts are kept
    #[arg(long, value_name = "N")]
    pub retention_releases: Option<u32>,
    /// Age up to which artifacts are kept, such as 30d
    #[arg(long, value_name = "TIME")]
    pub retention_age: Option<Millis>,
}

/// Runs `swell pipeline`.
pub async fn run(context: &Context, command: PipelineCommand) -> Result<Exit> {
    match command {
        PipelineCommand::Create(args) => create(context, args).await,
        PipelineCommand::Ls => list(context).await,
        PipelineCommand::Show { name } => show(context, &name).await,
        PipelineCommand::Rm { name, yes } => {
            let client = context.client()?;
            choose::confirm(&format!("remove pipeline {name}"), yes)?;
            client.delete(&["v1", "pipelines", &name]).await?;
            context.output.result(&json!({ "removed": name }), || format!("removed pipeline {name}\n"))?;
            Ok(Exit::Done)
        }
    }
}

async fn create(context: &Context, args: CreateArgs) -> Result<Exit> {
    let source = match (args.repo, args.url) {
        (Some(name), _) => json!({ "hosted": name }),
        (None, url) => json!({ "remote": url }),
    };
    let request = body([
        ("name", Some(json!(args.name))),
        ("source", Some(source)),
        ("file", Some(json!(args.file))),
        ("concurrency", Some(json!(args.concurrency))),
        ("supersede", Some(json!(!args.no_supersede))),
        ("retention_releases", args.retention_releases.map(|count| json!(count))),
        ("retention_age", args.retention_age.map(|age| json!(age))),
    ]);
    let value = context.client()?.post(&["v1", "pipelines"], &request).await?;
    let pipeline: Pipeline = views::read(&value)?;
    context.output.result(&value, || text(context, &pipeline))?;
    context.output.progress(format!("build it with `swell build {}`", pipeline.name));
    Ok(Exit::Done)
}

async fn list(context: &Context) -> Result<Exit> {
    let items = context.client()?.list(&["v1", "pipelines"], &[], LIST_MAX).await?;
    let pipelines: Vec<Pipeline> = views::read_all(&items)?;
    let row = |pipeline: Pipeline| {
        let source = source(&pipeline.source);
        [
            pipeline.name,
            source,
            pipeline.file,
            or_dash(pipeline.newest_release),
            human::ago(pipeline.created_at, context.now_ms()),
        ]
    };
    let header = ["PIPELINE", "SOURCE", "FILE", "NEWEST RELEASE", "CREATED"];
    context.output.result(&json!({ "items": items }), || {
        table(header, pipelines.into_iter().map(row), "no pipelines; create one with `swell pipeline create NAME --repo REPO`")
    })?;
    Ok(Exit::Done)
}

/// Shows a pipeline: `swell pipeline show NAME` and `swell status NAME`.
pub async fn show(context: &Context, name: &str) -> Result<Exit> {
    let client = context.client()?;
    let value = client.get(&["v1", "pipelines", name], &[]).await?;
    let pipeline: Pipeline = views::read(&value)?;
    context.output.result(&value, || text(context, &pipeline))?;
    Ok(Exit::Done)
}

fn source(source: &Value) -> String {
    let of = |kind: &str| source.get(kind).and_then(Value::as_str);
    match (of("hosted"), of("remote")) {
        (Some(name), _) => format!("repo {name}"),
        (None, url) => url.unwrap_or("-").to_owned(),
    }
}

fn text(context: &Context, pipeline: &Pipeline) -> String {
    info([
        ("pipeline", pipeline.name.clone()),
        ("source", source(&pipeline.source)),
        ("file", pipeline.file.clone()),
        ("newest release", pipeline.newest_release.clone().unwrap_or_default()),
        ("builds at once", pipeline.concurrency.to_string()),
        (
            "supersedes",
            if pipeline.supersede { "a newer push replaces a queued build" } else { "never; every push is built" }.to_owned(),
        ),
        (
            "retention",
            format!(
                "{} newest releases, and all younger than {}",
                pipeline.retention_releases,
                human::setting(pipeline.retention_age_ms)
            ),
        ),
        ("created", human::ago(pipeline.created_at, context.now_ms())),
    ])
}
