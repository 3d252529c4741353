//! The configuration file and how it becomes settings.
//!
//! Raw options ([`Config`], [`RunArgs`]) are turned into validated [`Settings`] once, at the start.

mod args;
mod source;

use std::{
    io::Read as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tier_core::{
    addr::NodeSet,
    settings::{EngineSettings, PolicyName},
    text::size::{self, Size},
};

use self::source::{SourceConfig, cpu_budget, damon_choice, source_choice};
pub(crate) use self::{args::RunArgs, source::DamonChoice};
use crate::source::{ParseSourceError, SourceChoice};

/// Where agents keep account of what they set up, unless they are told otherwise.
pub(crate) const RUN_DIR: &str = "/run/vmm-tier";
/// The largest configuration file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The file's content, every key optional. `examples/vmm-tier.toml` explains each.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Config {
    qmp: Option<PathBuf>,
    name: Option<String>,
    control: Option<PathBuf>,
    proxy: Option<PathBuf>,
    host: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    tiers: TierConfig,
    policy: PolicyConfig,
    moves: MoveConfig,
    thp: ThpConfig,
    hugetlb: HugetlbConfig,
    /// Gone; see [`ConfigError::HeatIsGone`].
    heat: Option<toml::Table>,
    source: SourceConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct TierConfig {
    fast: Option<String>,
    slow: Option<String>,
    fast_limit: Option<Size>,
    headroom: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct PolicyConfig {
    name: Option<String>,
    half_life_s: Option<f64>,
    horizon_s: Option<f64>,
    min_z: Option<f64>,
    warm_up_s: Option<f64>,
    cooldown_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct MoveConfig {
    rate_per_s: Option<Size>,
    batch: Option<Size>,
    scan_cpu_percent: Option<f64>,
    rebind: Option<bool>,
    dry_run: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ThpConfig {
    split: Option<bool>,
    collapse: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct HugetlbConfig {
    grow: Option<bool>,
}

/// Validated settings of `vmm-tier run`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) qmp: PathBuf,
    pub(crate) name: Option<String>,
    pub(crate) control: Option<PathBuf>,
    pub(crate) proxy: Option<PathBuf>,
    /// The socket of the host daemon.
    pub(crate) host: Option<PathBuf>,
    pub(crate) run_dir: PathBuf,
    pub(crate) fast: Option<NodeSet>,
    pub(crate) slow: Option<NodeSet>,
    pub(crate) fast_limit: Option<Size>,
    /// Promotions may take free memory beyond the hugetlb pool of the fast node.
    pub(crate) hugetlb_grow: bool,
    pub(crate) source: SourceChoice,
    pub(crate) damon: DamonChoice,
    /// The share of one core that a source which can choose its period may take.
    pub(crate) source_cpu_budget: f64,
    pub(crate) engine: EngineSettings,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("configuration file {path} can't be read: {reason}")]
    Unreadable { path: PathBuf, reason: String },
    #[error("configuration file {path}: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("no QMP socket: give --qmp SOCKET, or 'qmp' in the configuration file")]
    NoQmp,
    #[error("{key} is {value}, but must be {must}")]
    OutOfRange {
        key: &'static str,
        value: String,
        must: String,
    },
    #[error("{what} '{value}' is not known; there is: {known}")]
    Unknown {
        what: &'static str,
        value: String,
        known: &'static str,
    },
    /// Configuration files of earlier releases have this table.
    #[error(
        "table [heat] is gone with its keys store and memory: each page has its own count, in 4.1 bytes \
         at most; remove the table"
    )]
    HeatIsGone,
    #[error(transparent)]
    Source(#[from] ParseSourceError),
    #[error("--fast and --slow go together: give both, or neither to take the kernel's ranking")]
    HalfTiers,
    #[error("node {0} is in the fast and in the slow tier; only a dry run may do that")]
    SameNode(NodeSet),
}

impl Config {
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        read_file(path, Self::parse)
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())
    }
}

