//! From the command line to the command that was meant, and from its end to the exit code. Knows nothing of what commands do.

use std::{ffi::OsString, path::Path};

use clap::{CommandFactory as _, FromArgMatches as _, error::ErrorKind};

use super::{
    args::{Cli, Command, Globals},
    commands::{
        act, artifact, build, cluster, completion, config, deploy, diff, doctor, env, events, fleet, history, init, login, logs,
        pipeline, plan, repo, rollback, schema, status, validate, version, whoami, why,
    },
    context::{Context, Hooks},
    failure::{Exit, Failure, Result},
    output::Output,
    role_file::{self, RoleFile, RoleSources},
};

/// Reads the command line, and the file of a role. What cannot be read is said here; so are `--help` and `--version`. The error is
/// the exit code.
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Cli, Exit> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let wants_json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    let var = |name: &str| std::env::var(name).ok();
    let folder = Path::new(role_file::FOLDER);
    let error = match parse_with(Cli::command, &arguments, &RoleSources { var: &var, folder }) {
        Ok(cli) => return Ok(cli),
        Err(Unread::Typed(error)) => error,
        Err(Unread::Written(failure)) => {
            return Err(ended(&Output::of_process(wants_json, false, Default::default()), Err(failure)));
        }
    };
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if wants_json && !is_help {
        let text = error.render().to_string();
        let said = text.strip_prefix("error: ").unwrap_or(&text).trim();
        let failure = Failure::usage(said).hint("`swell --help` lists the commands");
        // Whoever is not there to read the error sees the exit code.
        Output::of_process(true, false, Default::default()).json(&failure.to_json()).ok();
    } else {
        error.print().ok();
    }
    Err(if is_help { Exit::Done } else { Exit::Usage })
}

/// Why there is no command.
#[derive(Debug)]
pub(super) enum Unread {
    /// By what was typed, or by a variable.
    Typed(clap::Error),
    /// By a file.
    Written(Failure),
}

impl From<clap::Error> for Unread {
    fn from(error: clap::Error) -> Self {
        Self::Typed(error)
    }
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Self {
        Self::Written(failure)
    }
}

/// Reads the command line a first time to learn which role is meant and where its file is, and again with what the file says.
pub(super) fn parse_with(
    command: impl Fn() -> clap::Command,
    arguments: &[OsString],
    sources: &RoleSources<'_>,
) -> Result<Cli, Unread> {
    let typed = |command: clap::Command| Cli::from_arg_matches(&command.try_get_matches_from(arguments)?);
    let cli = typed(command())?;
    let role = match &cli.command {
        Command::Server(_) => "server",
        Command::Agent(_) => "agent",
        Command::Gateway(_) => "gateway",
        Command::Dev(_) if cli.globals.config_file.is_some() => {
            let failure = Failure::usage("`swell dev` reads no configuration file");
            return Err(failure.hint("take --config out: its settings are flags, which `swell dev --help` lists").into());
        }
        _ => return Ok(cli),
    };
    let file = RoleFile::read(role, &cli.globals, sources)?;
    let (command, tuning) = file.apply(command(), role, sources)?;
    let mut cli = typed(command)?;
    if let Command::Gateway(args) = &mut cli.command {
        args.tuning = tuning;
    }
    Ok(cli)
}

/// Does what a command says, but a role, which `main` plays. Everything that there is to say has been said when it returns.
pub async fn run(globals: &Globals, command: Command, hooks: Hooks) -> Exit {
    let context = match Context::of_process(globals, hooks) {
        Ok(context) => context,
        Err((output, failure)) => return ended(&output, Err(failure)),
    };
    let end = dispatch(&context, command).await;
    ended(&context.output, end)
}

/// Says how it ended: the error on standard error, or with `--json` as an object on standard output.
pub(super) fn ended(output: &Output, end: Result<Exit>) -> Exit {
    match end {
        Ok(exit) => exit,
        Err(failure) if failure.is_closed_output() => Exit::Failed,
        Err(failure) if output.json => {
            output.json(&failure.to_json()).ok();
            failure.exit()
        }
        Err(failure) => {
            output.complain(failure.to_string());
            failure.exit()
        }
    }
}

pub(super) async fn dispatch(context: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Dev(_) | Command::Server(_) | Command::Agent(_) | Command::Gateway(_) => {
            Err(Failure::new(Exit::Failed, "role", "a role is played by the program itself, not by its client"))
        }
        Command::Init(args) => init::run(context, args),
        Command::Validate(args) => validate::run(context, args),
        Command::Schema => schema::run(context),
        Command::Plan(args) => plan::run(context, args).await,
        Command::Build(args) => build::run(context, args).await,
        Command::Deploy(args) => deploy::run(context, args).await,
        Command::Rollback(args) => rollback::run(context, args).await,
        Command::Promote(args) => act::promote(context, args).await,
        Command::Pause(args) => act::pause(context, args).await,
        Command::Resume(args) => act::resume(context, args).await,
        Command::Abort(args) => act::abort(context, args).await,
        Command::Retry(args) => act::retry(context, args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Logs(args) => logs::run(context, args).await,
        Command::History(args) => history::run(context, args).await,
        Command::Why(args) => why::run(context, args).await,
        Command::Diff(args) => diff::run(context, args).await,
        Command::Events(args) => events::run(context, args, events::Style::Events).await,
        Command::Audit(args) => events::run(context, args, events::Style::Audit).await,
        Command::Pipeline(command) => pipeline::run(context, command).await,
        Command::Repo(command) => repo::run(context, command).await,
        Command::Artifact(command) => artifact::run(context, command).await,
        Command::Fleet(command) => fleet::run(context, command).await,
        Command::Env(command) => env::run(context, command).await,
        Command::Cluster(command) => cluster::run(context, command).await,
        Command::Login(args) => login::run(context, args).await,
        Command::Whoami => whoami::run(context).await,
        Command::Doctor => doctor::run(context).await,
        Command::Config(command) => config::run(context, command),
        Command::Completion(args) => completion::run(context, args),
        Command::Version => version::run(context),
    }
}
