//! The tables at the end of the demonstration: what runs where, and which release answered the users. Reads what `swell --json`
//! prints; knows nothing of how it came about.

use std::collections::BTreeMap;

use serde_json::Value;

use super::traffic::Met;
use crate::table::{Align, Table};

/// A release that was pushed during the demonstration.
#[derive(Debug)]
pub struct Released {
    /// Its id, such as `hello@2`.
    pub release: String,
    /// The digest of its artifact.
    pub artifact: String,
    /// The rollout that brought it, and how that ended.
    pub rollout: String,
    /// What its page says.
    pub page: String,
}

/// A row an instance, in the order of `targets`; a target where nothing runs has a row, too. `targets` are what `swell --json fleet
/// show` prints, `artifacts` are digests by release.
pub fn what_runs_where(targets: &[Value], artifacts: &BTreeMap<String, String>) -> Table {
    let mut table = Table::new(&[
        ("TARGET", Align::Left),
        ("ZONE", Align::Left),
        ("PIPELINE", Align::Left),
        ("SERVICE", Align::Left),
        ("RELEASE", Align::Left),
        ("ARTIFACT", Align::Left),
        ("PORT", Align::Right),
        ("HEALTH", Align::Left),
    ]);
    for target in targets {
        let place = [text(&target["name"]), text(&target["zone"])];
        let lost = if target["connected"] == false { ", agent lost" } else { "" };
        let observations = items(&target["observations"]);
        if observations.is_empty() {
            table.push([&place[..], &["-", "-", "-", "-", "-"].map(str::to_owned), &[format!("nothing runs{lost}")]].concat());
        }
        for seen in observations {
            let row = |service: String, release: String, port: String, health: String| {
                let artifact = artifacts.get(&release).map_or_else(|| "-".to_owned(), |digest| short(digest));
                [&place[..], &[text(&seen["pipeline"]), service, release, artifact, port, health + lost]].concat()
            };
            let progress = text(&seen["progress"]);
            let instances = items(&seen["instances"]);
            if instances.is_empty() {
                table.push(row("-".to_owned(), text(&seen["release"]), "-".to_owned(), progress.clone()));
            }
            for instance in instances {
                // The target's progress speaks of the assigned release; an instance of another one is on its way out.
                let serves_assigned = instance["release"] == seen["release"] && instance["state"] == "serving";
                let health = if serves_assigned { progress.clone() } else { text(&instance["state"]) };
                let restarts = instance["restarts"].as_u64().unwrap_or_default();
                let health = if restarts > 0 { format!("{health}, restarts {restarts}") } else { health };
                let ports = instance["ports"].as_object().into_iter().flat_map(|ports| ports.values());
                let ports: Vec<String> = ports.map(Value::to_string).collect();
                table.push(row(text(&instance["service"]), text(&instance["release"]), ports.join(" "), health));
            }
        }
    }
    table
}

/// A row a release, with the requests that it answered; a page of no known release has a row, too.
pub fn who_answered(released: &[Released], met: &Met) -> Table {
    let mut table = Table::new(&[
        ("RELEASE", Align::Left),
        ("ARTIFACT", Align::Left),
        ("ROLLOUT", Align::Left),
        ("PAGE", Align::Left),
        ("REQUESTS", Align::Right),
    ]);
    for released in released {
        let requests = met.pages.get(&released.page).copied().unwrap_or_default().to_string();
        let (release, rollout, page) = (released.release.clone(), released.rollout.clone(), released.page.clone());
        table.push(vec![release, short(&released.artifact), rollout, page, requests]);
    }
    let unknown = met.pages.iter().filter(|(page, _)| !released.iter().any(|released| released.page == **page));
    for (page, requests) in unknown {
        let dash = || "-".to_owned();
        table.push(vec![dash(), dash(), dash(), page.clone(), requests.to_string()]);
    }
    table
}

/// The first digits of a digest, enough to tell artifacts apart.
fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Released, what_runs_where, who_answered};
    use crate::demo::traffic::Met;

    #[test]
    fn placement_shows_each_instance_with_artifact_port_and_health() {
        let instance = |release: &str, port: u16, state: &str, restarts: u32| json!({ "service": "web", "release": release, "ports": { "http": port }, "state": state, "restarts": restarts });
        let seen = |instances: Vec<serde_json::Value>| json!([{ "pipeline": "hello", "release": "hello@1", "progress": "healthy", "serving": true, "instances": instances }]);
        let both = vec![instance("hello@1", 31_000, "serving", 0), instance("hello@2", 31_001, "draining", 0)];
        let targets = [
            json!({ "name": "web-1", "zone": "a", "connected": true, "observations": seen(both) }),
            json!({ "name": "web-2", "zone": "b", "connected": false,
                "observations": seen(vec![instance("hello@1", 31_020, "unhealthy", 3)]) }),
            json!({ "name": "web-3", "zone": "a", "connected": true, "observations": [] }),
        ];
        let artifacts = [("hello@1", "sha256:0123456789abcdef"), ("hello@2", "sha256:fedcba9876543210")];
        let artifacts = artifacts.map(|(release, digest)| (release.to_owned(), digest.to_owned())).into();
        let text = what_runs_where(&targets, &artifacts).text();
        assert_eq!(
            text,
            "TARGET  ZONE  PIPELINE  SERVICE  RELEASE  ARTIFACT       PORT  HEALTH\n\
             web-1   a     hello     web      hello@1  0123456789ab  31000  healthy\n\
             web-1   a     hello     web      hello@2  fedcba987654  31001  draining\n\
             web-2   b     hello     web      hello@1  0123456789ab  31020  unhealthy, restarts 3, agent lost\n\
             web-3   a     -         -        -        -                 -  nothing runs\n"
        );
        assert!(text.lines().all(|line| line.len() <= 98), "a line and its indent are wider than 100 columns:\n{text}");
    }

    #[test]
    fn requests_are_counted_by_release_and_unknown_pages_are_shown() {
        let released = |number: u32, state: &str| Released {
            release: format!("hello@{number}"),
            artifact: format!("sha256:{number}{number}"),
            rollout: format!("r{number} {state}"),
            page: format!("hello {number}"),
        };
        let pages = [("hello 1".to_owned(), 12), ("welcome".to_owned(), 1)].into();
        let met = Met { pages, failures: Vec::new() };
        assert_eq!(
            who_answered(&[released(1, "deployed"), released(3, "rolled-back")], &met).text(),
            "RELEASE  ARTIFACT  ROLLOUT         PAGE     REQUESTS\n\
             hello@1  11        r1 deployed     hello 1        12\n\
             hello@3  33        r3 rolled-back  hello 3         0\n\
             -        -         -               welcome         1\n"
        );
    }
}
