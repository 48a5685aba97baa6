//! `swell schema`: the JSON Schema of `swell.toml`, for editors.

use crate::{
    context::Context,
    failure::{Exit, Result},
};
use swell_model::pipeline_file::json_schema;

/// Runs `swell schema`. Prints JSON also without `--json`.
pub fn run(context: &Context) -> Result<Exit> {
    context.output.json(&json_schema())?;
    Ok(Exit::Done)
}
