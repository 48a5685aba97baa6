//! What an instance is started with: command, environment, folder, user, limits, and what must be there before. Must not know why
//! it is started.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::User;
use tokio::{process::Command, sync::Mutex, time::timeout};

use super::{data_dirs, journal::Instance, refusal::Refusal};
use swell_model::{
    digest::Digest,
    fleet::TargetInfo,
    ids::PipelineName,
    pipeline_file::{InterpolationError, Log, Variable, expand},
};
use swell_sandbox::{
    cgroup::Limits,
    shim::{Isolation, ProcessSpec, ShimSpec, StopPolicy},
    spool::OutputPolicy,
};

/// Two files of so many bytes are kept of an instance's output.
const OUTPUT_FILE_BYTES: u64 = 4 << 20;
/// How long `useradd` may take.
const USERADD_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest name of a user that `useradd` takes.
const USER_NAME_MAX: usize = 32;

/// What all instances on this target are started with.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub info: TargetInfo,
    /// Tells this agent's control groups from those of another of the same name on this machine.
    pub tag: String,
    /// Whether instances get control groups and users of their own.
    pub isolated: bool,
    /// Of services that name none.
    pub default_user: Option<String>,
}

/// One instance, ready to be started or probed.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub command: Vec<String>,
    /// The command that probes it, if one does.
    pub probe: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub folder: PathBuf,
    /// None: who the agent is.
    pub user: Option<String>,
    data: Vec<String>,
    limits: Limits,
    stop: StopPolicy,
    cgroup: String,
}

impl Launch {
    /// Of the present run of `instance`, whose release is unpacked in `folder`.
    pub fn of(pipeline: &PipelineName, instance: &Instance, folder: &Path, around: &Surroundings) -> Result<Self, Refusal> {
        let service = &instance.settings.settings;
        if let Some(unit) = &service.systemd {
            return Err(Refusal::new(
                format!("service {} is the systemd unit {unit}, which this agent cannot supervise", instance.service),
                "give the service a `command` in place of `systemd`",
            ));
        }
        if let Some(secret) = service.secrets.values().next() {
            return Err(Refusal::new(
                format!("service {} needs the secret `{}`, which did not reach this agent", instance.service, secret.name()),
                "leave it out of `secrets`, or upgrade servers and agent to a version that delivers secrets",
            ));
        }
        if service.log == Log::Journald {
            tracing::warn!(service = %instance.service, "keeping output in files, this agent does not write to journald");
        }
        let id = format!("{pipeline}-{}", instance.name());
        let lookup = |variable: &Variable| variable_of(variable, pipeline, instance, &id, &around.info);
        let fill = |text: &String| expand(text, lookup).map_err(|error| not_filled(instance, text, &error));
        let fill_all = |texts: &[String]| texts.iter().map(fill).collect::<Result<Vec<_>, _>>();
        let mut env = own_env(pipeline, instance, &id, &around.info);
        for (name, value) in &service.env {
            env.insert(name.clone(), fill(value)?);
        }
        let mut user = around.isolated.then(|| {
            service
                .user
                .clone()
                .or_else(|| around.default_user.clone())
                .unwrap_or_else(|| own_user(pipeline, instance.service.as_str()))
        });
        if user.as_deref() == Some("root") && nix::unistd::geteuid().is_root() {
            user = None;
        }
        Ok(Self {
            command: in_folder(fill_all(&service.command)?, folder),
            probe: in_folder(fill_all(&service.health.command)?, folder),
            env,
            folder: folder.to_owned(),
            user,
            data: service.data.clone(),
            limits: Limits {
                memory_bytes: service.limits.memory.map(|memory| memory.0),
                cpu_cores: service.limits.cpu.map(|cpu| cpu.as_f64()),
                pids: service.limits.pids,
                nofile: service.limits.nofile,
            },
            stop: StopPolicy { signal: service.stop.signal.name().to_owned(), timeout: service.stop.timeout },
            cgroup: format!("/groundswell/agent/{}-{}/{pipeline}/{}", around.info.name, around.tag, instance.name()),
        })
    }

    /// What the shim is asked to run.
    pub fn spec(&self, isolated: bool) -> ShimSpec {
        let kind = if isolated { Isolation::Process(ProcessSpec { user: self.user.clone() }) } else { Isolation::Bare };
        ShimSpec {
            command: self.command.clone(),
            env: self.env.clone(),
            cwd: self.folder.clone(),
            kind,
            limits: self.limits,
            time_limit: None,
            stop: self.stop.clone(),
            output: OutputPolicy::Rotate { file_bytes: OUTPUT_FILE_BYTES },
            cgroup: self.cgroup.clone(),
        }
    }

