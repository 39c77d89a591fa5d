//! Lines of the documentation that are too long to read in a terminal or a diff.

use std::fs;

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// The longest line, in characters. Tables and code are not prose.
const MAX: usize = 100;

/// Each line of prose that is too long, as `FILE:LINE`; `None` if there is none.
pub(super) fn violations(workspace: &Workspace) -> Result<Option<String>> {
    let mut found = Vec::new();
    for folder in [workspace.root.clone(), workspace.root.join("docs")] {
        for path in super::files_in(&folder)? {
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = fs::read_to_string(&path).with_context(|| format!("{}: not read", path.display()))?;
            let name = path.strip_prefix(&workspace.root).unwrap_or(&path).display();
            let of_file = long_lines(&text).into_iter();
            found.extend(of_file.map(|(line, width)| format!("{name}:{line}: {width} characters, at most {MAX}")));
        }
    }
    Ok((!found.is_empty()).then(|| found.join("\n")))
}

/// The numbers of the lines of prose that are too long, with their widths.
fn long_lines(text: &str) -> Vec<(usize, usize)> {
    let mut is_code = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        is_code ^= start.starts_with("```");
        let width = line.chars().count();
        if width > MAX && !is_code && !start.starts_with('|') {
            found.push((index + 1, width));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_of_prose_is_found_and_tables_and_code_are_not() {
        let (long, fits) = ("ü".repeat(MAX + 1), "ü".repeat(MAX));
        let text = format!("{fits}\n{long}\n\n| {long} |\n\n```\n{long}\n```\n\n{long}\n");
        assert_eq!(long_lines(&text), [(2, 101), (10, 101)]);
    }
}
