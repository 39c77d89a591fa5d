//! Counts and names in words.

use std::fmt::Display;

use luthier_artifact::file_names;

/// A count and what is counted: `1 image`, `12 images`.
pub fn counted(n: impl Display, noun: &str) -> String {
    let n = n.to_string();
    let plural = if n == "1" { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

/// A name without what would move the cursor or turn the writing around: such characters are escaped. Bytes that are not
/// UTF-8 are U+FFFD.
pub fn printable(name: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut printable = String::with_capacity(name.len());
    for c in file_names::shown(name).chars() {
        if c.is_control() || turns(c) {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(
            printable("é \n\u{1b}[2J\u{202e}gpj.\u{7f}"),
            "é \\n\\u{1b}[2J\\u{202e}gpj.\\u{7f}"
        );
    }

    #[test]
    fn one_is_singular() {
        let found = [0, 1, 2, 11].map(|n| counted(n, "run"));
        assert_eq!(found, ["0 runs", "1 run", "2 runs", "11 runs"]);
    }
}
