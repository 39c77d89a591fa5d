//! The command `luthier`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(luthier_cli::main(std::env::args_os()))
}