    /// Makes its user and its data folders where they are missing.
    pub async fn prepare(&self) -> Result<(), Refusal> {
        if let Some(user) = &self.user {
            ensure_user(user).await?;
        }
        let (data, user) = (self.data.clone(), self.user.clone());
        let made = tokio::task::spawn_blocking(move || {
            data.iter().try_for_each(|folder| data_dirs::make_folder(folder, user.as_deref()))
        });
        made.await.map_err(|_| Refusal::new("the agent is stopping".to_owned(), "start it again"))?
    }
}

fn not_filled(instance: &Instance, text: &str, error: &InterpolationError) -> Refusal {
    Refusal::new(format!("service {}: `{text}` cannot be filled in: {error}", instance.service), "correct it in swell.toml")
}

fn variable_of(variable: &Variable, pipeline: &PipelineName, instance: &Instance, id: &str, info: &TargetInfo) -> Option<String> {
    Some(match variable {
        Variable::Port(port) => instance.ports.get(port)?.to_string(),
        Variable::Pipeline => pipeline.to_string(),
        Variable::Service => instance.service.to_string(),
        Variable::Release => instance.release.number.to_string(),
        Variable::Environment => instance.environment.to_string(),
        Variable::Target => info.name.to_string(),
        Variable::Region => info.region.clone(),
        Variable::Zone => info.zone.clone(),
        Variable::Instance => id.to_owned(),
    })
}

/// Variables by which every instance knows itself.
fn own_env(pipeline: &PipelineName, instance: &Instance, id: &str, info: &TargetInfo) -> BTreeMap<String, String> {
    let own = [
        ("SWELL_PIPELINE", pipeline.to_string()),
        ("SWELL_SERVICE", instance.service.to_string()),
        ("SWELL_RELEASE", instance.release.to_string()),
        ("SWELL_ENVIRONMENT", instance.environment.to_string()),
        ("SWELL_TARGET", info.name.to_string()),
        ("SWELL_REGION", info.region.clone()),
        ("SWELL_ZONE", info.zone.clone()),
        ("SWELL_INSTANCE", id.to_owned()),
    ];
    own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A program with a slash in its name is in the release, unless it is absolute.
fn in_folder(mut command: Vec<String>, folder: &Path) -> Vec<String> {
    if let Some(program) = command.first_mut().filter(|program| program.contains('/') && !program.starts_with('/')) {
        *program = folder.join(&*program).to_string_lossy().into_owned();
    }
    command
}

/// The name of a service's own user: readable, and never that of another service.
fn own_user(pipeline: &PipelineName, service: &str) -> String {
    let unique = Digest::of(format!("{pipeline}/{service}").as_bytes()).short();
    let plain: String = pipeline.as_str().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let room = USER_NAME_MAX - "swell--".len() - 8;
    format!("swell-{}-{}", &plain[..plain.len().min(room)], &unique[..8])
}

async fn ensure_user(name: &str) -> Result<(), Refusal> {
    /// `useradd` locks the user database and does not wait for another.
    static ADDING: Mutex<()> = Mutex::const_new(());
    let exists = |name: &str| {
        let name = name.to_owned();
        async move { tokio::task::spawn_blocking(move || matches!(User::from_name(&name), Ok(Some(_)))).await.unwrap_or(false) }
    };
    // A user that somebody named must be there; the shim says so. Only our own are made.
    if !name.starts_with("swell-") || exists(name).await {
        return Ok(());
    }
    let _one_at_a_time = ADDING.lock().await;
    if exists(name).await {
        return Ok(());
    }
    let hint = "make it yourself, or name another in the service's `user`";
    let mut command = Command::new("useradd");
    command.args(["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name]);
    match timeout(USERADD_TIMEOUT, command.kill_on_drop(true).output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Refusal::new(format!("failed to make the user {name} with useradd: {}", said.trim()), hint))
        }
        Ok(Err(error)) => Err(Refusal::new(format!("failed to make the user {name}: useradd could not be run: {error}"), hint)),
        Err(_) => {
            Err(Refusal::new(format!("failed to make the user {name}: useradd took longer than {USERADD_TIMEOUT:?}"), hint))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn own_users_have_short_names_that_differ() {
        let name = own_user(&"a-very-long-name.of_a-pipeline-that-goes-on".parse().unwrap(), "api");
        assert!(name.len() <= USER_NAME_MAX, "{name}");
        assert_ne!(name, own_user(&"a-very-long-name.of_a-pipeline-that-goes-on".parse().unwrap(), "worker"));
    }

    #[test]
    fn relative_program_is_in_the_release() {
        let command = |program: &str| in_folder(vec![program.to_owned(), "a/b".to_owned()], Path::new("/r"));
        assert_eq!(command("bin/api"), ["/r/bin/api", "a/b"]);
        assert_eq!(command("/bin/sh")[0], "/bin/sh");
        assert_eq!(command("perl")[0], "perl");
    }
}
