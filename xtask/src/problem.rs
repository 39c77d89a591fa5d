//! Errors that know the way out, and how an error is shown.

use std::fmt::Write as _;

/// An error with its hints, each of which is printed on a line of its own.
#[derive(Debug)]
pub(crate) struct Problem {
    message: String,
    hints: Vec<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// An error that says `message`, and on a line of its own each of `hints`.
pub(crate) fn problem<H: Into<String>>(
    message: impl Into<String>,
    hints: impl IntoIterator<Item = H>,
) -> anyhow::Error {
    Problem {
        message: message.into(),
        hints: hints.into_iter().map(Into::into).collect(),
    }
    .into()
}

/// `error: …`, with its causes on the same line, then one `hint: …` line for each way out.
pub(crate) fn render(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error:#}\n");
    for problem in error.chain().filter_map(|cause| cause.downcast_ref::<Problem>()) {
        for hint in &problem.hints {
            writeln!(text, "hint: {hint}").expect("a String takes every write");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_every_cause_follow_the_error() {
        let error = problem("lib: missing", ["install it", "or name another"]).context("libtorch");
        assert_eq!(
            render(&error),
            "error: libtorch: lib: missing\nhint: install it\nhint: or name another\n"
        );
    }
}
