//! The OpenAPI document is compared with a snapshot. `UPDATE_OPENAPI=1 cargo test -p swell-http openapi` updates it.

use super::*;
use crate::openapi;

#[test]
fn openapi_document_matches_snapshot() {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("src/openapi.json");
    let now = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let first = expected.lines().zip(now.lines()).position(|(expected, now)| expected != now);
    assert!(
        expected == now,
        "openapi.json differs first in line {:?}: if that is intended, run `UPDATE_OPENAPI=1 cargo test -p swell-http openapi`",
        first.map(|line| line + 1)
    );
    assert!(now.starts_with("{\n  \"openapi\": \"3.1."), "{}", &now[..40]);
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_document_is_served_with_etag_and_resolvable_references() {
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

    let url = format!("{}/openapi.json", server.base);
    let tag = server.client.get(&url).send().await.unwrap().headers()["etag"].to_str().unwrap().to_owned();
    for (tags, status) in [(tag.as_str(), StatusCode::NOT_MODIFIED), ("\"other\"", StatusCode::OK)] {
        let response = server.client.get(&url).header("if-none-match", tags).send().await.unwrap();
        assert_eq!((response.status(), response.headers()["etag"].to_str().unwrap()), (status, tag.as_str()));
    }
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

#[test]
fn openapi_descriptions_say_more_than_one_word() {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("description").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::to_value(openapi()).unwrap(), &mut found);
    let vague = ["Which", "Whose", "Where", "Who", "What", "How", "Its", "Why", "When"];
    let is_poor = |text: &String| {
        let words: Vec<&str> = text.trim_end_matches('.').split(' ').collect();
        words.len() <= 2 && vague.contains(&words[0])
    };
    let poor: Vec<_> = found.into_iter().filter(is_poor).collect();
    assert!(poor.is_empty(), "{poor:?}");
}
