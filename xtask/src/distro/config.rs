//! The configuration of Debian's own kernel package, cut to what a guest needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;
use serde::Deserialize;

use crate::host::apt::Suites;
use crate::host::arch::Arch;
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::build;
use crate::kernel::workshop::{Project, Workshop};
use crate::series::base::SUITES;

/// What to take, below configs/.
const RULES: &str = "distro/debian.toml";
/// The variant that the lines are for.
pub const VARIANT: &str = "distro";

/// What is taken of Debian's configuration.
#[derive(Deserialize)]
struct Rules {
    kconfig: Vec<String>,
    symbols: Vec<String>,
    leave: Vec<Leave>,
    arch: BTreeMap<String, ForArch>,
}

/// Symbols that are not taken.
#[derive(Deserialize)]
struct Leave {
    why: String,
    symbols: Vec<String>,
}

/// Where Debian's configuration of an architecture is, and what is taken of it besides.
#[derive(Deserialize)]
struct ForArch {
    package: String,
    file: String,
    #[serde(default)]
    kconfig: Vec<String>,
    #[serde(default)]
    symbols: Vec<String>,
}

/// A choice that was taken: where it is made, the symbol, its value.
type Taken = Vec<(String, String, String)>;

/// `config NAME` with a text for people: what can be chosen in a Kconfig file, in its order.
fn choices(kconfig: &str) -> Vec<&str> {
    static HEAD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^\s*(?:menu)?config\s+(\w+)\s*$").expect("valid"));
    static PROMPT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"^\s+(?:(?:bool|tristate|int|hex|string)\s+["']|prompt\s)"#).expect("valid")
    });
    let (mut found, mut open) = (Vec::new(), None);
    for line in kconfig.lines() {
        if let Some(head) = HEAD.captures(line) {
            open = head.get(1).map(|name| name.as_str());
        } else if PROMPT.is_match(line) {
            found.extend(open.take());
        }
    }
    found
}

impl Rules {
    fn read(repo: &Path) -> Result<Self> {
        let path = repo.join("configs").join(RULES);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    fn of(&self, arch: &str) -> Result<&ForArch> {
        self.arch.get(arch).ok_or_else(|| {
            let known: Vec<&str> = self.arch.keys().map(String::as_str).collect();
            fail(
                Exit::Usage,
                format!("no Debian configuration is named for {arch}"),
                format!("add it to configs/{RULES}; it has {}", known.join(", ")),
            )
        })
    }

    /// The choices that are taken, in the order of the files.
    fn take(&self, own: &ForArch, tree: &Path, debian: &BTreeMap<&str, &str>) -> Result<Taken> {
        let left: BTreeSet<&str> = self
            .leave
            .iter()
            .flat_map(|leave| leave.symbols.iter().map(String::as_str))
            .collect();
        let (mut taken, mut seen) = (Taken::new(), BTreeSet::new());
        let mut take = |from: &str, symbol: &str| {
            let Some(value) = debian.get(symbol) else {
                return;
            };
            if !seen.insert(symbol.to_owned()) {
                return;
            }
            // What is left out is switched off, lest it be on by default.
            let value = match *value {
                "m" | "y" if left.contains(symbol) => "n",
                _ if left.contains(symbol) => return,
                "m" => "y",
                value => value,
            };
            taken.push((from.to_owned(), symbol.to_owned(), value.to_owned()));
        };
        for file in self.kconfig.iter().chain(&own.kconfig) {
            let path = tree.join(file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            choices(&text).iter().for_each(|symbol| take(file, symbol));
        }
        for symbol in self.symbols.iter().chain(&own.symbols) {
            take("by name", symbol);
        }
        Ok(taken)
    }

    /// The symbols that are left out and that Debian has on, with the reason.
    fn left<'a>(&'a self, debian: &'a BTreeMap<&str, &str>) -> Vec<(&'a str, Vec<String>)> {
        let on = |symbol: &String| {
            let value = debian.get(symbol.as_str())?;
            (*value != "n").then(|| line(symbol, value))
        };
        let leave = self.leave.iter();
        leave
            .map(|leave| {
                (
                    leave.why.as_str(),
                    leave.symbols.iter().filter_map(on).collect(),
                )
            })
            .filter(|(_, lines): &(&str, Vec<String>)| !lines.is_empty())
            .collect()
    }
}

/// A line of a configuration.
fn line(symbol: &str, value: &str) -> String {
    match value {
        "n" => format!("# CONFIG_{symbol} is not set"),
        _ => format!("CONFIG_{symbol}={value}"),
    }
}

/// The fragment, with the file above the choices that are made in it.
fn fragment(source: &str, taken: &Taken) -> String {
    let mut text = format!(
        "# Written by `cargo xtask distro --config`, see configs/{RULES}, from {source}.\n"
    );
    let mut last = "";
    for (from, symbol, value) in taken {
        if from != last {
            text.push_str(&format!("\n# {from}\n"));
            last = from;
        }
        text.push_str(&line(symbol, value));
        text.push('\n');
    }
    text
}

/// Debian's configuration: its name, and itself.
fn of_debian(project: &Project, shop: &Workshop<'_>, own: &ForArch) -> Result<(String, String)> {
    let mut numbers = shop.base.version.splitn(3, '.');
    let short = [numbers.next(), numbers.next()].map(Option::unwrap_or_default);
    let package = own.package.replace("{version}", &short.join("."));
    for suites in SUITES {
        let apt = Suites::open(&project.cache, suites)?;
        let Some(version) = apt.newest(&package) else {
            continue;
        };
        let name = format!("{package}_{version}");
        let dir = project.cache.path("dl").join(&name);
        if !dir.exists() {
            apt.download(&["download", &format!("{package}={version}")], &dir)?;
        }
        let debs = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
        let deb = debs
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("no package in {}", dir.display()))?;
        let into = tempfile::tempdir()?;
        sh::capture(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(&deb)
                .arg(into.path()),
        )?;
        let file = format!("usr/src/{package}/{}", own.file);
        let text = sh::capture(Command::new("xz").arg("-dc").arg(into.path().join(&file)))?;
        return Ok((format!("{} of {package} {version}", own.file), text));
    }
    Err(fail(
        Exit::Environment,
        format!("{package} is in none of the suites"),
        "the base tree's version must be one that Debian's archive still has",
    ))
}

