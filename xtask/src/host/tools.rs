//! The tools: which are needed, and which are there.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::host::arch::Arch;
use crate::host::cache::Cache;
use crate::host::failure::{fail, Exit};
use crate::host::sh;

// What the base tree's scripts/min-tool-version.sh asks for.
const MIN_CLANG: Version = [17, 0, 1];
const MIN_RUSTC: Version = [1, 85, 0];
const MIN_BINDGEN: Version = [0, 71, 1];
// Before, a CPU of riscv names its extensions in the old way only.
const MIN_QEMU: Version = [8, 2, 0];

/// The LLVM that is installed, and the order in which installed ones are taken.
const LLVM: [&str; 6] = ["-19", "-20", "-21", "-22", "-18", "-17"];

pub type Version = [u64; 3];

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
pub struct Missing {
    pub what: String,
    /// Alternatives: the first whose packages are on offer, and new enough, is installed.
    pub packages: Vec<Vec<&'static str>>,
    /// The least version of the first package of an alternative.
    pub least: Version,
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
pub struct Machine {
    path: OsString,
    sources: PathBuf,
    bindgen_root: PathBuf,
    has_package: Box<dyn Fn(&str) -> bool>,
}

impl Machine {
    pub fn real(cache: &Cache) -> Self {
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
pub const RUSTC_PACKAGES: [[&str; 3]; 2] = [
    ["rustc", "rust-src", "cargo"],
    ["rustc-web", "rust-web-src", "cargo-web"],
];

/// `Ok` with the tools for some architectures, or what is missing.
///
/// A rustc that is too old for some of them is none that is missing: what it can build is built.
pub fn look(machine: &Machine, arches: &[&Arch]) -> std::result::Result<Tools, Vec<Missing>> {
    let mut missing = Vec::new();
    for arch in arches {
        if !arch.is_program() {
            if let Err(what) = first_of([machine.find(arch.qemu)], arch.qemu, MIN_QEMU) {
                missing.push(Missing {
                    what,
                    packages: arch.qemu_packages.iter().map(|p| vec![*p]).collect(),
                    least: MIN_QEMU,
                });
            }
        }
        let gcc = machine.find(arch.gcc).is_some() || !arch.libc_packages.is_empty();
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

pub fn numbers(version: &str) -> Version {
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

pub fn dotted(version: Version) -> String {
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
    let own = machine.bindgen_root.join("bin/bindgen");
    let places = [Some(own), machine.find("bindgen")];
    first_of(places, "bindgen", MIN_BINDGEN)
}

/// The first of some programs that is new enough, with its version.
fn first_of(
    places: impl IntoIterator<Item = Option<PathBuf>>,
    what: &str,
    least: Version,
) -> std::result::Result<(PathBuf, String), String> {
    let mut old = None;
    for program in places.into_iter().flatten() {
        match version_of(&program) {
            Some(version) if numbers(&version) >= least => return Ok((program, version)),
            other => old = other.or(old),
        }
    }
    Err(too_old(what, old, least))
}

fn too_old(what: &str, found: Option<String>, least: Version) -> String {
    let least = dotted(least);
    match found {
        Some(found) => format!("{what}: found {found}, need {least}"),
        None => format!("{what} >= {least}"),
    }
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
    use crate::host::arch::ARCHES;
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
                if arch.libc_packages.is_empty() {
                    fake.program(arch.gcc, "gcc 12.2.0");
                }
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
    }

    #[test]
    fn what_is_missing_or_too_old_is_named_with_both_versions() {
        let mut fake = Fake::complete();
        for gone in ["bison", "s390x-linux-gnu-gcc"] {
            fs::remove_file(fake.bin.join(gone)).unwrap();
        }
        fake.machine.has_package = Box::new(|package| package != "libelf-dev");
        fake.program("bindgen", "bindgen 0.60.1");
        fake.program("clang-19", "Debian clang version 14.0.6");
        fake.program("rustc", "rustc 1.63.0");
        fake.program("qemu-system-ppc64", "QEMU emulator version 7.2.22");
        let missing = |arches: &[&Arch]| -> Vec<String> {
            let missing = look(&fake.machine, arches).unwrap_err();
            missing.into_iter().map(|tool| tool.what).collect()
        };
        let of = |arch| missing(&[crate::host::arch::find(arch).unwrap()]).join("; ");
        for words in [
            "bison",
            "libelf-dev",
            "found 7.2.22, need 8.2.0",
            "found 0.60.1, need 0.71.1",
            "found 14.0.6, need 17.0.1",
            "found 1.63.0, need 1.85.0",
        ] {
            assert!(of("powerpc").contains(words), "{words}");
        }
        assert!(of("s390").contains("s390x-linux-gnu-gcc"));
        // Only what the wanted architectures need.
        assert!(!of("x86_64").contains("ppc64") && !of("x86_64").contains("s390x"));
        fake.program("rustc", "rustc 1.85.0");
        fs::remove_dir_all(&fake.machine.sources).unwrap();
        assert!(of("x86_64").contains("without library sources"));
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
        let arch = |name| crate::host::arch::find(name).unwrap();
        tools.check_rustc(arch("arm64")).unwrap();
        let error = tools.check_rustc(arch("s390")).unwrap_err();
        let (exit, error) = crate::host::failure::classify(error);
        assert_eq!(exit, Exit::Environment);
        let text = error.to_string();
        assert!(
            text.contains("s390 needs rustc 1.96.0") && text.contains("is 1.85.0"),
            "{text}"
        );
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
