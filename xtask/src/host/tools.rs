//! The tools: which are needed, which are there, and how to get the others.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::host::apt;
use crate::host::arch::{Arch, ARCHES};
use crate::host::cache::{Cache, Part};
use crate::host::failure::{fail, Exit};
use crate::host::sh::{self, Progress};

// What the base tree's scripts/min-tool-version.sh asks for.
const MIN_CLANG: Version = [17, 0, 1];
const MIN_RUSTC: Version = [1, 85, 0];
const MIN_BINDGEN: Version = [0, 71, 1];
// Before, a CPU of riscv names its extensions in the old way only.
const MIN_QEMU: Version = [8, 2, 0];

/// The bindgen that cargo installs where the packaged one is too old.
const BINDGEN: &str = "0.72.1";
/// The LLVM that is installed, and the order in which installed ones are taken.
const LLVM: [&str; 6] = ["-19", "-20", "-21", "-22", "-18", "-17"];
/// Roughly how many crates bindgen is made of, for progress.
const BINDGEN_CRATES: u64 = 60;

type Version = [u64; 3];

/// The tools a kernel build and a boot take, where they are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// `-19`, as in clang-19; empty for plain clang.
    pub llvm: String,
    pub clang_version: String,
    pub rustc: PathBuf,
    pub rustc_version: String,
    pub rust_lib_src: PathBuf,
    pub bindgen: PathBuf,
    pub bindgen_version: String,
}

impl Tools {
    /// What `make` is told in any kernel tree, to use these.
    pub fn words(&self) -> Vec<OsString> {
        let llvm = match self.llvm.as_str() {
            "" => "1",
            suffix => suffix,
        };
        let mut words = vec![
            sh::assignment("LLVM", llvm),
            sh::assignment("RUSTC", &self.rustc),
            // Host programs in Rust must be built by the same compiler: proc macros are loaded by it.
            sh::assignment("HOSTRUSTC", &self.rustc),
            sh::assignment("RUSTDOC", self.rustc.with_file_name("rustdoc")),
            sh::assignment("RUST_LIB_SRC", &self.rust_lib_src),
            sh::assignment("BINDGEN", &self.bindgen),
        ];
        let libclang = format!("/usr/lib/llvm{}/lib", self.llvm);
        if Path::new(&libclang).exists() {
            words.push(sh::assignment("LIBCLANG_PATH", libclang));
        }
        words
    }

    pub fn check_rustc(&self, arch: &Arch) -> Result<()> {
        if numbers(&self.rustc_version) >= arch.least_rustc {
            return Ok(());
        }
        Err(fail(
            Exit::Environment,
            format!(
                "{} needs rustc {}, and this machine's is {}",
                arch.name,
                dotted(arch.least_rustc),
                self.rustc_version
            ),
            "`cargo xtask setup` installs a newer one where the machine's suites or backports have it",
        ))
    }
}

#[derive(Debug)]
struct Missing {
    what: String,
    /// Alternatives: the first whose packages are on offer, and new enough, is installed.
    packages: Vec<Vec<&'static str>>,
    /// The least version of the first package of an alternative.
    least: Version,
}

impl Missing {
    fn of(what: impl Into<String>, packages: &[&'static str]) -> Self {
        let what = what.into();
        Missing {
            what,
            packages: vec![packages.to_vec()],
            least: [0; 3],
        }
    }
}

/// Where to look; a test looks elsewhere.
struct Machine {
    path: OsString,
    sources: PathBuf,
    bindgen_root: PathBuf,
    has_package: Box<dyn Fn(&str) -> bool>,
}

impl Machine {
    fn real(cache: &Cache) -> Self {
        Machine {
            path: std::env::var_os("PATH").unwrap_or_default(),
            sources: "/usr/src".into(),
            bindgen_root: cache.path("bindgen"),
            has_package: Box::new(|package| {
                Path::new(&format!("/var/lib/dpkg/info/{package}.list")).exists()
                    || Path::new(&format!("/var/lib/dpkg/info/{package}:amd64.list")).exists()
            }),
        }
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        sh::find_program(name, &self.path)
    }

