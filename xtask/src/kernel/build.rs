//! Configuring and building a kernel out of tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::arch::Arch;
use crate::host::cache::{digest, Cache};
use crate::host::failure::{fail, Exit};
use crate::host::sh::{self, Progress};
use crate::host::tools::Tools;
use crate::series::base::Origin;
use crate::series::patch::Patch;

/// About how many lines kbuild prints in a first build.
const LINES: u64 = 1100;

/// The variants, which are the fragments in `configs/variants/`.
pub fn variants(repo: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(repo.join("configs/variants"))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "config") {
            names.push(
                path.file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    names.sort();
    Ok(names)
}

/// The compiler behind ccache, as a script in the cache. ccache does not look into a file that another one
/// takes in by `.incbin`, such as the kernel in its boot image, and would give back an old one of the same
/// size: those of assembler, and the two of C that do so, are compiled every time.
fn compiler(cache: &Cache, llvm: &str) -> Result<PathBuf> {
    let path = cache.path(format!("cc{llvm}"));
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in\n*.S | */configs.c | */kheaders.c) exec clang{llvm} \"$@\" ;;\nesac\n\
         exec ccache clang{llvm} \"$@\"\n"
    );
    if fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(path);
    }
    let file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempfile_in(cache.dir("")?)?;
    fs::write(file.path(), text)?;
    // Closed, or it could not be run.
    file.into_temp_path().persist(&path)?;
    Ok(path)
}

/// A program that builds something, without what a person's shell or an outer make may set.
pub fn builder(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let make = ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"];
    for name in make.iter().chain(&["LINUX", "ARCH"]) {
        command.env_remove(name);
    }
    command
}

pub struct Source {
    pub tree: PathBuf,
    pub id: String,
    pub origin: Origin,
    pub repo: PathBuf,
}

/// One kernel to build: a tree, an architecture, a variant.
pub struct Build<'a> {
    pub arch: &'static Arch,
    pub variant: &'a str,
    pub out: PathBuf,
    source: Source,
    tools: &'a Tools,
    compiler: PathBuf,
    ccache: PathBuf,
    /// Changes whenever the configuration could; none where that cannot be known.
    inputs: Option<String>,
    /// Symbols that the tree need not have.
    optional: BTreeSet<String>,
}

impl<'a> Build<'a> {
    /// A build in the cache; its name says everything that makes it differ from others.
    pub fn new(
        cache: &Cache,
        tools: &'a Tools,
        source: Source,
        patches: &[&Patch],
        arch: &'static Arch,
        variant: &'a str,
    ) -> Result<Self> {
        let known = variants(&source.repo)?;
        if !known.iter().any(|name| name == variant) {
            return Err(fail(
                Exit::Usage,
                format!("unknown variant {variant}"),
                format!("use one of: {}", known.join(", ")),
            ));
        }
        let versions = [
            &tools.clang_version,
            &tools.llvm,
            &tools.rustc_version,
            &tools.bindgen_version,
        ];
        let versions = digest(&versions.map(|version| version.as_bytes()));
        let name = format!("{}-{variant}-{}-{versions}", arch.name, source.id);
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for patch in patches {
            parts.push(patch.diff.clone().into_bytes());
            for path in patch.entry.adds.iter().filter(|path| is_kconfig(path)) {
                parts.push(fs::read(source.repo.join(path))?);
            }
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        // A person's own tree may change in any way between two builds.
        let inputs = (source.origin != Origin::User).then(|| digest(&parts));
        let out = cache.path("build").join(name);
        Ok(Build {
            variant,
            inputs,
            ..Build::own(cache, tools, source, arch, out)?
        })
    }

    /// A build in a folder of its own, for a person's own configuration.
    pub fn own(
        cache: &Cache,
        tools: &'a Tools,
        source: Source,
        arch: &'static Arch,
        out: PathBuf,
    ) -> Result<Self> {
        tools.check_rustc(arch)?;
        fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
        Ok(Build {
            arch,
            variant: "own",
            out,
            source,
            tools,
            compiler: compiler(cache, &tools.llvm)?,
            ccache: cache.dir("ccache")?,
            inputs: None,
            optional: BTreeSet::new(),
        })
    }

    /// The same of a tree in which some symbols may not be there yet, or be no option.
    pub fn without(self, optional: BTreeSet<String>) -> Self {
        Build { optional, ..self }
    }

    /// `make` with everything that every call needs.
    pub fn make(&self) -> Command {
        let tools = self.tools;
        let mut make = builder("make");
        make.arg("-C").arg(&self.source.tree).args(tools.words());
        let mut set = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            make.arg(sh::assignment(name, value));
        };
        set("O", &self.out);
        set("ARCH", &self.arch.name);
        set("CC", &self.compiler);
        // The same sources give the same image, and ccache finds what it has.
        set("KBUILD_BUILD_TIMESTAMP", &"2026-01-01");
        set("KBUILD_BUILD_USER", &"lazy-tlb");
        set("KBUILD_BUILD_HOST", &"localhost");
        // The libraries of Rust's macros run for a second, and took half a minute to optimise.
        set("HOSTRUSTFLAGS", &"-Copt-level=0");
        make.env("CCACHE_DIR", &self.ccache);
        // What a file includes is taken from the compiler, which lists it anyway, and not from a run of
        // the preprocessor for every file that is not there yet.
        make.env("CCACHE_DEPEND", "1");
        make
    }

