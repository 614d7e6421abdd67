//! The fences that `tidy` finds by reading lines: where `unsafe` may stand, that a barrier names its partner, and
//! which way data flows in the host side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

use crate::series::patch::Patch;

/// The crate root whose `#[export]` entries may be unsafe.
const ENTRIES: &str = "mm/lazy_tlb/lazy_tlb.rs";
/// How far above a barrier its comment may begin.
const COMMENT_REACH: usize = 12;

/// One file as it will be, as far as it is ours.
pub struct Text {
    pub target: PathBuf,
    place: String,
    /// Line number there, the text, and whether we bring the line (a hunk has others as well).
    lines: Vec<(usize, String, bool)>,
}

impl Text {
    pub fn of_file(path: &Path, text: &str) -> Self {
        let line = |(index, line): (usize, &str)| (index + 1, line.to_owned(), true);
        Text {
            target: path.to_owned(),
            place: path.display().to_string(),
            lines: text.lines().enumerate().map(line).collect(),
        }
    }

    /// One for each file that the patch has hunks for.
    pub fn of_patch(patch: &Patch) -> Vec<Self> {
        let mut texts: Vec<Text> = Vec::new();
        let text = patch.text();
        let above = text.lines().count() - patch.diff.lines().count();
        for (index, line) in patch.diff.lines().enumerate() {
            if let Some(rest) = line.strip_prefix("diff --git a/") {
                let target = rest.split(" b/").next().unwrap_or(rest).into();
                let place = format!("patches/{}", patch.entry.file);
                texts.push(Text {
                    target,
                    place,
                    lines: Vec::new(),
                });
            } else if let Some(text) = texts.last_mut() {
                let header = line.starts_with("+++ ") || line.starts_with("--- ");
                let number = above + index + 1;
                match line.chars().next() {
                    Some('+') if !header => text.lines.push((number, line[1..].into(), true)),
                    Some(' ') => text.lines.push((number, line[1..].into(), false)),
                    _ => (),
                }
            }
        }
        texts
    }

    fn is_rust(&self) -> bool {
        self.target.extension().is_some_and(|e| e == "rs")
    }
}

/// A line without its `//` comment; strings with `//` in them do not occur beside code here.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

static UNSAFE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\bunsafe\b|\bbindings::").expect("valid"));

pub fn unsafe_outside_rooms(text: &Text) -> Vec<String> {
    if !text.is_rust() || text.target.starts_with("rust/") {
        return Vec::new();
    }
    let has_entries = text.target == Path::new(ENTRIES);
    let mut in_entry = false;
    let mut messages = Vec::new();
    for (number, line, ours) in &text.lines {
        if has_entries && line.trim() == "#[export]" {
            in_entry = true;
        }
        let import = has_entries && line.starts_with("use ");
        if *ours && !in_entry && !import && UNSAFE.is_match(code(line)) {
            messages.push(format!(
                "{}:{number}: unsafe or bindings:: outside rust/ and the entries of {ENTRIES}",
                text.place
            ));
        }
        // rustfmt puts the end of a function at the start of a line.
        if line == "}" {
            in_entry = false;
        }
    }
    messages
}

static BARRIER: LazyLock<Regex> = LazyLock::new(|| {
    let c = r"\b(smp_mb|smp_rmb|smp_wmb|smp_mb__\w+|smp_store_release|smp_load_acquire|\w+_acquire|\w+_release)\(";
    let rust = r"[(,]\s*(ordering::)?(Acquire|Release|Full)\s*[),]|\bsmp_(mb|rmb|wmb)\(";
    Regex::new(&format!("{c}|{rust}")).expect("valid")
});

pub fn unpaired_barriers(text: &Text) -> Vec<String> {
    let source = ["rs", "c", "h", "S"];
    if !text
        .target
        .extension()
        .is_some_and(|e| source.iter().any(|s| e == *s))
        || text.target.starts_with("tools")
    {
        return Vec::new();
    }
    let mut messages = Vec::new();
    for (index, (number, line, ours)) in text.lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let comment = ["*", "/*", "//", "#define"]
            .iter()
            .any(|start| trimmed.starts_with(start));
        if !ours || comment || !BARRIER.is_match(code(line)) {
            continue;
        }
        let from = index.saturating_sub(COMMENT_REACH);
        let above = text.lines[from..=index]
            .iter()
            .map(|(_, line, _)| line.as_str());
        if !above.collect::<Vec<_>>().join(" ").contains("Pairs with") {
            messages.push(format!(
                "{}:{number}: no \"Pairs with\" above `{trimmed}`",
                text.place
            ));
        }
    }
    messages
}

/// The rooms of xtask/src; a file imports only from its own and from those before it.
const ROOMS: [&str; 9] = [
    "host", "results", "series", "kernel", "guest", "distro", "bench", "checks", "report",
];

static IMPORT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\bcrate::(\w+)::\{?([\w, ]+)").expect("valid"));

/// Whether a file comes to another by imports.
fn reaches(all: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        if file == to {
            return true;
        }
        if seen.insert(file) {
            next.extend(all.get(file).into_iter().flatten().map(String::as_str));
        }
    }
    false
}

