//! The names by which people and programs call things. A name is checked once, where it is made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that cannot be the name or the id of something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct IdError {
    /// What was given.
    pub text: String,
    /// What would have been understood.
    pub expected: &'static str,
}

/// The longest name, in bytes: it must fit a DNS label, a cgroup and a file name.
pub const NAME_BYTES_MAX: usize = 63;

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    text.len() <= NAME_BYTES_MAX
        && text.chars().all(allowed)
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && !text.ends_with('.')
        && !text.contains("..")
}

/// What tells an agent from all others: 32 random hexadecimal digits, made once on its machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentId(pub String);

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $expected:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_name(text) { Ok(Self(text.to_owned())) } else { Err(IdError { text: text.to_owned(), expected: $expected }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

names! {
    /// A registered pipeline.
    PipelineName, "a pipeline's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit";
    /// A repository that Groundswell hosts.
    RepositoryName, "a repository's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit";
    /// A named set of targets, with the policy for changing them.
    EnvironmentName, "an environment's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit";
    /// A service that a release runs on a target.
    ServiceName, "a service's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit";
    /// One server of the fleet.
    TargetName, "a target's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit";
    /// A machine that runs builds.
    RunnerName, "a runner's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit";
    /// A port of a service, as `swell.toml` names it.
    PortName, "a port's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit";
}

/// Text for people (JSON), parts for state (MessagePack).
macro_rules! serde_as_text_or_parts {
    ($name:ident, $parts:ty, $to:expr, $from:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { ($to)(self).serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return <$parts>::deserialize(deserializer).map($from);
                }
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident, $prefix:literal, $expected:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let number = text.strip_prefix($prefix).and_then(|digits| digits.parse().ok());
                number.map(Self).ok_or_else(|| IdError { text: text.to_owned(), expected: $expected })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        serde_as_text_or_parts!($name, u64, |id: &$name| id.0, $name);
    )*};
}

numbers! {
    /// One commit being built, in attempts. Written `b42`.
    BuildId, "b", "a build's id, such as `b42`";
    /// Moving an environment to a release. Written `r7`.
    RolloutId, "r", "a rollout's id, such as `r7`";
}

/// A release of a pipeline, numbered from 1. Written `shop@12`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseId {
    pub pipeline: PipelineName,
    /// Its number within the pipeline; 0 is what was adopted.
    pub number: u64,
}

impl FromStr for ReleaseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError { text: text.to_owned(), expected: "a release's id, such as `shop@12`" };
        let (pipeline, number) = text.rsplit_once('@').ok_or_else(error)?;
        Ok(Self { pipeline: pipeline.parse().map_err(|_| error())?, number: number.parse().map_err(|_| error())? })
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pipeline, self.number)
    }
}

serde_as_text_or_parts!(ReleaseId, (PipelineName, u64), |id: &ReleaseId| (id.pipeline.clone(), id.number), |(
    pipeline,
    number,
)| ReleaseId {
    pipeline,
    number
});

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn name_that_does_not_fit_files_and_hosts_is_refused() {
        for good in ["shop", "web-1", "a.b_c", "7zip"] {
            assert_eq!(good.parse::<PipelineName>().unwrap().to_string(), good);
        }
        for bad in ["", "Shop", "-x", "a/b", "..", "a..b", "x.", "é", &"x".repeat(64)] {
            assert!(bad.parse::<PipelineName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_text_for_people_and_numbers_in_state() {
        let release: ReleaseId = "shop@12".parse().unwrap();
        assert_eq!(serde_json::to_string(&release).unwrap(), r#""shop@12""#);
        assert_eq!(rmp_serde::from_slice::<ReleaseId>(&rmp_serde::to_vec(&release).unwrap()).unwrap(), release);
        assert_eq!("b42".parse(), Ok(BuildId(42)));
        assert_eq!(rmp_serde::to_vec(&BuildId(42)).unwrap(), vec![42]);
        assert!("r42".parse::<BuildId>().is_err());
    }
}
