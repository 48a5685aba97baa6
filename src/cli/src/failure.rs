//! How a command ends: the exit codes that all commands share, and failures that say what failed, why, and what to do next.
//! Knows nothing of HTTP.

use std::{fmt, io, process::ExitCode};

use serde_json::{Value, json};

/// The exit codes, shared by all commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    /// The command line, the configuration or a name in it is wrong.
    Usage = 2,
    /// The rollout failed and was rolled back.
    RolledBack = 3,
    /// Rolling back failed; a person is needed.
    RollbackFailed = 4,
    /// Waiting for approval. Reserved: no command ends with it yet.
    AwaitsApproval = 5,
    /// The command stopped waiting; the work continues.
    TimedOut = 6,
    /// A conflict or lock; the message names the holder.
    Conflict = 7,
    NotAllowed = 8,
    /// No leader, or no server answers.
    Unreachable = 9,
    /// `plan` found changes.
    Changes = 10,
}

impl Exit {
    /// The number that the process exits with.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// The result of a command or of a part of it.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command failed: what failed, a stable code, and a hint.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure(Box<Inner>);

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    exit: Exit,
    code: String,
    detail: String,
    hint: Option<String>,
    /// The problem (RFC 9457) that the server answered with.
    problem: Option<Value>,
}

impl Failure {
    /// A failure with a stable code for programs and a sentence for people.
    pub fn new(exit: Exit, code: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner { exit, code: code.to_owned(), detail: detail.into(), hint: None, problem: None }))
    }

    /// A wrong command line or configuration.
    pub fn usage(detail: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", detail)
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the server's problem, which `--json` prints whole.
    pub fn problem(mut self, problem: Value) -> Self {
        self.0.problem = Some(problem);
        self
    }

    /// The exit code of the process.
    pub fn exit(&self) -> Exit {
        self.0.exit
    }

    /// The stable code, for programs.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// The sentence that says what failed and why.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// What to do next, if anything is known to help.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref().filter(|hint| !hint.is_empty())
    }

    /// The choices that the server offers where one is missing.
    pub fn choices(&self) -> Vec<String> {
        let choices = self.0.problem.as_ref().and_then(|problem| problem.get("choices")).and_then(Value::as_array);
        choices.into_iter().flatten().filter_map(|choice| choice.as_str().map(str::to_owned)).collect()
    }

    /// A text field of the server's problem.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.problem.as_ref()?.get(name)?.as_str()
    }

    /// Whether the reader of standard output is gone (`swell … | head`): no message is printed then.
    pub fn is_closed_output(&self) -> bool {
        self.0.code == CLOSED_OUTPUT
    }

    /// The object that `--json` prints: `{"error": {"code", "detail", "hint", "exit", …}}`.
    pub fn to_json(&self) -> Value {
        let mut error = match &self.0.problem {
            Some(Value::Object(fields)) => fields.clone(),
            _ => serde_json::Map::new(),
        };
        error.insert("code".to_owned(), json!(self.0.code));
        error.insert("detail".to_owned(), json!(self.0.detail));
        error.insert("hint".to_owned(), json!(self.0.hint));
        error.insert("exit".to_owned(), json!(self.exit().code()));
        json!({ "error": error })
    }
}

const CLOSED_OUTPUT: &str = "closed_output";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.0.code, self.0.detail)?;
        if let Some(holder) = self.field("holder") {
            write!(f, "\n  held by: {holder}")?;
        }
        match self.hint_text() {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// For standard input and output; for files, [`file_error`] names the path.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { CLOSED_OUTPUT } else { "io" };
        Self::new(Exit::Failed, code, error.to_string())
    }
}

/// A file that could not be read or written; `action` is the verb.
pub fn file_error(action: &str, path: &std::path::Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Usage, "file", format!("failed to {action} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_display_shows_code_holder_and_hint() {
        let problem = json!({ "status": 409, "holder": "rollout/r7", "choices": ["a", "b"] });
        let failure = Failure::new(Exit::Conflict, "held", "production is held").hint("swell abort r7").problem(problem);
        insta::assert_snapshot!(failure, @r"
        error[held]: production is held
          held by: rollout/r7
          hint: swell abort r7
        ");
        assert_eq!(failure.choices(), ["a", "b"]);
        let json = failure.to_json();
        assert_eq!((&json["error"]["exit"], &json["error"]["holder"]), (&json!(7), &json!("rollout/r7")));
    }
}
