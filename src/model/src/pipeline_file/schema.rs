//! The published JSON Schema of `swell.toml`, made from the types and their documentation, for editors and other tools.
//! It says what a single value may be; what parts demand of each other only [`super::PipelineFile::parse`] knows.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::Value;

use crate::pipeline_file::{
    build::{Image, Network},
    file::PipelineFile,
    service::{Port, SecretUse},
};

/// The schema (JSON Schema 2020-12) of a pipeline file. Unknown keys are refused everywhere.
pub fn json_schema() -> Value {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<PipelineFile>();
    let mut schema = schema.to_value();
    if let Value::Object(root) = &mut schema {
        root.insert("title".to_owned(), Value::from("swell.toml"));
        root.insert("description".to_owned(), Value::from("How a repository is built, run and rolled out by Groundswell."));
    }
    tidy(&mut schema);
    schema
}

/// TOML has no null, and its editors show the documentation as it is.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("default").is_some_and(is_no_news) {
                object.remove("default");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Defaults of whole sections only repeat those of their keys.
fn is_no_news(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Object(_))
}

/// Documents how values of a type are written.
macro_rules! written_as {
    ($($(#[$doc:meta])* $type:ident => $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

/// A length of time as text.
pub(super) struct DurationText;
/// A size as text.
pub(super) struct SizeText;
/// A share as text.
pub(super) struct ShareText;
/// A count, or a share as text.
pub(super) struct AmountText;
/// A number with up to three decimals.
pub(super) struct Number;

written_as! {
    DurationText => {
        "description": "A length of time, such as \"250ms\", \"10s\", \"5m\" or \"1h30m\".",
        "type": "string",
        "pattern": "^([0-9]+(ms|s|m|h|d))+$"
    };
    SizeText => {
        "description": "A size, such as \"512MiB\", \"4GiB\" or \"200MB\".",
        "type": "string",
        "pattern": "^[0-9]+ ?(B|[kK]B|[MGT]B|[KMGT]iB)?$"
    };
    ShareText => {
        "description": "A share, such as \"10%\" or \"99.5%\".",
        "type": "string",
        "pattern": "^[0-9]+([.][0-9]{0,2})? ?%$"
    };
    AmountText => {
        "description": "A count such as 3, or a share such as \"10%\".",
        "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 4294967295u32 },
            { "type": "string", "pattern": "^([0-9]+|[0-9]+([.][0-9]{0,2})? ?%)$" }
        ]
    };
    Number => { "description": "A number with up to three decimals.", "type": "number", "minimum": 0 };
    Image => {
        "description": "\"host\": the runner's own system, read-only; or an imported OCI image, by name or `sha256:` digest.",
        "type": "string",
        "minLength": 1
    };
    Network => {
        "description": "\"none\", or a list of host:port that can be reached.",
        "anyOf": [{ "const": "none" }, { "type": "array", "items": { "type": "string" }, "maxItems": 64 }]
    };
    Port => {
        "description": "\"auto\": one of two that each target keeps for the service; or a number.",
        "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1, "maximum": 65535 }]
    };
    SecretUse => {
        "description": "The name of a secret; with `file`, the variable is the path of a file that holds it.",
        "anyOf": [
            { "type": "string" },
            {
                "type": "object",
                "properties": { "file": { "type": "string" } },
                "required": ["file"],
                "additionalProperties": false
            }
        ]
    };
}
