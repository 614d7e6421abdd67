//! What safe Rust cannot do with the interface of the series: each file in `tests/refused/` is compiled
//! against the `kernel` crate of a build, by the command that kbuild had for the policies. The compiler
//! must refuse one line, and nothing else, and take the file with the other line in its place:
//!
//! ```text
//!     send(cpu); //~ E0277 | send(cpu.nudge());
//! ```
//!
//! The kernel's own doctests cannot do this: they are saved and not compiled when rustdoc looks at them,
//! so `compile_fail` means nothing there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::results::case::Case;

const DIR: &str = "xtask/tests/refused";
const COMMAND: &str = "mm/lazy_tlb/.lazy_tlb.o.cmd";
const SOURCE: &str = "mm/lazy_tlb/lazy_tlb.rs";
const OUT: &str = "xtask-refused";
const MARK: &str = " //~ ";

/// An error's code or a lint's name, and its line.
type Said = BTreeSet<(String, usize)>;

/// One case for each file; `out` is kbuild's.
pub fn cases(repo: &Path, out: &Path) -> Result<Vec<Case>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(repo.join(DIR))
        .with_context(|| format!("reading {DIR}"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "nothing is in {DIR}");
    let saved = std::fs::read_to_string(out.join(COMMAND))
        .with_context(|| format!("reading {COMMAND} of a build"))?;
    let command = command(&saved).with_context(|| format!("{COMMAND} has no such command"))?;
    std::fs::create_dir_all(out.join(OUT))?;
    let of = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(path)?;
        Ok(Case::of(&*name, refused(out, &command, &name, &text)))
    };
    files.iter().map(of).collect()
}

/// kbuild's words for rustc, without those that name the source and what is made of it.
fn command(saved: &str) -> Option<String> {
    let (_, command) = saved.lines().next()?.split_once(" := ")?;
    let (command, _) = command.split_once(" ; ")?;
    let mut words: Vec<&str> = command.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "--out-dir")?;
    words[at + 1] = OUT;
    words.retain(|word| !word.starts_with("--emit=") && !word.ends_with(SOURCE));
    Some(words.join(" "))
}

/// The two files that a text stands for, and what must be said of the first one.
fn both(text: &str) -> Result<(String, String, Said)> {
    let (mut bad, mut good, mut wanted) = (String::new(), String::new(), Said::new());
    for (index, line) in text.lines().enumerate() {
        let (refused, taken) = match line.split_once(MARK) {
            None => (line, line),
            Some((refused, rest)) => {
                let (code, taken) = rest.split_once(" | ").unwrap_or((rest, ""));
                wanted.insert((code.trim().into(), index + 1));
                (refused, taken)
            }
        };
        bad += &format!("{refused}\n");
        good += &format!("{taken}\n");
    }
    ensure!(wanted.len() == 1, "{} lines have a mark", wanted.len());
    Ok((bad, good, wanted))
}

fn refused(out: &Path, command: &str, name: &str, text: &str) -> Result<()> {
    let (bad, good, wanted) = both(text)?;
    let taken = format!("{name}_taken");
    expect(out, command, &taken, &good, &Said::new()).context("with the other line")?;
    expect(out, command, name, &bad, &wanted)
}

fn expect(out: &Path, command: &str, name: &str, text: &str, wanted: &Said) -> Result<()> {
    // A lint is no error.
    let compiles = !wanted.iter().any(|(code, _)| code.starts_with('E'));
    let source = format!("{OUT}/{name}.rs");
    std::fs::write(out.join(&source), text)?;
    let line = format!("{command} --emit=metadata -Amissing_docs --error-format=json {source}");
    let mut shell = Command::new("sh");
    shell.current_dir(out).env("RUSTC_BOOTSTRAP", "1");
    let output = shell.args(["-c", &line]).output()?;
    let (found, shown) = said(&String::from_utf8_lossy(&output.stderr));
    ensure!(
        found == *wanted && output.status.success() == compiles,
        "wanted {wanted:?}, found {found:?}, {}\n{shown}",
        output.status
    );
    Ok(())
}

/// What the compiler said in JSON, and the same for people.
fn said(text: &str) -> (Said, String) {
    let (mut found, mut shown) = (Said::new(), String::new());
    for line in text.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            shown += &format!("{line}\n");
            continue;
        };
        shown += message["rendered"].as_str().unwrap_or_default();
        let spans = message["spans"].as_array().into_iter().flatten();
        let primary = spans.filter(|span| span["is_primary"] == true);
        let Some(code) = message["code"]["code"].as_str() else {
            continue;
        };
        found.extend(primary.map(|span| {
            let line = span["line_start"].as_u64().unwrap_or_default();
            (code.to_owned(), line as usize)
        }));
    }
    (found, shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stands_for_two() {
        let (bad, good, wanted) = both("a\n  b(); //~ E0382 | c();\nd\n").unwrap();
        assert_eq!((&*bad, &*good), ("a\n  b();\nd\n", "a\nc();\nd\n"));
        assert_eq!(wanted, Said::from([("E0382".into(), 2)]));
        assert_eq!(both("b(); //~ E0603\n").unwrap().1, "\n");
        assert!(both("a\n").is_err());
    }

    #[test]
    fn kbuilds_command_is_used_for_another_file() {
        let saved = "savedcmd_x := A=1 rustc -Zx='a,b' --out-dir mm/lazy_tlb/ --emit=obj=x.o \
                     /tree/mm/lazy_tlb/lazy_tlb.rs   ; objtool x.o\nsource := y\n";
        assert_eq!(
            command(saved).as_deref(),
            Some("A=1 rustc -Zx='a,b' --out-dir xtask-refused")
        );
        assert!(command("savedcmd_x := gcc x.c\n").is_none());
    }

    #[test]
    fn errors_and_lints_are_found_with_their_lines() {
        let text = r#"{"code":{"code":"E0382"},"rendered":"no","spans":[{"is_primary":true,"line_start":7}]}
{"code":null,"rendered":"aborting","spans":[]}
sh: rustc: not found"#;
        let (found, shown) = said(text);
        assert_eq!(found, Said::from([("E0382".into(), 7)]));
        assert!(shown.contains("noaborting") && shown.contains("not found"));
    }
}
