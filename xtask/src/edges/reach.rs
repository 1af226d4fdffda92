//! Who may reach what, through every dependency of its dependencies: `cargo tree` against a list of bans.

struct Ban {
    /// What must not be reached; a trailing `*` stands for any ending.
    packages: &'static [&'static str],
    /// The crates that may.
    except: &'static [&'static str],
    /// The crates that may not; empty: all others.
    only: &'static [&'static str],
    why: &'static str,
}

const HTTP: &[&str] = &[
    "hyper*",
    "axum*",
    "reqwest*",
    "ureq*",
    "h2",
    "http",
    "tiny_http",
    "actix*",
    "warp",
    "rocket",
    "isahc",
    "attohttpc",
    "tungstenite",
    "curl*",
];

const BANS: &[Ban] = &[
    Ban {
        packages: &["tokio*", "async-std", "smol"],
        except: &[],
        only: &["russet-engine"],
        why: "engine is synchronous",
    },
    Ban {
        packages: &["russet-tokenizer", "tokenizers", "minijinja"],
        except: &[],
        only: &["russet-engine"],
        why: "engine takes token ids and gives token ids, no text",
    },
    Ban {
        packages: HTTP,
        // data reaches object storage, and cli and the facade reach serve.
        except: &["russet-serve", "russet-data", "russet-cli", "russet"],
        only: &[],
        why: "only serve speaks HTTP",
    },
    Ban {
        packages: &["arrow*", "datafusion*", "ballista*", "parquet*"],
        except: &["russet-data"],
        only: &[],
        why: "only data reaches Arrow and DataFusion, so the inference path never compiles them",
    },
];

/// Violations of one crate; `tree` as `cargo tree --edges normal --prefix none` prints it, one `name vVERSION …` a line.
pub fn check(name: &str, tree: &str) -> Vec<String> {
    let reached: std::collections::BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut violations = Vec::new();
    for ban in BANS {
        if ban.except.contains(&name) || !(ban.only.is_empty() || ban.only.contains(&name)) {
            continue;
        }
        for package in reached
            .iter()
            .filter(|package| ban.packages.iter().any(|pattern| matches(pattern, package)))
        {
            violations.push(format!("{name} reaches {package}, but {}; see `cargo tree --package {name} --invert {package}`", ban.why));
        }
    }
    violations
}

fn matches(pattern: &str, package: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => package
            .strip_prefix(start)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_'])),
        None => pattern == package,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(name: &str, packages: &[&str], caught: &[&str]) {
        let tree: String = packages
            .iter()
            .map(|package| format!("{package} v1.0.0\n"))
            .collect();
        let found = check(name, &tree);
        assert_eq!(found.len(), caught.len(), "{found:#?}");
        for (violation, package) in found.iter().zip(caught) {
            assert!(
                violation.starts_with(&format!("{name} reaches {package},")),
                "{violation}"
            );
        }
    }

    #[test]
    fn engine_reaches_neither_tokio_nor_http_nor_text() {
        expect(
            "russet-engine",
            &["russet-model", "tokio-util", "tokenizers"],
            &["tokio-util", "tokenizers"],
        );
        expect(
            "russet-engine",
            &["russet-tokenizer v0.1.0 (/x)", "hyper", "minijinja"],
            &["minijinja", "russet-tokenizer", "hyper"],
        );
        expect(
            "russet-train",
            &["tokenizers", "russet-tokenizer", "tokio"],
            &[],
        );
    }

    #[test]
    fn only_serve_speaks_http() {
        expect(
            "russet-eval",
            &["reqwest", "hyper-util", "httparse"],
            &["hyper-util", "reqwest"],
        );
        expect("russet-serve", &["hyper", "axum-core"], &[]);
        expect("russet-cli", &["russet-serve", "hyper"], &[]);
    }

    #[test]
    fn only_data_reaches_arrow_and_datafusion() {
        expect(
            "russet-cli",
            &["arrow-array", "arrow", "datafusion-expr", "arrowhead"],
            &["arrow", "arrow-array", "datafusion-expr"],
        );
        expect("russet-data", &["arrow", "datafusion"], &[]);
    }
}
