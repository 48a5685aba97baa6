//! Why a session ended or never began, with the way out. Must not know how sessions are kept.

use hyper::StatusCode;
use tokio_tungstenite::tungstenite;

use swell_model::{
    fleet::TargetInfo,
    units::Millis,
    wire::{PROTOCOL_VERSION, Refusal},
};

/// Every session ends with one.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("failed to ask server {server} for a session: {reason}; correct the agent's `servers` or token")]
    Configured { server: String, reason: String },
    #[error("server {server} refused the token ({status}); give this agent an agent's token, not that of another role")]
    Token { server: String, status: StatusCode },
    #[error("server {server} answered {status} in place of a session; check that it is a server of the cluster")]
    Status { server: String, status: StatusCode },
    #[error("session with server {server} broke: {source}")]
    Broken { server: String, source: Box<tungstenite::Error> },
    #[error("session with server {server} ended: {action} took too long")]
    TimedOut { server: String, action: &'static str },
    #[error("server {server} ended the session")]
    Closed { server: String },
    #[error("failed to understand a message of server {server}: {reason}; upgrade the older of the two")]
    Message { server: String, reason: String },
    #[error("server {server} refused this agent: {}", render(.refusal, .info))]
    Refused { server: String, refusal: Refusal, info: Box<TargetInfo> },
    #[error("server {server} is overloaded or about to stop and asks to come back after {retry_after}")]
    Busy { server: String, retry_after: Millis },
    #[error("the agent is stopping")]
    Stopping,
}

impl SessionError {
    /// What became of asking `server` for a WebSocket.
    pub fn connecting(server: &str, error: tungstenite::Error) -> Self {
        let server = server.to_owned();
        let tungstenite::Error::Http(response) = &error else { return Self::Broken { server, source: Box::new(error) } };
        match response.status() {
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Self::Token { server, status },
            // Such as a server without a leader.
            status if status.is_server_error() => Self::Broken { server, source: Box::new(error) },
            status => Self::Status { server, status },
        }
    }

    /// Whether a person must change something before another try can succeed.
    pub fn needs_change(&self) -> bool {
        matches!(self, Self::Configured { .. } | Self::Token { .. } | Self::Status { .. } | Self::Refused { .. })
    }
}

/// What the server objects to, and what to do about it.
fn render(refusal: &Refusal, info: &TargetInfo) -> String {
    let (name, address) = (&info.name, info.address);
    match refusal {
        Refusal::NameInUse { by } => format!(
            "another agent at {by} is the target {name}; rename the target or remove the old one with `swell fleet rm {name}`"
        ),
        Refusal::AddressInUse { by } => format!(
            "target {by} has the same address {address} and ports that overlap {}-{}; give this agent another `address` or other \
             `ports`, or remove the old target with `swell fleet rm {by}`",
            info.ports.first, info.ports.last
        ),
        Refusal::Version { server } => format!(
            "it speaks version {server} of the session protocol and this agent version {PROTOCOL_VERSION}; upgrade the older of the two"
        ),
        Refusal::Rejected { code, reason } => format!("{reason} ({code}); correct the agent's configuration and restart it"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use swell_model::fleet::PortRange;

    fn text(refusal: Refusal) -> String {
        let info = Box::new(TargetInfo {
            name: "web-1".parse().unwrap(),
            region: "eu".to_owned(),
            zone: "a".to_owned(),
            address: "10.0.0.7".parse().unwrap(),
            agent_version: String::new(),
            labels: BTreeMap::new(),
            ports: PortRange { first: 20_000, last: 29_999 },
        });
        SessionError::Refused { server: "http://10.0.0.1:7400".to_owned(), refusal, info }.to_string()
    }

    #[test]
    fn refusal_says_what_is_in_the_way_and_what_to_do() {
        assert_eq!(
            text(Refusal::NameInUse { by: "10.0.0.9".parse().unwrap() }),
            "server http://10.0.0.1:7400 refused this agent: another agent at 10.0.0.9 is the target web-1; rename the target or remove \
             the old one with `swell fleet rm web-1`"
        );
        let address = text(Refusal::AddressInUse { by: "web-2".parse().unwrap() });
        assert!(address.contains("target web-2 has the same address 10.0.0.7 and ports that overlap 20000-29999"), "{address}");
        assert!(text(Refusal::Version { server: 9 }).contains("version 9 of the session protocol and this agent version"));
        let rejected = text(Refusal::Rejected { code: "invalid_label".to_owned(), reason: "label `x y` is invalid".to_owned() });
        assert!(rejected.contains("label `x y` is invalid (invalid_label); correct"), "{rejected}");
    }
}
