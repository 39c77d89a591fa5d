//! Builds the bridge to libtorch, and links this package's targets to libtorch.

mod link;

fn main() {
    println!("cargo::rerun-if-changed=src/network/bridge.cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(link::libtorch_folder("include"))
        // libtorch's headers are not ours to mend.
        .warnings(false)
        .file("src/network/bridge.cpp")
        .compile("luthier_bridge");
    link::link_libtorch();
}
