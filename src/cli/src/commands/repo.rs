//! `swell repo`: git repositories hosted by Groundswell.

use serde_json::json;

use super::LIST_MAX;
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::short_ref,
    human,
    output::{info, table},
    views::{self, Repository},
};

/// Subcommands of `swell repo`
#[derive(Debug, clap::Subcommand)]
pub enum RepoCommand {
    /// Creates a hosted repository
    Create {
        /// Name of the repository
        name: String,
        /// Name of the branch that a clone checks out
        #[arg(long, default_value = "main", value_name = "NAME")]
        default_branch: String,
    },
    /// Lists hosted repositories
    Ls,
    /// Shows a hosted repository with its branches and tags
    Show {
        /// Name of the repository
        name: String,
    },
}

/// Runs `swell repo`.
pub async fn run(context: &Context, command: RepoCommand) -> Result<Exit> {
    let client = context.client()?;
    let now = context.now_ms();
    match command {
        RepoCommand::Create { name, default_branch } => {
            let value = client.post(&["v1", "repositories"], &json!({ "name": name, "default_branch": default_branch })).await?;
            let repository: Repository = views::read(&value)?;
            let (addr, path) = (client.addr(), repository.path.clone());
            context.output.result(&value, || info([("repository", repository.name), ("address", format!("{addr}{path}"))]))?;
            context
                .output
                .progress(format!("push to it with `git remote add swell {addr}{path} && git push swell {default_branch}`"));
        }
        RepoCommand::Ls => {
            let items = client.list(&["v1", "repositories"], &[], LIST_MAX).await?;
            let repositories: Vec<Repository> = views::read_all(&items)?;
            let row = |repository: Repository| {
                let address = format!("{}{}", client.addr(), repository.path);
                [repository.name, repository.default_branch, address, human::ago(repository.created_at, now)]
            };
            let header = ["REPOSITORY", "BRANCH", "ADDRESS", "CREATED"];
            context.output.result(&json!({ "items": items }), || {
                table(
                    header,
                    repositories.into_iter().map(row),
                    "no hosted repositories; create one with `swell repo create NAME`",
                )
            })?;
        }
        RepoCommand::Show { name } => {
            let value = client.get(&["v1", "repositories", &name], &[]).await?;
            let repository: Repository = views::read(&value)?;
            context.output.result(&value, || {
                let shown = info([
                    ("repository", repository.name),
                    ("address", format!("{}{}", client.addr(), repository.path)),
                    ("default branch", repository.default_branch),
                    ("created", human::ago(repository.created_at, now)),
                ]);
                let row = |r: views::Ref| {
                    [short_ref(&r.name).to_owned(), human::short(&r.commit).to_owned(), human::ago(r.moved_at, now), r.moved_by]
                };
                shown
                    + "\n"
                    + &table(["REF", "COMMIT", "MOVED", "BY"], repository.refs.into_iter().map(row), "no branches or tags")
            })?;
        }
    }
    Ok(Exit::Done)
}
