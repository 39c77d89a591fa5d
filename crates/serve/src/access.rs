//! Who may ask: pages of this machine, and whoever was shown a secret address.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName};
use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::{Error, Result};

/// Whether a request names this machine as its host, and comes from no page of another. A page from elsewhere, whose name was
/// turned to this machine, sends its own name. The port may be another, as behind `ssh -L`.
pub(crate) fn is_local(headers: &HeaderMap) -> bool {
    let header = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_here = |host: &str| {
        host.parse::<Authority>().is_ok_and(|authority| {
            let name = authority.host().trim_matches(['[', ']']);
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        })
    };
    header(HOST).is_some_and(|host| {
        let is_same = |origin: &str| origin.strip_prefix("http://") == Some(host);
        is_here(host) && header(ORIGIN).is_none_or(is_same)
    })
}

/// What nobody guesses: 128 random bits in hexadecimal.
///
/// # Errors
/// [`Error::Random`] if the system gives no random numbers.
pub(crate) fn token() -> Result<String> {
    let half = || SysRng.try_next_u64().map_err(Error::Random);
    Ok(format!("{:016x}{:016x}", half()?, half()?))
}
