//! The settings of a comparison: its arguments, checked once.

use std::time::Duration;

use super::{
    args::{ReplayArgs, Stretch},
    charts::{self, NoCharts},
    fast::FastSize,
    input::{Bounds, Input},
};
use crate::trace::Options;
use crate::{
    machine::{Conditions, SamplerSettings},
    policy::{self, PolicySetup, UnknownPolicy, oracle::PlanKind},
    workload::{self, Scale, UnknownWorkload},
};

/// The word for all policies, or all workloads.
const ALL: &str = "all";

/// A policy as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// A policy that decides from what it has seen.
    Online(&'static str),
    /// A policy that knows the future.
    Oracle(PlanKind),
}

impl Choice {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Online(name) => name,
            Self::Oracle(kind) => kind.name(),
        }
    }
}

/// How an input is played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaySettings {
    /// The sampling period that was asked for; otherwise it depends on the trace.
    pub(super) period: Option<u64>,
    pub(super) sampler: SamplerSettings,
    pub(super) stretch: Stretch,
    pub(super) huge: bool,
}

impl Default for PlaySettings {
    fn default() -> Self {
        Self {
            period: None,
            sampler: SamplerSettings::default(),
            stretch: Stretch::Auto,
            huge: false,
        }
    }
}

/// Validated settings of `vmm-tier replay`.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) inputs: Vec<Input>,
    /// The policies in the order of the tables; the oracle is among them.
    pub(super) policies: Vec<Choice>,
    pub(super) fast: Vec<FastSize>,
    pub(super) play: PlaySettings,
    pub(super) conditions: Conditions,
    pub(super) setup: PolicySetup,
    /// Bytes for what the oracle knows.
    pub(super) memory: u64,
    /// The share of accesses for which the DRAM is looked up on the curve.
    pub(super) target: f64,
    pub(super) timeline: bool,
}

/// Arguments that make no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Neither a file nor a workload.
    #[error(
        "nothing to replay: name a trace, or generated accesses with --workload: {}, or {ALL}",
        workload::names().collect::<Vec<_>>().join(", ")
    )]
    Nothing,
    /// A picture, of a program that draws none.
    #[error("--svg: {NoCharts}")]
    Svg,
    /// A name that no policy has.
    #[error("{0}, {oracles}, or {ALL}", oracles = oracles().join(", "))]
    Policy(UnknownPolicy),
    /// A name that no workload has.
    #[error("{0}, or {ALL}")]
    Workload(UnknownWorkload),
}

impl Settings {
    /// Checks arguments.
    ///
    /// # Errors
    /// If a name is not known, or a picture is asked for that this program can't draw.
    pub(super) fn new(args: &ReplayArgs) -> Result<Self, SettingsError> {
        if args.svg.is_some() && !charts::ARE_BUILT {
            return Err(SettingsError::Svg);
        }
        let setup = PolicySetup {
            half_life: Duration::from_secs_f64(args.half_life),
            seed: args.seed,
            sketch_bytes: args
                .sketch_memory
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            ..PolicySetup::default()
        };
        let mut conditions = Conditions {
            fast_bias: args.bias,
            ..Conditions::default()
        };
        conditions.failures.seed = args.seed;
        Ok(Self {
            inputs: inputs(args)?,
            policies: policies(&args.policy)?,
            fast: args.fast.clone(),
            play: PlaySettings {
                period: args.period,
                sampler: SamplerSettings {
                    loss: args.loss / 100.0,
                    seed: args.seed,
                    ..SamplerSettings::default()
                },
                stretch: args.stretch,
                huge: args.huge,
            },
            conditions,
            setup,
            memory: args.memory,
            target: args.target / 100.0,
            timeline: args.timeline,
        })
    }
}

