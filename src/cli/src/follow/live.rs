//! The loop that follows one thing: woken by events, looking at least every second, through lost connections and restarted servers,
//! until it ended, the time is up, or the user leaves. Knows nothing of what is drawn.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    evidence, lines,
    thing::{Kind, Thing},
    tree::Tree,
};
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    output::Tone,
    sse::{Feed, Item},
};
use swell_model::units::Millis;

/// How following ended.
#[derive(Debug)]
pub struct Followed {
    /// As it was seen last.
    pub thing: Thing,
    /// The same in the server's own words.
    pub value: Value,
    /// What that means for whoever waited.
    pub exit: Exit,
}

/// Follows `id` from how the server showed it `first`, and says how it goes. With `as_lines`, each change is an object on standard output
/// (`--watch --json`).
pub async fn follow(
    context: &Context,
    client: &Client,
    kind: Kind,
    first: Value,
    timeout: Option<Millis>,
    as_lines: bool,
) -> Result<Followed> {
    let mut value = first;
    let mut thing = Thing::read(kind, &value)?;
    let mut screen = Screen::new(context, as_lines);
    let id = thing.id().to_owned();
    let mut feed = Feed::start(client.clone(), Some(kind.subject(&id)), None);
    let mut events_end = false;
    let time_is_up = Instant::now() + timeout.map_or(FOREVER, Millis::as_duration);
    let mut away_since: Option<Instant> = None;
    let exit = loop {
        if away_since.is_none() {
            screen.show(&thing, &value)?;
        }
        if let Some(exit) = thing.exit() {
            break exit;
        }
        tokio::select! {
            item = feed.next(), if !events_end => events_end = matches!(item, Item::End(_)),
            () = tokio::time::sleep(context.pace.look_every) => {}
            () = tokio::time::sleep_until(screen.heartbeat_at) => screen.heartbeat(&thing),
            exit = left(context, &screen, &thing, time_is_up) => break exit,
        }
        let path = ["v1", kind.collection(), &id];
        let seen = tokio::select! {
            seen = client.get_once(&path) => seen,
            exit = left(context, &screen, &thing, time_is_up) => break exit,
        };
        match seen {
            Ok(seen) => {
                if away_since.take().is_some() {
                    screen.note("the server is back");
                }
                thing = Thing::read(kind, &seen)?;
                value = seen;
            }
            Err(failure) if failure.exit() == Exit::Unreachable => {
                let since = *away_since.get_or_insert_with(|| {
                    screen.note(&format!("lost the server ({}); {id} goes on, trying again", first_line(&failure.to_string())));
                    Instant::now()
                });
                if since.elapsed() > context.pace.away_max {
                    screen.finish();
                    return Err(failure.hint(thing.how_to_go_on()));
                }
            }
            Err(failure) => {
                screen.finish();
                return Err(failure);
            }
        }
    };
    screen.finish();
    if exit != Exit::Done
        && exit != Exit::TimedOut
        && !context.output.json
        && let Some(text) = evidence(&thing)
    {
        context.output.complain(text.trim_end());
    }
    Ok(Followed { thing, value, exit })
}

/// Waits until the user leaves or the time is up, and says how to go on.
async fn left(context: &Context, screen: &Screen<'_>, thing: &Thing, time_is_up: Instant) -> Exit {
    let why = tokio::select! {
        () = tokio::time::sleep_until(time_is_up) => "stopped waiting: the time is up",
        () = context.interrupt.pressed() => "left",
    };
    screen.note(&format!("{why}. {}", thing.how_to_go_on()));
    Exit::TimedOut
}

/// Longer than anyone waits, and short enough to be added to the present.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Where following is seen: a tree on a terminal, else lines; with `--watch --json` objects on standard output.
struct Screen<'a> {
    context: &'a Context,
    tree: Option<Tree>,
    as_lines: bool,
    shown: Option<Thing>,
    heartbeat_at: Instant,
}

impl<'a> Screen<'a> {
    fn new(context: &'a Context, as_lines: bool) -> Self {
        let tree = (context.output.live && !as_lines).then(Tree::new);
        let heartbeat_at = Instant::now() + context.pace.heartbeat_every;
        Self { context, tree, as_lines, shown: None, heartbeat_at }
    }

    fn show(&mut self, thing: &Thing, value: &Value) -> Result<()> {
        let output = &self.context.output;
        if let Some(tree) = &mut self.tree {
            tree.show(output, thing, self.context.now_ms());
            return Ok(());
        }
        if self.shown.as_ref() == Some(thing) {
            return Ok(());
        }
        if self.as_lines && output.json {
            let kind = if thing.kind() == Kind::Build { "build" } else { "rollout" };
            output.json_line(kind, json!({ kind: value }))?;
        }
        let lines = lines::changes(self.shown.as_ref(), thing);
        if !lines.is_empty() {
            self.heartbeat_at = Instant::now() + self.context.pace.heartbeat_every;
        }
        for line in lines {
            output.say(line);
        }
        self.shown = Some(thing.clone());
        Ok(())
    }

    fn heartbeat(&mut self, thing: &Thing) {
        self.heartbeat_at = Instant::now() + self.context.pace.heartbeat_every;
        if self.tree.is_none() {
            let line = lines::heartbeat(thing, self.context.now_ms());
            self.context.output.say(self.context.output.paint(Tone::Faint, &line));
        }
    }

    fn note(&self, line: &str) {
        match &self.tree {
            Some(tree) => tree.note(line),
            None => self.context.output.say(line),
        }
    }

    fn finish(&mut self) {
        if let Some(tree) = self.tree.take() {
            tree.finish();
            // The tree's last line has no end of its own.
            self.context.output.complain("");
        }
    }
}
