//! What one part of a pipeline file demands of another. Knows nothing of TOML; rules about a single value are where it is read.

use std::collections::BTreeMap;

use crate::pipeline_file::{
    deploy::{Deploy, Strategy},
    diagnostic::Diagnostic,
    file::PipelineFile,
    health::Probe,
    interpolate::{Variable, variables},
    read::{DIAGNOSTICS_MAX, nearest},
    service::{Limits, Log, Port, Service, Start},
};
use crate::units::{Amount, BasisPoints};

/// Adds to `found` what does not fit together. Sections in which something was already found are passed over: what is
/// said of half a section would mislead.
pub(super) fn check(file: &PipelineFile, found: &mut Vec<Diagnostic>) {
    let broken = found.iter().map(|diagnostic| section_of(&diagnostic.path).to_owned()).collect();
    let mut checker = Checker { file, broken, found };
    for (name, service) in &file.service {
        checker.service(&format!("service.{name}"), service);
    }
    checker.fixed_ports();
    for (name, task) in &file.task {
        let path = format!("task.{name}");
        checker.texts(&path, &task.command, &task.env, &|_| false);
        checker.doubly_set(&path, &task.env, task.secrets.keys());
    }
    for (name, settings) in &file.environment {
        let mut processes = file.service.values().filter(|service| service.systemd.is_none());
        let has_port = |port: &str| processes.clone().all(|service| service.ports.keys().any(|name| name.as_str() == port));
        checker.texts(&format!("environment.{name}"), &[], &settings.env, &has_port);
        if !settings.env.is_empty() && !file.service.is_empty() && processes.next().is_none() {
            checker.add(
                &format!("environment.{name}.env"),
                "contradiction",
                "no service here takes variables: systemd runs them all",
                None,
            );
        }
    }
    for (name, deploy) in &file.deploy {
        checker.deploy(&format!("deploy.{name}"), deploy);
    }
}

/// `service.api` of `service.api.health.port`; a whole path that is shorter.
fn section_of(path: &str) -> &str {
    let mut dots = path.match_indices('.').map(|(at, _)| at);
    dots.nth(1).map_or(path, |at| &path[..at])
}

struct Checker<'c> {
    file: &'c PipelineFile,
    broken: Vec<String>,
    found: &'c mut Vec<Diagnostic>,
}

