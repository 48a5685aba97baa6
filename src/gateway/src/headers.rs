//! Header fields that a proxy passes on, removes and adds: RFC 9110 (7.6, hop-by-hop; 10.1.1, Expect), RFC 7239 (Forwarded),
//! RFC 9113 (8.2.3, cookies). Knows nothing of routes or connections.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    HeaderMap, Request, Version,
    header::{self, HeaderName, HeaderValue},
    http::uri::Authority,
};

/// Fields that concern one connection only, besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Host of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// As passed on, with its port.
    pub header: HeaderValue,
    /// To look up: lower case, without port and final dot.
    pub name: String,
}

/// Reads the host of a request: the authority of its target if it has one, else its one `Host` field. `Ok(None)` without either,
/// which HTTP/1.0 allows.
///
/// # Errors
/// What is wrong, for the answer to the client: several `Host` fields, or an invalid one.
pub fn host_of<B>(request: &Request<B>) -> Result<Option<Host>, &'static str> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let (first, second) = (fields.next(), fields.next());
    if second.is_some() {
        return Err("more than one `Host` field");
    }
    let text = match (request.uri().authority(), first) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(field)) => field.to_str().map_err(|_| "a `Host` field that is not ASCII")?,
        (None, None) if request.version() == Version::HTTP_11 => return Err("no `Host` field"),
        (None, None) => return Ok(None),
    };
    let authority: Authority = text.parse().map_err(|_| "an invalid `Host` field")?;
    if text.contains('@') {
        return Err("a host with user information");
    }
    let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let header = HeaderValue::from_str(text).map_err(|_| "an invalid `Host` field")?;
    Ok(Some(Host { header, name }))
}

fn lists_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// The protocol that a request asks to upgrade to, if that is allowed. `h2c` is never passed on: an instance that agreed would
/// get requests that the gateway does not see.
pub fn upgrade_wanted<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let protocol = headers.get(header::UPGRADE)?;
    let asked = request.version() == Version::HTTP_11 && lists_token(headers, header::CONNECTION, "upgrade");
    let one = headers.get_all(header::UPGRADE).iter().count() == 1;
    let refused =
        protocol.to_str().map_or(true, |p| p.split(',').any(|p| p.trim().get(..2).is_some_and(|h| h.eq_ignore_ascii_case("h2"))));
    (asked && one && !refused).then(|| protocol.clone())
}

/// Removes what concerns one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| token.trim().parse().ok())
        // Naming these in `Connection` is a known way to make a proxy and a server disagree.
        .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::CACHE_CONTROL | header::TE))
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    // `TE` concerns one connection, but the gateway passes trailers on.
    if headers.contains_key(header::TE) {
        let trailers = lists_token(headers, header::TE, "trailers");
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Turns a client's header fields into those for an instance. What a client says of whom it forwards for is dropped unless
/// `trust_forwarded`.
pub fn prepare_request(headers: &mut HeaderMap, version: Version, peer: SocketAddr, host: Option<&Host>, trust_forwarded: bool) {
    strip_hop_by_hop(headers);
    // The gateway answers `100-continue` itself, when it begins to read the body.
    headers.remove(header::EXPECT);
    if version == Version::HTTP_2 {
        join_cookies(headers);
    }
    if let Some(host) = host {
        headers.insert(header::HOST, host.header.clone());
    }

    if !trust_forwarded {
        headers.remove(X_FORWARDED_FOR);
        headers.remove(header::FORWARDED);
    }
    let ip = peer.ip().to_canonical();
    if let Ok(address) = HeaderValue::from_str(&ip.to_string()) {
        append_to_list(headers, X_FORWARDED_FOR, address);
    }
    let mut forwarded = match ip {
        IpAddr::V4(v4) => format!("for={v4}"),
        IpAddr::V6(v6) => format!("for=\"[{v6}]\""),
    };
    if !(trust_forwarded && headers.contains_key(X_FORWARDED_PROTO)) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = host {
        if !(trust_forwarded && headers.contains_key(X_FORWARDED_HOST)) {
            headers.insert(X_FORWARDED_HOST, host.header.clone());
        }
        // A parsed authority holds neither quotes nor backslashes that would need escaping.
        forwarded.push_str(&format!(";host=\"{}\"", host.header.to_str().unwrap_or_default()));
    }
    forwarded.push_str(";proto=http");
    if let Ok(value) = HeaderValue::from_str(&forwarded) {
        append_to_list(headers, header::FORWARDED, value);
    }
}

fn join_with(values: &[HeaderValue], separator: &[u8]) -> Option<HeaderValue> {
    let bytes: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&bytes.join(separator)).ok()
}

