//! The tree of commands. Each noun's arguments stand with what it does, in `commands/`. Knows nothing of what they do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{
    commands::{
        act, artifact, build, cluster, completion, config, deploy, diff, env, events, fleet, history, init, login, logs,
        pipeline, plan, repo, rollback, status, validate, why,
    },
    output::ColorChoice,
    roles::{AgentArgs, DevArgs, GatewayArgs, ServerArgs},
};

/// What stands below the list of commands in `swell --help`.
const AFTER_HELP: &str = "\
Exit codes:
  0  done                           6  stopped waiting, the work goes on
  1  failed                         7  conflict or lock
  2  usage or configuration         8  not allowed
  3  failed and rolled back         9  no leader, or no server answers
  4  rollback failed               10  `plan` found changes
  5  waits for approval

The server is --addr, SWELL_ADDR, `addr` of a configuration file, or http://127.0.0.1:7400;
`swell config show --origin` says which.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "swell",
    version,
    about = "Turns a git push into a healthy fleet, and a bad push back before users notice",
    after_help = AFTER_HELP,
    max_term_width = 110,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub globals: Globals,
    /// Which command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Globals {
    /// Print the result as JSON on standard output (roles: log as JSON)
    #[arg(long, global = true)]
    pub json: bool,
    /// The server's address, such as http://10.0.0.1:7400
    #[arg(long, global = true, value_name = "URL")]
    pub addr: Option<String>,
    /// A configuration file in place of the user's (roles: of the system's)
    #[arg(long = "config", global = true, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// The file that holds the token
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Whether to use colours
    #[arg(long, global = true, value_name = "WHEN", value_enum)]
    pub color: Option<ColorChoice>,
    /// Print no progress, only the result and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: a server with a runner, a gateway and a few agents
    Dev(DevArgs),
    /// Run a server of the cluster
    Server(ServerArgs),
    /// Make this machine a target: converge it to what it should run
    Agent(AgentArgs),
    /// Split traffic between releases
    Gateway(GatewayArgs),

    /// Write a commented swell.toml for the repository at hand
    Init(init::InitArgs),
    /// Check a pipeline file, without a server
    Validate(validate::ValidateArgs),
    /// Print the JSON Schema of swell.toml
    Schema,
    /// Show what a deploy would do, and change nothing
    Plan(plan::PlanArgs),
    /// Build a commit, and follow it
    Build(build::BuildArgs),
    /// Move an environment to a release, and follow it
    Deploy(deploy::DeployArgs),
    /// Go back to the last good release, and follow it
    Rollback(rollback::RollbackArgs),
    /// Pass the gate at which a rollout stands
    Promote(act::PromoteArgs),
    /// Let a rollout stand still
    Pause(act::PauseArgs),
    /// Let a paused rollout go on
    Resume(act::ResumeArgs),
    /// Stop a build, or a rollout and take back what it changed
    Abort(act::AbortArgs),
    /// Queue a failed build again, and follow it
    Retry(act::RetryArgs),

    /// Show what runs where, or one thing
    Status(status::StatusArgs),
    /// Show the log of a build, or the last output of a rollout's failed targets
    Logs(logs::LogsArgs),
    /// List builds and rollouts, newest first
    History(history::HistoryArgs),
    /// Explain why a build or a rollout is where it is
    Why(why::WhyArgs),
    /// Compare two releases
    Diff(diff::DiffArgs),
    /// Show what happened, and follow it
    Events(events::EventsArgs),
    /// Show who did what
    Audit(events::EventsArgs),

    /// Registered repositories
    #[command(subcommand)]
    Pipeline(pipeline::PipelineCommand),
    /// Repositories that Groundswell hosts
    #[command(subcommand)]
    Repo(repo::RepoCommand),
    /// What builds made
    #[command(subcommand)]
    Artifact(artifact::ArtifactCommand),
    /// The servers on which releases run
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// Named sets of targets, and the policy for changing them
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// The servers that agree
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),

    /// Keep a token for a server
    Login(login::LoginArgs),
    /// Show who the server takes you for
    Whoami,
    /// Look for the usual causes of trouble
    Doctor,
    /// This program's own settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Show the version
    Version,
}

impl Command {
    /// Whether `main` plays it: [`super::run`] refuses these.
    pub fn is_role(&self) -> bool {
        matches!(self, Self::Dev(_) | Self::Server(_) | Self::Agent(_) | Self::Gateway(_))
    }
}