    /// Makes `.config`, checks that every line asked for is in it, and returns those that are not
    /// and need not be.
    pub fn configure(&self) -> Result<Vec<String>> {
        let fragments = fragments(&self.source.repo, self.arch.name, self.variant)?;
        let mut texts = Vec::new();
        for path in &fragments {
            let text =
                fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            texts.push(text);
        }
        let parts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
        let key = self
            .inputs
            .as_ref()
            .map(|inputs| format!("{inputs}-{}", digest(&parts)));
        let stamp = self.out.join("xtask-config");
        let config = self.out.join(".config");
        let left_out = || {
            left_out(
                refused(&texts, &fs::read_to_string(&config)?),
                &self.optional,
            )
        };
        if key.is_some() && fs::read_to_string(&stamp).ok() == key && config.exists() {
            return left_out();
        }
        let mut tiny = self.make();
        tiny.args(["-s", "tinyconfig"]);
        self.kconfig(&tiny)?;
        self.merge(&fragments)?;
        let left_out = left_out()?;
        if let Some(key) = key {
            sh::write_whole(&stamp, key.as_bytes())?;
        }
        Ok(left_out)
    }

    /// Makes `.config` from a person's own with a fragment on top, and returns it with the lines of
    /// the fragment that are not in it.
    pub fn configure_own(&self, own: &str, fragment: &Path) -> Result<(String, Vec<String>)> {
        sh::write_whole(&self.out.join(".config"), own.as_bytes())?;
        let text = fs::read_to_string(fragment)
            .with_context(|| format!("reading {}", fragment.display()))?;
        let config = self.merge(&[fragment.to_owned()])?;
        let refused = refused(&[text], &config);
        Ok((config, refused))
    }

    /// Puts fragments on top of `.config` and returns what kconfig makes of it.
    fn merge(&self, fragments: &[PathBuf]) -> Result<String> {
        let config = self.out.join(".config");
        let mut merge = Command::new(self.source.tree.join("scripts/kconfig/merge_config.sh"));
        merge
            .args(["-m", "-O"])
            .arg(&self.out)
            .arg(&config)
            .args(fragments);
        self.kconfig(merge.current_dir(&self.out))?;
        let mut old = self.make();
        old.args(["-s", "olddefconfig"]);
        self.kconfig(&old)?;
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))
    }

    fn kconfig(&self, command: &Command) -> Result<()> {
        let log = self.out.join("config.log");
        let remedy = "look at the log; it is kconfig's own output";
        sh::logged(command, &log, Exit::Build, remedy, |_| ())
    }

    pub fn image(&self) -> Result<PathBuf> {
        self.configure()?;
        let image = self.out.join(self.arch.image);
        let target = Path::new(self.arch.image).file_name().unwrap_or_default();
        self.targets(&[&target.to_string_lossy()])?;
        Ok(image)
    }

    pub fn targets(&self, targets: &[&str]) -> Result<()> {
        let mut make = self.make();
        let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
        make.arg(format!("-j{jobs}")).args(targets);
        let label = format!("kbuild {} {}", self.arch.name, self.variant);
        let mut progress = Progress::counted(&label, LINES);
        let log = self.out.join("build.log");
        let remedy = "the first `error:` in the log says what is wrong";
        sh::logged(&make, &log, Exit::Build, remedy, |line| {
            if is_build_line(line) {
                progress.tick(line.trim());
            }
        })
    }
}

