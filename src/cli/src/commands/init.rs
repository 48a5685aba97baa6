//! `swell init`: writes a commented `swell.toml` for the current repository.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    context::Context,
    failure::{Exit, Failure, Result, file_error},
};

/// Options of `swell init`
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// File to write [default: swell.toml in the root of the repository]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,
}

/// A kind of project: the file that identifies it, and the commands that build it.
struct Kind {
    name: &'static str,
    marker_file: &'static str,
    build: &'static str,
    test: &'static str,
    package: &'static str,
    command: &'static str,
}

/// In order of precedence: a Makefile usually wraps the other tools.
const KINDS: [Kind; 5] = [
    Kind {
        name: "make",
        marker_file: "Makefile",
        build: "make",
        test: "make check",
        package: "make install prefix=$OUT",
        command: "bin/app",
    },
    Kind {
        name: "Rust",
        marker_file: "Cargo.toml",
        build: "cargo build --release --offline",
        test: "cargo test --release --offline",
        package: "mkdir -p $OUT/bin && cp target/release/app $OUT/bin/",
        command: "bin/app",
    },
    Kind {
        name: "Go",
        marker_file: "go.mod",
        build: "go build -o app .",
        test: "go test ./...",
        package: "mkdir -p $OUT/bin && cp app $OUT/bin/",
        command: "bin/app",
    },
    Kind {
        name: "Node.js",
        marker_file: "package.json",
        build: "npm ci --offline",
        test: "npm test",
        package: "cp -r . $OUT/",
        command: "bin/start",
    },
    Kind {
        name: "unknown",
        marker_file: "",
        build: "echo build",
        test: "echo test",
        package: "cp -r . $OUT/",
        command: "bin/app",
    },
];

/// Runs `swell init`.
pub fn run(context: &Context, args: InitArgs) -> Result<Exit> {
    let folder = std::env::current_dir().map_err(|error| file_error("find", Path::new("."), &error))?;
    let root = folder.ancestors().find(|folder| folder.join(".git").exists()).unwrap_or(&folder);
    let path = args.file.unwrap_or_else(|| root.join("swell.toml"));
    let kind = KINDS.iter().find(|kind| kind.marker_file.is_empty() || root.join(kind.marker_file).exists()).unwrap_or(&KINDS[0]);
    let mut options = fs::File::options();
    options.write(true);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options.open(&path).and_then(|mut file| file.write_all(text(kind).as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::usage(format!("`{}` already exists", path.display())).hint("edit it, or overwrite it with --force")
        }
        _ => file_error("write", &path, &error),
    })?;
    context
        .output
        .result(&json!({ "file": path, "kind": kind.name }), || format!("wrote {} ({})\n", path.display(), kind.name))?;
    context
        .output
        .progress("next: edit it, then run `swell validate`, `swell repo create NAME`, `swell pipeline create NAME --repo NAME`");
    Ok(Exit::Done)
}

fn text(kind: &Kind) -> String {
    let Kind { build, test, package, command, .. } = kind;
    format!(
        r##"# How Groundswell builds, runs and deploys this repository. `swell validate` checks this file,
# `swell schema` prints its JSON Schema. Unknown keys are errors.

# Each phase is a shell script, run in a container without network, in a clean checkout of the commit.
[build]
run = "{build}"
cpu = 1.0
memory = "1GiB"
timeout = "15m"

# A failing test fails the build. Remove the section to skip the phase.
[test]
run = "{test}"

# The files that it leaves in $OUT become the artifact: immutable, named by its SHA-256.
[package]
run = "{package}"

# A service that runs on each target. A pipeline may have several.
[service.app]
command = ["{command}"]                      # relative to the artifact
ports = {{ http = "auto" }}                    # a free port, chosen by each target
start = "beside"                             # start the new instance beside the old one; or "in-place"
env = {{ LISTEN = "0.0.0.0:${{port.http}}" }}
limits = {{ memory = "512MiB" }}
health = {{ port = "http", http = "/healthz", interval = "2s", timeout = "1s", start_timeout = "60s" }}
stop = {{ signal = "TERM", timeout = "30s", drain = "5s" }}

# How releases are deployed to the environment `production`. Each wave must be healthy before the next begins;
# otherwise the release is rolled back.
[deploy.production]
# auto = ["main"]                            # branches that are deployed after each successful build
strategy = "canary"                          # or "rolling"
waves = [1, "25%", "100%"]                   # number or share of targets that are updated after each wave
max_unavailable = "25%"
bake = "1m"                                  # how long each wave but the last must stay healthy
"##
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::pipeline_file::PipelineFile;

    #[test]
    fn written_file_is_valid_and_fully_supported() {
        for kind in &KINDS {
            let text = text(kind);
            let file = PipelineFile::parse(&text).unwrap_or_else(|found| panic!("{}: {found:?}", kind.name));
            assert!(file.unsupported().is_empty(), "{}", kind.name);
        }
    }
}
