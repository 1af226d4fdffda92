//! `unsafe` stands in crates/kernels only, and each block, impl, extern block and attribute under a `SAFETY:` comment.
//!
//! `unsafe fn` declares a duty and does not discharge one; its `# Safety` section is clippy's business.

use super::source::{Line, lines};

/// Code lines between a `SAFETY:` and the `unsafe` it speaks for: the head of a statement that rustfmt broke.
const REACH: usize = 3;

/// Violations of one source file; `path` from the repository's root.
pub fn check(path: &str, source: &str) -> Vec<String> {
    let kernels = path.starts_with("crates/kernels/");
    let lines = lines(source);
    let mut violations = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let at = format!("{path}:{}", index + 1);
        if !kernels && line.words().any(|word| word == "unsafe") {
            violations.push(format!("{at}: `unsafe` belongs in crates/kernels; offer what it does there as a safe function"));
        }
        if !kernels
            && line.words().any(|word| word == "unsafe_code")
            && line.words().any(|word| word == "allow" || word == "expect")
        {
            violations.push(format!("{at}: only crates/kernels may allow unsafe_code"));
        }
        if kernels && needs_proof(&lines, index) && !has_proof(&lines, index) {
            violations.push(format!(
                "{at}: `unsafe` without a `// SAFETY:` comment just above it that gives the proof"
            ));
        }
    }
    violations
}

/// Does an `unsafe` on this line do something, rather than declare a function or a function type?
fn needs_proof(lines: &[Line], index: usize) -> bool {
    let code = &lines[index].code;
    code.match_indices("unsafe").any(|(start, word)| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let whole =
            !code[..start].ends_with(is_word) && !code[start + word.len()..].starts_with(is_word);
        let mut after = code[start + word.len()..]
            .split(|c: char| c.is_whitespace() || c == '(')
            .filter(|word| !word.is_empty());
        let declares = match after.next() {
            Some("fn" | "trait") => true,
            Some("extern") => after.any(|word| word == "fn"),
            _ => false,
        };
        whole && !declares
    })
}

fn has_proof(lines: &[Line], index: usize) -> bool {
    let speaks = |line: &Line| line.comment.contains("SAFETY:");
    if speaks(&lines[index]) {
        return true;
    }
    let mut code_lines = 0;
    for line in lines[..index].iter().rev() {
        if speaks(line) {
            return true;
        }
        let code = line.code.trim();
        if code.is_empty() && line.comment.is_empty() {
            return false; // a blank line ends the neighbourhood
        }
        code_lines += usize::from(!code.is_empty() && !code.starts_with("#["));
        if code_lines > REACH {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(path: &str, source: &str, violations: usize) {
        let found = check(path, source);
        assert_eq!(found.len(), violations, "{source}\n{found:#?}");
    }

    const KERNEL: &str = "crates/kernels/src/lib.rs";

    #[test]
    fn unsafe_outside_kernels_is_caught() {
        expect(
            "crates/model/src/lib.rs",
            "fn f() { unsafe { g() } } // SAFETY: no\n",
            1,
        );
        expect("xtask/src/main.rs", "unsafe impl Send for X {}\n", 1);
        expect("crates/kernels_of_mine/src/lib.rs", "unsafe fn f() {}\n", 1);
        expect(
            "crates/model/src/lib.rs",
            "// unsafe\nlet x = \"unsafe\"; /* unsafe */ let unsafe_ = 1;\n",
            0,
        );
    }

    #[test]
    fn allowing_unsafe_outside_kernels_is_caught() {
        expect("crates/model/src/lib.rs", "#![allow(unsafe_code)]\n", 1);
        expect(
            "crates/model/src/lib.rs",
            "#[expect(unsafe_code, reason = \"x\")]\n",
            1,
        );
        expect("crates/model/src/lib.rs", "#![forbid(unsafe_code)]\n", 0);
        expect(KERNEL, "#![allow(unsafe_code)]\n", 0);
    }

    #[test]
    fn a_block_without_its_proof_is_caught() {
        expect(KERNEL, "fn f() {\n    unsafe { g() }\n}\n", 1);
        expect(
            KERNEL,
            "// SAFETY: far\n\nfn f() {\n    unsafe { g() }\n}\n",
            1,
        );
        expect(
            KERNEL,
            "// SAFETY: a\nlet a = 1;\nlet b = 1;\nlet c = 1;\nlet d = 1;\nunsafe { g() }\n",
            1,
        );
        expect(KERNEL, "unsafe impl Send for X {}\n", 1);
        expect(KERNEL, "unsafe extern \"C\" {\n}\n", 1);
        expect(KERNEL, "#[unsafe(no_mangle)]\n", 1);
    }

    #[test]
    fn a_block_with_its_proof_passes() {
        expect(
            KERNEL,
            "// SAFETY: i < len,\n// because.\nunsafe { g() }\n",
            0,
        );
        expect(
            KERNEL,
            "// SAFETY: i < len\nlet x =\n    unsafe { g() };\n",
            0,
        );
        expect(
            KERNEL,
            "// SAFETY: no state\n#[rustfmt::skip]\nunsafe impl Send for X {}\n",
            0,
        );
        expect(KERNEL, "unsafe { g() } // SAFETY: checked above\n", 0);
    }

    #[test]
    fn declarations_need_no_proof() {
        expect(
            KERNEL,
            "pub unsafe fn f() {}\ntype F = unsafe fn(u32);\ntype G = unsafe extern \"C\" fn(u32);\nunsafe trait T {}\n",
            0,
        );
    }
}
