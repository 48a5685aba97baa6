//! `swell init`: writes a commented `swell.toml` for the repository at hand.

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

/// `swell init`
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Where to write it; the repository's root unless given
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Write over what is there
    #[arg(long)]
    pub force: bool,
}

/// How a kind of project is built, as far as its files tell.
struct Kind {
    /// What it is called.
    name: &'static str,
    /// The file that tells.
    sign: &'static str,
    build: &'static str,
    test: &'static str,
    package: &'static str,
    command: &'static str,
}

/// In the order in which they are looked for: a Makefile mostly wraps the others.
const KINDS: [Kind; 5] = [
    Kind {
        name: "make",
        sign: "Makefile",
        build: "make",
        test: "make check",
        package: "make install prefix=$OUT",
        command: "bin/app",
    },
    Kind {
        name: "Rust",
        sign: "Cargo.toml",
        build: "cargo build --release --offline",
        test: "cargo test --release --offline",
        package: "mkdir -p $OUT/bin && cp target/release/app $OUT/bin/",
        command: "bin/app",
    },
    Kind {
        name: "Go",
        sign: "go.mod",
        build: "go build -o app .",
        test: "go test ./...",
        package: "mkdir -p $OUT/bin && cp app $OUT/bin/",
        command: "bin/app",
    },
    Kind {
        name: "Node.js",
        sign: "package.json",
        build: "npm ci --offline",
        test: "npm test",
        package: "cp -r . $OUT/",
        command: "bin/start",
    },
    Kind { name: "unknown", sign: "", build: "echo build", test: "echo test", package: "cp -r . $OUT/", command: "bin/app" },
];

/// Writes it.
pub fn run(context: &Context, args: InitArgs) -> Result<Exit> {
    let folder = std::env::current_dir().map_err(|error| file_error("find", Path::new("."), &error))?;
    let root = folder.ancestors().find(|folder| folder.join(".git").exists()).unwrap_or(&folder);
    let path = args.file.unwrap_or_else(|| root.join("swell.toml"));
    let kind = KINDS.iter().find(|kind| kind.sign.is_empty() || root.join(kind.sign).exists()).unwrap_or(&KINDS[0]);
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
            Failure::usage(format!("`{}` is there already", path.display())).hint("edit it, or write over it with --force")
        }
        _ => file_error("write", &path, &error),
    })?;
    context
        .output
        .result(&json!({ "file": path, "kind": kind.name }), || format!("wrote {} ({})\n", path.display(), kind.name))?;
    context
        .output
        .say("next: edit it, then `swell validate`, `swell repo create NAME`, `swell pipeline create NAME --repo NAME`");
    Ok(Exit::Done)
}

fn text(kind: &Kind) -> String {
    let Kind { build, test, package, command, .. } = kind;
    format!(
        r##"# How this repository is built, run and rolled out by Groundswell. `swell validate` checks this file,
# `swell schema` prints what may stand here. Unknown keys are errors.

# Each phase is a shell script in a container without network, in a clean checkout of the commit.
[build]
run = "{build}"
cpu = 1.0
memory = "1GiB"
timeout = "15m"

# Failing it fails the build. Leave the section out to skip the phase.
[test]
run = "{test}"

# What is under $OUT afterwards is the artifact: immutable, named by its SHA-256.
[package]
run = "{package}"

# What runs on each target. A pipeline may have several services.
[service.app]
command = ["{command}"]                      # relative to the artifact
ports = {{ http = "auto" }}                    # one of two ports that each target keeps for this service
start = "beside"                             # the new instance beside the old one; or "in-place"
env = {{ LISTEN = "0.0.0.0:${{port.http}}" }}
limits = {{ memory = "512MiB" }}
health = {{ port = "http", http = "/healthz", interval = "2s", timeout = "1s", start_timeout = "60s" }}
stop = {{ signal = "TERM", timeout = "30s", drain = "5s" }}

# How the environment `production` is moved to a release. Each wave must prove healthy before the next begins;
# what does not is rolled back by itself.
[deploy.production]
# auto = ["main"]                            # branches that deploy by themselves when ready
strategy = "canary"                          # or "rolling"
waves = [1, "25%", "100%"]                   # how many targets are changed when each wave is done
max_unavailable = "25%"
bake = "1m"                                  # how long each wave but the last is watched
"##
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::pipeline_file::PipelineFile;

    #[test]
    fn what_is_written_is_valid_and_carried_out() {
        for kind in &KINDS {
            let text = text(kind);
            let file = PipelineFile::parse(&text).unwrap_or_else(|found| panic!("{}: {found:?}", kind.name));
            assert!(file.unsupported().is_empty(), "{}", kind.name);
        }
    }
}
