//! Maps a server's error answers (RFC 9457 problems) to failures with exit codes. Knows nothing of commands.

use reqwest::StatusCode;
use serde_json::Value;

use super::failure::{Exit, Failure};

/// How many characters are shown of an answer that is no problem.
const SHOWN_CHARS_MAX: usize = 200;

/// The failure for an error answer.
pub fn failure(status: StatusCode, body: &[u8]) -> Failure {
    let problem: Option<Value> = serde_json::from_slice(body).ok().filter(|value: &Value| value.get("code").is_some());
    let Some(problem) = problem else {
        let text: String = String::from_utf8_lossy(body).trim().chars().take(SHOWN_CHARS_MAX).collect();
        let what = if text.is_empty() {
            format!("the server answered {status}")
        } else {
            format!("the server answered {status}: {text}")
        };
        return Failure::new(exit_of(status, ""), &format!("http_{}", status.as_u16()), what)
            .hint("check that --addr is the address of a Groundswell server; `swell doctor` helps");
    };
    of_problem(status, problem)
}

/// The failure for a problem.
pub fn of_problem(status: StatusCode, problem: Value) -> Failure {
    let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = text("code");
    Failure::new(exit_of(status, &code), &code, text("detail")).hint(text("hint")).problem(problem)
}

/// The exit code for a problem's code, else for its status.
pub fn exit_of(status: StatusCode, code: &str) -> Exit {
    match code {
        // Sent as conflicts, but the command must be corrected: nothing holds a lock.
        "ambiguous" | "invalid_file" | "no_release" | "not_deployed" => return Exit::Usage,
        "no_leader" | "busy" | "stopped" => return Exit::Unreachable,
        _ => {}
    }
    match status.as_u16() {
        401 | 403 => Exit::NotAllowed,
        409 | 412 | 423 => Exit::Conflict,
        400 | 404 | 405 | 413 | 415 | 422 => Exit::Usage,
        502..=504 => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_maps_to_exit_code_by_status_and_code() {
        let cases = [
            (409, "held", Exit::Conflict),
            (409, "quarantined", Exit::Conflict),
            (409, "plan_changed", Exit::Conflict),
            (412, "changed", Exit::Conflict),
            (409, "ambiguous", Exit::Usage),
            (404, "not_found", Exit::Usage),
            (422, "invalid", Exit::Usage),
            (401, "unauthorized", Exit::NotAllowed),
            (403, "forbidden", Exit::NotAllowed),
            (503, "no_leader", Exit::Unreachable),
            (504, "timed_out", Exit::Unreachable),
            (500, "internal", Exit::Failed),
            (410, "artifact_deleted", Exit::Failed),
        ];
        for (status, code, exit) in cases {
            let body = serde_json::json!({ "code": code, "detail": "it is so", "hint": "do this" }).to_string();
            let failure = failure(StatusCode::from_u16(status).unwrap_or_default(), body.as_bytes());
            assert_eq!((failure.exit(), failure.code()), (exit, code));
        }
    }

    #[test]
    fn answer_that_is_no_problem_is_shown_with_its_status() {
        let failure = failure(StatusCode::BAD_GATEWAY, b"<html>nginx</html>");
        assert_eq!((failure.code(), failure.exit()), ("http_502", Exit::Unreachable));
        assert!(failure.to_string().contains("<html>nginx</html>"));
    }
}
