//! How a guest agent could be reached, and what the guest's CPUs hand on: asked of QEMU.

use qmp::{
    Client,
    commands::{Command, QomGet, QomList, QueryCpusFast},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// More devices than are looked at.
const MAX_DEVICES: usize = 512;

/// What a guest has for its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wiring {
    /// The virtio-serial ports: their names and the unix sockets behind them.
    pub(super) serial: Vec<(Option<String>, Option<String>)>,
    /// The guest's vsock address.
    pub(super) vsock_cid: Option<u64>,
    /// Whether the CPUs have a PMU; `None` if QEMU does not say.
    pub(super) cpu_pmu: Option<bool>,
    /// Whether the CPUs hide what can't be migrated, such as PEBS.
    pub(super) cpu_migratable: Option<bool>,
}

/// Lists the character devices.
#[derive(Clone, Copy, Debug, Serialize)]
struct QueryChardev {}

impl Command for QueryChardev {
    const NAME: &'static str = "query-chardev";
    type Return = Vec<Chardev>;
}

#[derive(Clone, Debug, Deserialize)]
struct Chardev {
    label: String,
    filename: String,
}

impl Wiring {
    /// Asks QEMU. What it does not tell is not known.
    pub(super) fn read(client: &Client) -> Self {
        let chardevs = client.execute(&QueryChardev {}).unwrap_or_default();
        let mut wiring = Self::default();
        for (kind, path) in devices(client) {
            let get = |property: &str| client.execute(&QomGet::new(&path, property)).ok();
            match kind.as_str() {
                "virtserialport" => {
                    let socket =
                        get("chardev")
                            .as_ref()
                            .and_then(Value::as_str)
                            .and_then(|label| {
                                let chardev = chardevs.iter().find(|own| own.label == label)?;
                                unix_socket(&chardev.filename)
                            });
                    let name = get("name")
                        .as_ref()
                        .and_then(Value::as_str)
                        .map(str::to_owned);
                    let name = name.filter(|name| !name.is_empty());
                    wiring.serial.push((name, socket));
                }
                kind if kind.starts_with("vhost-vsock") => {
                    wiring.vsock_cid = get("guest-cid").as_ref().and_then(Value::as_u64);
                }
                _ => {}
            }
        }
        let cpus = client.execute(&QueryCpusFast).unwrap_or_default();
        if let Some(cpu) = cpus.first() {
            let get = |property: &str| {
                let value = client.execute(&QomGet::new(&cpu.qom_path, property)).ok()?;
                value.as_bool()
            };
            wiring.cpu_pmu = get("pmu");
            wiring.cpu_migratable = get("migratable");
        }
        wiring
    }
}

/// The type and the path of each device that was added by a user.
fn devices(client: &Client) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let list = QomList {
            path: folder.to_owned(),
        };
        for property in client.execute(&list).unwrap_or_default() {
            let kind = property
                .r#type
                .strip_prefix("child<")
                .and_then(|kind| kind.strip_suffix('>'));
            if let Some(kind) = kind.filter(|_| found.len() < MAX_DEVICES) {
                found.push((kind.to_owned(), format!("{folder}/{}", property.name)));
            }
        }
    }
    found
}

/// The path in `unix:/run/guest.sock,server=on`, also behind `disconnected:`.
fn unix_socket(filename: &str) -> Option<String> {
    let (_, rest) = filename.split_once("unix:")?;
    let path = rest.split(',').next()?.split(" <->").next()?;
    Some(path.to_owned()).filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_socket_when_the_chardev_is_one_is_its_path() {
        let path = Some("/run/a.sock".to_owned());
        for filename in [
            "disconnected:unix:/run/a.sock,server=on",
            "unix:/run/a.sock,server=on",
            "unix:/run/a.sock",
        ] {
            assert_eq!(unix_socket(filename), path, "{filename}");
        }
        for filename in ["vc", "telnet:127.0.0.1:4444,server=on", "unix:", ""] {
            assert_eq!(unix_socket(filename), None, "{filename}");
        }
    }
}
