//! The first phase: a clean checkout of exactly the commit, and reading its pipeline file. Must not know what is run in it.

use std::time::Instant;

use super::{
    GitSource,
    folder::CheckedOut,
    now,
    run::{Run, Stop, lost},
};
use swell_git::GitError;
use swell_model::{
    build::{AttemptEnd, BuildFailure, Phase, PhaseRecord},
    pipeline_file::{FILE_BYTES_MAX, PipelineFile, render_all},
    units::Millis,
};

impl Run {
    /// Checks out, unless that was done before.
    pub(super) async fn check_out(&mut self) -> Result<CheckedOut, Stop> {
        if let Some(done) = &self.record.checkout {
            return Ok(done.clone());
        }
        let begun = self.begin(Phase::Checkout).await?;
        let started = Instant::now();
        let build = &self.job.build;
        let line = format!("checking out {} of {}", build.commit.short(), build.git_ref);
        self.line(Phase::Checkout, &line)?;
        swell_system::crash::point("attempt::before_checkout");
        let source = self.job.source.clone().map_err(|why| lost(format!("the repository cannot be read now: {why}")))?;
        let folder = self.folder.clone();
        self.aside(move || folder.clear_workspace()).await??;
        let done = self.unless_stopped(self.fetch(source)).await??;
        swell_system::crash::point("attempt::checked_out");
        self.record.checkout = Some(done.clone());
        let took = Millis(started.elapsed().as_millis() as u64);
        self.end_well(PhaseRecord { ended_at: Some(now()), ..begun }, took).await?;
        swell_system::crash::point("attempt::checkout_recorded");
        Ok(done)
    }

    async fn fetch(&self, source: GitSource) -> Result<CheckedOut, Stop> {
        let commit = self.job.build.commit.clone();
        let mirror = self.inner.mirrors.of(&source.url, source.token).await.map_err(stop_for)?;
        mirror.fetch_commit(&commit).await.map_err(stop_for)?;
        let path = self.job.file.as_str();
        // Before the rest is laid out, so that a mistake in it is told at once.
        let bytes = mirror.file_at(&commit, path, FILE_BYTES_MAX).await.map_err(stop_for)?;
        let file = read_file(path, &bytes).map_err(|failure| Stop::End(AttemptEnd::Failed(failure)))?;
        let checkout = mirror.checkout(&commit, &self.folder.workspace()).await.map_err(stop_for)?;
        Ok(CheckedOut { committed_at_s: checkout.committed_at_s, file })
    }
}

/// The pipeline file, if it can be carried out to the end.
fn read_file(path: &str, bytes: &[u8]) -> Result<PipelineFile, BuildFailure> {
    let failure = |reason: String, hint: &str, output: String| BuildFailure {
        phase: Phase::Checkout,
        reason,
        hint: hint.to_owned(),
        output: super::verdict::cut(output),
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| failure(format!("`{path}` is not UTF-8: {error}"), "save it as UTF-8 and push again", String::new()))?;
    let with = |problems: &[swell_model::pipeline_file::Diagnostic]| {
        let first = problems.first().map_or_else(String::new, |problem| format!(": line {}: {}", problem.line, problem.message));
        let hint = "correct it and push again; `swell validate` says the same without a push";
        failure(format!("`{path}` cannot be used{first}"), hint, render_all(problems, path, text))
    };
    let file = PipelineFile::parse(text).map_err(|problems| with(&problems))?;
    let unsupported = file.unsupported();
    if !unsupported.is_empty() {
        return Err(with(&unsupported));
    }
    if file.package.is_none() {
        let hint = "add `[package]` with a `run` that puts what is to be deployed under $OUT, and push again";
        return Err(failure(format!("`{path}` has no [package], so there would be nothing to deploy"), hint, String::new()));
    }
    Ok(file)
}

fn failed(reason: String, hint: &str) -> Stop {
    Stop::End(AttemptEnd::Failed(BuildFailure { phase: Phase::Checkout, reason, hint: hint.to_owned(), output: String::new() }))
}

/// Whose fault it is: what nobody can build however often it is tried has failed, the rest may work on another runner or later.
fn stop_for(error: GitError) -> Stop {
    let hint = match &error {
        GitError::RefNotFound { .. } => "push the commit again, or build another one: `swell build PIPELINE --ref BRANCH`",
        GitError::PathNotFound { .. } => {
            "add the file and push again, or register the pipeline with the right path: `swell pipeline create`"
        }
        GitError::NoRepository { .. } | GitError::Invalid { .. } => {
            "register the pipeline with the right address: `swell pipeline create`"
        }
        GitError::Denied { .. } => "give the pipeline a token or deploy key that may read the repository",
        GitError::TooLarge { .. } => "make it smaller and push again",
        _ => return lost(super::chain(&error)),
    };
    failed(error.to_string(), hint)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn invalid_pipeline_file_fails_with_line_and_hint() {
        let failure = read_file("ci/swell.toml", b"[build]\nrun = \"make\"\nmemroy = \"1GiB\"\n").unwrap_err();
        assert!(failure.reason.starts_with("`ci/swell.toml` cannot be used: line 3: unknown key"), "{}", failure.reason);
        assert!(
            failure.output.contains("--> ci/swell.toml:3:1") && failure.output.contains("did you mean"),
            "{}",
            failure.output
        );
        let unsupported = read_file("swell.toml", b"[build]\nimage = \"debian\"\n[package]\nrun = \"true\"\n").unwrap_err();
        assert!(unsupported.output.contains("not in this version yet"), "{}", unsupported.output);
        let nothing = read_file("swell.toml", b"[build]\nrun = \"make\"\n").unwrap_err();
        assert!(nothing.reason.contains("nothing to deploy") && nothing.hint.contains("[package]"), "{nothing:?}");
        assert!(read_file("swell.toml", b"\xff").unwrap_err().reason.contains("UTF-8"));
        assert!(read_file("swell.toml", b"[package]\nrun = \"true\"\n").is_ok());
    }

    #[test]
    fn git_error_is_lost_only_when_it_may_work_later() {
        let url = || "https://h/x.git".to_owned();
        let is_lost = |error| matches!(stop_for(error), Stop::End(AttemptEnd::Lost(_)));
        assert!(is_lost(GitError::Unreachable { url: url(), detail: String::new() }));
        assert!(is_lost(GitError::Failed { what: "fetching".into(), detail: "the sky fell".into() }));
        assert!(!is_lost(GitError::NoRepository { url: url(), detail: String::new() }));
        assert!(!is_lost(GitError::RefNotFound { reference: "1234".into(), url: url() }));
    }
}