/// Folders, two deep, and how many symbols that Debian has on there are not on in `config`.
fn elsewhere(tree: &Path, debian: &BTreeMap<&str, &str>, config: &str) -> BTreeMap<String, usize> {
    let ours = build::values(config);
    let mut folders: BTreeMap<&str, String> = BTreeMap::new();
    let files = walkdir::WalkDir::new(tree).sort_by_file_name().into_iter();
    let mut texts = Vec::new();
    for entry in files.flatten() {
        let name = entry.file_name().to_string_lossy();
        let inner = entry.path().strip_prefix(tree).unwrap_or(entry.path());
        let foreign = inner.starts_with("tools") || inner.starts_with("scripts");
        if foreign || !name.starts_with("Kconfig") || !entry.file_type().is_file() {
            continue;
        }
        let dir = inner.parent().unwrap_or(inner).components().take(2);
        let dir = dir.collect::<std::path::PathBuf>().display().to_string();
        texts.push((dir, fs::read_to_string(entry.path()).unwrap_or_default()));
    }
    for (dir, text) in &texts {
        for symbol in choices(text) {
            folders.entry(symbol).or_insert_with(|| dir.clone());
        }
    }
    let on = |values: &BTreeMap<&str, &str>, symbol: &str| {
        matches!(values.get(symbol), Some(&"y" | &"m"))
    };
    let mut counts = BTreeMap::new();
    for (symbol, dir) in folders {
        if on(debian, symbol) && !on(&ours, symbol) {
            *counts.entry(dir).or_default() += 1;
        }
    }
    counts
}

