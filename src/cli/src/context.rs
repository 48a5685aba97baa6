//! What every command has at hand. Knows nothing of single commands.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::tz::TimeZone;

use super::{
    args::Globals,
    client::Client,
    commands::doctor::Check,
    config::Settings,
    credentials,
    failure::Result,
    interrupt::Interrupt,
    output::{ColorChoice, Output},
};
use swell_model::principal::is_user;

/// What `main` lends, because it lives in modules that the client does not know.
#[derive(Clone)]
pub struct Hooks {
    /// Packs a folder as an artifact into the writer, every time in it being the given one (seconds since 1970): `artifacts::archive::pack`.
    pub pack: fn(&Path, &mut dyn io::Write, u64) -> anyhow::Result<()>,
    /// What this machine can isolate builds with, for `swell doctor`: `runner::isolation`. Reads the system; may block.
    pub isolation: fn() -> Vec<Check>,
}

/// Reads a variable of the environment.
pub type Variables = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What every command has at hand.
pub struct Context {
    /// Where words go.
    pub output: Output,
    /// The settings, with where they come from.
    pub settings: Settings,
    /// What `main` lends.
    pub hooks: Hooks,
    /// In which time zone moments are shown.
    pub zone: TimeZone,
    /// How things are followed.
    pub pace: Pace,
    /// Whether the user wants to leave.
    pub interrupt: Interrupt,
    /// The environment.
    pub var: Variables,
}

/// How things are followed.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often to look when no event says to: counts and elapsed time change without events.
    pub look_every: Duration,
    /// Without a terminal, how often to say what it waits for.
    pub heartbeat_every: Duration,
    /// How long a server may be away before following ends.
    pub away_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { look_every: Duration::from_secs(1), heartbeat_every: Duration::from_secs(10), away_max: super::sse::AWAY_MAX }
    }
}

impl Context {
    /// Of this process.
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

    /// The API, as the user that the settings name, with the token that is for it.
    pub fn client(&self) -> Result<Client> {
        let token = credentials::find(&self.settings, &self.var)?;
        self.client_with(token)
    }

    /// The API with another token.
    pub fn client_with(&self, token: Option<String>) -> Result<Client> {
        let addr = self.settings.value("addr").unwrap_or_default();
        // A name that servers do not take is not sent: they would refuse the request for it.
        let login = || (self.var)("USER").filter(|name| is_user(name));
        let user = self.settings.value("user").map(str::to_owned).or_else(login);
        Client::new(addr, token, user, self.settings.request_timeout().as_duration())
    }

    /// The present, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
    }
}
