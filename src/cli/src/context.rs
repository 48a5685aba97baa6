//! The context that every command runs in: output, settings, API client, clock. Knows nothing of single commands.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::tz::TimeZone;

use super::{
    check::Check,
    client::Client,
    config::Settings,
    credentials,
    failure::Result,
    globals::Globals,
    interrupt::Interrupt,
    output::{ColorChoice, Output},
};
use swell_model::principal::is_user;

/// Functions that `main` supplies from crates that the client does not depend on.
#[derive(Clone)]
pub struct Hooks {
    /// Packs a folder as an artifact into the writer; every file gets the given modification time, in seconds since 1970.
    pub pack: fn(&Path, &mut dyn io::Write, u64) -> anyhow::Result<()>,
    /// Checks what this machine can isolate builds with, for `swell doctor`. May block.
    pub isolation: fn() -> Vec<Check>,
}

/// Looks up an environment variable.
pub type Variables = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// The context that every command runs in.
pub struct Context {
    pub output: Output,
    pub settings: Settings,
    pub hooks: Hooks,
    /// The time zone of displayed times.
    pub zone: TimeZone,
    pub pace: Pace,
    /// Tells when the user presses Ctrl-C.
    pub interrupt: Interrupt,
    pub var: Variables,
}

/// Intervals and limits of following a build or rollout.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often to poll without events: counts and elapsed time change without one.
    pub poll_every: Duration,
    /// Without a terminal, how often to repeat what it waits for.
    pub heartbeat_every: Duration,
    /// How long the server may be unreachable before following ends.
    pub away_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { poll_every: Duration::from_secs(1), heartbeat_every: Duration::from_secs(10), away_max: super::sse::AWAY_MAX }
    }
}

impl Context {
    /// The context of this process.
    pub fn of_process(globals: &Globals, hooks: Hooks) -> Result<Self, (Box<Output>, super::Failure)> {
        let output = |choice| Output::of_process(globals.json, globals.quiet, choice);
        let settings = match Settings::load(globals) {
            Ok(settings) => settings,
            Err(failure) => return Err((Box::new(output(globals.color.unwrap_or(ColorChoice::Auto))), failure)),
        };
        Ok(Self {
            output: output(settings.color()),
            settings,
            hooks,
            zone: TimeZone::system(),
            pace: Pace::default(),
            interrupt: Interrupt::default(),
            var: Box::new(|name| std::env::var(name).ok()),
        })
    }

    /// A client for the configured server, with the token for that server.
    pub fn client(&self) -> Result<Client> {
        let token = credentials::find(&self.settings, &self.var)?;
        self.client_with(token)
    }

    /// A client for the configured server with another token.
    pub fn client_with(&self, token: Option<String>) -> Result<Client> {
        let addr = self.settings.value("addr").unwrap_or_default();
        // Servers refuse a request whose user name is malformed, so a login name that is one is not sent.
        let login = || (self.var)("USER").filter(|name| is_user(name));
        let user = self.settings.value("user").map(str::to_owned).or_else(login);
        Client::new(addr, token, user, self.settings.request_timeout().as_duration())
    }

    /// The current time, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
    }
}
