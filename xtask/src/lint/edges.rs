//! Which package may reach which, asked of `cargo tree`: the "must not know" column of the architecture.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::workspace::Workspace;

/// What one package must reach and must not reach, over normal, build and development dependencies.
struct Rule {
    package: &'static str,
    reaches: &'static [&'static str],
    avoids: &'static [&'static str],
}

/// `reaches` is not only documentation: it proves that the check sees the edges it looks for.
const RULES: [Rule; 7] = [
    Rule {
        package: "luthier-artifact",
        reaches: &["blake3"],
        avoids: &[
            "tch",
            "torch-sys",
            "image",
            "smartcore",
            "faer",
            "luthier-extract",
            "luthier-features",
            "luthier-classify",
            "luthier-eval",
            "luthier",
        ],
    },
    Rule {
        package: "luthier-extract",
        reaches: &["tch", "torch-sys", "image", "luthier-artifact"],
        avoids: &[
            "smartcore",
            "faer",
            "resvg",
            "luthier-features",
            "luthier-classify",
            "luthier-eval",
            "luthier",
        ],
    },
    Rule {
        package: "luthier-features",
        reaches: &["faer", "smartcore", "luthier-artifact"],
        avoids: &[
            "tch",
            "torch-sys",
            "image",
            "resvg",
            "luthier-extract",
            "luthier-classify",
            "luthier-eval",
            "luthier",
        ],
    },
    Rule {
        package: "luthier-classify",
        reaches: &["faer", "luthier-artifact"],
        avoids: &[
            "tch",
            "torch-sys",
            "image",
            "resvg",
            "luthier-extract",
            "luthier-eval",
            "luthier",
        ],
    },
    Rule {
        package: "luthier-eval",
        reaches: &["resvg", "luthier-artifact"],
        avoids: &[
            "tch",
            "torch-sys",
            "smartcore",
            "faer",
            "luthier-extract",
            "luthier-features",
            "luthier-classify",
            "luthier",
        ],
    },
    Rule {
        package: "luthier",
        reaches: &[
            "luthier-artifact",
            "luthier-extract",
            "luthier-features",
            "luthier-classify",
            "luthier-eval",
        ],
        avoids: &["xtask"],
    },
    Rule {
        package: "xtask",
        reaches: &["anyhow"],
        avoids: &[
            "tch",
            "torch-sys",
            "image",
            "smartcore",
            "faer",
            "luthier-artifact",
            "luthier-extract",
            "luthier",
        ],
    },
];

/// Every edge that is missing or one too many, one a line; `None` if there is none.
pub(super) fn violations(workspace: &Workspace) -> Result<Option<String>> {
    let mut found = Vec::new();
    for rule in &RULES {
        let args = [
            "tree",
            "--package",
            rule.package,
            "--edges",
            "normal,build,dev",
            "--prefix",
            "none",
        ];
        let output = workspace.cargo(args).output().context("cargo tree: not started")?;
        ensure!(
            output.status.success(),
            "cargo tree: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        found.extend(rule.violations(&String::from_utf8_lossy(&output.stdout)));
    }
    Ok((!found.is_empty()).then(|| found.join("\n")))
}

impl Rule {
    /// What is wrong with `tree`, the output of `cargo tree --prefix none` for this package.
    fn violations(&self, tree: &str) -> Vec<String> {
        let reached: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let package = self.package;
        let missing = self
            .reaches
            .iter()
            .filter(|name| !reached.contains(*name))
            .map(|name| format!("{package} must reach {name} and does not"));
        let surplus = self.avoids.iter().filter(|name| reached.contains(*name)).map(|name| {
            format!("{package} reaches {name} and must not: `cargo tree -p {package} -i {name}` shows how")
        });
        missing.chain(surplus).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const EVAL: Rule = Rule {
        package: "luthier-eval",
        reaches: &["luthier-artifact"],
        avoids: &["tch", "faer"],
    };
    const TREE: &str = "luthier-eval v0.1.0 (/src/crates/eval)\nluthier-artifact v0.1.0 (/src/crates/artifact)\n\
                        blake3 v1.8.0\nndarray v0.17.0 (*)\n\n[dev-dependencies]\nproptest v1.9.0\n";

    #[test]
    fn allowed_edges_pass() {
        assert_eq!(EVAL.violations(TREE), [""; 0]);
    }

    #[test]
    fn a_forbidden_edge_fails() {
        let tree = format!("{TREE}tch v0.24.0 (*)\n");
        let expected = "luthier-eval reaches tch and must not: `cargo tree -p luthier-eval -i tch` shows how";
        assert_eq!(EVAL.violations(&tree), [expected]);
    }

    #[test]
    fn a_missing_edge_fails() {
        let tree = TREE.replace("luthier-artifact", "luthier-other");
        assert_eq!(
            EVAL.violations(&tree),
            ["luthier-eval must reach luthier-artifact and does not"]
        );
    }

    #[test]
    fn a_name_that_only_begins_like_a_forbidden_one_passes() {
        assert_eq!(
            EVAL.violations(&format!("{TREE}tch-like v1.0.0\nfaer-traits v0.24.0\n")),
            [""; 0]
        );
    }

    /// A misspelt or renamed package could never be reached, and its rule would pass for ever.
    #[test]
    fn every_package_named_in_a_rule_exists() {
        let lock = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap()
            .join("Cargo.lock");
        let lock = fs::read_to_string(lock).unwrap();
        for name in RULES
            .iter()
            .flat_map(|rule| rule.reaches.iter().chain(rule.avoids).chain([&rule.package]))
        {
            assert!(
                lock.contains(&format!("name = \"{name}\"\n")),
                "{name} is not in Cargo.lock"
            );
        }
    }
}
