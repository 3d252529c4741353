//! How the host and the guest do while pages move: read once a second, and not at rest.

use tier_core::engine::{Event, Strain, VmState};
use tier_sys::psi::MemoryPressure;

use super::Agent;
use crate::log::with_causes;

/// See the [module](self).
pub(super) struct StrainReader {
    pressure: MemoryPressure,
    /// The kernel does not tell, which was said.
    is_mute: bool,
    /// Bytes moved at the last look.
    moved_bytes: u64,
}

impl StrainReader {
    pub(super) const fn new(pressure: MemoryPressure) -> Self {
        Self {
            pressure,
            is_mute: false,
            moved_bytes: 0,
        }
    }

    /// The memory pressure, if pages moved since the last look. So far `moved_bytes` were moved.
    fn pressure(&mut self, moved_bytes: u64, vm: &str) -> Option<f64> {
        let was_moved = std::mem::replace(&mut self.moved_bytes, moved_bytes) != moved_bytes;
        if self.is_mute || !was_moved {
            return None;
        }
        match self.pressure.read() {
            Ok(share) => Some(share),
            Err(error) => {
                self.is_mute = true;
                tracing::info!(
                    vm,
                    "exchanges don't slow down under memory pressure, which the kernel does not tell (CONFIG_PSI, \
                     psi=1): {}",
                    with_causes(&error)
                );
                None
            }
        }
    }
}

impl Agent {
    /// Tells the engine how the host and the guest do, where the guest's CPUs were looked at just now.
    pub(super) fn look_at_strain(&mut self, guest_cpus: Option<f64>) {
        if self.engine.state() != VmState::Running || self.pace.idle.is_now() {
            return;
        }
        let moved_bytes = self.engine.moved_bytes();
        let memory_pressure = self.strain.pressure(moved_bytes, &self.vm.name);
        self.step(Event::Strain(Strain {
            memory_pressure,
            guest_cpus,
        }));
    }
}

#[cfg(test)]
mod tests {
    use tier_sys::sysroot::SysRoot;

    use super::*;

    #[test]
    fn pressure_when_nothing_moves_or_the_kernel_is_mute_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        let file = folder.path().join("proc/pressure/memory");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "some avg10=30.00 avg60=0.00 avg300=0.00 total=1\n").unwrap();
        let mut reader = StrainReader::new(MemoryPressure::of(&root, 70));
        assert_eq!(reader.pressure(0, "vm"), None, "nothing moved");
        assert_eq!(reader.pressure(4096, "vm"), Some(0.3));
        assert_eq!(reader.pressure(4096, "vm"), None, "nothing moved");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(reader.pressure(8192, "vm"), None);
        assert!(reader.is_mute, "it is said once");
        std::fs::write(&file, "some avg10=30.00 avg60=0.00 avg300=0.00 total=1\n").unwrap();
        assert_eq!(
            reader.pressure(9000, "vm"),
            None,
            "the kernel does not learn it"
        );
    }
}
