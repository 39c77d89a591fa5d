//! Links this package's targets to libtorch.

#[path = "../extract/link.rs"]
mod link;

fn main() {
    link::link_libtorch();
}
