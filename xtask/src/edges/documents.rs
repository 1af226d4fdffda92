//! What a reader relies on: recipes numbered as they run, files of a size one reads, and a cargo that runs no other package manager.

use super::source::lines;

/// Lines beyond which a source is two rooms in one.
const LONGEST: usize = 900;

/// Recipes of one folder are `NN-name.toml`, numbered from 01 without gap or repeat. Other endings (a README) are free.
pub fn numbering(folder: &str, names: &[String]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut numbers = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".toml")) {
        let number = name
            .split_once('-')
            .filter(|(digits, rest)| digits.len() == 2 && rest.len() > ".toml".len());
        match number.and_then(|(digits, _)| digits.parse::<usize>().ok()) {
            Some(number) => numbers.push((number, name)),
            None => violations.push(format!(
                "{folder}/{name}: a recipe is called NN-stage.toml, as 03-pretrain.toml"
            )),
        }
    }
    numbers.sort();
    for (index, (number, name)) in numbers.iter().enumerate() {
        if *number != index + 1 {
            violations.push(format!("{folder}/{name}: number {:02} is due here; recipes run in order from 01 without gap or repeat", index + 1));
            break; // every later one is off by the same
        }
    }
    violations
}

/// No file of a crate's sources is longer than 900 lines.
pub fn length(path: &str, source: &str) -> Option<String> {
    let count = source.lines().count();
    let ours = path.starts_with("crates/") && path.contains("/src/");
    (ours && count > LONGEST).then(|| {
        format!("{path}: {count} lines, more than {LONGEST}; a reader would rather have two rooms")
    })
}

/// No build script and no crate starts a JavaScript package manager: web/dist is committed.
pub fn no_npm(path: &str, source: &str) -> Vec<String> {
    let runners = ["npm", "npx", "pnpm", "yarn", "node", "bun", "vite"];
    let mut violations = Vec::new();
    for (index, line) in lines(source).iter().enumerate() {
        let starts = line.code.contains("Command::new(\"\")");
        if let Some(runner) = line
            .strings
            .iter()
            .find(|text| starts && runners.contains(&text.as_str()))
        {
            violations.push(format!(
                "{path}:{}: cargo never runs {runner}; web/dist is built by hand and committed",
                index + 1
            ));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(names: &[&str], caught: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let found = numbering("recipes/tiny", &names);
        assert_eq!(found.len(), caught.len(), "{found:#?}");
        for (violation, name) in found.iter().zip(caught) {
            assert!(
                violation.starts_with(&format!("recipes/tiny/{name}:")),
                "{violation}"
            );
        }
    }

    #[test]
    fn a_gap_a_repeat_and_a_bad_name_are_caught() {
        expect(&["01-a.toml", "03-b.toml", "04-c.toml"], &["03-b.toml"]);
        expect(&["02-a.toml"], &["02-a.toml"]);
        expect(&["01-a.toml", "01-b.toml", "02-c.toml"], &["01-b.toml"]);
        expect(
            &["1-a.toml", "pretrain.toml", "01-.toml", "xx-a.toml"],
            &["1-a.toml", "pretrain.toml", "01-.toml", "xx-a.toml"],
        );
        expect(&["02-b.toml", "01-a.toml", "README.md"], &[]);
    }

    #[test]
    fn a_file_too_long_is_caught() {
        let long = "x\n".repeat(901);
        assert!(length("crates/model/src/decoder.rs", &long).is_some());
        assert!(length("crates/model/src/decoder.rs", &long[2..]).is_none());
        assert!(length("crates/model/tests/all.rs", &long).is_none());
    }

    #[test]
    fn running_npm_is_caught() {
        assert_eq!(
            no_npm(
                "crates/serve/build.rs",
                "Command::new(\"npm\").arg(\"ci\");\n"
            )
            .len(),
            1
        );
        assert!(
            no_npm(
                "crates/serve/build.rs",
                "// Command::new(\"npm\")\nprintln!(\"npm\");\n"
            )
            .is_empty()
        );
    }
}
