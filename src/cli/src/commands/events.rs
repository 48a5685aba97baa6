//! `swell events` and `swell audit`: past events, newest last, and new ones with `--follow`.

use serde_json::{Value, json};

use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    human,
    output::{Tone, table},
    sse::{Feed, Item},
    views::{self, Cluster, Event},
};

/// How often the search for the newest events is widened.
const REACHES_MAX: u32 = 24;

/// `swell events`, `swell audit`
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Print new events as they happen
    #[arg(long, short)]
    pub follow: bool,
    /// Subject of the events, such as rollout/r7, or a kind, such as build/; separate several by commas
    #[arg(long, short, value_name = "SUBJECT")]
    pub subject: Option<String>,
    /// Start after this event, such as 120.3; 0.0 starts with the oldest
    #[arg(long, value_name = "SEQ")]
    pub after: Option<String>,
    /// Number of events to print; without --after, the newest
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N")]
    pub limit: usize,
}

/// The layout of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A line for each event.
    Events,
    /// A table of who changed what.
    Audit,
}

/// Runs `swell events` or `swell audit`.
pub async fn run(context: &Context, args: EventsArgs, style: Style) -> Result<Exit> {
    let client = context.client()?;
    let mut query: Vec<(&str, String)> = args.subject.clone().map(|subject| ("subject", subject)).into_iter().collect();
    // Read before the list, so that no event between the list and the stream is missed.
    let newest = newest_index(&client).await?;
    let found = match &args.after {
        Some(after) => {
            query.push(("after", after.clone()));
            client.list(&["v1", "events"], &query, args.limit).await?
        }
        None => tail(&client, &query, newest, args.limit).await?,
    };
    if !args.follow {
        let events: Vec<Event> = views::read_all(&found)?;
        context.output.result(&json!({ "items": found }), || match style {
            Style::Events => events.iter().map(|event| line(context, event)).collect(),
            Style::Audit => audit(context, events),
        })?;
        return Ok(Exit::Done);
    }
    for value in &found {
        show(context, value)?;
    }
    let last = found.last().and_then(|event| event.get("seq")?.as_str()).map(str::to_owned);
    let cursor = match (last, &args.after) {
        (Some(last), _) => last,
        (None, Some(after)) => after.clone(),
        (None, None) => format!("{newest}.{}", u32::MAX),
    };
    let mut feed = Feed::start(client.clone(), args.subject, Some(cursor));
    loop {
        tokio::select! {
            item = feed.next() => match item {
                Item::Event(event) => show(context, &event)?,
                Item::Lost(failure) => context.output.progress(format!("lost the server ({}), reconnecting", failure.code())),
                Item::Back => context.output.progress("reconnected; no event was missed"),
                Item::Gap => context.output.progress("some events were deleted before they could be read; continuing with new ones"),
                Item::End(failure) => return Err(failure),
            },
            () = context.interrupt.pressed() => break,
        }
    }
    if context.output.json {
        context.output.json_line("result", json!({ "exit": 0 }))?;
    }
    Ok(Exit::Done)
}

fn show(context: &Context, value: &Value) -> Result<()> {
    if context.output.json {
        return context.output.json_line("event", value.clone());
    }
    context.output.print(&line(context, &views::read(value)?))
}

async fn newest_index(client: &Client) -> Result<u64> {
    let cluster: Cluster = views::read(&client.get(&["v1", "cluster"], &[]).await?)?;
    let index = cluster.last_event.split_once('.').and_then(|(index, _)| index.parse().ok());
    Ok(index.unwrap_or_default())
}

/// The newest `limit` events. The API lists forwards, so this starts a little before the end, and further back until it has enough.
async fn tail(client: &Client, query: &[(&str, String)], newest: u64, limit: usize) -> Result<Vec<Value>> {
    let mut reach = (limit as u64).max(1) * 2;
    for _ in 0..REACHES_MAX {
        let from = newest.saturating_sub(reach);
        let mut query = query.to_vec();
        query.push(("after", format!("{from}.0")));
        // The list must reach the newest event: an entry rarely has more than a few events.
        let mut found = match client.list(&["v1", "events"], &query, 20_000).await {
            // Older events were deleted: start with the oldest.
            Err(failure) if failure.code() == "cursor_too_old" => {
                client.list(&["v1", "events"], &query[..query.len() - 1], 20_000).await?
            }
            found => found?,
        };
        if found.len() >= limit || from == 0 {
            found.drain(..found.len().saturating_sub(limit));
            return Ok(found);
        }
        reach = reach.saturating_mul(8);
    }
    Ok(Vec::new())
}

/// An event on a line.
pub fn line(context: &Context, event: &Event) -> String {
    let when = context.output.paint(Tone::Faint, &human::date_time(event.at, &context.zone));
    let change = match (&event.from, &event.to) {
        (Some(from), Some(to)) => format!(" {} -> {}", from, context.output.state(to)),
        (None, Some(to)) => format!(" {}", context.output.state(to)),
        _ => String::new(),
    };
    let note = event.note.as_ref().map(|note| format!(": {}", human::one_line(note, 200))).unwrap_or_default();
    format!("{when}  {}  {}{change}{note}  ({})\n", event.subject, event.kind, event.by)
}

fn audit(context: &Context, events: Vec<Event>) -> String {
    let row = |event: Event| {
        let change = match (event.from, event.to) {
            (Some(from), Some(to)) => format!("{from} -> {to}"),
            (_, to) => to.unwrap_or_default(),
        };
        let note = human::one_line(&event.note.unwrap_or_default(), 120);
        [event.seq, human::date_time(event.at, &context.zone), event.by, event.kind, event.subject, change, note]
    };
    table(["SEQ", "WHEN", "WHO", "WHAT", "SUBJECT", "CHANGE", "WHY"], events.into_iter().map(row), "no events")
}
