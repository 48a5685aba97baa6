//! What this version understands but does not carry out yet. This file shrinks as the features come, and ends empty.

use crate::pipeline_file::{
    build::{Image, Network},
    deploy::Strategy,
    diagnostic::Diagnostic,
    file::PipelineFile,
};

/// Each part of the file that this version would leave out.
pub(super) fn unsupported(file: &PipelineFile) -> Vec<Diagnostic> {
    let mut parts: Vec<(String, &'static str)> = Vec::new();
    let mut part = |is_used: bool, path: String, what: &'static str| {
        if is_used {
            parts.push((path, what));
        }
    };
    let build = &file.build;
    part(matches!(build.image, Image::Oci(_)), "build.image".into(), "building in an OCI image");
    part(matches!(build.network, Network::Allow(_)), "build.network".into(), "a network allow list");
    part(!build.secrets.is_empty(), "build.secrets".into(), "secrets in builds");
    for index in 0..file.cache.len() {
        part(true, format!("cache[{index}]"), "keeping files between builds");
    }
    if let Some(test) = &file.test {
        part(!test.secrets.is_empty(), "test.secrets".into(), "secrets in builds");
        part(!test.reports.is_empty(), "test.reports".into(), "reading JUnit reports");
    }
    if let Some(package) = &file.package {
        part(!package.secrets.is_empty(), "package.secrets".into(), "secrets in builds");
    }
    for (name, service) in &file.service {
        part(service.systemd.is_some(), format!("service.{name}.systemd"), "running a systemd unit");
        part(!service.secrets.is_empty(), format!("service.{name}.secrets"), "secrets of services");
    }
    for name in file.task.keys() {
        part(true, format!("task.{name}"), "running tasks");
    }
    for (name, deploy) in &file.deploy {
        let at = |key: &str| format!("deploy.{name}.{key}");
        part(deploy.strategy == Strategy::BlueGreen, at("strategy"), "blue-green");
        part(!deploy.traffic.is_empty(), at("traffic"), "splitting traffic apart from targets");
        part(deploy.analysis.is_some(), at("analysis"), "judging by traffic");
        part(deploy.sticky.is_some(), at("sticky"), "keeping users on one release");
        part(!deploy.gates.is_empty(), at("gates"), "custom gates");
        part(deploy.approval, at("approval"), "approval by a person");
        part(deploy.before.is_some(), at("before"), "running tasks");
        part(deploy.after.is_some(), at("after"), "running tasks");
    }
    let diagnostic = |(path, what): (String, &'static str)| {
        let help = Some(format!("remove `{path}` for now"));
        file.marks.diagnostic(&path, "unsupported", format!("not in this version yet: {what}"), help)
    };
    let mut diagnostics: Vec<_> = parts.into_iter().map(diagnostic).collect();
    diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    diagnostics
}
