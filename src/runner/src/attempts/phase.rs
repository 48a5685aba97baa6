//! One phase in its own container, through a shim that outlives the server: started, or adopted after a restart. Must not know which
//! phases there are nor what their ends mean.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    chain,
    folder::Running,
    log::last_output,
    run::{Run, Stop, lost},
    verdict::{EndedBy, Given, OUTPUT_BYTES_MAX, ended_well, exit_code, in_a_sentence, no_time_left, verdict},
};
use swell_model::{
    build::{Phase, PhaseRecord},
    pipeline_file::PipelineFile,
    units::{ByteSize, Millis},
};
use swell_sandbox::{
    cgroup::Limits,
    runtime::{self, ShimHandle, ShimStatus, is_disk_full},
    shim::{Bind, ContainerSpec, DEFAULT_PATH, ExitRecord, Isolation, ShimSpec, StopPolicy},
};

/// How long a phase may take to end when it is asked to, before it is killed.
const STOP_WITHIN: Millis = Millis::from_secs(3);

/// Processes and threads of a phase.
const PIDS_MAX: u64 = 4096;

/// Open files of each process of a phase.
const OPEN_FILES_MAX: u64 = 65_536;

/// Where the workspace and `$OUT` are inside a container: the same on every runner, since paths find their way into artifacts.
const WORKSPACE: &str = "/workspace";
const OUT: &str = "/out";

/// How long a shim that was being started when the server died may take to show itself.
const APPEAR_WITHIN: Duration = Duration::from_secs(10);

/// How often the files of a phase are measured at the most; seldom enough to take a twentieth of the time.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
const MEASURE_SHARE: u32 = 20;

impl Run {
    /// Runs a phase, unless it was run before.
    pub(super) async fn run_phase(
        &mut self,
        phase: Phase,
        script: &str,
        env: Option<&BTreeMap<String, String>>,
        file: &PipelineFile,
        committed_at_s: u64,
    ) -> Result<(), Stop> {
        if self.record.has_ended(phase) {
            return Ok(());
        }
        self.acknowledged().await?;
        swell_system::crash::point("attempt::before_phase");
        let begun = self.begin(phase).await?;
        let settings = &file.build;
        let given = Given { phase, script, memory: settings.memory, disk: settings.disk, timeout: settings.timeout };
        let dir = match self.present_segment(phase) {
            Some(dir) => dir,
            None => {
                if self.record.spent >= settings.timeout {
                    return Err(Stop::End(no_time_left(given)));
                }
                self.unless_stopped(async {}).await?;
                self.line(phase, &format!("running {}", in_a_sentence(script)))?;
                let segment = self.log.add_shim(phase);
                self.record.running = Some(Running { phase, segment: segment.clone() });
                self.keep_record().await?;
                self.folder.log().join(segment)
            }
        };
        swell_system::crash::point("attempt::phase_recorded");
        let variables = self.variables(env, file, committed_at_s);
        let spec = self.spec(phase, script, file, variables);
        let (exit, ended_by) = match self.start_or_adopt(&dir, &spec).await? {
            Begun::Runs(shim) => {
                swell_system::crash::point("attempt::phase_started");
                self.watch(&shim, given.disk).await?
            }
            Begun::Ended(exit) => (exit, EndedBy::Itself),
        };
        let ended_by = match ended_by {
            EndedBy::Itself if exit.stopped => self.stopped_by(given.disk).await?,
            ended_by => ended_by,
        };
        swell_system::crash::point("attempt::phase_ended");
        let ended = PhaseRecord {
            ended_at: Some(exit.ended_at),
            exit_code: exit_code(&exit.outcome),
            memory_peak: exit.memory_peak_bytes.map(ByteSize),
            cpu_time: exit.cpu_time,
            ..begun
        };
        let (is_full, output) = if ended_well(&exit, ended_by) {
            (false, String::new())
        } else {
            let folder = self.folder.path().to_owned();
            self.aside(move || (is_disk_full(&folder), last_output(&dir, OUTPUT_BYTES_MAX))).await?
        };
        match verdict(given, &exit, ended_by, is_full, output) {
            None => self.end_well(ended, exit.took).await?,
            Some(end) => {
                // Not kept: after a crash here, the shim's exit record leads to the same end.
                self.record.set_phase(ended.clone());
                self.say_phase(ended).await;
                return Err(Stop::End(end));
            }
        }
        swell_system::crash::point("attempt::phase_done");
        Ok(())
    }

