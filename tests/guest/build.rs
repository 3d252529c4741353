//! Links `bare-guest` as what a virtual machine starts from: no C library, its own places in
//! memory.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    let Ok(folder) = std::env::var("CARGO_MANIFEST_DIR") else {
        return;
    };
    for word in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        &format!("-Wl,-T,{folder}/link.ld"),
    ] {
        println!("cargo:rustc-link-arg-bin=bare-guest={word}");
    }
}
