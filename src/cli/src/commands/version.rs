//! `swell version`: the version of this program.

use serde_json::json;

use crate::{
    context::Context,
    failure::{Exit, Result},
};

/// Runs `swell version`.
pub fn run(context: &Context) -> Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    context.output.result(&json!({ "name": "swell", "version": version }), || format!("swell {version}\n"))?;
    Ok(Exit::Done)
}
