use std::io;
use std::net::SocketAddr;

/// What can keep a service from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be used, or its network not be loaded.
    #[error(transparent)]
    Luthier(#[from] luthier::Error),
    /// The address is taken, or is none of this machine.
    #[error("{address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no threads.
    #[error("threads: {0}")]
    Threads(io::Error),
}

/// The result of serving.
pub type Result<T> = std::result::Result<T, Error>;