/// Reads a configuration file, and understands it by `parse`.
pub(crate) fn read_file<T>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, ConfigError> {
    let unreadable = |reason: String| ConfigError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let mut text = String::new();
    // Bounded while it is read: a device or a pipe has no length to look at.
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|e| unreadable(e.to_string()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(unreadable(format!("it has more than {MAX_BYTES} bytes")));
    }
    parse(&text).map_err(|reason| ConfigError::Malformed {
        path: path.to_owned(),
        reason,
    })
}

impl Settings {
    /// Joins command line, file and defaults, in this order of precedence.
    pub(crate) fn new(args: RunArgs, config: Config) -> Result<Self, ConfigError> {
        let Config {
            qmp,
            name,
            control,
            proxy,
            host,
            run_dir,
            tiers,
            policy,
            moves,
            thp,
            hugetlb,
            heat,
            source,
        } = config;
        if heat.is_some() {
            return Err(ConfigError::HeatIsGone);
        }
        let fast = nodes("tiers.fast", args.fast, tiers.fast)?;
        let slow = nodes("tiers.slow", args.slow, tiers.slow)?;
        if fast.is_some() != slow.is_some() {
            return Err(ConfigError::HalfTiers);
        }
        let dry_run = args.dry_run || moves.dry_run.unwrap_or(false);
        if let (Some(fast), Some(slow), false) = (&fast, &slow, dry_run) {
            let both: NodeSet = fast.iter().filter(|&node| slow.contains(node)).collect();
            if !both.is_empty() {
                return Err(ConfigError::SameNode(both));
            }
        }
        check_policy(args.policy.as_deref().or(policy.name.as_deref()))?;
        let source_kind = args.source.as_deref().or(source.kind.as_deref());
        let limit = args.fast_limit.or(tiers.fast_limit);
        let engine = EngineSettings {
            rebind: args.rebind || moves.rebind.unwrap_or(false),
            split_huge: args.thp_split || thp.split.unwrap_or(false),
            collapse_huge: args.thp_collapse || thp.collapse.unwrap_or(false),
            ..engine_settings(&policy, &moves, tiers.headroom, dry_run)?
        };
        Ok(Self {
            qmp: args.qmp.or(qmp).ok_or(ConfigError::NoQmp)?,
            name: args.name.or(name),
            control: args.control.or(control),
            proxy: args.proxy.or(proxy),
            host: args.host.or(host),
            run_dir: run_dir.unwrap_or_else(|| PathBuf::from(RUN_DIR)),
            fast,
            slow,
            fast_limit: limit,
            hugetlb_grow: args.hugetlb_grow || hugetlb.grow.unwrap_or(false),
            source: source_choice(source_kind)?,
            damon: damon_choice(&source)?,
            source_cpu_budget: cpu_budget(&source)?,
            engine,
        })
    }
}

pub(crate) fn nodes(
    key: &'static str,
    arg: Option<NodeSet>,
    file: Option<String>,
) -> Result<Option<NodeSet>, ConfigError> {
    let must = "a node list such as 0 or 0,2-3";
    let set = match (arg, file) {
        (Some(set), _) => Some(set),
        (None, Some(text)) => {
            let error = |_| ConfigError::OutOfRange {
                key,
                value: text.clone(),
                must: must.to_owned(),
            };
            Some(text.parse::<NodeSet>().map_err(error)?)
        }
        (None, None) => None,
    };
    match set {
        Some(set) if set.is_empty() => Err(ConfigError::OutOfRange {
            key,
            value: "empty".to_owned(),
            must: must.to_owned(),
        }),
        set => Ok(set),
    }
}

fn check_policy(name: Option<&str>) -> Result<(), ConfigError> {
    let known = PolicyName::DualHeap.name();
    match name.filter(|&name| name != known) {
        None => Ok(()),
        Some(value) => Err(ConfigError::Unknown {
            what: "policy",
            value: value.to_owned(),
            known,
        }),
    }
}

/// A time in seconds within its bounds.
pub(crate) fn seconds(
    key: &'static str,
    value: Option<f64>,
    default: Duration,
    bounds: &RangeInclusive<Duration>,
) -> Result<Duration, ConfigError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let time = Duration::try_from_secs_f64(value).ok();
    let (least, most) = (bounds.start().as_secs_f64(), bounds.end().as_secs_f64());
    time.filter(|time| bounds.contains(time))
        .ok_or_else(|| ConfigError::OutOfRange {
            key,
            value: value.to_string(),
            must: format!("{least} to {most} seconds"),
        })
}

