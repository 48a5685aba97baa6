//! `swell doctor`: looks for the usual causes of trouble, from here and as the server sees itself.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Failure, Result},
    output::Tone,
    views::{self, Cluster, Ready},
};

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// What to do where it is not as it should be.
    pub hint: Option<String>,
}

impl Check {
    /// As it should be.
    pub fn good(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: true, detail: detail.into(), hint: None }
    }

    /// Not as it should be.
    pub fn bad(name: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: false, detail: detail.into(), hint: Some(hint.into()) }
    }

    fn of(name: &str, failure: &Failure) -> Self {
        let said = failure.to_json();
        let text = |field: &str| said["error"][field].as_str().unwrap_or_default().to_owned();
        Self::bad(name, text("detail"), text("hint"))
    }
}

/// Looks. Exit code 1 where something is not as it should be.
pub async fn run(context: &Context) -> Result<Exit> {
    let mut checks = match context.client() {
        Ok(client) => of_server(context, &client).await,
        Err(failure) => vec![Check::of("token", &failure)],
    };
    let isolation = context.hooks.isolation;
    let of_machine = tokio::task::spawn_blocking(isolation).await;
    checks.extend(of_machine.map_err(|error| Failure::new(Exit::Failed, "doctor", error.to_string()))?);
    let value = json!({ "ok": checks.iter().all(|check| check.ok), "checks": checks });
    context.output.result(&value, || checks.iter().map(|check| line(context, check)).collect())?;
    Ok(if checks.iter().all(|check| check.ok) { Exit::Done } else { Exit::Failed })
}

fn line(context: &Context, check: &Check) -> String {
    let mark = if check.ok { context.output.paint(Tone::Good, "ok  ") } else { context.output.paint(Tone::Bad, "BAD ") };
    let hint =
        check.hint.as_ref().filter(|hint| !hint.is_empty()).map(|hint| format!("\n      next: {hint}")).unwrap_or_default();
    format!("{mark}  {}: {}{hint}\n", check.name, check.detail)
}

async fn of_server(context: &Context, client: &Client) -> Vec<Check> {
    let origin = context.settings.get("addr").map(|setting| setting.origin.to_string()).unwrap_or_default();
    let mut checks = Vec::new();
    let began = std::time::Instant::now();
    // A server that is not ready answers 503 with its checks; that it answers at all is what is asked first.
    let ready = client.stream(&["readyz"], &[("verbose", "1".to_owned())], reqwest::header::HeaderMap::new()).await;
    match &ready {
        Err(failure) if failure.code() == "unreachable" => {
            checks.push(Check::of("server", failure));
            return checks;
        }
        _ => {
            let detail = format!("{} ({origin}) answers within {} ms", client.addr(), began.elapsed().as_millis());
            checks.push(Check::good("server", detail));
        }
    }
    checks.extend(readiness(ready).await);
    checks.push(token(client).await);
    if let Ok(value) = client.get_once(&["v1", "cluster"]).await
        && let Ok(cluster) = views::read::<Cluster>(&value)
    {
        checks.push(version(&cluster.version));
        let (targets, connected) = (cluster.targets, cluster.targets_connected);
        let seen = format!("{connected} of {targets} connected");
        checks.push(if connected < targets {
            Check::bad("targets", seen, "`swell fleet ls --connected false` lists the others; look at `swell agent` there")
        } else {
            Check::good("targets", seen)
        });
        let runners = cluster.runners;
        checks.push(if runners == 0 {
            Check::bad("runners", "no runner ever registered, so nothing is built", "start a server with --runner")
        } else {
            Check::good("runners", format!("{runners} registered"))
        });
    }
    checks
}

async fn readiness(answer: Result<reqwest::Response>) -> Vec<Check> {
    let response = match answer {
        Ok(response) => response,
        Err(failure) => {
            return vec![Check::bad(
                "ready",
                failure.to_json()["error"]["detail"].as_str().unwrap_or_default(),
                "`swell cluster status` and the server's log say why",
            )];
        }
    };
    let value: Value = response.json().await.unwrap_or_default();
    let ready: Ready = views::read(&value).unwrap_or_default();
    let check = |check: views::ReadyCheck| Check {
        name: format!("server's {}", check.name),
        ok: check.ok,
        detail: check.detail,
        hint: (!check.ok).then(|| "look at the server's log".to_owned()),
    };
    ready.checks.into_iter().map(check).collect()
}

async fn token(client: &Client) -> Check {
    match client.get_once(&["v1", "whoami"]).await {
        Ok(value) => Check::good("token", format!("the server takes you for {}:{}", text(&value, "role"), text(&value, "name"))),
        Err(failure) if !client.has_token() => Check::bad(
            "token",
            format!("there is none for this server ({})", failure.code()),
            "run `swell login`, or set SWELL_TOKEN",
        ),
        Err(failure) => Check::of("token", &failure),
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn version(server: &str) -> Check {
    let client = env!("CARGO_PKG_VERSION");
    if server == client {
        Check::good("version", format!("client and server are both {client}"))
    } else {
        Check::bad("version", format!("client {client}, server {server}"), "use the same version on both sides")
    }
}
