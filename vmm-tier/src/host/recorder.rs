//! The recorder: keeps the history of what the owner publishes, and answers `query-host-history`.
//!
//! It has a thread of its own. The owner only publishes, so a client that asks for a long history, or
//! asks often, never makes the owner wait.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use qmp::server::{
    CommandSpec, MemberSpec,
    TypeSpec::{String, Uint},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tier_core::arbiter::history::{
    COARSE_S, COARSE_STEP_S, FINE_S, History, HostHistory, HostSample, VmSample, Wanted,
};
use tier_sys::process::now;

use super::{
    published::{Figures, Published},
    report::{HostInfo, HostVm},
};
use crate::{
    reply::{Answer, refusal, typed, value},
    report_schema::of,
};

/// The name of the command.
pub(crate) const QUERY_HOST_HISTORY: &str = "query-host-history";

/// The arguments of the command.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Arguments {
    name: Option<std::string::String>,
    since_s: Option<u64>,
    step_s: Option<u64>,
}

/// Keeps the history.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<History>);

impl Recorder {
    /// Records what is published until the process ends.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub(crate) fn start(published: Arc<Published>) -> io::Result<Arc<Self>> {
        let recorder = Arc::new(Self(Mutex::default()));
        let this = recorder.clone();
        thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || {
                let mut last = None;
                loop {
                    let figures = published.wait_for_new(last.as_ref());
                    this.add(&figures);
                    last = Some(figures);
                }
            })?;
        Ok(recorder)
    }

    pub(super) fn add(&self, Figures { made, host }: &Figures) {
        let HostInfo {
            fairness,
            pool_bytes,
            free_bytes,
            ..
        } = host;
        let sample = HostSample {
            fairness,
            pool_bytes: *pool_bytes,
            free_bytes: *free_bytes,
        };
        let vms = host.vms.iter().map(|vm| (vm.name.as_str(), sample_of(vm)));
        self.with(|history| history.add(*made, &sample, vms));
    }

    /// The reply to `query-host-history`.
    ///
    /// # Errors
    /// If the arguments make no sense, or name a VM that is not known.
    pub(crate) fn answer(&self, arguments: Map<std::string::String, Value>) -> Answer {
        let wanted: Arguments = typed(arguments)?;
        let wanted = Wanted {
            name: wanted.name.as_deref(),
            since_s: wanted.since_s,
            step_s: wanted.step_s,
        };
        let told = self.with(|history| history.read(now(), wanted));
        value(told.map_err(|error| refusal(&error))?)
    }

    fn with<T>(&self, work: impl FnOnce(&mut History) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn sample_of(vm: &HostVm) -> VmSample {
    VmSample {
        share_bytes: vm.share_bytes,
        demand_bytes: vm.demand_bytes,
        fast_bytes: vm.fast_bytes,
        entitled_bytes: vm.entitled_bytes,
        hit_ratio: vm.hit_ratio,
        slowdown: vm.slowdown,
    }
}

/// The description of `query-host-history`.
pub(crate) fn spec() -> CommandSpec {
    let since = format!(
        "how many seconds back, at most {COARSE_S}; {FINE_S} without it. Each second is kept for \
         {FINE_S} s"
    );
    let step = format!(
        "the length of a step in seconds; as short as possible without it. More than {FINE_S} s back \
         steps of {COARSE_STEP_S} s are kept"
    );
    let args = vec![
        MemberSpec::optional("name", String, "the VM; all without it"),
        MemberSpec::optional("since-s", Uint, since.leak()),
        MemberSpec::optional("step-s", Uint, step.leak()),
    ];
    CommandSpec {
        name: QUERY_HOST_HISTORY,
        doc: "Figures of the host and its VMs over the last hour: the division, and how fair it was. \
              Figures stand in columns, one value for each step. The daemon keeps them in memory, and \
              begins anew when it starts.",
        args: args.leak(),
        returns: of::<HostHistory>(),
        ..CommandSpec::PLAIN
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::host::http;

    fn asked(recorder: &Recorder, arguments: &Value) -> Answer {
        recorder.answer(arguments.as_object().unwrap().clone())
    }

    #[test]
    fn history_when_figures_are_published_has_them() {
        let published = Arc::new(Published::default());
        let recorder = Recorder::start(published.clone()).unwrap();
        published.put(http::tests::host(2));
        let begin = Instant::now();
        let told = loop {
            match asked(
                &recorder,
                &json!({"name": "vm2", "since-s": 60, "step-s": 60}),
            ) {
                Ok(told) => break told,
                Err(_) => assert!(begin.elapsed() < Duration::from_secs(30)),
            }
            thread::yield_now();
        };
        let vm = &told["vms"][0];
        assert_eq!((&vm["name"], &vm["present"]), (&json!("vm2"), &json!(true)));
        let mut fast = vm["fast-bytes"]["max"].as_array().unwrap().iter();
        assert!(
            fast.any(|fast| *fast == json!(f64::from((22 << 20) + 8192))),
            "{vm}"
        );
        let mut pool = told["host"]["pool-bytes"]["mean"]
            .as_array()
            .unwrap()
            .iter();
        assert!(
            pool.any(|pool| *pool == json!(f64::from(84 << 20))),
            "{told}"
        );
        let all = asked(&recorder, &json!({})).unwrap();
        assert_eq!(all["vms"].as_array().unwrap().len(), 2);
        assert_eq!(all["step-s"], 1);
    }

    #[test]
    fn history_when_asked_for_what_is_not_there_says_so() {
        let recorder = Recorder(Mutex::default());
        let error = asked(&recorder, &json!({"name": "nobody"})).unwrap_err();
        assert!(
            error.to_string().contains("There is no VM nobody"),
            "{error}"
        );
        let error = asked(&recorder, &json!({"step-s": 0})).unwrap_err();
        assert!(error.to_string().contains("at least 1 second"), "{error}");
        let empty = asked(&recorder, &json!({"since-s": u64::MAX, "step-s": u64::MAX})).unwrap();
        assert_eq!(
            (&empty["vms"], &empty["step-s"]),
            (&json!([]), &json!(3600))
        );
    }
}