/// The fragments, the later ones winning. Only what an architecture adds to a variant may be
/// missing.
fn fragments(repo: &Path, arch: &str, variant: &str) -> Result<Vec<PathBuf>> {
    let configs = repo.join("configs");
    let mut fragments = vec![
        configs.join("common.config"),
        configs.join(format!("{arch}.config")),
    ];
    add_variant(&configs, arch, variant, &mut fragments);
    if let Some(missing) = fragments.iter().find(|path| !path.exists()) {
        return Err(fail(
            Exit::Build,
            format!("no configuration fragment {}", missing.display()),
            "restore it (`git checkout configs`)",
        ));
    }
    Ok(fragments)
}

/// A variant, after the others that it includes.
fn add_variant(configs: &Path, arch: &str, variant: &str, to: &mut Vec<PathBuf>) {
    let own = configs.join(format!("variants/{variant}.config"));
    let text = fs::read_to_string(&own).unwrap_or_default();
    for other in text.lines().filter_map(included) {
        add_variant(configs, arch, other, to);
    }
    to.push(own);
    let both = configs.join(format!("{arch}-{variant}.config"));
    to.extend(Some(both).filter(|path| path.exists()));
}

/// `#include "test.config"`, a comment to kconfig.
fn included(line: &str) -> Option<&str> {
    line.strip_prefix("#include \"")?.strip_suffix(".config\"")
}

fn is_kconfig(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("Kconfig"))
}

/// `  CC      kernel/fork.o`, and `  RUSTC L rust/core.o`.
fn is_build_line(line: &str) -> bool {
    line.strip_prefix("  ").is_some_and(|rest| {
        let word = rest.split(' ').next().unwrap_or_default();
        word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    })
}

/// `CONFIG_X` and its value; a line that unsets it has the value `n`.
fn assignment(line: &str) -> Option<(&str, &str)> {
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        let name = rest.strip_suffix(" is not set")?;
        return Some((name, "n"));
    }
    line.strip_prefix("CONFIG_")?.split_once('=')
}

/// What a configuration says of each symbol, without `CONFIG_`.
pub fn values(config: &str) -> BTreeMap<&str, &str> {
    config.lines().filter_map(assignment).collect()
}

/// What is left of the refused lines where some symbols are optional: no other may be among them.
fn left_out(refused: Vec<String>, optional: &BTreeSet<String>) -> Result<Vec<String>> {
    let is_optional = |line: &String| {
        let name = line.strip_prefix("CONFIG_").and_then(|l| l.split_once('='));
        name.is_some_and(|(name, _)| optional.contains(name))
    };
    let (left_out, refused): (Vec<_>, Vec<_>) = refused.into_iter().partition(is_optional);
    if refused.is_empty() {
        return Ok(left_out);
    }
    Err(fail(
        Exit::Build,
        format!(
            "kconfig did not take {} of the lines in configs/:\n  {}",
            refused.len(),
            refused.join("\n  ")
        ),
        "a line is refused where its dependencies are off (CONFIG_RUST needs the tools \
         that `cargo xtask setup` installs) or where the series does not bring the symbol",
    ))
}

