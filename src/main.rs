//! The program `swell`: parses the command line and runs a role or a client command.

mod roles;

use std::{ffi::OsStr, path::Path, process::ExitCode};

use swell_artifacts::archive::{PackOptions, pack};
use swell_cli::{Check, Cli, Command, Hooks};
use swell_sandbox::{isolation, shim};

fn main() -> ExitCode {
    if let Some(code) = shim_command() {
        return code;
    }
    let Cli { globals, command } = match swell_cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let ended = match command {
        Command::Dev(args) => roles::run(globals.json, |stop| roles::dev::run(roles::options::dev(args), stop)),
        Command::Server(args) => roles::options::server(args)
            .map_err(roles::misconfigured)
            .and_then(|options| roles::run(globals.json, |stop| roles::server::run(options, stop))),
        Command::Agent(args) => roles::options::agent(args, &globals)
            .map_err(roles::misconfigured)
            .and_then(|options| roles::run(globals.json, |stop| roles::agent::run(options, stop))),
        Command::Gateway(args) => roles::options::gateway(args, &globals)
            .map_err(roles::misconfigured)
            .and_then(|config| roles::run(globals.json, |stop| roles::gateway::run(config, stop))),
        command => return client(&globals, command),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            roles::exit_of(&error).into()
        }
    }
}

/// Runs `swell shim DIR` before anything else: the shim must stay single-threaded.
fn shim_command() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != OsStr::new("shim") {
        return None;
    }
    let dir = args.next()?;
    Some(shim::main(dir.as_ref()))
}

fn client(globals: &swell_cli::Globals, command: Command) -> ExitCode {
    let hooks = Hooks { pack: pack_folder, isolation: isolation_checks };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: failed to start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(swell_cli::run(globals, command, hooks));
    runtime.shutdown_background();
    exit.into()
}

fn pack_folder(folder: &Path, out: &mut dyn std::io::Write, mtime_secs: u64) -> anyhow::Result<()> {
    pack(folder, out, PackOptions { mtime_secs })?;
    Ok(())
}

fn isolation_checks() -> Vec<Check> {
    let checks = isolation::probe().checks.into_iter();
    checks.map(|check| Check { name: check.name.to_owned(), ok: check.ok, detail: check.reason, hint: check.fix }).collect()
}