    /// Every file of that name in PATH, the distribution's own first.
    fn find_all(&self, name: &str) -> Vec<PathBuf> {
        let dirs = std::env::split_paths(&self.path);
        let mut found: Vec<PathBuf> = dirs
            .filter_map(|dir| sh::find_program(name, dir.as_os_str()))
            .collect();
        found.sort_by_key(|file| !file.starts_with("/usr/bin"));
        found
    }
}

/// Programs that are in PATH or not, and the package that brings each.
const PROGRAMS: [(&str, &str); 10] = [
    ("git", "git"),
    ("make", "make"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("python3", "python3"),
    ("xz", "xz-utils"),
    ("ccache", "ccache"),
    ("pahole", "dwarves"),
];

/// Headers and modules, which only dpkg knows about.
const LIBRARIES: [&str; 4] = ["libc6-dev", "libelf-dev", "libssl-dev", "perl"];

/// The packages that bring a rustc, with the library's sources; and the cargo of the same series,
/// for apt takes the other one away.
const RUSTC_PACKAGES: [[&str; 3]; 2] = [
    ["rustc", "rust-src", "cargo"],
    ["rustc-web", "rust-web-src", "cargo-web"],
];

/// `Ok` with the tools for some architectures, or what is missing.
///
/// A rustc that is too old for some of them is none that is missing: what it can build is built.
fn look(machine: &Machine, arches: &[&Arch]) -> std::result::Result<Tools, Vec<Missing>> {
    let mut missing = Vec::new();
    for arch in arches {
        if !arch.is_program() {
            if let Err(what) = look_for_qemu(machine, arch.qemu) {
                missing.push(Missing {
                    what,
                    packages: arch.qemu_packages.iter().map(|p| vec![*p]).collect(),
                    least: MIN_QEMU,
                });
            }
        }
        let gcc = machine.find(arch.gcc).is_some();
        if !gcc || !arch.gcc_packages.iter().all(|p| (machine.has_package)(p)) {
            missing.push(Missing::of(arch.gcc, arch.gcc_packages));
        }
    }
    for (program, package) in PROGRAMS {
        if machine.find(program).is_none() {
            missing.push(Missing::of(program, &[package]));
        }
    }
    for library in LIBRARIES {
        if !(machine.has_package)(library) {
            missing.push(Missing::of(library, &[library]));
        }
    }
    if machine.find("rustfmt").is_none() {
        missing.push(Missing {
            what: "rustfmt".into(),
            packages: vec![vec!["rustfmt"], vec!["rustfmt-web"]],
            least: MIN_RUSTC,
        });
    }
    let clang = look_for_clang(machine).map_err(|what| {
        missing.push(Missing::of(
            what,
            &["clang-19", "lld-19", "llvm-19", "libclang-19-dev"],
        ));
    });
    let rustc = look_for_rustc(machine).map_err(|what| {
        missing.push(Missing {
            what,
            packages: RUSTC_PACKAGES.iter().map(|p| p.to_vec()).collect(),
            least: MIN_RUSTC,
        });
    });
    let bindgen = look_for_bindgen(machine).map_err(|what| {
        missing.push(Missing {
            what,
            packages: vec![vec!["bindgen"]],
            least: MIN_BINDGEN,
        });
    });
    match (clang, rustc, bindgen) {
        (Ok((llvm, clang_version)), Ok((rustc, rustc_version, rust_lib_src)), Ok(bindgen))
            if missing.is_empty() =>
        {
            Ok(Tools {
                llvm,
                clang_version,
                rustc,
                rustc_version,
                rust_lib_src,
                bindgen: bindgen.0,
                bindgen_version: bindgen.1,
            })
        }
        _ => Err(missing),
    }
}

fn version_of(program: &Path) -> Option<String> {
    let text = sh::capture(Command::new(program).arg("--version")).ok()?;
    version_in(&text)
}

fn version_in(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == '-' || c == '+' || c == '~');
    let digits = |w: &&str| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains('.');
    words.into_iter().find(digits).map(str::to_owned)
}

fn numbers(version: &str) -> Version {
    let mut numbers = [0; 3];
    // An epoch, as in 1:19.0, is no part of upstream's version.
    let version = version.rsplit(':').next().unwrap_or(version);
    for (slot, word) in numbers.iter_mut().zip(version.split('.')) {
        let end = word
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(word.len());
        *slot = word[..end].parse().unwrap_or(0);
    }
    numbers
}

fn dotted(version: Version) -> String {
    version.map(|n| n.to_string()).join(".")
}

fn look_for_clang(machine: &Machine) -> std::result::Result<(String, String), String> {
    let mut old = None;
    for suffix in LLVM.into_iter().chain([""]) {
        let tools = ["clang", "ld.lld", "llvm-objcopy", "llvm-objdump", "llvm-ar"];
        let found = tools.map(|tool| machine.find(&format!("{tool}{suffix}")));
        let [Some(clang), Some(_), Some(_), Some(_), Some(_)] = found else {
            continue;
        };
        match version_of(&clang) {
            Some(version) if numbers(&version) >= MIN_CLANG => return Ok((suffix.into(), version)),
            other => old = other,
        }
    }
    Err(too_old("clang (with lld and llvm)", old, MIN_CLANG))
}

fn look_for_rustc(machine: &Machine) -> std::result::Result<(PathBuf, String, PathBuf), String> {
    let mut old = None;
    for rustc in machine.find_all("rustc") {
        let Some(version) = version_of(&rustc) else {
            continue;
        };
        if numbers(&version) < MIN_RUSTC {
            old = Some(version);
            continue;
        }
        // A rustup rustc usually has no library sources; Debian's are in /usr/src.
        let sysroot = sh::capture(Command::new(&rustc).args(["--print", "sysroot"]));
        let sysroot = PathBuf::from(sysroot.unwrap_or_default().trim());
        let places = [
            machine.sources.join(format!("rustc-{version}/library")),
            sysroot.join("lib/rustlib/src/rust/library"),
        ];
        if let Some(library) = places
            .into_iter()
            .find(|p| p.join("core/src/lib.rs").exists())
        {
            return Ok((rustc, version, library));
        }
        old = Some(format!("{version} without library sources"));
    }
    Err(too_old("rustc with library sources", old, MIN_RUSTC))
}

fn look_for_bindgen(machine: &Machine) -> std::result::Result<(PathBuf, String), String> {
    let mut old = None;
    let own = machine.bindgen_root.join("bin/bindgen");
    for bindgen in [Some(own), machine.find("bindgen")].into_iter().flatten() {
        match version_of(&bindgen) {
            Some(version) if numbers(&version) >= MIN_BINDGEN => return Ok((bindgen, version)),
            other => old = other.or(old),
        }
    }
    Err(too_old("bindgen", old, MIN_BINDGEN))
}

fn look_for_qemu(machine: &Machine, qemu: &str) -> std::result::Result<(), String> {
    match machine.find(qemu).and_then(|qemu| version_of(&qemu)) {
        Some(version) if numbers(&version) >= MIN_QEMU => Ok(()),
        old => Err(too_old(qemu, old, MIN_QEMU)),
    }
}

fn too_old(what: &str, found: Option<String>, least: Version) -> String {
    let least = dotted(least);
    match found {
        Some(found) => format!("{what}: found {found}, need {least}"),
        None => format!("{what} >= {least}"),
    }
}

pub fn ensure(cache: &Cache, arches: &[&Arch]) -> Result<Tools> {
    let machine = Machine::real(cache);
    if let Ok(tools) = look(&machine, arches) {
        // Newer only once: a changed rustc makes every kernel build start from nothing.
        let tried = cache.path(format!("rustc-{}-is-what-there-is", tools.rustc_version));
        if !lags(&tools.rustc_version) || tried.exists() {
            return Ok(tools);
        }
        renew_rustc(cache, &tools.rustc_version);
        sh::write_whole(&tried, b"")?;
        return again(&machine, arches);
    }
    cache.lock(Part::Setup)?;
    let missing = look(&machine, arches).err().unwrap_or_default();
    for tool in &missing {
        println!("missing: {}", tool.what);
    }
    if !has_apt() {
        return Err(not_installed(
            &missing,
            "install them; this machine has no apt-get",
        ));
    }
    install(cache, &missing)?;
    let tools = again(&machine, arches)?;
    if !lags(&tools.rustc_version) {
        return Ok(tools);
    }
    renew_rustc(cache, &tools.rustc_version);
    let tools = again(&machine, arches)?;
    let tried = format!("rustc-{}-is-what-there-is", tools.rustc_version);
    sh::write_whole(&cache.path(tried), b"")?;
    Ok(tools)
}

/// Forgets that no newer rustc was on offer, so that it is asked for again.
pub fn ask_again(cache: &Cache) {
    if let Some(version) = look_for_rustc(&Machine::real(cache)).ok().map(|r| r.1) {
        let _ = std::fs::remove_file(cache.path(format!("rustc-{version}-is-what-there-is")));
    }
}

fn has_apt() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    sh::find_program("apt-get", &path).is_some()
}

