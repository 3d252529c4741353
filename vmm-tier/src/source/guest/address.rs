//! Where a guest's agent is met: a unix socket, or a port of a vsock context.

use std::{fmt, path::PathBuf, str::FromStr};

/// The first context id of guests: 0 is the hypervisor, 1 loopback, 2 the host (vsock(7)).
const FIRST_CID: u32 = 3;
/// What lies behind is `VMADDR_CID_ANY` or `VMADDR_PORT_ANY`: no one's number.
const LAST: u32 = u32::MAX - 1;

/// Where a guest's agent is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuestAddress {
    /// The socket of QEMU's chardev behind a virtio-serial port; we connect to it.
    Unix(PathBuf),
    /// A vsock port on which we listen for the guest of this context id.
    Vsock {
        /// The guest's context id.
        cid: u32,
        /// Our port.
        port: u32,
    },
}

/// A text that is no address of a guest's agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no address of a guest's agent: give the path of the virtio-serial port's socket, or \
     vsock:CID:PORT with the guest's context id (3 or more)"
)]
pub(crate) struct ParseGuestAddressError(String);

impl FromStr for GuestAddress {
    type Err = ParseGuestAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseGuestAddressError(text.to_owned());
        let Some(numbers) = text.strip_prefix("vsock:") else {
            // The kernel takes 107 bytes; what is longer could only fail later and less clearly.
            let fits = !text.is_empty() && text.len() <= 107 && !text.contains('\0');
            return fits
                .then(|| Self::Unix(PathBuf::from(text)))
                .ok_or_else(error);
        };
        let (cid, port) = numbers.split_once(':').ok_or_else(error)?;
        let cid = cid.parse().map_err(|_| error())?;
        let port = port.parse().map_err(|_| error())?;
        match (cid, port) {
            (FIRST_CID..=LAST, 1..=LAST) => Ok(Self::Vsock { cid, port }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_when_written_reads_back_the_same() {
        for text in ["/run/vm/tier.sock", "vsock:3:7420", "relative.sock"] {
            let address: GuestAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let vsock = GuestAddress::Vsock { cid: 42, port: 1 };
        assert_eq!("vsock:42:1".parse(), Ok(vsock));
    }

    #[test]
    fn address_when_no_guest_can_have_it_is_refused() {
        let long = "x".repeat(108);
        for text in [
            "",
            "vsock:",
            "vsock:2:7420",
            "vsock:3",
            "vsock:3:0",
            "vsock:3:x",
            "vsock:4294967295:1",
            "vsock:3:4294967295",
            &long,
        ] {
            let error = text.parse::<GuestAddress>().unwrap_err().to_string();
            assert!(error.contains("vsock:CID:PORT"), "{error}");
        }
    }
}
