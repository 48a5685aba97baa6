//! The program `swell`: picks a role by its first argument.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = shim_command() {
        return code;
    }
    agent_command().unwrap_or(ExitCode::SUCCESS)
}

/// `swell shim DIR`, before anything else: it must never become multi-threaded.
fn shim_command() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "shim" {
        return None;
    }
    let dir = args.next()?;
    Some(groundswell::runner::shim::main(dir.as_ref()))
}

/// `swell agent --config FILE`: the agent of this server of the fleet, with [`groundswell::agent::AgentOptions`] as TOML.
fn agent_command() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "agent" || args.next()? != "--config" {
        return None;
    }
    let file = std::path::PathBuf::from(args.next()?);
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    Some(match run_agent(&file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the agent cannot work");
            ExitCode::FAILURE
        }
    })
}

fn run_agent(file: &std::path::Path) -> anyhow::Result<()> {
    use anyhow::Context;
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let options = toml::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let agent = groundswell::agent::Agent::open(options)?;
        let stop = tokio_util::sync::CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let on_signal = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            on_signal.cancel();
        });
        agent.run(stop).await?;
        Ok(())
    })
}
