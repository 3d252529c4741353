//! The first process of the emulated host.

fn main() {
    lab::inside::boot::main();
}
