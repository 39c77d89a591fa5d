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
    #[cfg(feature = "heif")]
    build_heif();
}

/// Versions before have no way to decode without threads of their own.
#[cfg(feature = "heif")]
fn build_heif() {
    println!("cargo::rerun-if-changed=src/image/formats/heif.c");
    let library = pkg_config::Config::new().atleast_version("1.13").probe("libheif");
    let library = library
        .unwrap_or_else(|error| panic!("{error}\nhint: build without the feature heif, or apt install libheif-dev"));
    cc::Build::new()
        .includes(library.include_paths)
        .file("src/image/formats/heif.c")
        .compile("luthier_heif");
}
