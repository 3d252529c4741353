//! `/proc/vmstat`: what the kernel counted.

use std::collections::BTreeMap;

use crate::sysroot::{ParseError, SysRoot, SysRootError, read_text};

/// vmstat has about 200 lines of under 50 bytes.
const MAX_VMSTAT: u64 = 256 << 10;

/// Counters by the kernel's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmStat(BTreeMap<String, u64>);

impl VmStat {
    /// Reads `/proc/vmstat`.
    ///
    /// # Errors
    /// [`SysRootError`].
    pub fn read(root: &SysRoot) -> Result<Self, SysRootError> {
        let path = root.proc("vmstat");
        Self::parse(&read_text(&path, MAX_VMSTAT)?).map_err(|error| error.in_file(&path))
    }

    /// Parses the text of a vmstat file.
    ///
    /// # Errors
    /// [`ParseError`] with the line that is no name and number.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let lines = text.lines().enumerate().map(|(index, line)| {
            let pair = line
                .split_once(' ')
                .and_then(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)));
            pair.ok_or_else(|| ParseError::at(index, "no name and number stand here"))
        });
        Ok(Self(lines.collect::<Result<_, _>>()?))
    }

    /// All counters.
    #[must_use]
    pub const fn counters(&self) -> &BTreeMap<String, u64> {
        &self.0
    }

    /// A counter; 0 where this kernel has none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Pages that are pinned now (VFIO, RDMA, direct I/O), on the whole host.
    #[must_use]
    pub fn pinned_pages(&self) -> u64 {
        self.get("nr_foll_pin_acquired")
            .saturating_sub(self.get("nr_foll_pin_released"))
    }

    /// How much each counter that differs grew since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        let grown = self.0.iter().filter_map(|(name, &value)| {
            let by = value.saturating_sub(earlier.get(name));
            (by > 0).then(|| (name.clone(), by))
        });
        grown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_counters_grew_tells_by_how_much() {
        let earlier = VmStat::parse("pgmigrate_success 10\npgmigrate_fail 1\n").unwrap();
        let later = VmStat::parse("pgmigrate_success 15\npgmigrate_fail 1\n").unwrap();

        assert_eq!(
            later.since(&earlier),
            BTreeMap::from([("pgmigrate_success".into(), 5)])
        );
        assert_eq!(later.get("no_such_counter"), 0);
    }

    #[test]
    fn parse_when_a_line_has_no_number_names_it() {
        assert_eq!(VmStat::parse("a 1\nb x\n").unwrap_err().line, 2);
    }

    #[test]
    fn read_when_kernel_runs_has_migration_counters() {
        let stat = VmStat::read(&SysRoot::real()).unwrap();
        assert!(
            stat.0.contains_key("pgmigrate_success"),
            "{} counters",
            stat.0.len()
        );
    }
}
