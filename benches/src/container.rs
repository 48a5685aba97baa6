//! A build's container that runs nothing: created, started, waited for and deleted, beside runc with the same root, namespaces, filter
//! and limits.
//!
//! The peer's configuration is our own: it is read from a container that was started for that, and what only its shim can see (the staged
//! root and the folders bound into it) is laid out once more for runc.

use std::{
    fs,
    os::unix::fs::{chown, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    Setup,
    process::{folder, installed, version},
    report::Report,
    sample::{Paired, ms},
};

/// How often both sides are measured, after a few times that do not count.
const ROUNDS: usize = 50;
const WARM_UP: usize = 3;

/// How long a container may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Limits of a build's phase, as a pipeline file gives them by default.
const MEMORY_BYTES: u64 = 2 << 30;
const CPU_CORES: u64 = 2;
const PIDS: u64 = 4096;
const CPU_PERIOD_US: u64 = 100_000;

/// The machine's id that root in the container really is.
const ID_BASE: u32 = 100_000;

pub async fn run(setup: &Setup, report: Report) -> Result<()> {
    let runc = installed("runc", "runc")?;
    report.versions(&[("runc", version(&runc, &["--version"]).await?)]);
    let folder = folder()?;
    let place = Place::new(setup, folder.path())?;
    let bundle = place.runc_bundle().await.context("laying out the same container for runc")?;
    let mut rounds = Vec::new();
    for round in 0..setup.rounds(ROUNDS) + WARM_UP {
        let ours = place.swell_once(round).await.context("running a container with swell")?;
        let peer = place.runc_once(&runc, &bundle, round).await.context("running a container with runc")?;
        if round >= WARM_UP {
            rounds.push(Paired { ours: ms(ours), peer: ms(peer) });
        }
    }
    report.compared(
        "create, start, run true, delete",
        &rounds,
        "ms",
        "runc; user namespace, seccomp, memory, cpu and pids limits",
    )
}

/// A folder in which containers are run, one after the other.
pub struct Place {
    swell: PathBuf,
    folder: PathBuf,
}

impl Place {
    /// Lays out `folder`.
    pub fn new(setup: &Setup, folder: &Path) -> Result<Self> {
        ensure!(geteuid().is_root(), "containers need root: run this benchmark as root");
        for name in ["workspace", "out"] {
            fs::create_dir(folder.join(name))?;
        }
        Ok(Self { swell: setup.swell.clone(), folder: folder.to_owned() })
    }

    /// What a build's phase writes for its shim.
    fn spec(&self, name: &str, command: &[&str]) -> Value {
        let bind = |from: &str, to: &str| json!({ "source": self.folder.join(from), "destination": to, "read_only": false, "owned_by_container": true });
        json!({
            "command": command,
            "env": { "CI": "true", "LC_ALL": "C.UTF-8" },
            "cwd": "/workspace",
            "kind": { "container": { "image": "host", "binds": [bind("workspace", "/workspace"), bind("out", "/out")] } },
            "limits": { "memory_bytes": MEMORY_BYTES, "cpu_cores": CPU_CORES, "pids": PIDS, "nofile": 65_536 },
            "time_limit": "60s",
            "stop": { "signal": "TERM", "timeout": "3s" },
            "output": { "head": { "limit_bytes": 256 << 20 } },
            "cgroup": cgroup(name),
        })
    }

    fn start_shim(&self, name: &str, command: &[&str]) -> Result<(PathBuf, Child)> {
        let dir = self.folder.join(name);
        fs::create_dir(&dir)?;
        fs::write(dir.join("spec.json"), self.spec(name, command).to_string())?;
        let mut shim = Command::new(&self.swell);
        let child = shim.arg("shim").arg(&dir).env_clear().stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        Ok((dir, child.spawn().context("failed to start a shim")?))
    }

    /// How long one container of ours takes, from its folder to the end of its shim.
    pub async fn swell_once(&self, round: usize) -> Result<Duration> {
        let started = Instant::now();
        let (dir, mut shim) = self.start_shim(&format!("swell-{round}"), &["/bin/true"])?;
        let status = timeout(PATIENCE, shim.wait()).await.context("the shim does not end")??;
        let took = started.elapsed();
        let exit: Value = serde_json::from_slice(&fs::read(dir.join("exit.json")).context("no exit record")?)?;
        let log = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
        ensure!(status.success() && exit["outcome"] == json!({ "exited": 0 }), "the container failed: {exit} {log}");
        fs::remove_dir_all(&dir)?;
        Ok(took)
    }

    /// How long one container of runc's takes.
    pub async fn runc_once(&self, runc: &Path, bundle: &Path, round: usize) -> Result<Duration> {
        let started = Instant::now();
        let mut command = Command::new(runc);
        command.arg("--root").arg(self.folder.join("runc-state")).arg("run").arg("--bundle").arg(bundle);
        command.arg(format!("swell-bench-{}-{round}", std::process::id())).env_clear().kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await.context("runc does not end")??;
        ensure!(output.status.success(), "runc failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(started.elapsed())
    }

    /// A bundle with which runc makes the container that the shim makes.
    pub async fn runc_bundle(&self) -> Result<PathBuf> {
        let (dir, mut shim) = self.start_shim("model", &["/bin/sleep", "60"])?;
        let copied = self.copy_model(&dir).await;
        // SIGUSR1 is how a shim is told to kill what it runs.
        let pid = Pid::from_raw(i32::try_from(shim.id().context("the shim ended")?)?);
        kill(pid, Signal::SIGUSR1).context("failed to end the model")?;
        timeout(PATIENCE, shim.wait()).await.context("the model does not end")??;
        copied
    }

    async fn copy_model(&self, dir: &Path) -> Result<PathBuf> {
        let deadline = Instant::now() + PATIENCE;
        let (config, root) = loop {
            if let Some(found) = running(dir) {
                break found;
            }
            ensure!(Instant::now() < deadline, "the model does not run: {}", fs::read_to_string(dir.join("shim.log"))?);
            sleep(Duration::from_millis(20)).await;
        };
        let bundle = self.folder.join("runc");
        let rootfs = bundle.join("rootfs");
        fs::create_dir(&bundle)?;
        fs::create_dir(&rootfs)?;
        copy_root(&root, &rootfs)?;
        let config = self.for_runc(config, &rootfs)?;
        fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(bundle)
    }

    fn for_runc(&self, mut config: Value, rootfs: &Path) -> Result<Value> {
        config["root"]["path"] = json!(rootfs);
        config["process"]["args"] = json!(["/bin/true"]);
        config["linux"]["cgroupsPath"] = json!(cgroup("runc"));
        let resources = &mut config["linux"]["resources"];
        resources["memory"] = json!({ "limit": MEMORY_BYTES });
        resources["cpu"] = json!({ "quota": CPU_CORES * CPU_PERIOD_US, "period": CPU_PERIOD_US });
        resources["pids"] = json!({ "limit": PIDS });
        for mount in config["mounts"].as_array_mut().context("a configuration without mounts")? {
            let destination = mount["destination"].as_str().context("a mount without a destination")?.to_owned();
            // Made here, since the container's root may not make them in folders that are not its own.
            fs::create_dir_all(rootfs.join(destination.trim_start_matches('/')))?;
            if let Some(name) = ["workspace", "out"].into_iter().find(|name| destination == format!("/{name}")) {
                mount["source"] = json!(self.folder.join(name));
            }
            if let Some(options) = mount["options"].as_array_mut() {
                // Newer than the runc of Debian 12.
                options.retain(|option| option != "rro");
            }
        }
        Ok(config)
    }
}

/// The configuration of the container that the shim in `dir` runs, and its root as seen from here.
fn running(dir: &Path) -> Option<(Value, PathBuf)> {
    let child: Value = serde_json::from_slice(&fs::read(dir.join("child.pid")).ok()?).ok()?;
    let pid = child["pid"].as_i64()?;
    // Not before it has become the command: until then its root is still being made.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let config = serde_json::from_slice(&fs::read(dir.join("bundle/config.json")).ok()?).ok()?;
    (name.trim() == "sleep").then(|| (config, PathBuf::from(format!("/proc/{pid}/root"))))
}

/// The folders and links of a root, and the files of its `/etc`.
fn copy_root(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, target)?;
        } else if kind.is_dir() {
            fs::create_dir(target)?;
        }
    }
    for entry in fs::read_dir(from.join("etc"))? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join("etc").join(entry.file_name()));
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    // The container's root makes what mount points are missing.
    chown(to, Some(ID_BASE), Some(ID_BASE)).context("failed to hand over the root")?;
    if !to.join("etc").is_dir() {
        bail!("the model's root has no /etc");
    }
    Ok(())
}

fn cgroup(name: &str) -> String {
    format!("/groundswell/bench-{}-{name}", std::process::id())
}
