//! `swell config`: the settings of the client.

use serde_json::json;

use super::or_dash;
use crate::{
    config::KEYS,
    context::Context,
    failure::{Exit, Result},
    output::table,
};

/// Subcommands of `swell config`
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Shows every setting and its value
    Show {
        /// Show the source of each value
        #[arg(long)]
        origin: bool,
    },
}

/// Runs `swell config`.
pub fn run(context: &Context, command: ConfigCommand) -> Result<Exit> {
    let ConfigCommand::Show { origin } = command;
    let settings = context.settings.all();
    let items: Vec<_> = settings
        .iter()
        .map(|setting| json!({ "key": setting.key, "value": setting.value, "origin": setting.origin.to_string() }))
        .collect();
    context.output.result(&json!({ "items": items }), || {
        let about = |key: &str| KEYS.iter().find(|known| known.name == key).map_or("", |known| known.about).to_owned();
        if origin {
            let row = |setting: &crate::config::Setting| {
                [setting.key.to_owned(), or_dash(setting.value.clone()), setting.origin.to_string(), about(setting.key)]
            };
            table(["KEY", "VALUE", "ORIGIN", "DESCRIPTION"], settings.iter().map(row), "")
        } else {
            let row =
                |setting: &crate::config::Setting| [setting.key.to_owned(), or_dash(setting.value.clone()), about(setting.key)];
            table(["KEY", "VALUE", "DESCRIPTION"], settings.iter().map(row), "")
        }
    })?;
    Ok(Exit::Done)
}
