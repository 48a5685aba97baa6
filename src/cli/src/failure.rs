//! How a command ends: the exit codes that all commands share, and failures with what, why and what to do next.
//! Knows nothing of HTTP.

use std::{fmt, io, process::ExitCode};

use serde_json::{Value, json};

/// The exit codes. All commands share them; nobody invents another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// Usage or configuration: what was asked for cannot be.
    Usage = 2,
    /// It failed and was rolled back.
    RolledBack = 3,
    /// Rolling back failed: a person is needed.
    RollbackFailed = 4,
    /// It waits for a person's approval.
    AwaitsApproval = 5,
    /// The command stopped waiting; the work goes on.
    TimedOut = 6,
    /// A conflict or a lock; the message names the holder.
    Conflict = 7,
    /// Not allowed.
    NotAllowed = 8,
    /// No leader, or no server answers.
    Unreachable = 9,
    /// `plan` found changes.
    Changes = 10,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// What a command gives back.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command could not do what it was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure(Box<Inner>);

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    exit: Exit,
    code: String,
    what: String,
    hint: Option<String>,
    /// The server's own words, where they are a server's.
    problem: Option<Value>,
}

impl Failure {
    /// A failure with its stable code, in a sentence.
    pub fn new(exit: Exit, code: &str, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { exit, code: code.to_owned(), what: what.into(), hint: None, problem: None }))
    }

    /// What was asked for cannot be.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", what)
    }

    /// With what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// With the server's problem, which `--json` shows whole.
    pub fn problem(mut self, problem: Value) -> Self {
        self.0.problem = Some(problem);
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.0.exit
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// What could be chosen, where the server says that a choice is missing.
    pub fn choices(&self) -> Vec<String> {
        let choices = self.0.problem.as_ref().and_then(|problem| problem.get("choices")).and_then(Value::as_array);
        choices.into_iter().flatten().filter_map(|choice| choice.as_str().map(str::to_owned)).collect()
    }

    /// A field of the server's problem.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.problem.as_ref()?.get(name)?.as_str()
    }

    /// Whether whoever read the output has gone: nothing is worth saying then.
    pub fn is_closed_output(&self) -> bool {
        self.0.code == CLOSED_OUTPUT
    }

    /// As `--json` prints it: `{"error": {"code", "detail", "hint", "exit", …}}`.
    pub fn to_json(&self) -> Value {
        let mut error = match &self.0.problem {
            Some(Value::Object(fields)) => fields.clone(),
            _ => serde_json::Map::new(),
        };
        error.insert("code".to_owned(), json!(self.0.code));
        error.insert("detail".to_owned(), json!(self.0.what));
        error.insert("hint".to_owned(), json!(self.0.hint));
        error.insert("exit".to_owned(), json!(self.exit().code()));
        json!({ "error": error })
    }
}

const CLOSED_OUTPUT: &str = "closed_output";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.0.code, self.0.what)?;
        if let Some(holder) = self.field("holder") {
            write!(f, "\n  held by: {holder}")?;
        }
        match &self.0.hint {
            Some(hint) if !hint.is_empty() => write!(f, "\n  next: {hint}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// Reading and writing on the terminal; files say more with [`file_error`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { CLOSED_OUTPUT } else { "io" };
        Self::new(Exit::Failed, code, error.to_string())
    }
}

/// A file could not be used.
pub fn file_error(action: &str, path: &std::path::Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Usage, "file", format!("cannot {action} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_why_and_what_next() {
        let problem = json!({ "status": 409, "holder": "rollout/r7", "choices": ["a", "b"] });
        let failure = Failure::new(Exit::Conflict, "held", "production is held").hint("swell abort r7").problem(problem);
        insta::assert_snapshot!(failure, @r"
        error[held]: production is held
          held by: rollout/r7
          next: swell abort r7
        ");
        assert_eq!(failure.choices(), ["a", "b"]);
        let json = failure.to_json();
        assert_eq!((&json["error"]["exit"], &json["error"]["holder"]), (&json!(7), &json!("rollout/r7")));
    }
}
