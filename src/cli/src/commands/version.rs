//! `swell version`

use serde_json::json;

use crate::{
    context::Context,
    failure::{Exit, Result},
};

/// Prints it.
pub fn run(context: &Context) -> Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    context.output.result(&json!({ "name": "swell", "version": version }), || format!("swell {version}\n"))?;
    Ok(Exit::Done)
}
