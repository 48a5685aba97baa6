//! Whatever the text is, the parser answers, and its answer can be shown.

use proptest::prelude::*;

use crate::pipeline_file::{
    render_all,
    tests::{EXAMPLE, PipelineFile, parse, printed},
};

/// Parses, and shows what was found.
fn answers(text: &str) {
    match PipelineFile::parse(text) {
        Ok(file) => {
            file.unsupported();
            assert_eq!(parse(&printed(&file)), file, "what is printed is read back");
            let json = serde_json::to_string(&file).unwrap();
            assert_eq!(serde_json::from_str::<PipelineFile>(&json).unwrap(), file);
            let packed = rmp_serde::to_vec(&file).unwrap();
            assert_eq!(rmp_serde::from_slice::<PipelineFile>(&packed).unwrap(), file);
        }
        Err(found) => {
            assert!(!found.is_empty() && found.len() <= 100);
            for one in &found {
                assert!(one.line >= 1 && one.column >= 1 && one.end_column > one.column, "{one:?}");
                assert!(one.line as usize <= text.split('\n').count(), "{one:?}");
            }
            assert!(render_all(&found, "swell.toml", text).contains("swell.toml"));
        }
    }
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("1".to_owned()),
        Just("-1".to_owned()),
        Just("0x1F".to_owned()),
        Just("1_000".to_owned()),
        Just("99999999999999999999999".to_owned()),
        Just("nan".to_owned()),
        Just("-inf".to_owned()),
        Just("1.5".to_owned()),
        Just("true".to_owned()),
        Just("\"1500000001\"".to_owned()),
        Just("\"1500MB\"".to_owned()),
        Just("\"1m30s250ms\"".to_owned()),
        Just("\"12.34%\"".to_owned()),
        Just("2026-01-01".to_owned()),
        Just("[]".to_owned()),
        Just("[[[]]]".to_owned()),
        Just("{ a = 1 }".to_owned()),
        Just("{ port = \"http\", http = \"/\" }".to_owned()),
        Just("\"\"".to_owned()),
        Just("[1, \"50%\", \"100%\"]".to_owned()),
        "\"[a-z0-9%.${}é\\\\\\\\ ]{0,12}\"",
        "\\[\"[a-z/*]{0,6}\"\\]",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        answers(&text);
    }

    #[test]
    fn any_value_of_any_key_is_answered(line in 0..EXAMPLE.lines().count(), value in value()) {
        let mut lines: Vec<String> = EXAMPLE.lines().map(str::to_owned).collect();
        if let Some((key, _)) = lines[line].clone().split_once(" = ") {
            lines[line] = format!("{key} = {value}");
        }
        answers(&lines.join("\n"));
    }

    #[test]
    fn any_part_of_the_example_is_answered(from in 0..EXAMPLE.len(), len in 0..400usize) {
        let mut text = EXAMPLE.as_bytes().to_vec();
        text.drain(from..(from + len).min(EXAMPLE.len()));
        answers(&String::from_utf8_lossy(&text));
    }
}
