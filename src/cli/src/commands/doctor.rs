//! `swell doctor`: checks this machine and the server for common problems.

use serde_json::{Value, json};

use crate::{
    check::Check,
    client::Client,
    context::Context,
    failure::{Exit, Failure, Result},
    output::Tone,
    views::{self, Cluster, Ready},
};

/// Runs `swell doctor`. Exit code 1 if a check failed.
pub async fn run(context: &Context) -> Result<Exit> {
    let mut checks = match context.client() {
        Ok(client) => of_server(context, &client).await,
        Err(failure) => vec![Check::from_failure("token", &failure)],
    };
    let isolation = context.hooks.isolation;
    let of_machine = tokio::task::spawn_blocking(isolation).await;
    checks.extend(of_machine.map_err(|error| Failure::new(Exit::Failed, "doctor", error.to_string()))?);
    let value = json!({ "ok": checks.iter().all(|check| check.ok), "checks": checks });
    context.output.result(&value, || checks.iter().map(|check| line(context, check)).collect())?;
    Ok(if checks.iter().all(|check| check.ok) { Exit::Done } else { Exit::Failed })
}

fn line(context: &Context, check: &Check) -> String {
    let mark = if check.ok { context.output.paint(Tone::Good, "ok  ") } else { context.output.paint(Tone::Bad, "FAIL") };
    let hint =
        check.hint.as_ref().filter(|hint| !hint.is_empty()).map(|hint| format!("\n      hint: {hint}")).unwrap_or_default();
    format!("{mark}  {}: {}{hint}\n", check.name, check.detail)
}

async fn of_server(context: &Context, client: &Client) -> Vec<Check> {
    let origin = context.settings.get("addr").map(|setting| setting.origin.to_string()).unwrap_or_default();
    let mut checks = Vec::new();
    let began = std::time::Instant::now();
    // A server that is not ready answers 503; the first check is only that it answers.
    let ready = client.stream(&["readyz"], &[("verbose", "1".to_owned())], reqwest::header::HeaderMap::new()).await;
    match &ready {
        Err(failure) if failure.code() == "unreachable" => {
            checks.push(Check::from_failure("server", failure));
            return checks;
        }
        _ => {
            let detail = format!("{} ({origin}) answered in {} ms", client.addr(), began.elapsed().as_millis());
            checks.push(Check::passed("server", detail));
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
            Check::failed("targets", seen, "`swell fleet ls --connected false` lists the others; check `swell agent` there")
        } else {
            Check::passed("targets", seen)
        });
        let runners = cluster.runners;
        checks.push(if runners == 0 {
            Check::failed("runners", "none registered, so builds stay queued", "start a server with --runner")
        } else {
            Check::passed("runners", format!("{runners} registered"))
        });
    }
    checks
}

async fn readiness(answer: Result<reqwest::Response>) -> Vec<Check> {
    let response = match answer {
        Ok(response) => response,
        Err(failure) => {
            return vec![Check::failed(
                "ready",
                failure.to_json()["error"]["detail"].as_str().unwrap_or_default(),
                "see `swell cluster status` and the server's log",
            )];
        }
    };
    let value: Value = response.json().await.unwrap_or_default();
    let ready: Ready = views::read(&value).unwrap_or_default();
    let check = |check: views::ReadyCheck| Check {
        name: format!("server: {}", check.name),
        ok: check.ok,
        detail: check.detail,
        hint: (!check.ok).then(|| "see the server's log".to_owned()),
    };
    ready.checks.into_iter().map(check).collect()
}

async fn token(client: &Client) -> Check {
    match client.get_once(&["v1", "whoami"]).await {
        Ok(value) => Check::passed("token", format!("you are {}:{}", text(&value, "role"), text(&value, "name"))),
        Err(failure) if !client.has_token() => Check::failed(
            "token",
            format!("no token for this server ({})", failure.code()),
            "run `swell login`, or set SWELL_TOKEN",
        ),
        Err(failure) => Check::from_failure("token", &failure),
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn version(server: &str) -> Check {
    let client = env!("CARGO_PKG_VERSION");
    if server == client {
        Check::passed("version", format!("client and server are both {client}"))
    } else {
        Check::failed("version", format!("client {client}, server {server}"), "install the same version on both")
    }
}
