//! A plugin of the outer emulator: hands every access of the emulated CPUs to the software PMU.
//!
//! `-plugin libsoftpmu_plugin.so,ring=FILE`, where FILE is what the lab has made for `softpmu`.

mod qemu;

use std::error::Error;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use softpmu::{Access, Pmu};

use qemu::{Block, Info, MemInfo, PluginId};

/// The version of the interface that this plugin is made for; QEMU looks the symbol up.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = qemu::VERSION;

static PMU: OnceLock<Pmu> = OnceLock::new();

/// QEMU calls it once, before the emulated machine runs. Returns 0 when all is well.
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_install(
    id: PluginId,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU passes a pointer to its own struct, which lives for the time of this call and which
    // nobody writes meanwhile; as_ref checks for null.
    let info = unsafe { info.as_ref() };
    let Some(info) = info.filter(|info| info.system_emulation) else {
        eprintln!("softpmu: only for the emulation of whole machines");
        return 1;
    };
    let count = usize::try_from(argc).unwrap_or(0);
    let path = (0..count).find_map(|n| argument(argv, n)?.strip_prefix(b"ring="));
    let Some(path) = path else {
        eprintln!("softpmu: the argument ring=FILE is missing");
        return 1;
    };
    let path = Path::new(OsStr::from_bytes(path));
    let pmu = match Pmu::open(path) {
        Ok(pmu) => pmu,
        Err(error) => {
            let why = error.source().map(ToString::to_string);
            eprintln!("softpmu: {error}: {}", why.unwrap_or_default());
            return 1;
        }
    };
    if u64::try_from(info.max_vcpus).is_ok_and(|cpus| cpus > pmu.layout().cpus()) {
        eprintln!(
            "softpmu: {} has counters for {} CPUs, the machine may have {}",
            path.display(),
            pmu.layout().cpus(),
            info.max_vcpus
        );
        return 1;
    }
    if PMU.set(pmu).is_err() {
        eprintln!("softpmu: loaded twice");
        return 1;
    }
    // SAFETY: the id is the one given for this plugin; the callback has the arguments of version 7 and
    // stays loaded for as long as QEMU runs, for it never unloads itself; it takes no user data.
    unsafe {
        qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, std::ptr::null_mut());
    }
    0
}

/// The nth of QEMU's arguments.
fn argument(argv: *const *const c_char, n: usize) -> Option<&'static [u8]> {
    // SAFETY: n is below the count that QEMU gave with the array, so the pointer stays in it.
    let place = unsafe { argv.add(n) };
    // SAFETY: as above, an element of the array, which QEMU keeps for as long as the plugin is loaded.
    let text = unsafe { place.read() };
    if text.is_null() {
        return None;
    }
    // SAFETY: an argument is a C string that QEMU keeps unchanged for as long as the plugin is loaded,
    // which is for as long as the process runs.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A block was translated: each of its instructions shall tell of its accesses.
extern "C" fn on_translation(block: *mut Block, _user: *mut c_void) {
    // SAFETY: the block is valid for the time of this callback.
    let count = unsafe { qemu::qemu_plugin_tb_n_insns(block) };
    for index in 0..count {
        // SAFETY: the block is valid for the time of this callback.
        let instruction = unsafe { qemu::qemu_plugin_tb_get_insn(block, index) };
        if instruction.is_null() {
            continue;
        }
        // SAFETY: the instruction is one of the block's and valid for the time of this callback.
        let address = unsafe { qemu::qemu_plugin_insn_vaddr(instruction) };
        // The instruction's address travels as the callback's user data: a number, never followed.
        let user = std::ptr::without_provenance_mut(address as usize);
        // SAFETY: the instruction is valid for the time of this callback; `on_access` has the arguments
        // that version 7 calls it with, is never unloaded and does not follow its user data.
        unsafe {
            qemu::qemu_plugin_register_vcpu_mem_cb(
                instruction,
                on_access,
                qemu::NO_REGISTERS,
                qemu::LOADS_AND_STORES,
                user,
            );
        }
    }
}

/// An emulated CPU has loaded or stored. Called on that CPU's thread, so often that it sets the
/// emulator's speed.
extern "C" fn on_access(cpu: c_uint, info: MemInfo, address: u64, user: *mut c_void) {
    let Some(pmu) = PMU.get().filter(|pmu| pmu.armed(cpu)) else {
        return;
    };
    if !pmu.reaches_memory(cpu, address) {
        return;
    }
    // SAFETY: called within an access's callback with its own info and address, as it demands.
    let place = unsafe { qemu::qemu_plugin_get_hwaddr(info, address) };
    if place.is_null() {
        return;
    }
    // SAFETY: the place is not null and valid for the time of this callback.
    if unsafe { qemu::qemu_plugin_hwaddr_is_io(place) } {
        return;
    }
    // SAFETY: as above.
    let physical = unsafe { qemu::qemu_plugin_hwaddr_phys_addr(place) };
    if pmu.count(cpu, physical) {
        sample(pmu, cpu, info, address, physical, user);
    }
}

#[cold]
fn sample(pmu: &Pmu, cpu: c_uint, info: MemInfo, linear: u64, physical: u64, user: *mut c_void) {
    // SAFETY: called within an access's callback with its own info.
    let store = unsafe { qemu::qemu_plugin_mem_is_store(info) };
    // SAFETY: as above.
    let size_shift = unsafe { qemu::qemu_plugin_mem_size_shift(info) };
    let access = Access {
        rip: user.addr() as u64,
        linear,
        physical,
        store,
        size_shift,
    };
    pmu.sample(&access, cpu);
}
