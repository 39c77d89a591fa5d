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
    tell_about_jpeg();
    #[cfg(feature = "heif")]
    build_heif();
}

/// Says whether mozjpeg has its SIMD code, which it leaves out in silence where it finds no nasm.
fn tell_about_jpeg() {
    println!("cargo::rustc-check-cfg=cfg(jpeg_simd)");
    let folders = std::env::var_os("DEP_JPEG_INCLUDE").expect("mozjpeg-sys says where its headers are");
    let has_simd = std::env::split_paths(&folders).any(|folder| {
        let config = std::fs::read_to_string(folder.join("jconfig.h"));
        config.is_ok_and(|config| config.contains("#define WITH_SIMD 1"))
    });
    if has_simd {
        println!("cargo::rustc-cfg=jpeg_simd");
    }
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
