//! Luthier over HTTP: a trained model, as a page for people and a service for programs; and a page on which people decide
//! about images.
//!
//! - `desk.rs`: one queue for the images of all clients, and the thread whose lanes take them through the network
//! - `http.rs`: what is asked by which address, and what is refused
//! - `access.rs`: who may ask
//! - `server.rs`: connections, and the end of them
//! - `model.rs`: the model file, also when another takes its place
//! - `page/`: the page
//! - `deciding.rs`, `deciding/`: the other page
//!
//! [`serve`] and [`decide`] return when their observer interrupts them, after all that was accepted has been answered.

mod access;
mod deciding;
mod desk;
mod error;
mod http;
mod metrics;
mod model;
mod server;

pub use deciding::{DecidePage, Tables, decide};
pub use error::{Error, Result};
pub use http::{Access, OnAccess};
pub use server::{ServeConfig, serve};
