//! Configuration of a gateway: listeners, servers, and every bound with the reason for its value.
//! Knows nothing of the command line or of files.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use swell_model::{
    routing::{messages::ServedServices, table::ServiceKey},
    units::{ByteSize, Millis},
};

/// Configuration of a gateway. Every part has a default, so an empty table is valid.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Shown to people; need not be unique.
    pub name: String,
    /// Instances of the same zone are preferred.
    pub zone: String,
    /// Where it accepts requests; at least one. The default is `127.0.0.1:7480`, routed by host.
    #[serde(rename = "listener")]
    pub listeners: Vec<Listener>,
    /// Address of the admin endpoints; `None` for none. Loopback unless set.
    pub admin: Option<SocketAddr>,
    /// File of the last table, so that the gateway serves after a restart without any server; `None` to keep it in memory only.
    pub table_file: Option<PathBuf>,
    /// Servers that send routes; `None` when tables are applied by the caller ([`super::TableHandle::apply`]).
    pub session: Option<SessionConfig>,
    /// Keep the `X-Forwarded-For`, `X-Forwarded-Proto`, `X-Forwarded-Host` and `Forwarded` of requests, for a gateway behind a load
    /// balancer that sets them. Otherwise they are replaced, since any client could have written them.
    pub trust_forwarded: bool,
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

impl GatewayConfig {
    /// Services that requests can come for: those of the listeners, or all when one of them routes by host.
    pub fn serves(&self) -> ServedServices {
        let services: Option<_> = self.listeners.iter().map(|listener| listener.service.clone()).collect();
        services.map_or(ServedServices::All, ServedServices::Only)
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub fn check(&self) -> Result<(), String> {
        if self.listeners.is_empty() {
            return Err("there is no listener; add a [[listener]] with an address".into());
        }
        if self.limits.header_bytes_max.0 < 8 << 10 {
            return Err("`header_bytes_max` is below 8 KiB, the least".into());
        }
        let Some(session) = &self.session else { return Ok(()) };
        if session.servers.is_empty() {
            return Err("`servers` is empty; list the HOST:PORT of at least one server".into());
        }
        session.servers.iter().try_for_each(|server| check_server(server))
    }
}

fn check_server(server: &str) -> Result<(), String> {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
    let is_address = server.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port));
    if is_address {
        return Ok(());
    }
    let scheme = server.split_once("://").map(|(scheme, _)| format!(", without {scheme}://")).unwrap_or_default();
    Err(format!("`{server}` is not a server's address; write HOST:PORT, such as 10.0.0.1:7400{scheme}"))
}

/// An address that accepts requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Port 0 takes any free one.
    pub address: SocketAddr,
    /// Service of every request to this address, whatever its host; `None` to route by host.
    #[serde(default)]
    pub service: Option<ServiceKey>,
}

/// Servers that send routes.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// `HOST:PORT` of each server, tried in turn; at least one.
    pub servers: Vec<String>,
    /// Token of role gateway. Never written anywhere.
    #[serde(skip)]
    pub token: String,
}

impl fmt::Debug for SessionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionConfig").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// Bounds of a gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of clients at once, over all listeners. At the bound none is accepted until one ends; the others wait in the
    /// kernel's backlog.
    pub connections_max: usize,
    /// Time for a client to send a request's head, and time that a kept-alive connection may be idle.
    pub header_read_timeout: Millis,
    /// Header fields of a request; more are answered with 431.
    pub headers_max: usize,
    /// Size of a request's head; more is answered with 431. At least 8 KiB.
    pub header_bytes_max: ByteSize,
    /// Size of a request's body, streamed; more is answered with 413.
    pub request_body_max: ByteSize,
    /// Bodies of idempotent requests up to this size are buffered, so that the request can be retried.
    pub replay_body_max: ByteSize,
    /// Time to connect to an instance. Within a network a connection takes a millisecond; a second means that it is gone.
    pub connect_timeout: Millis,
    /// Time until an instance's answer begins, from the last byte of the request that was sent; then 504.
    pub response_timeout: Millis,
    /// Time that a body (either way) or a tunnel may stall.
    pub idle_timeout: Millis,
    /// Idle connections kept open to each instance.
    pub upstream_idle_max: usize,
    /// Time that they are kept: less than the 5 s after which common servers (Node.js) close them, so that a request rarely meets
    /// a connection that is being closed.
    pub upstream_idle_timeout: Millis,
    /// Attempts of one request, the first included.
    pub attempts_max: usize,
    /// Concurrent requests on one HTTP/2 connection.
    pub http2_streams_max: u32,
    /// Time for requests in flight to finish when the gateway stops.
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
    /// [`Self::idle_timeout`], as the standard library's type.
    pub fn idle(&self) -> Duration {
        self.idle_timeout.as_duration()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_read_from_toml() {
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

    #[test]
    fn server_address_with_scheme_is_refused_with_the_way_to_write_it() {
        let check = |server: &str| {
            let session = SessionConfig { servers: vec![server.to_owned()], token: String::new() };
            GatewayConfig { session: Some(session), ..GatewayConfig::default() }.check()
        };
        for good in ["10.0.0.1:7400", "[::1]:7400", "swell.example:7400"] {
            assert_eq!(check(good), Ok(()));
        }
        let reason = "`http://10.0.0.1:7400` is not a server's address; write HOST:PORT, such as 10.0.0.1:7400, without http://";
        assert_eq!(check("http://10.0.0.1:7400"), Err(reason.to_owned()));
        for bad in ["", "10.0.0.1", "10.0.0.1:", ":7400", "10.0.0.1:0", "10.0.0.1:70000", "a/b:7400"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gateway_serves_all_services_unless_every_listener_has_one() {
        let listener = |service: Option<&str>| Listener {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            service: service.map(|service| service.parse().unwrap()),
        };
        let serves = |listeners| GatewayConfig { listeners, ..GatewayConfig::default() }.serves();
        assert_eq!(serves(vec![listener(Some("shop/production/web")), listener(None)]), ServedServices::All);
        let ServedServices::Only(services) = serves(vec![listener(Some("shop/production/web"))]) else { panic!("all") };
        assert_eq!(services.into_iter().map(|service| service.to_string()).collect::<Vec<_>>(), ["shop/production/web"]);
    }
}
