//! The address to listen on, and the names by which clients may call it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use axum::http::uri::Authority;
use serde::{Deserialize, Deserializer, de::Error};

/// An address to listen on. Without an address before the port it is of the loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) SocketAddr);

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address: give PORT, 127.0.0.1:PORT or [::1]:PORT; names are not looked up")]
pub(crate) struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let port = text.strip_prefix("localhost:").unwrap_or(text);
        let of_loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = port.strip_prefix(':').unwrap_or(port).parse();
        let address = port.map(of_loopback).or_else(|_| text.parse());
        address.map(Self).map_err(|_| AddressError(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Whether a client may call us that: `localhost`, a loopback address, the address `local` that it
/// connected to, or one of the operator's `names`; with any port, as ports are forwarded.
///
/// A page in a browser that reaches us by a name of its own (DNS rebinding) says that name.
pub(super) fn is_ours(host: &str, local: IpAddr, names: &[String]) -> bool {
    let Ok(authority) = Authority::from_str(host) else {
        return false;
    };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let literal = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match literal.unwrap_or(host).parse::<IpAddr>() {
        Ok(ip) => {
            let ip = ip.to_canonical();
            ip.is_loopback() || ip == local.to_canonical()
        }
        Err(_) => {
            let is_it = |name: &str| name.eq_ignore_ascii_case(host);
            is_it("localhost") || names.iter().any(|name| is_it(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_when_only_a_port_is_given_is_of_the_loopback_interface() {
        for (text, address) in [
            ("9765", "127.0.0.1:9765"),
            (":9765", "127.0.0.1:9765"),
            ("localhost:9765", "127.0.0.1:9765"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:9765", "[::1]:9765"),
            ("0.0.0.0:80", "0.0.0.0:80"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), address);
        }
        for text in ["", "host1", "host1:80", "127.0.0.1", "99999", "[::1]", "::"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("names are not looked up"), "{error}");
        }
    }

    #[test]
    fn host_when_it_is_another_name_is_not_ours() {
        let local: IpAddr = "10.1.2.3".parse().unwrap();
        let names = ["host1.example".to_owned()];
        let mut good = vec!["localhost", "LocalHost:80", "127.0.0.1:9765", "[::1]:9765"];
        good.extend(["10.1.2.3", "[::ffff:10.1.2.3]:1", "HOST1.example:9765"]);
        for host in good {
            assert!(is_ours(host, local, &names), "{host}");
        }
        let mut bad = vec![
            "",
            "evil.example",
            "evil.example:9765",
            "localhost.evil.example",
        ];
        bad.extend([
            "localhost@evil.example",
            "evil.example@localhost",
            "10.1.2.4",
        ]);
        bad.extend([
            "127.0.0.1.evil.example",
            "localhost:80:80",
            "host1.example.",
        ]);
        bad.extend([
            "localhost/",
            "loc\u{0430}lhost",
            " localhost",
            "[::1",
            "0.0.0.0",
        ]);
        for host in bad {
            assert!(!is_ours(host, local, &names), "{host}");
        }
    }
}
