//! Links this package's targets to libtorch.

mod link;

fn main() {
    link::link_libtorch();
}
