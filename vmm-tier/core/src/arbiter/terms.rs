//! The terms of a VM: what the operator grants it; and the pool's admission.

use crate::addr::BASE_PAGE;

/// The least weight of a VM.
pub const MIN_WEIGHT: f64 = 0.001;
/// The greatest weight of a VM.
pub const MAX_WEIGHT: f64 = 1000.0;
/// The most VMs of a pool.
pub const MAX_VMS: usize = 1000;
/// The largest page: more than any kernel has.
const MAX_PAGE: u64 = 1 << 40;
/// The most bytes of a guarantee or a cap, 1 PiB: sums of them stay in range.
const MAX_BYTES: u64 = 1 << 50;

/// What the operator grants a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// DRAM that is the VM's whenever it uses as much, in bytes.
    pub guarantee_bytes: u64,
    /// The most DRAM, in bytes: no more than the guest's memory.
    pub cap_bytes: u64,
    /// The VM's part of what is above the guarantees, relative to the other VMs' weights:
    /// [`MIN_WEIGHT`]..=[`MAX_WEIGHT`].
    pub weight: f64,
    /// The size of the guest's pages, in bytes: shares are whole pages.
    pub page_bytes: u64,
    /// The share of accesses that DRAM shall serve, above 0 and up to 1, for
    /// [`Mode::Goal`](super::Mode::Goal).
    pub goal: Option<f64>,
}

/// Why a VM is not admitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdmitError {
    /// The guarantees can't be kept together.
    #[error(
        "VM {name} can't be guaranteed {guarantee} bytes: the other VMs' guarantees take {others} of the pool's {pool} bytes"
    )]
    Guarantees {
        /// The VM.
        name: String,
        /// What it asks for, in whole pages.
        guarantee: u64,
        /// What the others have, in whole pages.
        others: u64,
        /// The pool.
        pool: u64,
    },
    /// The VM may not have what is guaranteed.
    #[error(
        "VM {name} has a cap of {cap} bytes, below its guarantee of {guarantee} bytes (in whole pages)"
    )]
    Cap {
        /// The VM.
        name: String,
        /// Its cap, in whole pages.
        cap: u64,
        /// Its guarantee, in whole pages.
        guarantee: u64,
    },
    /// The weight is no number in its range.
    #[error(
        "VM {name} has the weight {weight}: weights are numbers from {MIN_WEIGHT} to {MAX_WEIGHT}"
    )]
    Weight {
        /// The VM.
        name: String,
        /// The weight.
        weight: f64,
    },
    /// The page size is none.
    #[error(
        "VM {name} has pages of {page} bytes: a page has a power of two of bytes, from {BASE_PAGE} on"
    )]
    Page {
        /// The VM.
        name: String,
        /// The size.
        page: u64,
    },
    /// The goal is no share.
    #[error("VM {name} has the goal {goal}: a goal is a share of accesses above 0 and up to 1")]
    Goal {
        /// The VM.
        name: String,
        /// The goal.
        goal: f64,
    },
    /// The name is taken.
    #[error("a VM named {name} is there already")]
    Name {
        /// The name.
        name: String,
    },
    /// The pool is full of VMs.
    #[error("VM {name} would be one more than the {MAX_VMS} VMs that share a pool")]
    Count {
        /// The VM.
        name: String,
    },
}

impl Terms {
    /// The size of a page: what is no page size counts as the next one.
    pub(super) fn page(&self) -> u64 {
        self.page_bytes
            .clamp(BASE_PAGE, MAX_PAGE)
            .next_power_of_two()
    }

    /// The cap in whole pages: all that fit.
    pub(super) fn cap(&self) -> u64 {
        self.cap_bytes.min(MAX_BYTES) / self.page() * self.page()
    }

    /// The guarantee in whole pages: as many as are needed to hold it.
    pub(super) fn guarantee(&self) -> u64 {
        self.guarantee_bytes
            .min(MAX_BYTES)
            .next_multiple_of(self.page())
    }

    /// The weight; one that is none counts as the nearest, or as 1 if it is no number.
    pub(super) fn believed_weight(&self) -> f64 {
        match self.weight.is_nan() {
            true => 1.0,
            false => self.weight.clamp(MIN_WEIGHT, MAX_WEIGHT),
        }
    }
}

