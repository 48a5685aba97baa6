//! The samples in `examples/` are pipelines that people copy: their files must be valid, and their own checks must pass.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

use swell_model::pipeline_file::PipelineFile;

const EXAMPLES: [&str; 2] = ["hello", "pair"];

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("examples").join(name)
}

#[test]
fn their_pipeline_files_are_valid() {
    for name in EXAMPLES {
        let text = fs::read_to_string(folder(name).join("swell.toml")).unwrap();
        if let Err(error) = PipelineFile::parse(&text) {
            panic!("examples/{name}/swell.toml: {error:?}");
        }
    }
}

#[test]
fn they_build_and_pass_their_own_checks_also_when_broken() {
    for (name, broken) in [("hello", false), ("hello", true), ("pair", false)] {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(folder(name)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        if broken {
            fs::write(copy.path().join("BROKEN"), "").unwrap();
        }
        let installed = format!("prefix={}", copy.path().join("out").display());
        for target in [&["check"][..], &["install", &installed]] {
            let output = Command::new("make").current_dir(copy.path()).args(target).output().unwrap();
            let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
            assert!(output.status.success(), "make {target:?} in examples/{name}:\n{said}");
        }
        assert!(copy.path().join("out/bin").exists());
    }
}
