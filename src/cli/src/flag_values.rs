//! Parsers of flags' values that the model has no type for. Each error says what to write.

use swell_model::fleet::PortRange;

/// `NAME=VALUE`, with a name that is not empty.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// `HOST:PORT` of a server. An address with a scheme is refused here: agents and gateways would try to resolve it for ever.
pub fn host_port(text: &str) -> Result<String, String> {
    if text.contains("://") {
        return Err("write HOST:PORT, such as 10.0.0.1:7400, without http://".to_owned());
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        _ => Err("write HOST:PORT, such as 10.0.0.1:7400".to_owned()),
    }
}

/// A number of CPUs, from 0.1 to 4096.
pub fn cpus(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.1..=4096.0).contains(number));
    number.ok_or_else(|| "write a number of CPUs from 0.1 to 4096".to_owned())
}

/// `FIRST-LAST`, from 1024 on, with at least two ports.
pub fn port_range(text: &str) -> Result<PortRange, String> {
    let parsed =
        text.split_once('-').and_then(|(first, last)| Some(PortRange { first: first.parse().ok()?, last: last.parse().ok()? }));
    let range = parsed.filter(|range| range.first >= 1024 && range.pairs() > 0);
    range.ok_or_else(|| "write FIRST-LAST, such as 20000-29999, from 1024 on and with at least two ports".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_address_with_scheme_is_refused_with_what_to_write() {
        let hint = |text: &str| host_port(text).err().unwrap_or_default();
        assert_eq!(hint("http://10.0.0.1:7400"), "write HOST:PORT, such as 10.0.0.1:7400, without http://");
        for wrong in ["10.0.0.1", ":7400", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:http"] {
            assert_eq!(hint(wrong), "write HOST:PORT, such as 10.0.0.1:7400", "{wrong}");
        }
        for right in ["10.0.0.1:7400", "swell.example:7400", "[::1]:7400"] {
            assert_eq!(host_port(right).as_deref(), Ok(right));
        }
    }
}
