//! The daemon's configuration file and command line, and how they become settings.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Args;
use serde::{Deserialize, Serialize};
use tier_core::{
    addr::{BASE_PAGE, NodeSet},
    arbiter::{MAX_WEIGHT, MIN_WEIGHT, Mode, Rules, Terms},
    text::{duration, size::Size},
};

use super::{http::address::Address, pools::PoolId, recording::Bounds};
use crate::config::{self, ConfigError, RUN_DIR, bytes, nodes, number, seconds};

/// The name of the daemon's socket in the run directory.
pub(crate) const SOCKET: &str = "host.sock";
/// What all VMs together may move a second, unless the operator says otherwise: four agents at the rate
/// that each has by default.
const MOVE_BYTES_PER_S: u64 = 1 << 30;
/// DRAM that is not for guests, unless the operator says how much is.
const RESERVE: Size = Size::Percent(10.0);

/// Arguments of `host`. Each overrides the configuration file.
#[derive(Debug, Default, Args)]
pub(crate) struct HostArgs {
    /// Serve agents and operators here [default: /run/vmm-tier/host.sock]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) socket: Option<PathBuf>,
    /// A configuration file; see examples/host.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// DRAM for guests: 64G, or 80% of the fast nodes' memory
    #[arg(long, value_name = "SIZE")]
    pub(crate) pool: Option<Size>,
    /// Show this recording on the page, again and again, and deal nothing; needs --http
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    pub(crate) replay: Option<PathBuf>,
    /// Show metrics by HTTP here: PORT (of 127.0.0.1) or ADDRESS:PORT
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<Address>,
    /// Write what query-host tells each second to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// How long to record [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "record")]
    pub(crate) record_for: Option<Duration>,
    /// How large the recording may become [default: 1G]
    #[arg(long, value_name = "BYTES", value_parser = absolute, requires = "record")]
    pub(crate) record_most: Option<u64>,
}

