//! From QEMU's entry to Rust: page tables, 64-bit mode, SSE, a stack.

use core::arch::global_asm;

// The note that names the entry: owner "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY,
// xen/include/public/elfnote.h). The state at the entry is that of
// xen/include/public/arch-x86/hvm/start_info.h: 32-bit protected mode, flat segments, no paging,
// interrupts off, EBX = the start info.
global_asm!(
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad entry32",
    ".popsection",
    //
    ".pushsection .text.entry, \"ax\"",
    ".code32",
    ".globl entry32",
    "entry32:",
    "cld",
    // A reset starts here again: nothing of the life before may be left.
    "lea edi, [bss_start]",
    "lea ecx, [bss_end]",
    "sub ecx, edi",
    "shr ecx, 2",
    "xor eax, eax",
    "rep stosd",
    // Level 4 and 3: one entry, and four for 4 GiB. 3 = present, writable.
    "lea eax, [page_tables + 0x1003]",
    "mov [page_tables], eax",
    "lea eax, [page_tables + 0x2003]",
    "lea edi, [page_tables + 0x1000]",
    "mov ecx, 4",
    "2:",
    "mov [edi], eax",
    "add edi, 8",
    "add eax, 0x1000",
    "loop 2b",
    // Level 2: 2048 pages of 2 MiB. 0x83 = present, writable, a page.
    "mov eax, 0x83",
    "lea edi, [page_tables + 0x2000]",
    "mov ecx, 2048",
    "3:",
    "mov [edi], eax",
    "add edi, 8",
    "add eax, 0x200000",
    "loop 3b",
    "lea eax, [page_tables]",
    "mov cr3, eax",
    // CR4: PAE, OSFXSR, OSXMMEXCPT.
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    // EFER: long mode.
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    // CR0: SSE needs EM and TS clear and MP set; paging on.
    "mov eax, cr0",
    "and eax, 0xfffffff3",
    "or eax, 0x80000003",
    "mov cr0, eax",
    "lgdt [gdt_pointer]",
    "lea eax, [entry64]",
    "push 8",
    "push eax",
    "retf",
    //
    ".code64",
    "entry64:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "lea rsp, [stack_end]",
    "mov edi, ebx",
    "call bare_main",
    "ud2",
    //
    ".balign 8",
    "gdt:",
    ".quad 0",
    ".quad 0x00af9a000000ffff", // code, 64 bit
    ".quad 0x00cf92000000ffff", // data
    "gdt_pointer:",
    ".word 23",
    ".long gdt",
    ".popsection",
    //
    ".pushsection .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    "page_tables: .skip 0x6000",
    "stack: .skip 0x10000",
    "stack_end:",
    ".popsection",
);
