//! The loop that follows one resource: polls it on events and at least every second, through lost connections and server restarts,
//! until it ends, the time-out passes, or the user presses Ctrl-C. Knows nothing of what is drawn.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    evidence, lines,
    resource::{FollowedResource, ResourceKind},
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

/// The result of following a build or rollout.
#[derive(Debug)]
pub struct Followed {
    /// The resource in its last known state.
    pub resource: FollowedResource,
    /// The same as the server sent it.
    pub value: Value,
    pub exit: Exit,
}

/// Follows a resource from the state `first` and shows its progress. With `as_lines` and `--json`, each change is an object on
/// standard output (`--watch --json`).
pub async fn follow(
    context: &Context,
    client: &Client,
    kind: ResourceKind,
    first: Value,
    timeout: Option<Millis>,
    as_lines: bool,
) -> Result<Followed> {
    let mut value = first;
    let mut resource = FollowedResource::read(kind, &value)?;
    let mut screen = Screen::new(context, as_lines);
    let id = resource.id().to_owned();
    let mut feed = Feed::start(client.clone(), Some(kind.subject(&id)), None);
    let mut events_end = false;
    let deadline = Instant::now() + timeout.map_or(FOREVER, Millis::as_duration);
    let mut away_since: Option<Instant> = None;
    let exit = loop {
        if away_since.is_none() {
            screen.show(&resource, &value)?;
        }
        if let Some(exit) = resource.exit() {
            break exit;
        }
        tokio::select! {
            item = feed.next(), if !events_end => events_end = matches!(item, Item::End(_)),
            () = tokio::time::sleep(context.pace.poll_every) => {}
            () = tokio::time::sleep_until(screen.heartbeat_at) => screen.heartbeat(&resource),
            exit = stopped_waiting(context, &screen, &resource, deadline) => break exit,
        }
        let path = ["v1", kind.collection(), &id];
        let seen = tokio::select! {
            seen = client.get_once(&path) => seen,
            exit = stopped_waiting(context, &screen, &resource, deadline) => break exit,
        };
        match seen {
            Ok(seen) => {
                if away_since.take().is_some() {
                    screen.note("reconnected to the server");
                }
                resource = FollowedResource::read(kind, &seen)?;
                value = seen;
            }
            Err(failure) if failure.exit() == Exit::Unreachable => {
                let since = *away_since.get_or_insert_with(|| {
                    screen.note(&format!("lost the server ({}); {id} continues, reconnecting", first_line(&failure.to_string())));
                    Instant::now()
                });
                if since.elapsed() > context.pace.away_max {
                    screen.finish();
                    return Err(failure.hint(resource.how_to_resume()));
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
        && let Some(text) = evidence(&resource)
    {
        context.output.error_line(text.trim_end());
    }
    Ok(Followed { resource, value, exit })
}

/// Waits for Ctrl-C or the time-out, and says how to follow the resource again.
async fn stopped_waiting(context: &Context, screen: &Screen<'_>, resource: &FollowedResource, deadline: Instant) -> Exit {
    let why = tokio::select! {
        () = tokio::time::sleep_until(deadline) => "stopped waiting: the time-out passed",
        () = context.interrupt.pressed() => "stopped waiting",
    };
    screen.note(&format!("{why}. {}", resource.how_to_resume()));
    Exit::TimedOut
}

/// Ten years: no time-out, and still safe to add to an instant.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Where progress is shown: a tree on a terminal, else lines; with `--watch --json`, objects on standard output.
struct Screen<'a> {
    context: &'a Context,
    tree: Option<Tree>,
    as_lines: bool,
    shown: Option<FollowedResource>,
    heartbeat_at: Instant,
}

impl<'a> Screen<'a> {
    fn new(context: &'a Context, as_lines: bool) -> Self {
        let tree = (context.output.live && !as_lines).then(Tree::new);
        let heartbeat_at = Instant::now() + context.pace.heartbeat_every;
        Self { context, tree, as_lines, shown: None, heartbeat_at }
    }

    fn show(&mut self, resource: &FollowedResource, value: &Value) -> Result<()> {
        let output = &self.context.output;
        if let Some(tree) = &mut self.tree {
            tree.show(output, resource, self.context.now_ms());
            return Ok(());
        }
        if self.shown.as_ref() == Some(resource) {
            return Ok(());
        }
        if self.as_lines && output.json {
            let kind = resource.kind().name();
            output.json_line(kind, json!({ kind: value }))?;
        }
        let lines = lines::changes(self.shown.as_ref(), resource);
        if !lines.is_empty() {
            self.heartbeat_at = Instant::now() + self.context.pace.heartbeat_every;
        }
        for line in lines {
            output.progress(line);
        }
        self.shown = Some(resource.clone());
        Ok(())
    }

    fn heartbeat(&mut self, resource: &FollowedResource) {
        self.heartbeat_at = Instant::now() + self.context.pace.heartbeat_every;
        if self.tree.is_none() {
            let line = lines::heartbeat(resource, self.context.now_ms());
            self.context.output.progress(self.context.output.paint(Tone::Faint, &line));
        }
    }

    fn note(&self, line: &str) {
        match &self.tree {
            Some(tree) => tree.note(line),
            None => self.context.output.progress(line),
        }
    }

    fn finish(&mut self) {
        if let Some(tree) = self.tree.take() {
            tree.finish();
            // The tree does not end its last line.
            self.context.output.error_line("");
        }
    }
}