/// A number within its bounds.
pub(crate) fn number(
    key: &'static str,
    value: Option<f64>,
    default: f64,
    bounds: &RangeInclusive<f64>,
) -> Result<f64, ConfigError> {
    let value = value.unwrap_or(default);
    let is_in = bounds.contains(&value);
    is_in
        .then_some(value)
        .ok_or_else(|| ConfigError::OutOfRange {
            key,
            value: value.to_string(),
            must: format!("{} to {}", bounds.start(), bounds.end()),
        })
}

/// A share of one CPU, which the file names in percent.
pub(crate) fn percent(
    key: &'static str,
    value: Option<f64>,
    default: f64,
    bounds: &RangeInclusive<f64>,
) -> Result<f64, ConfigError> {
    let bounds = bounds.start() * 100.0..=bounds.end() * 100.0;
    Ok(number(key, value, default * 100.0, &bounds)? / 100.0)
}

/// An amount of memory within its bounds.
pub(crate) fn bytes(
    key: &'static str,
    value: Option<Size>,
    default: u64,
    bounds: &RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    match value {
        None => Ok(default),
        Some(Size::Bytes(bytes)) if bounds.contains(&bytes) => Ok(bytes),
        Some(size) => Err(ConfigError::OutOfRange {
            key,
            value: size.to_string(),
            must: format!(
                "a size from {} to {}, and no share",
                size::human(*bounds.start()),
                size::human(*bounds.end())
            ),
        }),
    }
}