/// Admits a VM to a pool of `pool` bytes beside others; says how many bytes of the pool are then
/// guaranteed to nobody. Guarantees are rounded up to whole pages.
///
/// # Errors
/// If the terms make no sense, or all guarantees together are above the pool.
pub fn admit<'a>(
    pool: u64,
    others: impl IntoIterator<Item = (&'a str, &'a Terms)>,
    name: &str,
    terms: &Terms,
) -> Result<u64, AdmitError> {
    let name = name.to_owned();
    if !(MIN_WEIGHT..=MAX_WEIGHT).contains(&terms.weight) {
        let weight = terms.weight;
        return Err(AdmitError::Weight { name, weight });
    }
    if terms.page() != terms.page_bytes {
        let page = terms.page_bytes;
        return Err(AdmitError::Page { name, page });
    }
    if let Some(goal) = terms.goal.filter(|&goal| !(goal > 0.0 && goal <= 1.0)) {
        return Err(AdmitError::Goal { name, goal });
    }
    let (guarantee, cap) = (terms.guarantee(), terms.cap());
    if cap < guarantee {
        return Err(AdmitError::Cap {
            name,
            cap,
            guarantee,
        });
    }
    let (mut taken, mut count) = (0_u64, 0);
    for (other, terms) in others {
        if other == name {
            return Err(AdmitError::Name { name });
        }
        taken = taken.saturating_add(terms.guarantee());
        count += 1;
    }
    if count >= MAX_VMS {
        return Err(AdmitError::Count { name });
    }
    pool.checked_sub(taken.saturating_add(guarantee))
        .ok_or(AdmitError::Guarantees {
            name,
            guarantee,
            others: taken,
            pool,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(guarantee_bytes: u64) -> Terms {
        Terms {
            guarantee_bytes,
            cap_bytes: 1 << 30,
            weight: 1.0,
            page_bytes: 2 << 20,
            goal: None,
        }
    }

    fn refused(name: &str, terms: &Terms) -> String {
        let other = self::terms(21 << 20);
        admit(84 << 20, [("a", &other)], name, terms)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn vm_when_the_guarantees_fit_is_admitted_and_what_is_left_is_told() {
        let other = terms(21 << 20);
        // 21 MiB take eleven pages of 2 MiB: 84 − 22 − 62 = 0.
        assert_eq!(
            admit(84 << 20, [("a", &other)], "b", &terms(62 << 20)),
            Ok(0)
        );
        assert_eq!(admit(84 << 20, [], "b", &terms(0)), Ok(84 << 20));
    }

    #[test]
    fn vm_when_the_guarantees_do_not_fit_is_refused_with_the_sums() {
        assert_eq!(
            refused("b", &terms((62 << 20) + 1)),
            "VM b can't be guaranteed 67108864 bytes: the other VMs' guarantees take 23068672 of the pool's \
             88080384 bytes"
        );
    }

    #[test]
    fn vm_when_its_terms_make_no_sense_is_refused() {
        let of = |change: fn(&mut Terms)| {
            let mut terms = terms(0);
            change(&mut terms);
            refused("b", &terms)
        };
        assert_eq!(
            of(|terms| terms.weight = f64::NAN),
            "VM b has the weight NaN: weights are numbers from 0.001 to 1000"
        );
        assert!(of(|terms| terms.weight = f64::INFINITY).contains("weight inf"));
        assert!(of(|terms| terms.weight = 0.0).contains("weight 0"));
        assert!(of(|terms| terms.page_bytes = 4095).contains("pages of 4095 bytes"));
        assert!(of(|terms| terms.page_bytes = 0).contains("pages of 0 bytes"));
        assert!(of(|terms| terms.goal = Some(0.0)).contains("goal 0"));
        assert!(of(|terms| terms.goal = Some(f64::NAN)).contains("goal NaN"));
        assert!(of(|terms| terms.guarantee_bytes = u64::MAX).contains("below its guarantee"));
        assert_eq!(refused("a", &terms(0)), "a VM named a is there already");
    }

    #[test]
    fn vm_when_it_is_the_1001st_is_refused() {
        let terms = terms(0);
        let names: Vec<String> = (0..MAX_VMS).map(|vm| vm.to_string()).collect();
        let others = || names.iter().map(|name| (name.as_str(), &terms));
        assert_eq!(
            admit(1 << 40, others(), "b", &terms)
                .unwrap_err()
                .to_string(),
            "VM b would be one more than the 1000 VMs that share a pool"
        );
        assert!(admit(1 << 40, others().skip(1), "b", &terms).is_ok());
    }
}