impl Checker<'_> {
    fn add(&mut self, path: &str, code: &'static str, message: impl Into<String>, help: Option<String>) {
        let is_broken = self.broken.iter().any(|broken| broken == section_of(path));
        if !is_broken && self.found.len() < DIAGNOSTICS_MAX {
            self.found.push(self.file.marks.diagnostic(path, code, message.into(), help));
        }
    }

    fn service(&mut self, path: &str, service: &Service) {
        match (&service.systemd, service.command.is_empty()) {
            (None, true) => {
                let help = Some("add `command = [\"bin/name\"]`, or `systemd = \"name.service\"`".to_owned());
                self.add(path, "missing_key", format!("`{path}` has neither a command nor a systemd unit"), help);
            }
            (Some(_), false) => {
                let message = format!("`{path}` has a command and a systemd unit: only one of them can run it");
                self.add(&format!("{path}.systemd"), "contradiction", message, Some("remove one of the two".to_owned()));
            }
            (Some(_), true) => self.unit(path, service),
            (None, false) => {}
        }
        let has_port = |port: &str| service.ports.keys().any(|name| name.as_str() == port);
        self.texts(path, &service.command, &service.env, &has_port);
        self.words(&format!("{path}.health.command"), &service.health.command, &has_port);
        self.doubly_set(path, &service.env, service.secrets.keys());
        if let Probe::Http { port, .. } | Probe::Tcp { port } = service.health.probe() {
            if !has_port(port.as_str()) {
                let help = self.which_port(service, port.as_str());
                self.add(
                    &format!("{path}.health.port"),
                    "undefined",
                    format!("`{path}` has no port `{port}` to probe"),
                    Some(help),
                );
            }
        } else if service.health.http.is_some() {
            let help = self.which_port(service, "http");
            let message = format!("`{path}.health` does not say which port to ask");
            self.add(&format!("{path}.health.http"), "missing_key", message, Some(help));
        }
    }

    fn which_port(&self, service: &Service, meant: &str) -> String {
        let names: Vec<_> = service.ports.keys().map(|name| name.as_str()).collect();
        match (nearest(meant, names.iter().copied()), names.is_empty()) {
            (Some(near), _) => format!("write `port = \"{near}\"`"),
            (None, true) => format!("add `ports = {{ {meant} = \"auto\" }}` to the service"),
            (None, false) => format!("its ports are: {}", names.join(", ")),
        }
    }

    /// What systemd's unit decides cannot be decided here as well.
    fn unit(&mut self, path: &str, service: &Service) {
        let decided = [
            ("user", service.user.is_some()),
            ("env", !service.env.is_empty()),
            ("secrets", !service.secrets.is_empty()),
            ("limits", service.limits != Limits::default()),
            ("log", service.log != Log::File),
        ];
        for (key, _) in decided.iter().filter(|(_, is_given)| *is_given) {
            let message = format!("`{path}.{key}` has no effect on a systemd unit");
            self.add(&format!("{path}.{key}"), "contradiction", message, Some("set it in the unit".to_owned()));
        }
        if service.start == Start::Beside {
            let message = format!("`{path}`: a systemd unit cannot start beside itself");
            self.add(&format!("{path}.start"), "contradiction", message, Some("write `start = \"in-place\"`".to_owned()));
        }
    }

    /// Two services cannot listen on one port of a target.
    fn fixed_ports(&mut self) {
        let mut taken: BTreeMap<u16, String> = BTreeMap::new();
        let file = self.file;
        for (service_name, service) in &file.service {
            for (port_name, port) in &service.ports {
                let Port::Fixed(number) = port else { continue };
                let path = format!("service.{service_name}.ports.{port_name}");
                if let Some(other) = taken.insert(*number, path.clone()) {
                    let help = Some("give it another number, or \"auto\"".to_owned());
                    self.add(&path, "contradiction", format!("port {number} is already `{other}`"), help);
                }
            }
        }
    }

    fn doubly_set<'k>(&mut self, path: &str, env: &BTreeMap<String, String>, secrets: impl Iterator<Item = &'k String>) {
        for name in secrets.filter(|name| env.contains_key(*name)) {
            let message = format!("`{name}` is set by `{path}.env` and by `{path}.secrets`");
            self.add(&format!("{path}.secrets.{name}"), "contradiction", message, Some("remove one of the two".to_owned()));
        }
    }

    /// Every `${…}` of a command and its variables.
    fn texts(&mut self, path: &str, command: &[String], env: &BTreeMap<String, String>, has_port: &dyn Fn(&str) -> bool) {
        self.words(&format!("{path}.command"), command, has_port);
        for (name, value) in env {
            self.text(&format!("{path}.env.{name}"), value, has_port);
        }
    }

    fn words(&mut self, path: &str, words: &[String], has_port: &dyn Fn(&str) -> bool) {
        for (index, word) in words.iter().enumerate() {
            self.text(&format!("{path}[{index}]"), word, has_port);
        }
    }

    fn text(&mut self, path: &str, text: &str, has_port: &dyn Fn(&str) -> bool) {
        match variables(text) {
            Err(error) => self.add(path, "bad_variable", error.to_string(), None),
            Ok(variables) => {
                for variable in variables {
                    let Variable::Port(port) = variable else { continue };
                    if !has_port(port.as_str()) {
                        let help = Some(match path.starts_with("task.") {
                            true => "a task has no ports".to_owned(),
                            false => format!("add `{port}` to the service's `ports`"),
                        });
                        self.add(path, "undefined", format!("`${{port.{port}}}`: there is no port `{port}`"), help);
                    }
                }
            }
        }
    }

    fn deploy(&mut self, path: &str, deploy: &Deploy) {
        for (key, task) in [("before", &deploy.before), ("after", &deploy.after)] {
            let Some(task) = task.as_ref().filter(|task| !self.file.task.contains_key(*task)) else { continue };
            let help = match nearest(task, self.file.task.keys().map(String::as_str)) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("add a section `[task.{task}]`"),
            };
            if !self.broken.iter().any(|broken| broken == &format!("task.{task}")) {
                self.add(&format!("{path}.{key}"), "undefined", format!("there is no task `{task}`"), Some(help));
            }
        }
        let is_one_wave = deploy.waves == [Amount::Share(BasisPoints::ALL)];
        if deploy.strategy != Strategy::Canary && !is_one_wave {
            let help = Some("remove `waves`, or write `strategy = \"canary\"`".to_owned());
            self.add(&format!("{path}.waves"), "contradiction", "only a canary has waves", help);
        }
        self.traffic(path, deploy);
    }

    /// What needs a gateway in front of the services, and both releases at once.
    fn traffic(&mut self, path: &str, deploy: &Deploy) {
        let is_blue_green = deploy.strategy == Strategy::BlueGreen;
        let has_steps = !deploy.traffic.is_empty();
        if has_steps && deploy.strategy == Strategy::Rolling {
            let help = Some("remove `traffic`, or write `strategy = \"canary\"`".to_owned());
            self.add(&format!("{path}.traffic"), "contradiction", "rolling has no traffic steps", help);
        } else if has_steps && deploy.strategy == Strategy::Canary && deploy.traffic.len() != deploy.waves.len() {
            let message = format!("{} traffic steps for {} waves", deploy.traffic.len(), deploy.waves.len());
            self.add(&format!("{path}.traffic"), "contradiction", message, Some("write one step for each wave".to_owned()));
        }
        // Half of what is known of a broken service would accuse the wrong section.
        let services_are_broken = self.broken.iter().any(|broken| broken.starts_with("service"));
        let needs = [
            ("strategy", is_blue_green, "blue-green"),
            ("traffic", has_steps, "splitting traffic"),
            ("sticky", deploy.sticky.is_some(), "telling users apart"),
            ("analysis", deploy.analysis.is_some(), "analysis of traffic"),
        ];
        for (key, _, what) in needs.iter().filter(|(_, is_asked, _)| *is_asked && !services_are_broken) {
            let file = self.file;
            let mut speaking = file.service.iter().filter(|(_, service)| service.speaks_http()).peekable();
            if speaking.peek().is_none() {
                let help = "give a service `health = { port = \"http\", http = \"/\" }`".to_owned();
                self.add(
                    &format!("{path}.{key}"),
                    "contradiction",
                    format!("{what} needs a service that speaks HTTP"),
                    Some(help),
                );
            }
            for (name, _) in speaking.filter(|(_, service)| service.start == Start::InPlace) {
                let message = format!("{what} needs both releases at once, but `service.{name}` starts in place");
                let help = format!("write `start = \"beside\"` in `[service.{name}]`");
                self.add(&format!("{path}.{key}"), "contradiction", message, Some(help));
            }
        }
    }
}
