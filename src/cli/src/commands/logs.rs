//! `swell logs`: the log of a build, also while it runs; or the last output of a rollout's failed targets.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    follow::{FollowedResource, ResourceKind, failed_targets},
    human,
    views::{self, LogLine},
};

/// The longest line of the API's log stream, in bytes.
const LINE_BYTES_MAX: usize = 8 << 20;

/// `swell logs ID`
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// Id of the build (b42) or rollout (r7)
    pub id: String,
    /// Print new output until the build ends
    #[arg(long, short)]
    pub follow: bool,
    /// Number of the attempt [default: the last]
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
}

/// Runs `swell logs`.
pub async fn run(context: &Context, args: LogsArgs) -> Result<Exit> {
    let client = context.client()?;
    if ResourceKind::named(&args.id)? == ResourceKind::Rollout {
        let value = client.get(&["v1", "rollouts", &args.id], &[]).await?;
        let rollout: views::Rollout = views::read(&value)?;
        let failures = value.get("failures").cloned().unwrap_or_else(|| json!([]));
        context.output.result(&json!({ "failures": failures }), || match failed_targets(&rollout.failures) {
            text if text.is_empty() => format!("no target failed in {}\n", args.id),
            text => text,
        })?;
        return Ok(Exit::Done);
    }
    if args.follow {
        return followed(context, &client, &args).await;
    }
    let mut reader = Reader { context, start: 0, lines: Vec::new(), collect: context.output.json };
    reader.read(&client, &args.id, args.attempt, false).await?;
    if context.output.json {
        context.output.json(&json!({ "lines": reader.lines }))?;
    }
    Ok(Exit::Done)
}

/// Prints the logs of the requested attempt and later ones until the build ends. A broken connection is resumed.
async fn followed(context: &Context, client: &Client, args: &LogsArgs) -> Result<Exit> {
    let mut attempt = args.attempt;
    let mut reader = Reader { context, start: 0, lines: Vec::new(), collect: false };
    let mut away_since: Option<Instant> = None;
    let path = ["v1", "builds", &args.id];
    loop {
        // The state before the read: output written after it is read in the next round.
        let seen = tokio::select! {
            seen = client.get_once(&path) => seen,
            () = context.interrupt.pressed() => break,
        };
        let read = match seen {
            Ok(value) => {
                let resource = FollowedResource::read(ResourceKind::Build, &value)?;
                let FollowedResource::Build(build) = &resource else { break };
                let number = *attempt.get_or_insert(build.attempts.last().map_or(1, |attempt| attempt.number));
                let attempt_ended = build.attempts.iter().any(|attempt| attempt.number == number && attempt.end.is_some());
                let read = tokio::select! {
                    read = reader.read(client, &args.id, Some(number), true) => read,
                    () = context.interrupt.pressed() => break,
                };
                let nothing_yet =
                    matches!(&read, Err(failure) if matches!(failure.code(), "no_log" | "no_attempt" | "not_found"));
                if nothing_yet || read.is_ok() {
                    if attempt_ended && args.attempt.is_none() && build.attempt_count > number {
                        attempt = Some(number + 1);
                        reader.start = 0;
                        continue;
                    }
                    if resource.ended() || (attempt_ended && args.attempt.is_some()) {
                        return over(context, &resource, &value);
                    }
                    Ok(())
                } else {
                    read
                }
            }
            Err(failure) => Err(failure),
        };
        match read {
            Ok(()) => away_since = None,
            Err(failure) if failure.exit() == Exit::Unreachable => {
                let since = *away_since.get_or_insert_with(|| {
                    context.output.progress("lost the server, reconnecting");
                    Instant::now()
                });
                if since.elapsed() > context.pace.away_max {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = tokio::time::sleep(context.pace.poll_every) => {}
            () = context.interrupt.pressed() => break,
        }
    }
    if context.output.json {
        context.output.json_line("result", json!({ "exit": Exit::TimedOut.code() }))?;
    }
    context.output.progress(format!("stopped waiting; {} continues. Follow it: swell logs {} -f", args.id, args.id));
    Ok(Exit::TimedOut)
}

fn over(context: &Context, resource: &FollowedResource, value: &Value) -> Result<Exit> {
    let exit = resource.exit().unwrap_or(Exit::Done);
    match context.output.json {
        true => context.output.json_line("result", json!({ "exit": exit.code(), "build": value }))?,
        false => context.output.progress(resource.sentence()),
    }
    Ok(exit)
}

/// Reads a log, and resumes where it stopped.
struct Reader<'a> {
    context: &'a Context,
    start: u64,
    lines: Vec<Value>,
    collect: bool,
}

impl Reader<'_> {
    async fn read(&mut self, client: &Client, id: &str, attempt: Option<u32>, follow: bool) -> Result<()> {
        let mut query = vec![("start", self.start.to_string()), ("follow", follow.to_string())];
        query.extend(attempt.map(|attempt| ("attempt", attempt.to_string())));
        let mut response = client.stream(&["v1", "builds", id, "log"], &query, HeaderMap::new()).await?;
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let chunk = response.chunk().await.map_err(|error| {
                let detail = format!("the log of {id} was cut off: {error}");
                crate::Failure::new(Exit::Unreachable, "unreachable", detail).hint(format!("resume with `swell logs {id} -f`"))
            })?;
            let Some(chunk) = chunk else { return Ok(()) };
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.line(&line)?;
            }
            if rest.len() > LINE_BYTES_MAX {
                return Err(crate::Failure::new(
                    Exit::Failed,
                    "not_understood",
                    format!("a line of the log of {id} exceeds {LINE_BYTES_MAX} bytes"),
                ));
            }
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return Ok(()) };
        let parsed: LogLine = views::read(&value)?;
        self.start = self.start.max(parsed.end);
        if self.collect {
            self.lines.push(value);
            return Ok(());
        }
        if self.context.output.json {
            return self.context.output.json_line("log", value);
        }
        let text = human::printable(&parsed.text);
        let break_at_end = if text.ends_with('\n') { "" } else { "\n" };
        self.context.output.print(&format!("{text}{break_at_end}"))
    }
}
