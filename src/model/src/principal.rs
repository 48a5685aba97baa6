//! Who does something: a person, a program, or Groundswell itself.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a principal may do. One token for each, until there are people and policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Push, build, deploy, roll back.
    Developer,
    /// Read.
    Viewer,
    /// An agent on a target.
    Agent,
    /// A gateway.
    Gateway,
    /// A runner.
    Runner,
    /// A server or one of its actors. Has no token.
    System,
}

impl Role {
    /// The roles that have a token.
    pub const WITH_TOKEN: [Role; 6] = [Role::Admin, Role::Developer, Role::Viewer, Role::Agent, Role::Gateway, Role::Runner];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Developer => "developer",
            Role::Viewer => "viewer",
            Role::Agent => "agent",
            Role::Gateway => "gateway",
            Role::Runner => "runner",
            Role::System => "system",
        }
    }

    /// Whether this role may do what takes `needed`. People's roles are ordered; machines' roles stand alone.
    pub fn allows(self, needed: Role) -> bool {
        match self {
            Role::Admin | Role::System => true,
            Role::Developer => matches!(needed, Role::Developer | Role::Viewer),
            _ => self == needed,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::WITH_TOKEN.into_iter().find(|role| role.name() == text);
        known.ok_or_else(|| format!("`{text}` is not a role: write admin, developer, viewer, agent, gateway or runner"))
    }
}

/// The longest name of a person, in bytes.
const USER_BYTES_MAX: usize = 64;

/// Whether `name` can be a person's: up to 64 of `A-Z a-z 0-9 . _ @ + -`.
pub fn is_user(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'+' | b'-');
    (1..=USER_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// Who acted. Written `developer:ada` or `system:rollout`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// What it may do.
    pub role: Role,
    /// Who it is within the role: a person's name, a target's, an actor's.
    pub name: String,
}

impl Principal {
    /// A principal of `role` called `name`.
    pub fn new(role: Role, name: impl Into<String>) -> Self {
        Self { role, name: name.into() }
    }

    /// One of Groundswell's own actors.
    pub fn system(name: &str) -> Self {
        Self::new(Role::System, name)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_people_are_short_and_plain() {
        assert!(is_user("ada.lovelace+ci@example.org"));
        for bad in ["", "a b", "ada\n", "é", &"x".repeat(65)] {
            assert!(!is_user(bad), "{bad}");
        }
    }
}
