//! The OpenAPI document is a promise: it changes only on purpose. `UPDATE_OPENAPI=1 cargo test openapi` writes it anew.

use super::*;
use crate::openapi;

#[test]
fn the_document_is_the_one_that_was_promised() {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("src/openapi.json");
    let now = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let promised = std::fs::read_to_string(&path).unwrap_or_default();
    let first = promised.lines().zip(now.lines()).position(|(promised, now)| promised != now);
    assert!(
        promised == now,
        "openapi.json differs first in line {:?}: where that is meant, run `UPDATE_OPENAPI=1 cargo test openapi`",
        first.map(|line| line + 1)
    );
    assert!(now.starts_with("{\n  \"openapi\": \"3.1."), "{}", &now[..40]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_served_and_every_reference_in_it_leads_somewhere() {
    let server = Server::start().await;
    let (status, document) = answer(server.client.get(format!("{}/openapi.json", server.base))).await;
    assert_eq!(status, StatusCode::OK);
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 50);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let operation = &document["paths"]["/v1/rollouts"]["post"];
    assert!(operation["responses"]["default"]["content"]["application/problem+json"].is_object());
    assert!(operation["security"].is_array());
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, found)),
        _ => {}
    }
}
