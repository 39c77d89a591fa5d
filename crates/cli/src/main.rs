//! The command `luthier`.

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let status = luthier_cli::main(std::env::args_os());
    // Nobody is left who could hear of an error.
    io::stdout().flush().ok();
    // libtorch would take its operators out of its tables, one by one: a tenth of a second in which nothing happens.
    #[cfg(unix)]
    signal_hook::low_level::exit(status.into());
    #[cfg(not(unix))]
    ExitCode::from(status)
}