/// A size that is no share.
fn absolute(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(Size::Bytes(bytes)) => Ok(bytes),
        Ok(Size::Percent(_)) => Err(format!(
            "{text} is a share of nothing: write a size such as 512M"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// The file's content, every key optional. `examples/host.toml` explains each.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct HostConfig {
    socket: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    pool: PoolConfig,
    /// By the size of the pages.
    hugetlb: BTreeMap<String, HugetlbConfig>,
    rules: RulesConfig,
    moves: MovesConfig,
    http: HttpConfig,
    defaults: Grant,
    vm: BTreeMap<String, Grant>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct PoolConfig {
    bytes: Option<Size>,
    reserve: Option<Size>,
    nodes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct HugetlbConfig {
    bytes: Option<Size>,
    reserve: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RulesConfig {
    mode: Option<Mode>,
    band: Option<f64>,
    idle_tax: Option<f64>,
    payback_s: Option<f64>,
    guarantee_back_s: Option<f64>,
    redeal_per_s: Option<Size>,
    hysteresis: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct MovesConfig {
    bytes_per_s: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct HttpConfig {
    address: Option<Address>,
    hosts: Vec<String>,
}

/// What an operator grants a VM, as far as it was said: in the file, and by commands above it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Grant {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weight: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", with = "size_text")]
    pub(crate) guarantee: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none", with = "size_text")]
    pub(crate) cap: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) goal: Option<f64>,
}

/// A size as the configuration has it; it is written in bytes or in percent.
mod size_text {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use tier_core::text::size::Size;

    #[expect(clippy::ref_option, reason = "serde's form")]
    pub(super) fn serialize<S: Serializer>(size: &Option<Size>, to: S) -> Result<S::Ok, S::Error> {
        match size {
            None => to.serialize_none(),
            Some(Size::Bytes(bytes)) => to.serialize_u64(*bytes),
            Some(Size::Percent(percent)) => to.serialize_str(&format!("{percent}%")),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Size>, D::Error> {
        Size::deserialize(from).map(Some)
    }
}

impl Grant {
    /// What `other` says, and where it says nothing, what this says.
    pub(crate) fn with(&self, other: &Self) -> Self {
        Self {
            weight: other.weight.or(self.weight),
            guarantee: other.guarantee.or(self.guarantee),
            cap: other.cap.or(self.cap),
            goal: other.goal.or(self.goal),
        }
    }

    /// The terms of a VM of `memory` bytes, most of it in pages of `page` bytes.
    pub(crate) fn terms(&self, memory: u64, page: u64) -> Terms {
        let of_memory = |size: Size| size.bytes(memory);
        Terms {
            guarantee_bytes: self.guarantee.map_or(0, of_memory),
            cap_bytes: self.cap.map_or(memory, of_memory).min(memory),
            weight: self.weight.unwrap_or(1.0),
            page_bytes: page,
            goal: self.goal,
        }
    }

    /// What is out of bounds, if anything is: the key, its value, and what it must be.
    pub(crate) fn fault(&self) -> Option<(&'static str, String, String)> {
        let weight = self.weight;
        if let Some(weight) = weight.filter(|weight| !(MIN_WEIGHT..=MAX_WEIGHT).contains(weight)) {
            let must = format!("a number from {MIN_WEIGHT} to {MAX_WEIGHT}");
            return Some(("weight", weight.to_string(), must));
        }
        let goal = self.goal.filter(|&goal| !(goal > 0.0 && goal <= 1.0));
        goal.map(|goal| {
            let must = "a share of accesses above 0 and up to 1".to_owned();
            ("goal", goal.to_string(), must)
        })
    }
}

/// How much DRAM is for guests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PoolSize {
    /// So much, or such a share of what the nodes have.
    Given(Size),
    /// All that the nodes have but this.
    AllBut(Size),
}

impl PoolSize {
    /// The pool on nodes that have `memory` bytes of its pages.
    pub(crate) fn bytes(self, memory: u64) -> u64 {
        match self {
            Self::Given(size) => size.bytes(memory),
            Self::AllBut(size) => memory.saturating_sub(size.bytes(memory)),
        }
    }
}

/// Validated settings of `vmm-tier host`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostSettings {
    pub(crate) socket: PathBuf,
    pub(crate) run_dir: PathBuf,
    /// Memory that is not in hugetlb pages.
    pub(crate) pool: PoolSize,
    /// hugetlb pages that are not all for guests, by the size of the pages in bytes.
    pub(crate) hugetlb: BTreeMap<u64, PoolSize>,
    /// The nodes of the pool; `None` for those that the kernel ranks fastest.
    pub(crate) nodes: Option<NodeSet>,
    pub(crate) rules: Rules,
    /// What all VMs together may move.
    pub(crate) move_bytes_per_s: u64,
    /// Where metrics are shown by HTTP, if anywhere.
    pub(crate) http: Option<Address>,
    /// Names by which HTTP clients may call this host.
    pub(crate) http_hosts: Vec<String>,
    /// What the figures are recorded to, if they are, and how long and large it may become.
    pub(crate) record: Option<(PathBuf, Bounds)>,
    /// For VMs that have no entry of their own, and where an entry says nothing.
    pub(crate) defaults: Grant,
    /// By name.
    pub(crate) vms: BTreeMap<String, Grant>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostConfigError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{table}.{key} is {value}, but must be {must}")]
    Grant {
        table: String,
        key: &'static str,
        value: String,
        must: String,
    },
    #[error("pool.bytes (or --pool) and pool.reserve say both how large the pool is: give one")]
    TwoSizes,
    #[error("hugetlb.{0}.bytes and hugetlb.{0}.reserve say both how large the pool is: give one")]
    TwoHugetlbSizes(String),
    #[error(
        "hugetlb.{0} is no pool: its name must be the size of its pages, such as hugetlb.2M or hugetlb.1G"
    )]
    HugetlbName(String),
    #[error("hugetlb.{0} is the pool of another entry too, in other words: give one")]
    HugetlbTwice(String),
}

impl HostConfig {
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())
    }
}

impl HostSettings {
    /// Joins command line, file and defaults, in this order of precedence.
    pub(crate) fn of(args: HostArgs) -> Result<Self, HostConfigError> {
        let config = match &args.config {
            Some(path) => config::read_file(path, HostConfig::parse)?,
            None => HostConfig::default(),
        };
        Self::new(args, config)
    }

    /// As [`of`](Self::of), with the file's text.
    #[cfg(test)]
    pub(super) fn of_text(args: HostArgs, text: &str) -> Result<Self, HostConfigError> {
        Self::new(args, HostConfig::parse(text).unwrap_or_default())
    }

    fn new(args: HostArgs, config: HostConfig) -> Result<Self, HostConfigError> {
        let HostConfig {
            socket,
            run_dir,
            pool,
            hugetlb,
            rules,
            moves,
            http,
            defaults,
            vm,
        } = config;
        let run_dir = run_dir.unwrap_or_else(|| PathBuf::from(RUN_DIR));
        let named = vm.iter().map(|(name, grant)| (format!("vm.{name}"), grant));
        for (table, grant) in named.chain([("defaults".to_owned(), &defaults)]) {
            if let Some((key, value, must)) = grant.fault() {
                return Err(HostConfigError::Grant {
                    table,
                    key,
                    value,
                    must,
                });
            }
        }
        let size = match (args.pool, pool.bytes, pool.reserve) {
            (_, Some(_), Some(_)) => return Err(HostConfigError::TwoSizes),
            (Some(size), ..) | (None, Some(size), None) => PoolSize::Given(size),
            (None, None, reserve) => PoolSize::AllBut(reserve.unwrap_or(RESERVE)),
        };
        let default = Bounds::default();
        let bounds = Bounds {
            time: args.record_for.unwrap_or(default.time),
            bytes: args.record_most.unwrap_or(default.bytes),
        };
        Ok(Self {
            socket: args.socket.or(socket).unwrap_or(run_dir.join(SOCKET)),
            run_dir,
            pool: size,
            hugetlb: hugetlb_sizes(hugetlb)?,
            nodes: nodes("pool.nodes", None, pool.nodes)?,
            rules: arbiter_rules(&rules)?,
            move_bytes_per_s: bytes(
                "moves.bytes-per-s",
                moves.bytes_per_s,
                MOVE_BYTES_PER_S,
                &(1 << 20..=1 << 40),
            )?,
            http: args.http.or(http.address),
            http_hosts: http.hosts,
            record: args.record.map(|path| (path, bounds)),
            defaults,
            vms: vm,
        })
    }

    /// How much of what the nodes have is for guests.
    pub(super) fn pool_size(&self, id: PoolId) -> PoolSize {
        let all = PoolSize::AllBut(Size::Bytes(0));
        match id {
            PoolId::Plain => self.pool,
            PoolId::Hugetlb(size) => self.hugetlb.get(&size).copied().unwrap_or(all),
        }
    }

    /// What the configuration grants a VM.
    pub(crate) fn grant(&self, name: &str) -> Grant {
        let own = self.vms.get(name);
        own.map_or_else(|| self.defaults.clone(), |own| self.defaults.with(own))
    }
}

fn hugetlb_sizes(
    tables: BTreeMap<String, HugetlbConfig>,
) -> Result<BTreeMap<u64, PoolSize>, HostConfigError> {
    let mut sizes = BTreeMap::new();
    for (name, HugetlbConfig { bytes, reserve }) in tables {
        let page = match name.parse() {
            Ok(Size::Bytes(page)) if page > BASE_PAGE && page.is_power_of_two() => page,
            _ => return Err(HostConfigError::HugetlbName(name)),
        };
        let size = match (bytes, reserve) {
            (Some(_), Some(_)) => return Err(HostConfigError::TwoHugetlbSizes(name)),
            (Some(size), None) => PoolSize::Given(size),
            (None, reserve) => PoolSize::AllBut(reserve.unwrap_or(Size::Bytes(0))),
        };
        if sizes.insert(page, size).is_some() {
            return Err(HostConfigError::HugetlbTwice(name));
        }
    }
    Ok(sizes)
}

fn arbiter_rules(rules: &RulesConfig) -> Result<Rules, ConfigError> {
    let default = Rules::default();
    let s = Duration::from_secs;
    Ok(Rules {
        mode: rules.mode.unwrap_or(default.mode),
        band: number("rules.band", rules.band, default.band, &(0.0..=1.0))?,
        idle_tax: number(
            "rules.idle-tax",
            rules.idle_tax,
            default.idle_tax,
            &(0.0..=1.0),
        )?,
        payback: seconds(
            "rules.payback-s",
            rules.payback_s,
            default.payback,
            &(s(1)..=s(86_400)),
        )?,
        guarantee_back: seconds(
            "rules.guarantee-back-s",
            rules.guarantee_back_s,
            default.guarantee_back,
            &(s(2)..=s(3600)),
        )?,
        redeal_bytes_per_s: bytes(
            "rules.redeal-per-s",
            rules.redeal_per_s,
            default.redeal_bytes_per_s,
            &(1 << 20..=1 << 40),
        )?,
        hysteresis: number(
            "rules.hysteresis",
            rules.hysteresis,
            default.hysteresis,
            &(0.0..=0.5),
        )?,
        ..default
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(args: HostArgs, toml: &str) -> Result<HostSettings, HostConfigError> {
        HostSettings::new(args, HostConfig::parse(toml).unwrap())
    }

    #[test]
    fn example_when_read_says_the_defaults() {
        let text = include_str!("../../../examples/host.toml");
        let example = settings(HostArgs::default(), text).unwrap();
        let defaults = settings(HostArgs::default(), "").unwrap();
        assert_eq!(example, defaults);
        assert_eq!(defaults.socket, Path::new("/run/vmm-tier/host.sock"));
    }

    #[test]
    fn http_when_not_asked_for_is_off() {
        assert_eq!(settings(HostArgs::default(), "").unwrap().http, None);
        let toml = "[http]\naddress = '0.0.0.0:80'\nhosts = ['host1']";
        let in_file = settings(HostArgs::default(), toml).unwrap();
        assert_eq!(in_file.http, Some("0.0.0.0:80".parse().unwrap()));
        assert_eq!(in_file.http_hosts, ["host1"]);
        let args = HostArgs {
            http: Some("9765".parse().unwrap()),
            ..HostArgs::default()
        };
        let above = settings(args, toml).unwrap();
        assert_eq!(above.http, Some("127.0.0.1:9765".parse().unwrap()));
        let error = HostConfig::parse("[http]\naddress = 'host1:80'").unwrap_err();
        assert!(error.contains("names are not looked up"), "{error}");
    }

    #[test]
    fn pool_when_given_in_many_ways_is_of_that_size() {
        let pool = |arg: Option<&str>, toml: &str| {
            let args = HostArgs {
                pool: arg.map(|text| text.parse().unwrap()),
                ..HostArgs::default()
            };
            settings(args, toml).map(|settings| settings.pool.bytes(1000 << 20) >> 20)
        };
        assert_eq!(pool(None, "").unwrap(), 900);
        assert_eq!(pool(None, "[pool]\nreserve = '84M'").unwrap(), 916);
        assert_eq!(pool(None, "[pool]\nbytes = '84M'").unwrap(), 84);
        assert_eq!(pool(None, "[pool]\nbytes = '50%'").unwrap(), 500);
        assert_eq!(pool(Some("20%"), "[pool]\nbytes = '84M'").unwrap(), 200);
        assert_eq!(pool(None, "[pool]\nreserve = '2000M'").unwrap(), 0);
        let both = pool(None, "[pool]\nbytes = '84M'\nreserve = '1M'");
        assert!(matches!(both, Err(HostConfigError::TwoSizes)));
    }

    #[test]
    fn grant_when_a_vm_has_an_entry_comes_from_it_and_else_from_the_defaults() {
        let toml = "[defaults]\nguarantee = '1M'\nweight = 2.0\n\
                    [vm.db]\nguarantee = '25%'\ncap = '3G'\ngoal = 0.95\n[vm.'a b']\nweight = 0.5";
        let settings = settings(HostArgs::default(), toml).unwrap();
        let terms = |name: &str| settings.grant(name).terms(4 << 30, 4096);
        let db = Terms {
            guarantee_bytes: 1 << 30,
            cap_bytes: 3 << 30,
            weight: 2.0,
            page_bytes: 4096,
            goal: Some(0.95),
        };
        assert_eq!(terms("db"), db);
        let other = Terms {
            guarantee_bytes: 1 << 20,
            cap_bytes: 4 << 30,
            weight: 2.0,
            page_bytes: 4096,
            goal: None,
        };
        assert_eq!(terms("other"), other);
        assert_eq!(
            terms("a b"),
            Terms {
                weight: 0.5,
                ..other
            }
        );
    }

    #[test]
    fn grant_when_it_was_written_down_is_read_again() {
        let grant = Grant {
            weight: Some(3.0),
            guarantee: Some(Size::Percent(12.5)),
            cap: Some(Size::Bytes(1 << 30)),
            goal: None,
        };
        let text = serde_json::to_string(&grant).unwrap();
        assert_eq!(
            text,
            r#"{"weight":3.0,"guarantee":"12.5%","cap":1073741824}"#
        );
        assert_eq!(serde_json::from_str::<Grant>(&text).unwrap(), grant);
    }

    #[test]
    fn settings_when_impossible_are_refused_by_key_with_what_is_allowed() {
        let cases = [
            (
                "[rules]\nband = 1.5",
                "rules.band is 1.5, but must be 0 to 1",
            ),
            ("[rules]\nidle-tax = -1", "rules.idle-tax"),
            ("[rules]\npayback-s = 0", "1 to 86400 seconds"),
            (
                "[rules]\nredeal-per-s = '1K'",
                "rules.redeal-per-s is 1 KiB",
            ),
            ("[moves]\nbytes-per-s = '10%'", "moves.bytes-per-s is 10%"),
            ("[pool]\nnodes = 'x'", "pool.nodes is x"),
            ("[hugetlb.2X]", "hugetlb.2X is no pool"),
            ("[hugetlb.4K]", "such as hugetlb.2M"),
            ("[hugetlb.3M]", "hugetlb.3M is no pool"),
            (
                "[hugetlb.2M]\nbytes = 1\nreserve = 1",
                "hugetlb.2M.bytes and hugetlb.2M.reserve",
            ),
            ("[hugetlb.2M]\n[hugetlb.2048K]", "another entry"),
            (
                "[vm.db]\nweight = 0",
                "vm.db.weight is 0, but must be a number from 0.001 to 1000",
            ),
            ("[defaults]\ngoal = 1.5", "defaults.goal is 1.5"),
            ("[defaults]\nweight = nan", "defaults.weight is NaN"),
        ];
        for (toml, word) in cases {
            let error = settings(HostArgs::default(), toml).unwrap_err().to_string();
            assert!(error.contains(word), "{toml}: {error}");
        }
    }

    #[test]
    fn file_when_malformed_names_line_key_and_what_is_allowed() {
        let cases = [
            ("[pool]\nbites = '84M'", ["line 2", "bites", "`bytes`"]),
            ("[rules]\nmode = 'fair'", ["line 2", "fair", "`weighted`"]),
            ("[vm.db]\nguarantee = '21X'", ["line 2", "21X", "512M"]),
            ("[vm]\ndb = 3", ["line 2", "db", "struct Grant"]),
        ];
        for (toml, words) in cases {
            let error = HostConfig::parse(toml).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{toml}: '{word}' is not in {error}");
            }
        }
        let args = HostArgs {
            config: Some("/dev/zero".into()),
            ..HostArgs::default()
        };
        let error = HostSettings::of(args).unwrap_err().to_string();
        assert!(error.contains("more than 1048576"), "{error}");
    }
}
