//! The roles of `swell`: each file wires one together from the crates. Contains no rules.

pub mod agent;
pub mod dev;
pub mod gateway;
pub mod options;
pub mod server;

use std::{io::IsTerminal as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use swell_agent::AgentError;
use swell_cli::Exit;
use swell_gateway::GatewayError;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The configuration of a role is wrong: a restart does not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misconfigured(String);

/// Marks `error` as one of configuration.
pub fn misconfigured(error: anyhow::Error) -> anyhow::Error {
    Misconfigured(format!("{error:#}")).into()
}

/// The exit code of a role that ended with `error`.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let is_misconfigured = |cause: &(dyn std::error::Error + 'static)| {
        let agents = matches!(
            cause.downcast_ref(),
            Some(AgentError::NoServers | AgentError::Server(_) | AgentError::Scheme { .. } | AgentError::NotIsolated(_))
        );
        cause.is::<Misconfigured>() || cause.is::<GatewayError>() || agents
    };
    if error.chain().any(is_misconfigured) { Exit::Usage } else { Exit::Failed }
}

/// How long a role may take to stop before its process exits anyway.
const STOP_WITHIN: Duration = Duration::from_secs(40);

/// Sets up logging and the async runtime, and runs `role` until it ends or receives SIGTERM or SIGINT.
pub fn run<F>(json: bool, role: impl FnOnce(CancellationToken) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let filter = EnvFilter::try_from_env("SWELL_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    if json {
        log.json().init()
    } else {
        log.with_target(false).init()
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("failed to start the async runtime")?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("failed to handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to handle SIGINT")?;
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            tracing::info!("stopping");
            stopped.cancel();
        });
        let work = role(stop.clone());
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => result,
            () = stop.cancelled() => match tokio::time::timeout(STOP_WITHIN, work).await {
                Ok(result) => result,
                Err(_) => {
                    tracing::warn!("role did not stop in time, exiting anyway");
                    Ok(())
                }
            },
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Raises the limit of open files to the hard limit: each connection takes one. Only for roles that hold many connections, since
/// children inherit the limit.
pub fn open_files_max() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "failed to raise the limit of open files, which bounds the number of connections");
    }
}

/// Creates a folder that only its owner may enter.
pub fn private_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    created(path, std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
}

/// Creates a folder that others may pass through: services run as users of their own.
pub fn passable_folder(path: &Path) -> Result<()> {
    created(path, std::fs::create_dir_all(path))
}

fn created(path: &Path, created: std::io::Result<()>) -> Result<()> {
    let created = created.with_context(|| {
        let hint = "name a folder that this user may write with --data, or run as another user";
        format!("failed to create the folder {}; {hint}", path.display())
    });
    created.map_err(misconfigured)
}

/// Binds `address`, or fails with how to find the program that uses it.
pub async fn bind(address: std::net::SocketAddr, flag: &str) -> Result<tokio::net::TcpListener> {
    let bound = tokio::net::TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "{address} is taken by another program: stop it (`ss -ltnp 'sport = :{}'` names it), or choose another address with {flag}",
            address.port()
        ),
        std::io::ErrorKind::PermissionDenied => {
            format!("this user may not listen on {address}: choose a port from 1024 on with {flag}, or run as root")
        }
        _ => format!("failed to listen on {address}: {error}; choose another address with {flag}"),
    });
    bound.map_err(|message| Misconfigured(message).into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_errors_of_configuration_exit_with_usage() {
        let taken = bind("127.0.0.1:0".parse().unwrap(), "--listen").await.unwrap();
        let error = bind(taken.local_addr().unwrap(), "--listen").await.unwrap_err();
        assert!(error.to_string().contains("is taken by another program"), "{error}");
        assert_eq!(exit_of(&error), Exit::Usage);
        assert_eq!(exit_of(&AgentError::NoServers.into()), Exit::Usage);
        assert_eq!(exit_of(&private_folder(Path::new("/dev/null/data")).unwrap_err()), Exit::Usage);
        assert_eq!(exit_of(&anyhow::anyhow!("this server has stopped: the disk is full")), Exit::Failed);
    }

    #[test]
    fn open_files_limit_is_raised_to_hard_limit() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard - 1), hard).unwrap();
        open_files_max();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
