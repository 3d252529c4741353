//! The vmm-tier program.
fn main() {}
