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
    /// An address that others can reach, where only this machine should.
    #[error("{address}: expected an address of this machine alone, such as 127.0.0.1:8080")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The system gives no random numbers.
    #[error("random numbers: {0}")]
    Random(rand::rngs::SysError),
    /// The system gives no threads.
    #[error("threads: {0}")]
    Threads(io::Error),
}

/// The result of serving.
pub type Result<T> = std::result::Result<T, Error>;