/// The lines of the fragments, the later ones winning, that a configuration does not have.
fn refused(fragments: &[String], config: &str) -> Vec<String> {
    let result = values(config);
    let wanted: BTreeMap<&str, &str> = fragments
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| assignment(line.trim_end()))
        .collect();
    let differs = |(name, value): &(&&str, &&str)| match result.get(*name) {
        Some(is) => is != *value,
        None => !["n", "\"\""].contains(*value),
    };
    let line = |(name, value): (&&str, &&str)| {
        let got = result.get(name).unwrap_or(&"not there");
        format!("CONFIG_{name}={value} (is {got})")
    };
    wanted.iter().filter(differs).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_kconfig_dropped_are_found() {
        let common = "# a comment\nCONFIG_SMP=y\nCONFIG_RUST=y\nCONFIG_NR_CPUS=8\n".to_owned();
        let variant = "# CONFIG_RUST is not set\nCONFIG_KUNIT=y\n".to_owned();
        let config = "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\n# CONFIG_KUNIT is not set\n";
        assert_eq!(
            refused(&[common, variant], config),
            ["CONFIG_KUNIT=y (is n)", "CONFIG_NR_CPUS=8 (is 64)"]
        );
    }

    #[test]
    fn what_takes_in_another_file_is_never_had_from_ccache() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let script = compiler(&cache, "-19").unwrap();
        assert_eq!(compiler(&cache, "-19").unwrap(), script);
        for name in ["ccache", "clang-19"] {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\"\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let said = |source: &str| {
            let mut command = Command::new(&script);
            command.env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()));
            let output = command.args(["-c", "-o", "x.o", source]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        for direct in [
            "boot/piggy.S",
            "/tree/kernel/configs.c",
            "/tree/kernel/kheaders.c",
        ] {
            assert_eq!(said(direct), format!("clang-19 -c -o x.o {direct}\n"));
        }
        for cached in ["/tree/kernel/fork.c", "/tree.S/mm/mmap.c", "-S"] {
            assert_eq!(
                said(cached),
                format!("ccache clang-19 -c -o x.o {cached}\n")
            );
        }
    }

    #[test]
    fn a_symbol_that_is_not_there_is_off() {
        let off = "# CONFIG_MMU_LAZY_TLB_SHOOTDOWN is not set\n".to_owned();
        assert!(refused(&[off], "CONFIG_SMP=y\n").is_empty());
        assert_eq!(
            refused(&["CONFIG_X=y\n".to_owned()], ""),
            ["CONFIG_X=y (is not there)"]
        );
        assert!(refused(&["CONFIG_KEYS=\"\"\n".to_owned()], "").is_empty());
    }

    #[test]
    fn an_optional_line_is_left_out_and_any_other_refused() {
        let refused = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect();
        let optional = BTreeSet::from(["LAZY".to_owned()]);
        let lazy = "CONFIG_LAZY=y (is not there)";
        assert_eq!(left_out(refused(&[lazy]), &optional).unwrap(), [lazy]);
        assert!(left_out(refused(&[lazy]), &BTreeSet::new()).is_err());
        let other = "CONFIG_LAZY_NOT=y (is n)";
        let error = left_out(refused(&[lazy, other]), &optional).unwrap_err();
        let (exit, error) = crate::host::failure::classify(error);
        let text = error.to_string();
        assert_eq!(exit, Exit::Build);
        assert!(text.contains(other) && !text.contains(lazy), "{text}");
    }

    #[test]
    fn a_variant_comes_after_those_that_it_includes() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join("configs").join(name);
            sh::write_whole(&path, text.as_bytes()).unwrap();
        };
        let names = |arch: &str| -> Vec<String> {
            let found = fragments(dir.path(), arch, "kasan").unwrap();
            let name = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
            found.iter().map(name).collect()
        };
        put("common.config", "");
        put("arm64.config", "");
        put(
            "variants/kasan.config",
            "#include \"test.config\"\n\nCONFIG_KASAN=y\n",
        );
        let missing = || {
            fragments(dir.path(), "s390", "kasan")
                .unwrap_err()
                .to_string()
        };
        assert!(missing().contains("s390.config"), "{}", missing());
        put("s390.config", "");
        assert!(missing().contains("test.config"), "{}", missing());
        put("variants/test.config", "");
        put("s390-test.config", "");
        put("arm64-kasan.config", "");
        assert_eq!(
            names("s390"),
            ["common", "s390", "test", "s390-test", "kasan"]
        );
        assert_eq!(
            names("arm64"),
            ["common", "arm64", "test", "kasan", "arm64-kasan"]
        );
    }

    #[test]
    fn kbuild_lines_are_counted() {
        assert!(is_build_line("  CC      kernel/fork.o"));
        assert!(is_build_line("  RUSTC L rust/core.o"));
        assert!(!is_build_line("kernel/fork.c:7: warning: x"));
        assert!(!is_build_line("    7 | int x;"));
    }
}