/// Imports of a later room, or in a circle, in files `room/name.rs`.
pub fn upward_imports(files: &[(PathBuf, String)]) -> Vec<String> {
    let name = |path: &Path| path.with_extension("").to_string_lossy().into_owned();
    let imports = |text: &str| -> BTreeSet<String> {
        // Tests may look anywhere.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let found = IMPORT.captures_iter(text);
        let names = found.flat_map(|found| {
            let (room, files) = (found[1].to_owned(), found[2].to_owned());
            let files: Vec<String> = files
                .split(", ")
                .map(|file| format!("{room}/{file}"))
                .collect();
            files
        });
        names.collect()
    };
    let all: BTreeMap<String, BTreeSet<String>> = files
        .iter()
        .map(|(path, text)| (name(path), imports(text)))
        .collect();
    let place = |name: &str| {
        ROOMS
            .iter()
            .position(|room| name.split('/').next() == Some(room))
    };
    let mut messages = Vec::new();
    for (file, imports) in &all {
        for other in imports {
            let upward = place(file).is_some() && place(other) > place(file);
            let circle = file != other && reaches(&all, other, file);
            if upward || circle {
                messages.push(format!(
                    "xtask/src/{file}.rs:1: imports {other}, against the flow"
                ));
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, text: &str) -> Text {
        Text::of_file(Path::new(path), text)
    }

    #[test]
    fn unsafe_is_found_outside_its_rooms() {
        let bad = "//! Ours.\nfn f() {\n    unsafe { g() }\n}\n";
        let messages = unsafe_outside_rooms(&text("mm/lazy_tlb/policy.rs", bad));
        assert_eq!(messages.len(), 1);
        assert!(messages[0].starts_with("mm/lazy_tlb/policy.rs:3: "));
        assert!(unsafe_outside_rooms(&text("rust/kernel/smp.rs", bad)).is_empty());
        let comment = "// unsafe is a word\nlet x = 1; // bindings::x\n";
        assert!(unsafe_outside_rooms(&text("mm/lazy_tlb/policy.rs", comment)).is_empty());
        let bindings = "fn f(mm: *mut bindings::mm_struct) {}\n";
        assert_eq!(
            unsafe_outside_rooms(&text("mm/lazy_tlb/policy.rs", bindings)).len(),
            1
        );
    }

    #[test]
    fn only_the_exported_entries_of_the_root_may_be_unsafe() {
        let entry = "#[export]\npub unsafe extern \"C\" fn e(mm: *mut bindings::mm_struct) {\n    \
                     unsafe { f(mm) }\n}\n";
        assert!(unsafe_outside_rooms(&text(ENTRIES, entry)).is_empty());
        let after = format!("{entry}fn h() {{\n    unsafe {{ g() }}\n}}\n");
        assert_eq!(unsafe_outside_rooms(&text(ENTRIES, &after)).len(), 1);
    }

    #[test]
    fn a_barrier_without_a_partner_is_found() {
        let c = |comment: &str| format!("{comment}\n\tsmp_store_release(&p, 1);\n");
        assert_eq!(
            unpaired_barriers(&text("kernel/a.c", &c("/* orders */"))).len(),
            1
        );
        assert!(unpaired_barriers(&text("kernel/a.c", &c("/* Pairs with b() */"))).is_empty());
        let rust = |comment: &str| format!("{comment}\nlet x = slot.load(Acquire);\n");
        assert_eq!(unpaired_barriers(&text("mm/a.rs", &rust(""))).len(), 1);
        assert!(unpaired_barriers(&text("mm/a.rs", &rust("// Pairs with f's store."))).is_empty());
        assert!(unpaired_barriers(&text("mm/a.rs", "// smp_mb() is not here\n")).is_empty());
        let far = format!(
            "/* Pairs with b() */\n{}smp_mb();\n",
            "x();\n".repeat(COMMENT_REACH)
        );
        assert_eq!(unpaired_barriers(&text("kernel/a.c", &far)).len(), 1);
    }

    #[test]
    fn a_barrier_in_a_hunk_is_found_with_its_line_in_the_patch() {
        let entry = crate::series::patch::Entry::new("0001-a.patch");
        let patch = "Subject: a\n\nb\n---\ndiff --git a/k.c b/k.c\n--- a/k.c\n+++ b/k.c\n\
                     @@ -1,2 +1,3 @@\n \tsmp_mb();\n+\tsmp_wmb();\n \tx();\n";
        let texts = Text::of_patch(&Patch::parse(crate::series::patch::DIR, entry, patch).unwrap());
        let messages: Vec<_> = texts.iter().flat_map(unpaired_barriers).collect();
        assert_eq!(
            messages.len(),
            1,
            "the context line is not ours: {messages:?}"
        );
        assert!(
            messages[0].starts_with("patches/0001-a.patch:10: "),
            "{messages:?}"
        );
    }

    #[test]
    fn imports_go_one_way() {
        let found = |name: &str, text: &str| {
            let other = "use crate::host::sh;\nuse crate::guest::ktap::x;\n";
            let files = [("guest/console.rs", other), (name, text)];
            upward_imports(&files.map(|(name, text)| (name.into(), text.into())))
        };
        assert!(found("guest/ktap.rs", "use crate::host::{arch, sh};").is_empty());
        assert_eq!(found("guest/ktap.rs", "use crate::bench::run;").len(), 1);
        let circle = found("guest/ktap.rs", "use crate::guest::console::Report;");
        assert_eq!(circle.len(), 2, "{circle:?}");
        assert!(found("guest/ktap.rs", "#[cfg(test)]\nuse crate::bench::run;").is_empty());
        let three = ["ab", "bc", "ca"].map(|pair| {
            let (file, other) = pair.split_at(1);
            let text = format!("use crate::guest::{other}::x;\n");
            (PathBuf::from(format!("guest/{file}.rs")), text)
        });
        assert_eq!(upward_imports(&three).len(), 3);
    }
}
