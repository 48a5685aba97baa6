//! What a gateway is told when it starts: where to listen, whom to follow, and every bound, with why it has its value.
//! Knows nothing of the command line or of files.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use swell_model::{
    routing::table::ServiceKey,
    units::{ByteSize, Millis},
};

/// A gateway's configuration. Every part has a default, so an empty table is a valid one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Its name, for people.
    pub name: String,
    /// Its zone: instances of the same zone are preferred.
    pub zone: String,
    /// Where it takes requests; at least one. The default is `127.0.0.1:7480`, routed by host.
    #[serde(rename = "listener")]
    pub listeners: Vec<Listener>,
    /// Where probes and people ask about the gateway itself; none to do without. Loopback unless set.
    pub admin: Option<SocketAddr>,
    /// Where the last table is kept, so that it serves after a restart without any server; none to keep it in memory only.
    pub table_file: Option<PathBuf>,
    /// Whom to get tables from; none when they are applied by hand ([`super::TableHandle::apply`]).
    pub session: Option<SessionConfig>,
    /// Keep `X-Forwarded-Proto` and `X-Forwarded-Host` as they come: for a gateway behind a load balancer that sets them.
    /// Otherwise they are overwritten, since any client could have written them.
    pub trust_forwarded: bool,
    /// The bounds.
    pub limits: Limits,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            name: "gateway".into(),
            zone: String::new(),
            listeners: vec![Listener { address: (Ipv4Addr::LOCALHOST, 7480).into(), service: None }],
            admin: Some((Ipv4Addr::LOCALHOST, 7481).into()),
            table_file: None,
            session: None,
            trust_forwarded: false,
            limits: Limits::default(),
        }
    }
}

/// An address on which requests come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Where it listens; port 0 takes any free one.
    pub address: SocketAddr,
    /// The service that every request on this address is for, whatever its host. Without it the host decides.
    #[serde(default)]
    pub service: Option<ServiceKey>,
}

/// Whom a gateway gets its tables from.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// `host:port` of the servers, tried in turn; at least one.
    pub servers: Vec<String>,
    /// What proves that this gateway may ask. Never written anywhere.
    #[serde(skip)]
    pub token: String,
}

impl fmt::Debug for SessionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionConfig").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// The bounds of a gateway. The names say the unit where the type does not.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections from clients at once, over all listeners. When they are used up nobody is accepted until one ends: the
    /// kernel's backlog holds the others, which is kinder than refusing.
    pub connections_max: usize,
    /// How long a client may take to send a request's head, and how long a kept-alive connection may be idle.
    pub header_read_timeout: Millis,
    /// Header fields of a request; more is answered with 431.
    pub headers_max: usize,
    /// All of a request's head in bytes; more is answered with 431. At least 8 KiB.
    pub header_bytes_max: ByteSize,
    /// A request's body, streamed; more is answered with 413.
    pub request_body_max: ByteSize,
    /// Bodies of idempotent requests up to this size are held so that the request can be tried again.
    pub replay_body_max: ByteSize,
    /// Time to connect to an instance. In one network it takes a millisecond; a second means that it is gone.
    pub connect_timeout: Millis,
    /// Time until an instance's answer begins, counted from the last byte of the request that was sent. Then 504.
    pub response_timeout: Millis,
    /// How long a body (either way) or a tunnel may stand still.
    pub idle_timeout: Millis,
    /// Idle connections kept to each instance.
    pub upstream_idle_max: usize,
    /// How long they are kept: less than the 5 s after which common servers (Node.js) hang up, so that a request rarely meets
    /// a connection that is being closed.
    pub upstream_idle_timeout: Millis,
    /// Instances that one request is tried on, the first included.
    pub attempts_max: usize,
    /// Concurrent requests on one HTTP/2 connection of a client.
    pub http2_streams_max: u32,
    /// How long requests in flight may take to finish when the gateway stops.
    pub drain_timeout: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            header_read_timeout: Millis::from_secs(30),
            headers_max: 100,
            header_bytes_max: ByteSize(64 << 10),
            request_body_max: ByteSize(1 << 30),
            replay_body_max: ByteSize(64 << 10),
            connect_timeout: Millis::from_secs(1),
            response_timeout: Millis::from_secs(60),
            idle_timeout: Millis::from_secs(300),
            upstream_idle_max: 256,
            upstream_idle_timeout: Millis::from_secs(4),
            attempts_max: 3,
            http2_streams_max: 256,
            drain_timeout: Millis::from_secs(30),
        }
    }
}

impl Limits {
    /// [`Self::idle_timeout`] as the standard library's type.
    pub fn idle(&self) -> Duration {
        self.idle_timeout.as_duration()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_as_people_write_it() {
        let config: GatewayConfig = toml::from_str(
            r#"
            zone = "eu-1a"
            table_file = "/var/lib/swell/routes"

            [session]
            servers = ["10.0.0.1:7400"]

            [[listener]]
            address = "0.0.0.0:8080"
            service = "shop/production/web"

            [[listener]]
            address = "0.0.0.0:80"

            [limits]
            request_body_max = "10MiB"
            drain_timeout = "1m"
            "#,
        )
        .unwrap();
        assert_eq!(config.listeners[0].service.as_ref().unwrap().to_string(), "shop/production/web");
        assert_eq!((config.listeners.len(), config.limits.request_body_max), (2, ByteSize(10 << 20)));
        assert_eq!(config.limits.drain_timeout, Millis::from_secs(60));
        let default: GatewayConfig = toml::from_str("").unwrap();
        assert_eq!(default.listeners[0].address.to_string(), "127.0.0.1:7480");
        assert!(toml::from_str::<GatewayConfig>("listen = 1").is_err());
    }
}
