//! The part of QEMU's plugin interface that is used here, as version 7 has it (QEMU 11.1).
//!
//! Own declarations: the published bindings are of version 5, in which callbacks have other arguments, and
//! under QEMU's licence. Documentation: include/plugins/qemu-plugin.h, "QEMU TCG Plugins" in QEMU's manual.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The version of the interface declared here. QEMU refuses plugins of versions that it does not support.
pub(crate) const VERSION: c_int = 7;

/// Of a plugin, given at its start.
pub(crate) type PluginId = u64;
/// An access, for questions about it while its callback runs.
pub(crate) type MemInfo = u32;

/// What QEMU tells of itself at a plugin's start.
#[repr(C)]
pub(crate) struct Info {
    _target_name: *const c_char,
    _version_min: c_int,
    _version_current: c_int,
    pub(crate) system_emulation: bool,
    _smp_vcpus: c_int,
    pub(crate) max_vcpus: c_int,
}

/// A block of translated code.
#[repr(C)]
pub(crate) struct Block {
    _opaque: [u8; 0],
}

/// An instruction of a block.
#[repr(C)]
pub(crate) struct Instruction {
    _opaque: [u8; 0],
}

/// Where an access went.
#[repr(C)]
pub(crate) struct HwAddr {
    _opaque: [u8; 0],
}

/// QEMU_PLUGIN_CB_NO_REGS: the callback does not look at the CPU's registers.
pub(crate) const NO_REGISTERS: c_int = 0;
/// QEMU_PLUGIN_MEM_RW: loads and stores.
pub(crate) const LOADS_AND_STORES: c_int = 3;

pub(crate) type OnTranslation = extern "C" fn(block: *mut Block, user: *mut c_void);
pub(crate) type OnAccess =
    extern "C" fn(cpu: c_uint, info: MemInfo, address: u64, user: *mut c_void);

unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: PluginId,
        callback: OnTranslation,
        user: *mut c_void,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub(crate) fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub(crate) fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    pub(crate) fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut Instruction,
        callback: OnAccess,
        flags: c_int,
        which: c_int,
        user: *mut c_void,
    );
    pub(crate) fn qemu_plugin_get_hwaddr(info: MemInfo, address: u64) -> *mut HwAddr;
    pub(crate) fn qemu_plugin_hwaddr_is_io(hw: *const HwAddr) -> bool;
    pub(crate) fn qemu_plugin_hwaddr_phys_addr(hw: *const HwAddr) -> u64;
    pub(crate) fn qemu_plugin_mem_is_store(info: MemInfo) -> bool;
    pub(crate) fn qemu_plugin_mem_size_shift(info: MemInfo) -> c_uint;
}
