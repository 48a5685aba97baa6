//! Whether another program has a port, and which. Looks at /proc; blocking. Knows nothing of services.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};

/// Who has `port`, such as `another program (nginx, pid 812)`; `None` where it is free.
pub(super) fn port_holder(port: u16) -> Option<String> {
    let addresses = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let is_taken = addresses.iter().any(|ip| !can_bind(SocketAddr::new(*ip, port)));
    is_taken.then(|| holder(port).unwrap_or_else(|| "another program".to_owned()))
}

/// Binds without listening, so that nobody can connect by mistake. An address family that is missing takes nothing.
fn can_bind(address: SocketAddr) -> bool {
    let domain = Domain::for_address(address);
    let Ok(socket) = Socket::new(domain, Type::STREAM, None) else { return true };
    // As nearly every server does; without it connections of the past, in TIME_WAIT, would count.
    if socket.set_reuse_address(true).is_err() || (domain == Domain::IPV6 && socket.set_only_v6(true).is_err()) {
        return true;
    }
    !matches!(socket.bind(&address.into()), Err(error) if error.kind() == std::io::ErrorKind::AddrInUse)
}

/// The process that listens on `port`: `another program (nginx, pid 812)`.
fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| listening_inode(line, port))
    })?;
    let wanted = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        if targets.any(|target| target.as_os_str() == wanted.as_str()) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("another program ({}, pid {pid})", name.trim()));
        }
    }
    None
}

/// Of a line of /proc/net/tcp (proc(5)): the inode when it is a socket that listens (state 0A) on `port`.
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let found = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    (state == "0A" && found == port).then(|| fields.nth(5)?.parse().ok())?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn port_in_use_names_its_holder() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let who = port_holder(port).unwrap();
            assert!(who.contains(&format!("pid {}", std::process::id())), "{who}");
            drop(listener);
            assert_eq!(port_holder(port), None);
        }
    }
}
