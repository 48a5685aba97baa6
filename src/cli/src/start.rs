//! Parses the command line, dispatches to the command, and turns its result into an exit code.

use std::{ffi::OsString, path::Path};

use clap::{CommandFactory as _, FromArgMatches as _, error::ErrorKind};

use super::{
    args::{Cli, Command},
    commands::{
        act, artifact, build, cluster, completion, config, deploy, diff, doctor, env, events, fleet, history, init, login, logs,
        pipeline, plan, repo, rollback, schema, status, validate, version, whoami, why,
    },
    context::{Context, Hooks},
    failure::{Exit, Failure, Result},
    globals::Globals,
    output::Output,
    role_file::{self, RoleFile, RoleSources},
    suggest::suggest,
};

/// Parses the command line, and a role's configuration file. Errors, `--help` and `--version` are printed here; the returned error
/// is the exit code.
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Cli, Exit> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let wants_json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    let var = |name: &str| std::env::var(name).ok();
    let folder = Path::new(role_file::FOLDER);
    let error = match parse_with(Cli::command, &arguments, &RoleSources { var: &var, folder }) {
        Ok(cli) => return Ok(cli),
        Err(ParseError::CommandLine(error)) => error,
        Err(ParseError::File(failure)) => {
            return Err(exit_of(&Output::of_process(wants_json, false, Default::default()), Err(failure)));
        }
    };
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if wants_json && !is_help {
        let text = error.render().to_string();
        let detail = text.strip_prefix("error: ").unwrap_or(&text).trim();
        let failure = Failure::usage(detail).hint("`swell --help` lists the commands");
        // With standard output closed, the exit code is all that can be reported.
        Output::of_process(true, false, Default::default()).json(&failure.to_json()).ok();
    } else {
        error.print().ok();
    }
    Err(if is_help { Exit::Done } else { Exit::Usage })
}

/// Why the command line could not be parsed.
#[derive(Debug)]
pub(super) enum ParseError {
    /// An argument or an environment variable is wrong.
    CommandLine(clap::Error),
    /// The role's configuration file is wrong.
    File(Failure),
}

impl From<clap::Error> for ParseError {
    fn from(error: clap::Error) -> Self {
        Self::CommandLine(error)
    }
}

impl From<Failure> for ParseError {
    fn from(failure: Failure) -> Self {
        Self::File(failure)
    }
}

/// Parses the command line once to learn the role and its file, and again with the file's values as defaults.
pub(super) fn parse_with(
    command: impl Fn() -> clap::Command,
    arguments: &[OsString],
    sources: &RoleSources<'_>,
) -> Result<Cli, ParseError> {
    let parse = |command: clap::Command| Cli::from_arg_matches(&command.try_get_matches_from(arguments)?);
    let cli = parse(command())?;
    let role = match &cli.command {
        Command::Server(_) => "server",
        Command::Agent(_) => "agent",
        Command::Gateway(_) => "gateway",
        Command::Dev(_) if cli.globals.config_file.is_some() => {
            let failure = Failure::usage("`swell dev` reads no configuration file");
            return Err(failure.hint("remove --config; `swell dev --help` lists the flags").into());
        }
        _ => return Ok(cli),
    };
    let file = RoleFile::read(role, &cli.globals, sources)?;
    let (command, tuning) = file.apply(command(), role, sources)?;
    let mut cli = parse(command)?;
    if let Command::Gateway(args) = &mut cli.command {
        args.tuning = tuning;
    }
    Ok(cli)
}

/// Runs a client command and prints its result or error. Roles are run by `main`.
pub async fn run(globals: &Globals, command: Command, hooks: Hooks) -> Exit {
    let context = match Context::of_process(globals, hooks) {
        Ok(context) => context,
        Err((output, failure)) => return exit_of(&output, Err(failure)),
    };
    let result = dispatch(&context, command).await;
    exit_of(&context.output, result)
}

/// The exit code of a command. Prints its error on standard error, or with `--json` as an object on standard output.
pub(super) fn exit_of(output: &Output, result: Result<Exit>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(failure) if failure.is_closed_output() => Exit::Failed,
        Err(failure) if output.json => {
            output.json(&failure.to_json()).ok();
            failure.exit()
        }
        Err(failure) => {
            output.error_line(failure.to_string());
            failure.exit()
        }
    }
}

/// Runs a client command. A name that does not exist fails with a suggestion.
pub(super) async fn dispatch(context: &Context, command: Command) -> Result<Exit> {
    match execute(context, command).await {
        Err(failure) => match context.client() {
            Ok(client) => Err(suggest(&client, failure).await),
            Err(_) => Err(failure),
        },
        done => done,
    }
}

async fn execute(context: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Dev(_) | Command::Server(_) | Command::Agent(_) | Command::Gateway(_) => {
            Err(Failure::new(Exit::Failed, "role", "a role was passed to the client; this is a bug in swell"))
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
        Command::Completion(args) => completion::run(context, args, &mut Cli::command()),
        Command::Version => version::run(context),
    }
}
