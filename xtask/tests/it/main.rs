//! `cargo xtask` as its users run it.

#[cfg(target_os = "linux")]
mod dist;