fn again(machine: &Machine, arches: &[&Arch]) -> Result<Tools> {
    look(machine, arches).map_err(|missing| {
        not_installed(
            &missing,
            "install what is named above; Debian 12 and 13 have packages",
        )
    })
}

/// The rustc that every architecture is content with.
fn wanted_rustc() -> Version {
    let least = ARCHES.iter().map(|arch| arch.least_rustc);
    least.max().expect("there are architectures")
}

/// Whether some architecture asks for a newer rustc.
fn lags(version: &str) -> bool {
    numbers(version) < wanted_rustc()
}

/// Installs a rustc for every architecture where there is one; else says what goes without.
fn renew_rustc(cache: &Cache, version: &str) {
    let least = dotted(wanted_rustc());
    println!("rustc is {version}; looking for {least}, which every architecture can be built with");
    let error = match try_renew_rustc(cache) {
        Ok(()) => return,
        Err(error) => error,
    };
    let without = ARCHES
        .iter()
        .filter(|arch| numbers(version) < arch.least_rustc);
    let without: Vec<&str> = without.map(|arch| arch.name).collect();
    println!(
        "note: no rustc {least} ({error:#})\nnote: with rustc {version} there is no kernel for {}",
        without.join(", ")
    );
}

fn try_renew_rustc(cache: &Cache) -> Result<()> {
    anyhow::ensure!(has_apt(), "this machine has no apt-get");
    cache.lock(Part::Setup)?;
    let logs = cache.dir("log")?;
    apt::update(&logs)?;
    let newest = Missing {
        what: "rustc".into(),
        packages: RUSTC_PACKAGES.iter().map(|p| p.to_vec()).collect(),
        least: wanted_rustc(),
    };
    let (packages, unmet) = choose([&newest], apt::candidate);
    if unmet.is_empty() {
        return apt::install(&packages, &logs);
    }
    let unmet = install_backports(cache, unmet, &logs)?;
    anyhow::ensure!(unmet.is_empty(), "neither the suites nor backports");
    Ok(())
}

