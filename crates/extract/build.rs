//! Builds the bridge to oneDNN, and links this package's targets to libtorch.

mod link;

fn main() {
    println!("cargo::rerun-if-changed=src/onednn.cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(link::libtorch_folder("include"))
        // libtorch's headers are not ours to mend.
        .warnings(false)
        .file("src/onednn.cpp")
        .compile("luthier_onednn");
    link::link_libtorch();
}
