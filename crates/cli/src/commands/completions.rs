use crate::ExitCode;

use anyhow::Result;
use clap::Args;
use clap_complete::Shell;

/// Print a script that completes Luthier's commands and options in a shell
#[derive(Args)]
#[command(after_help = "Examples:
  luthier completions bash > ~/.local/share/bash-completion/completions/luthier
  luthier completions zsh > ~/.zfunc/_luthier
  luthier completions fish > ~/.config/fish/completions/luthier.fish")]
pub(crate) struct Arguments {
    /// Shell that reads the script
    shell: Shell,
}

/// `cli` is the command line that is completed.
pub(crate) fn run(Arguments { shell }: &Arguments, mut cli: clap::Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut cli, "luthier", &mut script);
    out!("{}", String::from_utf8(script)?);
    Ok(ExitCode::SUCCESS)
}
