//! A trained model over HTTP: a page for people, and a service for programs.
//!
//! - `desk.rs`: one queue for the images of all clients, and the thread whose lanes take them through the network
//! - `http.rs`: what is asked by which address, and what is refused
//! - `server.rs`: connections, and the end of them
//! - `model.rs`: the model file, also when another takes its place
//! - `page/`: the page
//!
//! [`serve`] returns when its observer interrupts it, after all that was accepted has been answered.

mod desk;
mod error;
mod http;
mod metrics;
mod model;
mod server;

pub use error::{Error, Result};
pub use http::{Access, OnAccess};
pub use server::{ServeConfig, serve};
