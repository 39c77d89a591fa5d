//! Links this package's targets to libtorch.

#[path = "../crates/extract/link.rs"]
mod link;

fn main() {
    link::link_libtorch();
}