    /// The folder of the shim that was started for this phase before a crash, if it got that far.
    fn present_segment(&self, phase: Phase) -> Option<PathBuf> {
        let running = self.record.running.as_ref().filter(|running| running.phase == phase)?;
        let dir = self.folder.log().join(&running.segment);
        dir.is_dir().then_some(dir)
    }

    async fn start_or_adopt(&self, dir: &Path, spec: &ShimSpec) -> Result<Begun, Stop> {
        if let Some(begun) = present(dir).await? {
            return Ok(begun);
        }
        let error = match self.inner.options.shim.start(dir, spec).await {
            Ok(shim) => return Ok(Begun::Runs(shim)),
            Err(error) => error,
        };
        // The server before us may have died while it started this very shim; then that one has the folder's lock.
        let started = Instant::now();
        while dir.join("shim.lock").exists() && started.elapsed() < APPEAR_WITHIN {
            if let Some(begun) = present(dir).await? {
                return Ok(begun);
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(lost(format!("a container could not be started: {}", chain(&error))))
    }

    /// Until the phase has ended, by itself or because it must.
    async fn watch(&self, shim: &ShimHandle, disk: ByteSize) -> Result<(ExitRecord, EndedBy), Stop> {
        let mut ended_by = EndedBy::Itself;
        let wait = shim.wait();
        let (stopped, fenced) = (self.is_stopped(), self.is_fenced());
        let too_large = grown_above(self.measured(), disk);
        tokio::pin!(wait, stopped, fenced, too_large);
        let ended = loop {
            tokio::select! {
                ended = &mut wait => break ended,
                () = &mut fenced => return Err(Stop::Fenced),
                () = &mut stopped, if ended_by == EndedBy::Itself => {
                    ended_by = EndedBy::Cancel;
                    log_failed_signal(shim.stop());
                }
                used = &mut too_large, if ended_by == EndedBy::Itself => {
                    ended_by = EndedBy::Disk(used);
                    log_failed_signal(shim.kill());
                }
            }
        };
        match ended {
            Ok(Some(exit)) => Ok((exit, ended_by)),
            Ok(None) if ended_by == EndedBy::Cancel => Err(Stop::End(swell_model::build::AttemptEnd::Canceled)),
            Ok(None) => Err(vanished(shim.dir()).await),
            Err(error) => Err(lost(format!("a container could not be watched: {}", chain(&error)))),
        }
    }

    /// Who asked a phase to end, when this server did not: most likely it before it died.
    async fn stopped_by(&self, disk: ByteSize) -> Result<EndedBy, Stop> {
        if self.was_stopped() {
            return Ok(EndedBy::Cancel);
        }
        let dirs = self.measured();
        let used = self.aside(move || disk_usage_of(&dirs)).await?;
        Ok(if used > disk { EndedBy::Disk(used) } else { EndedBy::Stranger })
    }

    /// The folders that count against the limit of disk.
    fn measured(&self) -> Vec<PathBuf> {
        vec![self.folder.workspace(), self.folder.out(), self.folder.home()]
    }

    /// The environment of a phase. What identifies the build cannot be overridden.
    fn variables(
        &self,
        env: Option<&BTreeMap<String, String>>,
        file: &PipelineFile,
        committed_at_s: u64,
    ) -> BTreeMap<String, String> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (out, home) = match self.inner.unisolated {
            None => (OUT.to_owned(), "/tmp".to_owned()),
            Some(_) => (text(self.folder.out()), text(self.folder.home())),
        };
        let defaults = [
            ("CI", "true".to_owned()),
            ("SOURCE_DATE_EPOCH", committed_at_s.to_string()),
            ("TZ", "UTC".to_owned()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("PATH", DEFAULT_PATH.to_owned()),
            ("HOME", home),
        ];
        let build = &self.job.build;
        let fixed = [
            ("OUT", out),
            ("SWELL_PIPELINE", build.pipeline.to_string()),
            ("SWELL_COMMIT", build.commit.to_string()),
            ("SWELL_REF", build.git_ref.clone()),
            ("SWELL_BRANCH", build.branch().unwrap_or_default().to_owned()),
            ("SWELL_BUILD", build.id.to_string()),
        ];
        let named = |(name, value): (&str, String)| (name.to_owned(), value);
        let mut variables: BTreeMap<_, _> = defaults.into_iter().map(named).collect();
        variables.extend(file.build.env.clone());
        variables.extend(env.cloned().unwrap_or_default());
        variables.extend(fixed.into_iter().map(named));
        variables
    }

    fn spec(&self, phase: Phase, script: &str, file: &PipelineFile, env: BTreeMap<String, String>) -> ShimSpec {
        let (workspace, out) = (self.folder.workspace(), self.folder.out());
        let (cwd, kind) = match self.inner.unisolated {
            Some(_) => (workspace, Isolation::Bare),
            None => {
                let mut container = ContainerSpec::host(workspace);
                container.binds.push(Bind { source: out, destination: OUT.into(), read_only: false, owned_by_container: true });
                (WORKSPACE.into(), Isolation::Container(container))
            }
        };
        let settings = &file.build;
        let left = Millis(settings.timeout.0.saturating_sub(self.record.spent.0).max(1));
        let (build, attempt) = (self.job.build.id, self.job.attempt);
        ShimSpec {
            command: ["/bin/sh", "-ec", script].map(str::to_owned).to_vec(),
            env,
            cwd,
            kind,
            limits: Limits {
                memory_bytes: Some(settings.memory.0),
                cpu_cores: Some(settings.cpu.as_f64()),
                pids: Some(PIDS_MAX),
                // A plain process may have no right to raise it.
                nofile: self.inner.unisolated.is_none().then_some(OPEN_FILES_MAX),
            },
            time_limit: Some(left),
            stop: StopPolicy { timeout: STOP_WITHIN, ..StopPolicy::default() },
            output: self.log.policy(),
            cgroup: format!("/groundswell/builds/{}-{build}-{attempt}-{phase}", self.inner.tag),
        }
    }
}

/// Of a shim that could not say how its phase ended.
async fn vanished(dir: &Path) -> Stop {
    let dir = dir.to_owned();
    match spawn_blocking(move || is_disk_full(&dir)).await {
        Ok(true) => lost("the runner's disk is full: how a phase ended could not be kept"),
        _ => lost("the process that ran a phase was killed from outside, or the machine restarted"),
    }
}

enum Begun {
    Runs(ShimHandle),
    Ended(ExitRecord),
}

/// What is in a shim's folder already; `None` where nothing was started.
async fn present(dir: &Path) -> Result<Option<Begun>, Stop> {
    let failed = |error: runtime::RuntimeError| lost(format!("a container could not be taken over: {}", chain(&error)));
    match runtime::status(dir).await.map_err(failed)? {
        ShimStatus::NotStarted => Ok(None),
        // It may end at this very moment: then look again.
        ShimStatus::Running(_) => match runtime::adopt(dir).await.map_err(failed)? {
            Some(shim) => Ok(Some(Begun::Runs(shim))),
            None => Box::pin(present(dir)).await,
        },
        ShimStatus::Exited(exit) => {
            runtime::clear(dir).await.map_err(failed)?;
            Ok(Some(Begun::Ended(exit)))
        }
        ShimStatus::Vanished => {
            runtime::clear(dir).await.map_err(failed)?;
            Err(vanished(dir).await)
        }
    }
}

fn log_failed_signal(sent: Result<(), runtime::RuntimeError>) {
    if let Err(error) = sent {
        tracing::warn!(error = %chain(&error), "failed to signal a phase");
    }
}

/// Ready once the files in `dirs` take more than `limit`, with what they take. A soft bound: looked at every two seconds or more seldom.
async fn grown_above(dirs: Vec<PathBuf>, limit: ByteSize) -> ByteSize {
    let mut pause = MEASURE_EVERY;
    loop {
        sleep(pause).await;
        let started = Instant::now();
        let dirs = dirs.clone();
        match spawn_blocking(move || disk_usage_of(&dirs)).await {
            Ok(used) if used > limit => return used,
            Ok(_) => pause = MEASURE_EVERY.max(started.elapsed() * MEASURE_SHARE),
            // Only as the program ends.
            Err(_) => std::future::pending().await,
        }
    }
}

fn disk_usage_of(dirs: &[PathBuf]) -> ByteSize {
    ByteSize(dirs.iter().map(|dir| disk_usage(dir)).sum())
}

/// Bytes on disk below `dir`, each file once. What vanishes meanwhile counts nothing.
fn disk_usage(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut linked = std::collections::HashSet::new();
    let mut used = 0;
    for entry in walkdir::WalkDir::new(dir).follow_links(false).same_file_system(true).into_iter().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.nlink() == 1 || meta.is_dir() || linked.insert((meta.dev(), meta.ino())) {
            used += meta.blocks() * 512;
        }
    }
    used
}