fn engine_settings(
    policy: &PolicyConfig,
    moves: &MoveConfig,
    headroom: Option<Size>,
    dry_run: bool,
) -> Result<EngineSettings, ConfigError> {
    let default = EngineSettings::default();
    Ok(EngineSettings {
        half_life: seconds(
            "policy.half-life-s",
            policy.half_life_s,
            default.half_life,
            &EngineSettings::HALF_LIFE,
        )?,
        horizon: seconds(
            "policy.horizon-s",
            policy.horizon_s,
            default.horizon,
            &EngineSettings::HORIZON,
        )?,
        warm_up: seconds(
            "policy.warm-up-s",
            policy.warm_up_s,
            default.warm_up,
            &EngineSettings::WARM_UP,
        )?,
        cooldown: seconds(
            "policy.cooldown-s",
            policy.cooldown_s,
            default.cooldown,
            &EngineSettings::COOLDOWN,
        )?,
        min_z: number(
            "policy.min-z",
            policy.min_z,
            default.min_z,
            &EngineSettings::MIN_Z,
        )?,
        rate_bytes_per_s: bytes(
            "moves.rate-per-s",
            moves.rate_per_s,
            default.rate_bytes_per_s,
            &EngineSettings::RATE_BYTES_PER_S,
        )?,
        batch_bytes: bytes(
            "moves.batch",
            moves.batch,
            default.batch_bytes,
            &EngineSettings::BATCH_BYTES,
        )?,
        headroom_bytes: bytes(
            "tiers.headroom",
            headroom,
            default.headroom_bytes,
            &EngineSettings::HEADROOM_BYTES,
        )?,
        scan_cpu_share: percent(
            "moves.scan-cpu-percent",
            moves.scan_cpu_percent,
            default.scan_cpu_share,
            &EngineSettings::SCAN_CPU_SHARE,
        )?,
        // Set when the guest's size is known.
        fast_limit_bytes: None,
        dry_run,
        ..default
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RunArgs {
        RunArgs {
            qmp: Some("/q".into()),
            ..RunArgs::default()
        }
    }

    fn settings(args: RunArgs, toml: &str) -> Result<Settings, ConfigError> {
        Settings::new(args, Config::parse(toml).unwrap())
    }

    #[test]
    fn example_when_read_says_the_defaults() {
        let text = include_str!("../../examples/vmm-tier.toml");
        let mut example = settings(RunArgs::default(), text).unwrap();
        let defaults = settings(args(), "").unwrap();
        // What has no default stands in the example as an example.
        example.qmp.clone_from(&defaults.qmp);
        example.control = None;
        example.proxy = None;
        assert_eq!(example, defaults);
    }

    #[test]
    fn huge_pages_when_nobody_asks_for_it_are_neither_split_nor_made() {
        let none = settings(args(), "").unwrap().engine;
        assert_eq!((none.split_huge, none.collapse_huge), (false, false));
        let file = settings(args(), "[thp]\nsplit = true").unwrap().engine;
        assert_eq!((file.split_huge, file.collapse_huge), (true, false));
        let arguments = RunArgs {
            thp_collapse: true,
            ..args()
        };
        let both = settings(arguments, "[thp]\nsplit = true").unwrap().engine;
        assert_eq!((both.split_huge, both.collapse_huge), (true, true));
    }

    #[test]
    fn argument_when_the_file_says_otherwise_wins() {
        let args = RunArgs {
            fast_limit: Some(Size::Bytes(1)),
            ..args()
        };
        let both = settings(args, "qmp = '/other'\n[tiers]\nfast-limit = '20%'").unwrap();
        assert_eq!(
            (both.qmp.to_str(), both.fast_limit),
            (Some("/q"), Some(Size::Bytes(1)))
        );
    }

    #[test]
    fn hugetlb_grow_when_not_asked_for_is_off() {
        assert!(!settings(args(), "").unwrap().hugetlb_grow);
        assert!(
            settings(args(), "[hugetlb]\ngrow = true")
                .unwrap()
                .hugetlb_grow
        );
        let args = RunArgs {
            hugetlb_grow: true,
            ..args()
        };
        assert!(
            settings(args, "[hugetlb]\ngrow = false")
                .unwrap()
                .hugetlb_grow
        );
    }

    #[test]
    fn settings_when_impossible_are_refused_by_name() {
        let cases = [
            ("[policy]\nhalf-life-s = 0", "policy.half-life-s"),
            ("[policy]\nname = 'x'", "dual-heap"),
            ("[source]\nkind = 'x'", "damon"),
            (
                "[source]\naggregation-interval-ms = 20",
                "source.aggregation-interval-ms",
            ),
            ("[moves]\nbatch = '4K'", "moves.batch is 4 KiB"),
            ("[moves]\nrate-per-s = '2T'", "moves.rate-per-s is 2 TiB"),
            ("[tiers]\nheadroom = '20%'", "tiers.headroom is 20%"),
            ("[heat]", "remove the table"),
            ("[heat]\nstore = 'auto'\nmemory = '512M'", "[heat] is gone"),
            ("[tiers]\nfast = '0'", "go together"),
            ("[tiers]\nfast = '0'\nslow = '0-1'", "dry run"),
            ("[tiers]\nfast = 'x'\nslow = '1'", "tiers.fast"),
        ];
        for (toml, word) in cases {
            let error = settings(args(), toml).unwrap_err().to_string();
            assert!(error.contains(word), "{toml}: {error}");
        }
        assert!(matches!(
            settings(RunArgs::default(), ""),
            Err(ConfigError::NoQmp)
        ));
    }

    #[test]
    fn setting_when_at_a_bound_of_the_engine_is_taken() {
        let text = "[policy]\nhalf-life-s = 0.001\nhorizon-s = 604800\n[moves]\nbatch = '2M'\nscan-cpu-percent = 0.01";
        let engine = settings(args(), text).unwrap().engine;
        assert_eq!(engine.half_life, *EngineSettings::HALF_LIFE.start());
        assert_eq!(engine.horizon, *EngineSettings::HORIZON.end());
        assert_eq!(engine.batch_bytes, *EngineSettings::BATCH_BYTES.start());
    }

    #[test]
    fn dry_run_when_both_tiers_name_one_node_is_allowed() {
        let args = RunArgs {
            dry_run: true,
            ..args()
        };
        assert!(settings(args, "[tiers]\nfast = '0'\nslow = '0'").is_ok());
    }

    #[test]
    fn file_when_it_has_an_unknown_key_is_refused_with_its_line() {
        let error = Config::parse("[policy]\nhalf-live-s = 3").unwrap_err();
        assert!(
            error.contains("half-live-s") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn file_when_it_never_ends_is_refused() {
        let error = Config::read(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("more than 1048576"), "{error}");
    }
}
