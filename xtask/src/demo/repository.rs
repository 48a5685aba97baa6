//! The developer of the demonstration: a git repository with the sample service, changed and pushed as anyone would.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::cluster::Cluster;

/// A working copy of the sample.
pub struct Repository {
    path: PathBuf,
}

impl Repository {
    /// Copies `sample` to `path` and commits it.
    pub fn create(sample: &Path, path: &Path) -> Result<Self> {
        copy(sample, path)?;
        let repository = Self { path: path.to_owned() };
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        repository.git(&["add", "--all"])?;
        repository.git(&["commit", "--quiet", "-m", "the first version"])?;
        Ok(repository)
    }

    /// Writes a file of the working copy.
    pub fn write(&self, file: &str, content: &str) -> Result<()> {
        let path = self.path.join(file);
        std::fs::write(&path, content).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Commits everything that was written.
    pub fn commit(&self, message: &str) -> Result<()> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "-m", message])
    }

    /// Pushes to the repository that the cluster hosts.
    pub fn push(&self, cluster: &Cluster) -> Result<()> {
        println!("    $ git push swell main");
        self.git(&["push", "--quiet", &format!("http://ada:{}@{}/git/hello", cluster.token("developer"), cluster.api), "main"])
    }

    fn git(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("git")
            .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"])
            .args(arguments)
            .current_dir(&self.path)
            .env("GIT_TERMINAL_PROMPT", "0")
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "git {} failed: {said}", arguments[0]);
        for line in said.lines().filter(|line| line.starts_with("remote: ")) {
            println!("    {}", line.trim_end());
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
