//! The tree of commands. The arguments of each command stand with its code, in `commands/`.

use clap::{Parser, Subcommand};

use super::{
    commands::{
        act, artifact, build, cluster, completion, config, deploy, diff, env, events, fleet, history, init, login, logs,
        pipeline, plan, repo, rollback, status, validate, why,
    },
    globals::Globals,
    roles::{AgentArgs, DevArgs, GatewayArgs, ServerArgs},
};

/// What stands below the list of commands in `swell --help`.
const AFTER_HELP: &str = "\
Exit codes:
  0  done                           6  stopped waiting, the work continues
  1  failed                         7  conflict or lock
  2  usage or configuration         8  not allowed
  3  failed and rolled back         9  no leader, or no server answers
  4  rollback failed               10  `plan` found changes
  5  waiting for approval

The server is --addr, SWELL_ADDR, `addr` in a configuration file, or http://127.0.0.1:7400.
Run `swell config show --origin` to see which applies.";

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
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `swell`, in the order of its help
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs everything on this machine: a server with a runner, a gateway and a few agents
    Dev(DevArgs),
    /// Runs a server of the cluster
    Server(ServerArgs),
    /// Makes this machine a target that releases are deployed to
    Agent(AgentArgs),
    /// Forwards users' requests to healthy instances
    Gateway(GatewayArgs),

    /// Writes a commented swell.toml for the current repository
    Init(init::InitArgs),
    /// Checks a pipeline file without a server
    Validate(validate::ValidateArgs),
    /// Prints the JSON Schema of swell.toml
    Schema,
    /// Shows what a deploy would do, without changing anything
    Plan(plan::PlanArgs),
    /// Builds a commit and follows the build
    Build(build::BuildArgs),
    /// Deploys a release to an environment and follows the rollout
    Deploy(deploy::DeployArgs),
    /// Returns an environment to its last good release and follows the rollout
    Rollback(rollback::RollbackArgs),
    /// Skips the waiting time of a rollout's current gate
    Promote(act::PromoteArgs),
    /// Pauses a rollout before its next change
    Pause(act::PauseArgs),
    /// Resumes a paused rollout
    Resume(act::ResumeArgs),
    /// Cancels a build, or stops a rollout and reverts what it changed
    Abort(act::AbortArgs),
    /// Queues a failed build again and follows it
    Retry(act::RetryArgs),

    /// Shows what runs where, or one build, rollout, release or pipeline
    Status(status::StatusArgs),
    /// Prints the log of a build, or the last output of a rollout's failed targets
    Logs(logs::LogsArgs),
    /// Lists builds and rollouts, newest first
    History(history::HistoryArgs),
    /// Explains the state of a build or rollout
    Why(why::WhyArgs),
    /// Compares two releases
    Diff(diff::DiffArgs),
    /// Lists events, and follows them
    Events(events::EventsArgs),
    /// Lists who changed what
    Audit(events::EventsArgs),

    /// Manages pipelines: repositories that are built and deployed
    #[command(subcommand)]
    Pipeline(pipeline::PipelineCommand),
    /// Manages git repositories hosted by Groundswell
    #[command(subcommand)]
    Repo(repo::RepoCommand),
    /// Manages artifacts: the output of builds
    #[command(subcommand)]
    Artifact(artifact::ArtifactCommand),
    /// Manages targets: the machines that releases run on
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// Manages environments: sets of targets, and the policy for changing them
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// Shows the servers of the cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),

    /// Stores a token for a server
    Login(login::LoginArgs),
    /// Shows the role and name that the server knows you by
    Whoami,
    /// Checks this machine and the server for common problems
    Doctor,
    /// Shows the settings of this program
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Prints a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Prints the version
    Version,
}
