//! The published schema fits what the parser reads.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::pipeline_file::{
    json_schema,
    tests::{EXAMPLE, PipelineFile},
};

#[test]
fn the_published_schema_is_the_present_one() {
    let snapshot = std::env::var("CARGO_MANIFEST_DIR").unwrap() + "/../../config/swell.schema.json";
    let present = serde_json::to_string_pretty(&json_schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&snapshot, &present).unwrap();
    }
    let published = std::fs::read_to_string(&snapshot).unwrap_or_default();
    assert!(
        published == present,
        "config/swell.schema.json is out of date: run this test with UPDATE_SNAPSHOTS=1 and look at the change"
    );
}

/// Follows `$ref`.
fn resolve<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => resolve(root, root.pointer(reference.trim_start_matches('#')).unwrap()),
        None => schema,
    }
}

/// Walks a value along its schema: every key must be known there, and every table must refuse unknown keys.
fn walk(root: &Value, schema: &Value, value: &Value, path: &str) {
    let schema = resolve(root, schema);
    let is_alternative_of = |one: &&Value| match value {
        Value::Object(_) => one["type"] == "object",
        Value::Array(_) => one["type"] == "array",
        Value::Number(_) => one["type"] == "number" || one["type"] == "integer",
        _ => one["type"] == "string" || one.get("const").is_some(),
    };
    if let Some(any_of) = schema["anyOf"].as_array() {
        let one = any_of.iter().map(|one| resolve(root, one)).find(is_alternative_of);
        return walk(root, one.unwrap_or_else(|| panic!("{path}: nothing in {schema} fits {value}")), value, path);
    }
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
                let inner = match schema["properties"].get(key) {
                    Some(inner) => {
                        assert_eq!(schema["additionalProperties"], false, "{path} accepts unknown keys");
                        inner
                    }
                    None => {
                        let inner = &schema["additionalProperties"];
                        assert!(inner.is_object(), "{path}.{key} is not in the schema");
                        inner
                    }
                };
                walk(root, inner, value, &format!("{path}.{key}"));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(root, &schema["items"], item, path)),
        Value::String(_) => assert!(
            schema["type"] == "string"
                || schema.get("enum").is_some()
                || schema.get("const").is_some()
                || schema.get("oneOf").is_some(),
            "{path}: {schema}"
        ),
        Value::Number(_) => assert!(matches!(schema["type"].as_str(), Some("number" | "integer")), "{path}: {schema}"),
        Value::Bool(_) => assert_eq!(schema["type"], "boolean", "{path}"),
        Value::Null => {}
    }
}

#[test]
fn it_knows_every_key_of_the_example() {
    let schema = json_schema();
    let example: Value = toml::from_str(EXAMPLE).unwrap();
    walk(&schema, &schema, &example, "");
}

#[test]
fn every_table_refuses_unknown_keys() {
    let schema = json_schema();
    let mut open = Vec::new();
    fn visit(schema: &Value, path: String, open: &mut Vec<String>) {
        if schema.get("properties").is_some_and(Value::is_object)
            && schema.get("type") == Some(&Value::from("object"))
            && schema["additionalProperties"] != false
        {
            open.push(path.clone());
        }
        match schema {
            Value::Object(object) => object.iter().for_each(|(key, inner)| visit(inner, format!("{path}/{key}"), open)),
            Value::Array(items) => items.iter().enumerate().for_each(|(at, inner)| visit(inner, format!("{path}/{at}"), open)),
            _ => {}
        }
    }
    visit(&schema, String::new(), &mut open);
    assert!(open.is_empty(), "{open:?}");
    assert!(!schema.to_string().contains("null"), "TOML has no null");
}

/// The parser lists the keys that it knows when one is like none of them: they must be those of the schema.
#[test]
fn parser_and_schema_know_the_same_keys() {
    let schema = json_schema();
    let sections = [
        ("", ""),
        ("[build]", "Build"),
        ("[[cache]]", "Cache"),
        ("[test]", "Test"),
        ("[package]", "Package"),
        ("[service.a]", "Service"),
        ("[service.a.limits]", "Limits"),
        ("[service.a.health]", "Health"),
        ("[service.a.stop]", "Stop"),
        ("[task.a]", "Task"),
        ("[environment.a]", "EnvironmentSettings"),
        ("[deploy.a]", "Deploy"),
        ("[deploy.a.analysis]", "Analysis"),
        ("[deploy.a.sticky]", "Sticky"),
        ("[[deploy.a.gates]]", "Gate"),
        ("[deploy.a.rollback]", "Rollback"),
    ];
    let definitions: BTreeSet<&str> = schema["$defs"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, schema)| schema.get("properties").is_some())
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(definitions, sections[1..].iter().map(|(_, name)| *name).collect());
    for (header, name) in sections {
        let found = PipelineFile::parse(&format!("{header}\nzzzzzzzzzz = 1\n")).unwrap_err();
        let help = found.iter().find(|found| found.code == "unknown_key").and_then(|found| found.help.clone()).unwrap();
        let read: BTreeSet<&str> = help.strip_prefix("known here: ").unwrap().split(", ").collect();
        let definition = if name.is_empty() { &schema } else { &schema["$defs"][name] };
        let published: BTreeSet<&str> = definition["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(read, published, "{header}");
    }
}
