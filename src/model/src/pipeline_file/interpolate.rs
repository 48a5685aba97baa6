//! `${…}` in commands and variables. Knows which variables there are, not their values.

use std::fmt;

use crate::ids::PortName;
use crate::pipeline_file::read::nearest;

/// What `${…}` can stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `${port.NAME}`: the number of a port of the service, on this target, for this instance.
    Port(PortName),
    /// `${pipeline}`: the pipeline's name.
    Pipeline,
    /// `${service}`: the service's name (in a task: the task's).
    Service,
    /// `${release}`: the release's number.
    Release,
    /// `${environment}`: the environment's name.
    Environment,
    /// `${target}`: the target's name.
    Target,
    /// `${region}`: the target's region.
    Region,
    /// `${zone}`: the target's zone.
    Zone,
    /// `${instance}`: the instance's id on its target, another one after each restart.
    Instance,
}

const WORDS: [(&str, Variable); 8] = [
    ("pipeline", Variable::Pipeline),
    ("service", Variable::Service),
    ("release", Variable::Release),
    ("environment", Variable::Environment),
    ("target", Variable::Target),
    ("region", Variable::Region),
    ("zone", Variable::Zone),
    ("instance", Variable::Instance),
];

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variable::Port(name) => write!(f, "port.{name}"),
            word => f.write_str(WORDS.iter().find(|(_, variable)| variable == word).map_or("", |(text, _)| text)),
        }
    }
}

/// A text with a `${…}` that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterpolationError {
    /// `${` without `}`.
    #[error("`${{` is never closed; write `$${{` for the two characters themselves")]
    Unclosed,
    /// Not one of the variables.
    #[error("`${{{name}}}` is not a variable; {hint}")]
    Unknown {
        /// What stands in the braces.
        name: String,
        /// What to write.
        hint: String,
    },
    /// A variable that has no value here.
    #[error("`${{{0}}}` has no value here")]
    NoValue(String),
}

fn variable(name: &str) -> Result<Variable, InterpolationError> {
    if let Some(port) = name.strip_prefix("port.").and_then(|port| port.parse().ok()) {
        return Ok(Variable::Port(port));
    }
    if let Some((_, variable)) = WORDS.iter().find(|(word, _)| *word == name) {
        return Ok(variable.clone());
    }
    let hint = match nearest(name, WORDS.iter().map(|(word, _)| *word)) {
        Some(word) => format!("did you mean `${{{word}}}`?"),
        None => {
            let words: Vec<_> = WORDS.iter().map(|(word, _)| *word).collect();
            format!("there are port.NAME, {}; write `$${{` for the characters themselves", words.join(", "))
        }
    };
    Err(InterpolationError::Unknown { name: name.chars().take(80).collect(), hint })
}

enum Piece<'t> {
    Text(&'t str),
    Variable(Variable),
}

/// Splits a text. `$$` is a dollar sign; a `$` before anything but `{` and `$` is itself.
fn pieces(text: &str) -> impl Iterator<Item = Result<Piece<'_>, InterpolationError>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(dollar) = rest.find('$') else { return Some(Ok(Piece::Text(std::mem::take(&mut rest)))) };
        let (before, after) = rest.split_at(dollar);
        if !before.is_empty() {
            rest = after;
            return Some(Ok(Piece::Text(before)));
        }
        if let Some(inner) = after.strip_prefix("${") {
            let Some(end) = inner.find('}') else {
                rest = "";
                return Some(Err(InterpolationError::Unclosed));
            };
            rest = &inner[end + 1..];
            return Some(variable(&inner[..end]).map(Piece::Variable));
        }
        rest = after.strip_prefix("$$").unwrap_or(&after[1..]);
        Some(Ok(Piece::Text("$")))
    })
}

/// The variables of a text, in order, or the first that means nothing.
pub fn variables(text: &str) -> Result<Vec<Variable>, InterpolationError> {
    let only_variable = |piece| match piece {
        Ok(Piece::Variable(variable)) => Some(Ok(variable)),
        Ok(Piece::Text(_)) => None,
        Err(error) => Some(Err(error)),
    };
    pieces(text).filter_map(only_variable).collect()
}

/// The text with each `${…}` replaced by what `lookup` gives, and each `$$` by `$`. What is filled in is not looked at again.
pub fn expand(text: &str, lookup: impl Fn(&Variable) -> Option<String>) -> Result<String, InterpolationError> {
    let mut expanded = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece? {
            Piece::Text(text) => expanded.push_str(text),
            Piece::Variable(variable) => {
                let value = lookup(&variable).ok_or_else(|| InterpolationError::NoValue(variable.to_string()))?;
                expanded.push_str(&value);
            }
        }
    }
    Ok(expanded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(variable: &Variable) -> Option<String> {
        match variable {
            Variable::Port(name) if name.as_str() == "http" => Some("8080".to_owned()),
            Variable::Release => Some("${zone}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn fills_in_and_escapes() {
        assert_eq!(expand("0.0.0.0:${port.http}", lookup).unwrap(), "0.0.0.0:8080");
        assert_eq!(expand("$${release} costs $5 $$ $", lookup).unwrap(), "${release} costs $5 $ $");
        assert_eq!(expand("r${release}", lookup).unwrap(), "r${zone}", "what is filled in is not looked at again");
        assert_eq!(expand("${target}", lookup).unwrap_err().to_string(), "`${target}` has no value here");
    }

    #[test]
    fn names_what_it_does_not_know() {
        assert_eq!(
            expand("a ${relese}", lookup).unwrap_err().to_string(),
            "`${relese}` is not a variable; did you mean `${release}`?"
        );
        assert!(matches!(expand("${port.http", lookup), Err(InterpolationError::Unclosed)));
        assert!(expand("${HOME}", lookup).unwrap_err().to_string().contains("$${"));
    }

    proptest! {
        #[test]
        fn escaped_text_is_itself(text in any::<String>()) {
            prop_assert_eq!(expand(&text.replace('$', "$$"), lookup).unwrap(), text);
        }

        #[test]
        fn never_panics(text in "[${}a-z.é]{0,40}") {
            let _unused = expand(&text, lookup).is_ok();
        }
    }
}