/// Installs from the backports of this machine's release; the tools that they do not have either.
fn install_backports<'a>(
    cache: &Cache,
    tools: Vec<&'a Missing>,
    logs: &Path,
) -> Result<Vec<&'a Missing>> {
    let backports = apt::Suites::backports(cache)?;
    let (packages, unmet) = choose(tools, |package| backports.newest(package));
    if !packages.is_empty() {
        backports.install(&packages, logs)?;
    }
    Ok(unmet)
}

fn not_installed(missing: &[Missing], remedy: &str) -> anyhow::Error {
    let list: Vec<&str> = missing.iter().map(|tool| tool.what.as_str()).collect();
    let what = format!("missing or too old: {}", list.join("; "));
    fail(Exit::Environment, what, remedy)
}

fn install(cache: &Cache, missing: &[Missing]) -> Result<()> {
    let logs = cache.dir("log")?;
    // Lists that are too old name packages that are gone, and hide newer ones.
    apt::update(&logs)?;
    let (packages, mut unmet) = choose(missing, apt::candidate);
    let wants_bindgen = unmet.iter().any(|tool| tool.packages == [["bindgen"]]);
    unmet.retain(|tool| tool.packages != [["bindgen"]]);
    if !packages.is_empty() {
        apt::install(&packages, &logs)?;
    }
    if !unmet.is_empty() {
        unmet = install_backports(cache, unmet, &logs)?;
    }
    if let Some(tool) = unmet.first() {
        let names: Vec<String> = tool.packages.iter().map(|p| p.join(" ")).collect();
        return Err(fail(
            Exit::Environment,
            format!(
                "{}: neither this machine's suites nor their backports have a new enough package",
                tool.what
            ),
            format!(
                "install it by hand ({}); Debian 12 and 13 have it",
                names.join(" or ")
            ),
        ));
    }
    if wants_bindgen {
        install_bindgen(cache, &logs)?;
    }
    Ok(())
}

