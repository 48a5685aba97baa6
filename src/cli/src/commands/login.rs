//! `swell login`: stores a token for a server, after checking it with the server.

use std::io::{self, IsTerminal as _, Read as _};

use nix::sys::termios::{self, LocalFlags, SetArg};
use serde_json::json;

use super::choose;
use crate::{
    context::Context,
    credentials,
    failure::{Exit, Failure, Result, file_error},
    views,
};

/// The longest token, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Options of `swell login`, which has only the global ones
#[derive(Debug, clap::Args)]
pub struct LoginArgs {}

/// Reads the token from `--token-file`, the terminal or standard input, checks it with the server, and stores it.
pub async fn run(context: &Context, _: LoginArgs) -> Result<Exit> {
    let token = match context.settings.value("token_file") {
        Some(path) => std::fs::read_to_string(path).map_err(|error| file_error("read", path.as_ref(), &error))?,
        None => read_token()?,
    };
    let token = token.trim().to_owned();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::usage("the input is not a token").hint("paste the token, or pipe it in: swell login < FILE"));
    }
    let client = context.client_with(Some(token.clone()))?;
    let value = client.get(&["v1", "whoami"], &[]).await?;
    let path = credentials::store(client.addr(), &token, &context.var)?;
    let who: super::whoami::Who = views::read(&value)?;
    let result = json!({ "addr": client.addr(), "role": who.role, "name": who.name, "file": path });
    context.output.result(&result, || {
        format!("logged in to {} as {}:{}; token stored in {}\n", client.addr(), who.role, who.name, path.display())
    })?;
    Ok(Exit::Done)
}

fn read_token() -> Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let mut token = String::new();
        stdin.lock().take(TOKEN_BYTES_MAX).read_to_string(&mut token)?;
        return Ok(token);
    }
    let settings = termios::tcgetattr(&stdin).map_err(io::Error::from)?;
    let mut silent = settings.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &silent).map_err(io::Error::from)?;
    let token = choose::ask("token (hidden): ");
    // Restore the terminal also when reading failed.
    termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &settings).map_err(io::Error::from)?;
    eprintln!();
    token
}