/// Writes the fragment of an architecture, and what is left out.
pub fn write(project: &Project, arch: &'static Arch) -> Result<()> {
    let rules = Rules::read(&project.repo)?;
    let own = rules.of(arch.name)?;
    let shop = project.workshop(&[], &[arch])?;
    let (source, text) = of_debian(project, &shop, own)?;
    let debian = build::values(&text);
    let mut taken = rules.take(own, &shop.tree, &debian)?;

    let out = project.cache.path(format!("distro/config-{}", arch.name));
    let build = shop.build_own(arch, out.clone())?;
    let mut tiny = build.make();
    sh::capture(tiny.args(["-s", "tinyconfig"]))?;
    let tiny = fs::read_to_string(out.join(".config"))?;
    let configs = project.repo.join("configs");
    let mut below = String::new();
    for name in ["common", arch.name, &format!("variants/{VARIANT}")] {
        below.push_str(&fs::read_to_string(configs.join(format!("{name}.config")))?);
    }
    // What kconfig does not take goes, until it takes all: a line may need one that goes.
    let mut refused = Vec::new();
    let config = loop {
        let whole = out.join("fragment.config");
        sh::write_whole(
            &whole,
            (below.clone() + &fragment(&source, &taken)).as_bytes(),
        )?;
        let (config, said) = build.configure_own(&tiny, &whole)?;
        let symbol = |line: &String| {
            let name = line.strip_prefix("CONFIG_")?.split_once('=')?.0;
            Some(name.to_owned())
        };
        let names: BTreeSet<String> = said.iter().filter_map(symbol).collect();
        let before = taken.len();
        taken.retain(|(_, symbol, _)| !names.contains(symbol));
        if taken.len() == before {
            break config;
        }
        refused.extend(said);
    };
    sh::write_whole(
        &configs.join(format!("{}-{VARIANT}.config", arch.name)),
        fragment(&source, &taken).as_bytes(),
    )?;

    let mut left = format!(
        "What {source} has and {}-{VARIANT}.config does not.\n",
        arch.name
    );
    for (why, lines) in rules.left(&debian) {
        left.push_str(&format!("\nLeft out: {why}\n"));
        lines
            .iter()
            .for_each(|l| left.push_str(&format!("  {l}\n")));
    }
    left.push_str(
        "\nNot taken by kconfig, because of something that was left out, or of another compiler\n",
    );
    refused.sort();
    refused
        .iter()
        .for_each(|l| left.push_str(&format!("  {l}\n")));
    left.push_str("\nChoices that Debian has on and these kernels do not, by folder\n");
    for (dir, count) in elsewhere(&shop.tree, &debian, &config) {
        left.push_str(&format!("  {count:5} {dir}\n"));
    }
    let path = configs.join(format!("distro/left-out-{}.txt", arch.name));
    sh::write_whole(&path, left.as_bytes())?;
    println!(
        "{} choices of Debian's are taken; what is left out is in {}",
        taken.len(),
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KCONFIG: &str = "config A\n\tbool \"a\"\n\tdefault y\nconfig HIDDEN\n\tbool\n\
        menuconfig B\n\tprompt \"b\" if EXPERT\n\tbool\n\
        choice\n\tprompt \"which\"\nconfig C\n\tbool \"c\"\nendchoice\n";

    fn rules() -> Rules {
        let text = "kconfig = [\"mm/Kconfig\"]\nsymbols = [\"EXT4_FS\", \"GONE\"]\n\
            [[leave]]\nwhy = \"no room\"\nsymbols = [\"B\", \"GONE\"]\n\
            [arch.x86_64]\npackage = \"p-{version}\"\nfile = \"f\"\n";
        toml::from_str(text).unwrap()
    }

    #[test]
    fn choices_are_what_people_can_set() {
        assert_eq!(choices(KCONFIG), ["A", "B", "C"]);
    }

    #[test]
    fn a_module_is_built_in_and_what_is_left_out_is_off() {
        let dir = tempfile::tempdir().unwrap();
        sh::write_whole(&dir.path().join("mm/Kconfig"), KCONFIG.as_bytes()).unwrap();
        let debian = build::values(
            "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_HIDDEN=y\nCONFIG_EXT4_FS=m\n",
        );
        let rules = rules();
        let own = rules.of("x86_64").unwrap();
        let taken = rules.take(own, dir.path(), &debian).unwrap();
        assert_eq!(
            fragment("f of p", &taken)
                .lines()
                .skip(2)
                .collect::<Vec<_>>(),
            [
                "# mm/Kconfig",
                "CONFIG_A=y",
                "# CONFIG_B is not set",
                "# CONFIG_C is not set",
                "",
                "# by name",
                "CONFIG_EXT4_FS=y"
            ]
        );
        assert_eq!(
            rules.left(&debian),
            [("no room", vec!["CONFIG_B=y".to_owned()])]
        );
    }

    #[test]
    fn what_is_missing_is_counted_by_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        sh::write_whole(&path("drivers/net/x/Kconfig"), KCONFIG.as_bytes()).unwrap();
        sh::write_whole(&path("tools/Kconfig"), b"config T\n\tbool \"t\"\n").unwrap();
        let debian = build::values("CONFIG_A=y\nCONFIG_B=m\nCONFIG_T=y\n# CONFIG_C is not set\n");
        let counts = elsewhere(dir.path(), &debian, "CONFIG_A=y\n");
        assert_eq!(counts, BTreeMap::from([("drivers/net".to_owned(), 1)]));
    }

    #[test]
    fn the_rules_in_the_repository_can_be_read() {
        let rules = Rules::read(&crate::kernel::workshop::repository()).unwrap();
        assert!(rules.of("x86_64").is_ok());
        assert!(rules.of("vax").is_err());
    }
}