/// The packages to install, and the tools for which none is on offer. Of several alternatives the
/// newest is taken, of equally new ones the first.
fn choose<'a>(
    missing: impl IntoIterator<Item = &'a Missing>,
    candidate: impl Fn(&str) -> Option<String>,
) -> (Vec<String>, Vec<&'a Missing>) {
    let (mut packages, mut unmet) = (Vec::new(), Vec::new());
    for tool in missing {
        let version = |alternative: &Vec<&str>| candidate(alternative[0]).map(|v| numbers(&v));
        let fits = |alternative: &&Vec<&str>| version(alternative).is_some_and(|v| v >= tool.least);
        let fitting = tool.packages.iter().rev().filter(fits);
        match fitting.max_by_key(|alternative| version(alternative)) {
            Some(alternative) => packages.extend(alternative.iter().map(|p| p.to_string())),
            None => unmet.push(tool),
        }
    }
    packages.sort();
    packages.dedup();
    (packages, unmet)
}

fn install_bindgen(cache: &Cache, logs: &Path) -> Result<()> {
    let root = cache.dir("bindgen")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args([
        "install",
        "bindgen-cli",
        "--locked",
        "--version",
        BINDGEN,
        "--root",
    ]);
    cargo.arg(&root);
    let mut progress = Progress::counted("bindgen", BINDGEN_CRATES);
    let log = logs.join("bindgen.log");
    sh::logged(
        &cargo,
        &log,
        Exit::Environment,
        apt::NETWORK_REMEDY,
        |line| {
            if line.trim_start().starts_with("Compiling ") {
                progress.tick(line.trim());
            }
        },
    )
}

