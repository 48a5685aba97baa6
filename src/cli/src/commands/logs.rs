//! `swell logs`: the log of a build, on as it is written; or the last output of a rollout's failed targets.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    follow::{Kind, Thing, failed_targets},
    human,
    views::{self, LogLine},
};

/// A longer line is not a line of a log.
const LINE_BYTES_MAX: usize = 8 << 20;

/// `swell logs ID`
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// Which build (b42), or rollout (r7)
    pub id: String,
    /// Go on until the build ended
    #[arg(long, short)]
    pub follow: bool,
    /// Which attempt; the last unless given
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
}

/// Prints the log.
pub async fn run(context: &Context, args: LogsArgs) -> Result<Exit> {
    let client = context.client()?;
    if Kind::named(&args.id)? == Kind::Rollout {
        let value = client.get(&["v1", "rollouts", &args.id], &[]).await?;
        let rollout: views::Rollout = views::read(&value)?;
        let failures = value.get("failures").cloned().unwrap_or_else(|| json!([]));
        context.output.result(&json!({ "failures": failures }), || match failed_targets(&rollout.failures) {
            text if text.is_empty() => format!("no target of {} failed\n", args.id),
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

/// Prints the log of every attempt from the first wanted one on, until the build ended. What breaks off is gone on with.
async fn followed(context: &Context, client: &Client, args: &LogsArgs) -> Result<Exit> {
    let mut attempt = args.attempt;
    let mut reader = Reader { context, start: 0, lines: Vec::new(), collect: false };
    let mut away_since: Option<Instant> = None;
    let path = ["v1", "builds", &args.id];
    loop {
        // As of before the read: what is written after it is read in the next round.
        let seen = tokio::select! {
            seen = client.get_once(&path) => seen,
            () = context.interrupt.pressed() => break,
        };
        let read = match seen {
            Ok(value) => {
                let thing = Thing::read(Kind::Build, &value)?;
                let Thing::Build(build) = &thing else { break };
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
                    if thing.ended() || (attempt_ended && args.attempt.is_some()) {
                        return over(context, &thing, &value);
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
                    context.output.say("lost the server, trying again");
                    Instant::now()
                });
                if since.elapsed() > context.pace.away_max {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = tokio::time::sleep(context.pace.look_every) => {}
            () = context.interrupt.pressed() => break,
        }
    }
    if context.output.json {
        context.output.json_line("result", json!({ "exit": Exit::TimedOut.code() }))?;
    }
    context.output.say(format!("left. {} goes on. Follow it: swell logs {} -f", args.id, args.id));
    Ok(Exit::TimedOut)
}

fn over(context: &Context, thing: &Thing, value: &Value) -> Result<Exit> {
    let exit = thing.exit().unwrap_or(Exit::Done);
    match context.output.json {
        true => context.output.json_line("result", json!({ "exit": exit.code(), "build": value }))?,
        false => context.output.say(thing.sentence()),
    }
    Ok(exit)
}

/// Reads a log from where it stopped before.
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
                let what = format!("the log of {id} broke off: {error}");
                crate::Failure::new(Exit::Unreachable, "unreachable", what).hint(format!("go on with `swell logs {id} -f`"))
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
                    format!("the log of {id} has a line without end"),
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
