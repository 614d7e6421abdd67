//! The command line as a person sees it: help, exit codes, remedies.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const COMMANDS: [&str; 15] = [
    "setup", "tree", "import", "apply", "build", "boot", "run", "test", "series", "tidy", "check",
    "distro", "lab", "report", "help",
];

/// Runs xtask with a cache of its own and nothing from the surroundings.
fn xtask(cache: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(args)
        .env("XDG_CACHE_HOME", cache)
        .env_remove("LINUX")
        .env_remove("ARCH")
        .env_remove("VARIANT")
        .output()
        .unwrap()
}

fn exit_and_words(args: &[&str]) -> (i32, String) {
    let cache = tempfile::tempdir().unwrap();
    let output = xtask(cache.path(), args);
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8(words).unwrap();
    (output.status.code().unwrap(), words)
}

#[test]
fn every_command_helps_with_a_sentence_and_an_example() {
    for command in COMMANDS.iter().filter(|command| **command != "help") {
        let (exit, words) = exit_and_words(&[command, "--help"]);
        assert_eq!(exit, 0, "{command}");
        assert!(words.contains("Example: cargo xtask"), "{command}: {words}");
    }
    let benches = ["exit", "ipis", "kernel", "lines", "perf"].map(|name| ("bench", name));
    let checks = ["bisect", "drift", "lint", "litmus", "mutants"];
    let checks = checks.map(|name| ("check", name));
    for (command, name) in benches.into_iter().chain(checks) {
        let (exit, words) = exit_and_words(&[command, name, "--help"]);
        assert_eq!(exit, 0, "{name}");
        let example = format!("Example: cargo xtask {command} {name}");
        assert!(words.contains(&example), "{words}");
    }
    let (exit, words) = exit_and_words(&["--help"]);
    assert_eq!(exit, 0);
    assert!(
        words.contains("Exit codes:") && words.contains("no test ran"),
        "{words}"
    );
    for command in COMMANDS {
        assert!(words.contains(command), "{command}");
    }
}

#[test]
fn wrong_usage_is_2() {
    let cases: [&[&str]; 16] = [
        &["lab"],
        &["lab", "--config", "/nonexistent/config"],
        &["lab", "--import", "/dev/null"],
        &["no-such-command"],
        &["tree"],
        &["apply"],
        &["build", "--arch", "vax"],
        &["test", "--arch", "vax"],
        &["setup", "--arch", "vax"],
        &["test", "--stage", "none"],
        &["test", "--variant", "none"],
        &["boot", "--init", "/nonexistent/init"],
        &["check", "mutants", "--arch", "vax"],
        &["check", "bisect", "--patch", "3..2"],
        &["check", "bisect", "--patch", "999"],
        &["check", "mutants", "--only", "none"],
    ];
    for args in cases {
        let (exit, words) = exit_and_words(args);
        assert_eq!(exit, 2, "{args:?}: {words}");
    }
}

#[test]
fn mutants_are_listed_without_a_tree() {
    let (exit, words) = exit_and_words(&["check", "mutants", "--list", "--arch", "x86_64"]);
    assert_eq!(exit, 0, "{words}");
    assert!(words.contains("(x86_64, shootdown)"), "{words}");
    let (exit, words) = exit_and_words(&[
        "check",
        "mutants",
        "--arch",
        "s390",
        "--only",
        "nudge-missing",
    ]);
    assert_eq!(exit, 8, "{words}");
}

#[test]
fn another_kernel_is_4() {
    let dir = tempfile::tempdir().unwrap();
    let makefile = "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 30\nEXTRAVERSION =\n";
    fs::write(dir.path().join("Makefile"), makefile).unwrap();
    let linux = dir.path().to_str().unwrap();
    let (exit, words) = exit_and_words(&["apply", "--linux", linux]);
    assert_eq!(exit, 4, "{words}");
    assert!(
        words.contains("6.12.30") && words.contains("remedy:"),
        "{words}"
    );
    let (exit, _) = exit_and_words(&["tree", "--out", "x", "--linux", "/nonexistent"]);
    assert_eq!(exit, 4);
}

#[test]
fn a_cache_that_cannot_be_made_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let output = xtask(&file, &["tidy"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(9), "{words}");
    assert!(words.contains(&file.display().to_string()), "{words}");
}

#[test]
fn make_says_what_is_missing_where_there_is_neither_cargo_nor_apt() {
    let bin = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let find = |tool: &str| {
        let mut found = std::env::split_paths(&path).map(|dir| dir.join(tool));
        found.find(|program| program.exists()).unwrap()
    };
    for tool in ["awk", "cc", "id"] {
        std::os::unix::fs::symlink(find(tool), bin.path().join(tool)).unwrap();
    }
    let output = Command::new(find("make"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .arg("cargo")
        .env("PATH", bin.path())
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains("install Rust"), "{words}");
}