/// A rustfmt, for `tidy`; the distribution's own first.
pub fn rustfmt() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = OsStr::new("/usr/bin");
    let mut places = [usual, path.as_os_str()].into_iter();
    places.find_map(|dirs| sh::find_program("rustfmt", dirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A machine made of scripts that print a version.
    struct Fake {
        _dir: tempfile::TempDir,
        bin: PathBuf,
        machine: Machine,
    }

    impl Fake {
        fn complete() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let bin = dir.path().join("bin");
            let sources = dir.path().join("src");
            let core = sources.join("rustc-1.85.0/library/core/src");
            fs::create_dir_all(&bin).unwrap();
            fs::create_dir_all(&core).unwrap();
            fs::write(core.join("lib.rs"), "").unwrap();
            let fake = Fake {
                machine: Machine {
                    path: bin.clone().into(),
                    sources,
                    bindgen_root: dir.path().join("none"),
                    has_package: Box::new(|_| true),
                },
                bin,
                _dir: dir,
            };
            for (program, _) in PROGRAMS {
                fake.program(program, "1.0");
            }
            for tool in ["clang", "ld.lld", "llvm-objcopy", "llvm-objdump", "llvm-ar"] {
                fake.program(&format!("{tool}-19"), "Debian clang version 19.1.7 (3)");
            }
            fake.program(
                "rustc",
                "rustc 1.85.0 (4d91de4e4 2025-02-17) (built from a tarball)",
            );
            fake.program("rustfmt", "rustfmt 1.8.0");
            fake.program("bindgen", "bindgen 0.71.1");
            for arch in &ARCHES {
                if !arch.is_program() {
                    fake.program(
                        arch.qemu,
                        "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)",
                    );
                }
                fake.program(arch.gcc, "gcc 12.2.0");
            }
            fake
        }

        fn look(&self) -> std::result::Result<Tools, Vec<Missing>> {
            look(&self.machine, &ARCHES.iter().collect::<Vec<_>>())
        }

        fn program(&self, name: &str, version: &str) {
            let path = self.bin.join(name);
            fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn missing(&self) -> String {
            let missing = self.look().expect_err("something is missing");
            not_installed(&missing, "install").to_string()
        }
    }

    #[test]
    fn make_is_told_of_one_rustc_for_kernel_and_host() {
        let tools = |llvm: &str| Tools {
            llvm: llvm.into(),
            clang_version: String::new(),
            rustc: "/r/rustc".into(),
            rustc_version: String::new(),
            rust_lib_src: "/r/library".into(),
            bindgen: "/b/bindgen".into(),
            bindgen_version: String::new(),
        };
        let words = tools("-19").words();
        for word in [
            "LLVM=-19",
            "RUSTC=/r/rustc",
            "HOSTRUSTC=/r/rustc",
            "RUSTDOC=/r/rustdoc",
            "RUST_LIB_SRC=/r/library",
            "BINDGEN=/b/bindgen",
        ] {
            assert!(words.iter().any(|w| w == word), "{word}: {words:?}");
        }
        assert_eq!(tools("").words()[0], "LLVM=1");
    }

    #[test]
    fn debian_13s_own_versions_are_enough() {
        let tools = Fake::complete().look().unwrap();
        assert_eq!(
            (tools.llvm.as_str(), tools.clang_version.as_str()),
            ("-19", "19.1.7")
        );
        assert_eq!(tools.rustc_version, "1.85.0");
        assert_eq!(tools.bindgen_version, "0.71.1");
    }

    #[test]
    fn a_missing_tool_is_named() {
        let fake = Fake::complete();
        fs::remove_file(fake.bin.join("bison")).unwrap();
        assert!(fake.missing().contains("bison"));
    }

    #[test]
    fn only_what_the_wanted_architectures_need_is_missing() {
        let fake = Fake::complete();
        fs::remove_file(fake.bin.join("qemu-system-s390x")).unwrap();
        fs::remove_file(fake.bin.join("s390x-linux-gnu-gcc")).unwrap();
        let x86_64 = crate::host::arch::find("x86_64").unwrap();
        assert!(look(&fake.machine, &[x86_64]).is_ok());
        let missing = fake.look().unwrap_err();
        // Debian 12 has no package of the first name.
        let offered =
            |package: &str| (package != "qemu-system-s390x").then(|| "1:8.2.1".to_owned());
        let (packages, unmet) = choose(&missing, offered);
        assert_eq!(
            packages,
            [
                "gcc-s390x-linux-gnu",
                "libc6-dev-s390x-cross",
                "qemu-system-misc"
            ]
        );
        assert!(unmet.is_empty());
    }

    #[test]
    fn a_rustc_too_old_for_one_architecture_is_said_by_name() {
        let tools = Fake::complete().look().unwrap();
        tools
            .check_rustc(crate::host::arch::find("arm64").unwrap())
            .unwrap();
        let s390 = crate::host::arch::find("s390").unwrap();
        let (exit, error) = crate::host::failure::classify(tools.check_rustc(s390).unwrap_err());
        assert_eq!(exit, Exit::Environment);
        let text = error.to_string();
        assert!(
            text.contains("s390 needs rustc 1.96.0") && text.contains("is 1.85.0"),
            "{text}"
        );
        assert!(lags("1.95.0") && !lags("1.96.0+dfsg1-1~bpo13+1"));
    }

    #[test]
    fn the_newest_of_several_rustcs_is_chosen() {
        let fake = Fake::complete();
        fs::remove_file(fake.bin.join("rustc")).unwrap();
        let missing = fake.look().unwrap_err();
        let offered = |package: &str| match package {
            "rustc" => Some("1.85.0+dfsg3-1".to_owned()),
            "rustc-web" => Some("1.96.0+dfsg1-1~deb12u2".to_owned()),
            _ => None,
        };
        let web = ["cargo-web", "rust-web-src", "rustc-web"];
        assert_eq!(choose(&missing, offered).0, web);
    }

    #[test]
    fn a_missing_library_is_named() {
        let mut fake = Fake::complete();
        fake.machine.has_package = Box::new(|package| package != "libelf-dev");
        assert!(fake.missing().contains("libelf-dev"));
    }

    #[test]
    fn tools_that_are_too_old_are_named_with_both_versions() {
        let fake = Fake::complete();
        fake.program("bindgen", "bindgen 0.60.1");
        fake.program("clang-19", "Debian clang version 14.0.6");
        fake.program("rustc", "rustc 1.63.0");
        fake.program("qemu-system-ppc64", "QEMU emulator version 7.2.22");
        let text = fake.missing();
        assert!(text.contains("found 7.2.22, need 8.2.0"), "{text}");
        assert!(text.contains("found 0.60.1, need 0.71.1"), "{text}");
        assert!(text.contains("found 14.0.6, need 17.0.1"), "{text}");
        assert!(text.contains("found 1.63.0, need 1.85.0"), "{text}");
    }

    #[test]
    fn a_rustc_without_library_sources_will_not_do() {
        let fake = Fake::complete();
        fs::remove_dir_all(&fake.machine.sources).unwrap();
        assert!(fake.missing().contains("without library sources"));
    }

    #[test]
    fn a_new_enough_package_is_chosen() {
        let fake = Fake::complete();
        fake.program("bindgen", "bindgen 0.60.1");
        fs::remove_file(fake.bin.join("rustc")).unwrap();
        let missing = fake.look().unwrap_err();
        let bookworm = |package: &str| match package {
            "rustc" => Some("1.63.0+dfsg1-2".to_owned()),
            "rustc-web" => Some("1.96.0+dfsg1-1~deb12u2".to_owned()),
            "bindgen" => Some("0.60.1-2".to_owned()),
            _ => None,
        };
        let (packages, unmet) = choose(&missing, bookworm);
        assert_eq!(packages, ["cargo-web", "rust-web-src", "rustc-web"]);
        assert_eq!(unmet.len(), 1, "bindgen comes from cargo");
        let trixie = |package: &str| match package {
            "rustc" => Some("1.85.0+dfsg3-1".to_owned()),
            "bindgen" => Some("0.71.1-4".to_owned()),
            _ => None,
        };
        let (packages, unmet) = choose(&missing, trixie);
        assert_eq!(packages, ["bindgen", "cargo", "rust-src", "rustc"]);
        assert!(unmet.is_empty());
    }

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        assert_eq!(
            version_in("Debian clang version 19.1.7 (3+b1)").unwrap(),
            "19.1.7"
        );
        assert_eq!(version_in("rustc 1.96.0 (ac68faa20)").unwrap(), "1.96.0");
        assert_eq!(numbers("1:19.0-60"), [19, 0, 0]);
        assert!(numbers("0.100.1") > numbers("0.71.1"));
    }
}