#[cfg(any(feature = "pictures", test))]
impl Settings {
    /// The recording of a page; what its arguments leave open is as `replay` has it where nothing is
    /// said.
    ///
    /// # Errors
    /// If a policy is not known.
    pub(super) fn of_recording(args: &super::PageArgs) -> Result<Self, SettingsError> {
        let options = Options {
            partial: args.partial,
            ..Options::default()
        };
        Ok(Self {
            inputs: vec![Input::File {
                path: args.file.clone(),
                format: crate::trace::Format::Auto,
                options,
                bounds: Bounds::default(),
            }],
            policies: policies(&args.policy)?,
            fast: args.fast.clone(),
            play: PlaySettings {
                period: args.period,
                sampler: SamplerSettings::default(),
                stretch: Stretch::Auto,
                huge: false,
            },
            conditions: Conditions::default(),
            setup: PolicySetup::default(),
            memory: args.memory,
            target: 0.95,
            timeline: false,
        })
    }
}

/// The files, then the workloads, each once.
fn inputs(args: &ReplayArgs) -> Result<Vec<Input>, SettingsError> {
    if args.files.is_empty() && args.workload.is_empty() {
        return Err(SettingsError::Nothing);
    }
    let default = Scale::default();
    let scale = Scale {
        pages: args.pages.unwrap_or(default.pages),
        rate_per_s: args.rate.unwrap_or(default.rate_per_s),
        seconds: args.seconds.unwrap_or(default.seconds),
        seed: args.seed,
    };
    let options = Options {
        step: args.step,
        partial: args.partial,
    };
    let files = once(args.files.clone())
        .into_iter()
        .map(|path| Input::File {
            path,
            format: args.format,
            options,
            bounds: Bounds::default(),
        });
    let workloads = workloads(&args.workload)?.into_iter();
    let workloads = workloads.map(|name| Input::Workload { name, scale });
    Ok(files.chain(workloads).collect())
}

fn oracles() -> [&'static str; 2] {
    [PlanKind::Paying, PlanKind::Free].map(PlanKind::name)
}

fn workloads(names: &[String]) -> Result<Vec<&'static str>, SettingsError> {
    let mut found = Vec::new();
    for name in names.iter().map(|name| name.trim()) {
        let before = found.len();
        found.extend(workload::names().filter(|known| name == ALL || name == *known));
        if found.len() == before {
            let name = name.to_owned();
            return Err(SettingsError::Workload(UnknownWorkload { name }));
        }
    }
    Ok(once(found))
}

/// The policies asked for, each once; the oracle comes last if it was not asked for.
fn policies(names: &[String]) -> Result<Vec<Choice>, SettingsError> {
    let oracles = || [PlanKind::Paying, PlanKind::Free].map(Choice::Oracle);
    let known = || policy::names().map(Choice::Online).chain(oracles());
    let mut found = Vec::new();
    for name in names.iter().map(|name| name.trim()) {
        let before = found.len();
        found.extend(known().filter(|choice| name == ALL || name == choice.name()));
        if found.len() == before {
            let name = name.to_owned();
            return Err(SettingsError::Policy(UnknownPolicy { name }));
        }
    }
    found.push(Choice::Oracle(PlanKind::Paying));
    Ok(once(found))
}

/// Each item once, where it comes first.
fn once<T: PartialEq>(items: Vec<T>) -> Vec<T> {
    let mut kept: Vec<T> = Vec::with_capacity(items.len());
    for item in items {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn policies_when_named_come_in_that_order_and_the_oracle_always() {
        let chosen = policies(&names("oracle-free, dual-heap,dual-heap")).unwrap();
        let chosen: Vec<&str> = chosen.into_iter().map(Choice::name).collect();
        assert_eq!(chosen, ["oracle-free", "dual-heap", "oracle"]);
        let all = policies(&names("all")).unwrap();
        assert_eq!(all.len(), policy::names().count() + 2);
    }

    #[test]
    fn names_when_unknown_bring_the_list_of_those_that_are() {
        let error = policies(&names("dual-heap,best")).unwrap_err().to_string();
        for part in ["\"best\"", "dual-heap", "oracle-free", "all"] {
            assert!(error.contains(part), "{error}");
        }
        let error = workloads(&names("")).unwrap_err().to_string();
        assert!(error.contains("gups-demeter"), "{error}");
    }
}