fn append_to_list(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let mut values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
    values.push(value);
    if let Some(joined) = join_with(&values, b", ") {
        headers.insert(name, joined);
    }
}

fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<HeaderValue> = headers.get_all(header::COOKIE).iter().cloned().collect();
    if crumbs.len() > 1
        && let Some(joined) = join_with(&crumbs, b"; ")
    {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(fields: &[(&str, &str)]) -> Request<()> {
        fields.iter().fold(Request::builder(), |builder, (name, value)| builder.header(*name, *value)).body(()).unwrap()
    }

    #[test]
    fn hop_by_hop_fields_are_removed() {
        let mut headers = request(&[
            ("host", "shop.example"),
            ("connection", "close, X-Secret , host"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ])
        .into_parts()
        .0
        .headers;
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        assert_eq!(left, ["host: shop.example", "accept: */*", "te: trailers"]);
    }

    #[test]
    fn forwarded_fields_of_clients_are_kept_only_when_trusted() {
        let request = request(&[
            ("host", "Shop.example:8080"),
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=9.9.9.9;proto=https"),
        ]);
        let host = host_of(&request).unwrap().unwrap();
        assert_eq!(host.name, "shop.example");
        let peer = "[::1]:5".parse().unwrap();
        let own = "for=\"[::1]\";host=\"Shop.example:8080\";proto=http";
        let both = format!("for=9.9.9.9;proto=https, {own}");
        for (trust, proto, forwarded_for, forwarded) in
            [(false, "http", "::1", own), (true, "https", "9.9.9.9, ::1", both.as_str())]
        {
            let mut headers = request.headers().clone();
            prepare_request(&mut headers, Version::HTTP_11, peer, Some(&host), trust);
            assert_eq!(headers["host"], "Shop.example:8080");
            assert_eq!(headers["x-forwarded-for"], forwarded_for);
            assert_eq!(headers["x-forwarded-host"], "Shop.example:8080");
            assert_eq!(headers["x-forwarded-proto"], proto);
            assert_eq!(headers["forwarded"], forwarded);
        }
    }

    #[test]
    fn host_that_is_invalid_or_ambiguous_is_refused() {
        assert!(host_of(&request(&[("host", "a"), ("host", "b")])).is_err());
        assert!(host_of(&request(&[])).is_err());
        for bad in ["a b", "user@a", "a/b", "é", ""] {
            assert!(host_of(&request(&[("host", bad)])).is_err(), "{bad}");
        }
        let mut absolute = request(&[("host", "other")]);
        *absolute.uri_mut() = "http://shop.example./x".parse().unwrap();
        assert_eq!(host_of(&absolute).unwrap().unwrap().name, "shop.example");
    }

    #[test]
    fn upgrade_is_passed_on_unless_to_h2c() {
        let wanted =
            |connection: &str, protocol: &str| upgrade_wanted(&request(&[("connection", connection), ("upgrade", protocol)]));
        assert_eq!(wanted("keep-alive, Upgrade", "websocket").unwrap(), "websocket");
        assert!(wanted("keep-alive", "websocket").is_none());
        assert!(wanted("upgrade", "h2c").is_none());
        assert!(wanted("upgrade", "websocket, H2C").is_none());
    }

    #[test]
    fn http2_cookies_are_joined() {
        let mut headers = request(&[("cookie", "a=1"), ("cookie", "b=2")]).into_parts().0.headers;
        prepare_request(&mut headers, Version::HTTP_2, "1.2.3.4:5".parse().unwrap(), None, false);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
