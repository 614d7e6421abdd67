//! `lab`: the series in a person's own kernel, to be measured on a real machine, and what comes back.
//!
//! There, `lab/lazy-tlb-lab.sh` writes down what `perf bench sched lazy-tlb --compare` prints; here it
//! becomes JSON beside the other results, and part of the same report.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{ensure, Context, Result};
use clap::{Args, ValueEnum};
use walkdir::WalkDir;

use crate::bench::{paired, perf};
use crate::host::arch::{self, Arch};
use crate::host::failure::{fail, Exit};
use crate::kernel::build::{self, Build};
use crate::kernel::programs;
use crate::kernel::workshop::Project;
use crate::results::machine::Machine;
use crate::results::sample::Samples;

const SCRIPT: &str = "lab/lazy-tlb-lab.sh";
/// At the end of the kernel's release, so that it is installed beside another of the same version.
const LOCALVERSION: &str = "LOCALVERSION=-lazy-tlb";

/// What is built, or taken in.
#[derive(Args)]
pub struct Options {
    /// The configuration of the machine's kernel, such as /boot/config-VERSION.
    #[arg(long, value_name = "FILE", required_unless_present = "import")]
    config: Option<PathBuf>,
    /// How the kernel is packaged.
    #[arg(long, value_enum, default_value_t = Format::Deb)]
    format: Format,
    /// Where packages and tools go, and the build; without it, into the cache.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The machine's architecture; without it, this one's.
    #[arg(long, env = "ARCH", hide_env_values = true)]
    arch: Option<String>,
    /// Take in files that lazy-tlb-lab.sh wrote.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["config", "out"])]
    import: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Debian packages.
    Deb,
    /// RPM packages.
    Rpm,
    /// A tarball of /boot and /lib/modules.
    Tar,
}

impl Format {
    /// kbuild's target, the ending of what it makes, and how to install that.
    fn facts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Format::Deb => ("bindeb-pkg", ".deb", "dpkg -i linux-image-*.deb"),
            Format::Rpm => ("binrpm-pkg", ".rpm", "rpm -i kernel-[0-9]*.rpm"),
            Format::Tar => ("tarxz-pkg", ".tar.xz", UNPACK),
        }
    }
}

/// Without the option tar replaces a /lib that is a symbolic link by a folder with nothing but modules.
const UNPACK: &str = "tar -C / --keep-directory-symlink -xf linux-*.tar.xz\n  \
                      (an initramfs and an entry in the boot loader are left to you)";

/// Where the kernel defines what configs/lab.config asks for.
const KCONFIGS: [&str; 4] = [
    "init/Kconfig",
    "arch/Kconfig",
    "mm/Kconfig",
    "lib/Kconfig.debug",
];

/// What the kernel itself says that a symbol depends on.
fn depends_on(tree: &Path, symbol: &str) -> String {
    let texts = KCONFIGS.map(|file| fs::read_to_string(tree.join(file)).unwrap_or_default());
    let mut lines = texts.iter().flat_map(|text| text.lines());
    lines.find(|line| line.strip_prefix("config ") == Some(symbol));
    let own = lines.take_while(|line| !line.starts_with("config "));
    let needs = own.filter_map(|line| line.trim_start().strip_prefix("depends on "));
    needs.collect::<Vec<_>>().join(", ")
}

fn check_config(tree: &Path, refused: &[String]) -> Result<()> {
    if refused.is_empty() {
        return Ok(());
    }
    let remedies = refused.iter().filter_map(|line| {
        let (symbol, _) = line.strip_prefix("CONFIG_")?.split_once('=')?;
        Some(format!("{symbol} depends on {}", depends_on(tree, symbol)))
    });
    Err(fail(
        Exit::Build,
        format!(
            "kconfig did not take {} of the lines in configs/lab.config:\n  {}",
            refused.len(),
            refused.join("\n  ")
        ),
        format!(
            "change your configuration (`make rustavailable` in the tree says whether the tools will do):\n  {}",
            remedies.collect::<Vec<_>>().join("\n  ")
        ),
    ))
}

/// A person's configuration; a compressed one, or another file, is refused.
fn read_config(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| {
        let what = format!("--config {}: {error}", path.display());
        fail(
            Exit::Usage,
            what,
            "name the configuration of the machine's kernel",
        )
    })?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    if build::values(&text).is_empty() {
        return Err(fail(
            Exit::Usage,
            format!("{} is no kernel configuration", path.display()),
            "take /boot/config-VERSION, or what `zcat /proc/config.gz` prints",
        ));
    }
    Ok(text)
}

fn arch_of(name: Option<&str>) -> Result<&'static Arch> {
    let own = |arch: &&Arch| arch.machine_name == std::env::consts::ARCH && !arch.is_program();
    match name.filter(|name| !name.is_empty()) {
        Some(name) => arch::find(name),
        None => arch::ARCHES.iter().find(own).ok_or_else(|| {
            let what = format!("the series is not for {}", std::env::consts::ARCH);
            fail(Exit::Usage, what, "name another with --arch")
        }),
    }
}

pub fn run(project: &Project, options: &Options) -> Result<()> {
    match &options.config {
        Some(config) => build(project, options, config),
        None => import(project, &options.import),
    }
}

fn build(project: &Project, options: &Options, config: &Path) -> Result<()> {
    let arch = arch_of(options.arch.as_deref())?;
    // Checked before anything that takes minutes.
    let config = read_config(config)?;
    let shop = project.workshop(&[], &[arch])?;
    let out = match &options.out {
        Some(out) => std::path::absolute(out)?,
        None => (project.cache).path(format!("lab/{}-{}", arch.name, shop.base.id)),
    };
    let build = shop.build_own(arch, out.join("build"))?;
    let (_, refused) = build.configure_own(&config, &project.repo.join("configs/lab.config"))?;
    check_config(&shop.tree, &refused)?;

    let tools = out.join("lab");
    fs::create_dir_all(tools.join("selftests"))
        .with_context(|| format!("creating {}", tools.display()))?;
    let copy = |from: &Path, to: PathBuf| {
        fs::copy(from, &to).with_context(|| format!("writing {}", to.display()))
    };
    copy(&project.repo.join(SCRIPT), out.join(SCRIPT))?;
    copy(&programs::perf(&shop.tree, arch, &out)?, tools.join("perf"))?;
    for program in shop.selftests(&build)? {
        let name = program.file_name().context("a program has a name")?;
        copy(&program, tools.join("selftests").join(name))?;
    }
    let packages = package(&build, &out, options.format)?;
    println!("\n{}", instructions(&out, &packages, options.format));
    Ok(())
}

fn package(build: &Build<'_>, out: &Path, format: Format) -> Result<Vec<PathBuf>> {
    let (target, ending, _) = format.facts();
    let started = SystemTime::now();
    build.targets(&[target, LOCALVERSION])?;
    // Debian's are put beside the build folder, the others into it.
    let files = WalkDir::new(out).sort_by_file_name().into_iter().flatten();
    let mut packages = Vec::new();
    for file in files.map(walkdir::DirEntry::into_path) {
        if file.to_string_lossy().ends_with(ending) && file.metadata()?.modified()? >= started {
            packages.push(file);
        }
    }
    ensure!(!packages.is_empty(), "{target} made no *{ending}");
    Ok(packages)
}

fn instructions(out: &Path, packages: &[PathBuf], format: Format) -> String {
    let list = |paths: &[PathBuf]| -> String {
        let line = |path: &PathBuf| format!("  {}\n", path.display());
        paths.iter().map(line).collect()
    };
    let (_, _, install) = format.facts();
    format!(
        "The kernel, with all policies in one build:\n{}\
         perf, the selftests and the script:\n{}\n\
         1. Take all that to the machine, install the kernel as root, and boot it:\n  {install}\n\
         2. There, as root, while the machine has nothing else to do:\n  \
         sh lab/lazy-tlb-lab.sh\n\
         3. Bring the lazy-tlb-*.txt back here:\n  \
         cargo xtask lab --import lazy-tlb-*.txt && cargo xtask report\n",
        list(packages),
        list(&[out.join("lab")]),
    )
}

fn read(text: &str) -> Result<Samples> {
    let after = |prefix: &str| -> Vec<&str> {
        let lines = text.lines();
        lines.filter_map(|line| line.strip_prefix(prefix)).collect()
    };
    let facts = after("lazy-tlb-lab: ");
    let fact = |name: &str| -> Result<&str> {
        let mut facts = facts.iter().filter_map(|fact| fact.split_once(' '));
        let found = facts.find(|(key, _)| *key == name);
        Ok(found
            .with_context(|| format!("it does not say the {name}"))?
            .1)
    };
    let rounds: u32 = fact("rounds")?.parse()?;
    let mut samples = Vec::new();
    for line in text.lines() {
        samples.extend(perf::read(line, 1).with_context(|| format!("`{line}` is damaged"))?);
    }
    paired::check(&samples, rounds)?;
    // As Rust calls it, for results of one machine are in one folder.
    let arch = fact("machine")?.replace("ppc64le", "powerpc64");
    let release = fact("release")?;
    Ok(Samples {
        command: format!("sh lab/lazy-tlb-lab.sh {rounds}"),
        machine: Machine::parse(&after("lazy-tlb-cpuinfo: ").join("\n"), &arch, release),
        guest: String::new(),
        append: String::new(),
        kernel: release.into(),
        variant: "own".into(),
        clock: "this machine's".into(),
        samples,
    })
}

/// Writes what came back from a machine beside the other results; nothing unless all can be read.
fn import(project: &Project, files: &[PathBuf]) -> Result<()> {
    let mut all = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let samples = read(&text).map_err(|error| {
            fail(
                Exit::Usage,
                format!("{}: {error:#}", file.display()),
                "name files that lazy-tlb-lab.sh wrote, or run it again",
            )
        })?;
        // Its name says when that was, so that the same file again is the same results.
        let name = file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        all.push((name, samples));
    }
    for (name, samples) in all {
        let cpus = samples.machine.cpus as u32;
        let path = samples.write(&project.repo, cpus, &[&name], None)?;
        println!("{}", path.display());
    }
    println!("now `cargo xtask report` has them");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;
    use crate::host::sh;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn a_symbol_that_is_missing_is_told_with_what_it_depends_on() {
        let tree = tempfile::tempdir().unwrap();
        let text =
            "config RUST_A\n\tdepends on X\nconfig RUST\n\tbool \"a\"\n\tdepends on !RANDSTRUCT\n\
                    \tdepends on CFI || Z\nconfig C\n\tdepends on B\n";
        sh::write_whole(&tree.path().join("init/Kconfig"), text.as_bytes()).unwrap();
        let refused = ["CONFIG_RUST=y (is not there)".to_owned()];
        let (exit, error) = classify(check_config(tree.path(), &refused).unwrap_err());
        let error = error.to_string();
        assert_eq!(exit, Exit::Build);
        assert!(
            error.ends_with("RUST depends on !RANDSTRUCT, CFI || Z"),
            "{error}"
        );
        check_config(tree.path(), &[]).unwrap();
    }

    #[test]
    fn only_a_configuration_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        for bytes in [&b"\x1f\x8b\x08\xff"[..], b"hello\n"] {
            fs::write(&file, bytes).unwrap();
            let (exit, error) = classify(read_config(&file).unwrap_err());
            assert_eq!(exit, Exit::Usage);
            assert!(error.to_string().contains("zcat /proc/config.gz"));
        }
        fs::write(&file, "# CONFIG_SMP is not set\n").unwrap();
        read_config(&file).unwrap();
    }

    #[test]
    fn the_architecture_is_this_machine_s_or_one_that_is_named() {
        assert_eq!(arch_of(Some("s390")).unwrap().name, "s390");
        assert!(arch_of(Some("vax")).is_err());
        for name in [None, Some("")] {
            if let Ok(arch) = arch_of(name) {
                assert_eq!(arch.machine_name, std::env::consts::ARCH);
            }
        }
    }

    /// How the script ends where perf prints this, what it writes or says, and the name of its file.
    fn script(perf: &str) -> (Option<i32>, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            sh::write_whole(&path, text.as_bytes()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        put(
            "proc/cpuinfo",
            "processor\t: 0\ncpu MHz\t: 7\nmodel name\t: Some CPU\n",
        );
        put("perf", &format!("#!/bin/sh\ncat <<END\n{perf}END\n"));
        let script = crate::kernel::workshop::repository().join(SCRIPT);
        fs::copy(script, dir.path().join("lab.sh")).unwrap();
        let mut sh = Command::new("sh");
        sh.args(["lab.sh", "1"]).current_dir(dir.path());
        let output = sh
            .env("LAZY_TLB_ROOT", dir.path())
            .env_remove("PERF")
            .output();
        let output = output.unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        let text = fs::read_to_string(dir.path().join(said.trim())).unwrap_or(said);
        let names = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut names = names.map(|name| name.into_string().unwrap());
        let name = names.find(|name| name.starts_with("lazy-tlb-")).unwrap();
        (output.status.code(), text, name)
    }

    #[test]
    fn what_the_script_writes_is_read() {
        let repeat = |policy: &str| {
            format!("repeat 1 policy {policy} mode threads cpus 4 trips_per_sec 10000\n")
        };
        let perf = ["refcount", "handover", "shootdown"].map(repeat).concat();
        let (status, text, name) = script(&(perf.clone() + "vmstat lazy_tlb_nudged 3\n"));
        assert_eq!(status, Some(0), "{text}");
        assert!(name.ends_with(".txt"), "{name}");
        let samples = read(&text).unwrap();
        assert_eq!((samples.samples.len(), samples.bench()), (3, "perf"));
        assert_eq!(samples.machine.cpu_model, "Some CPU");
        let one = text.replace("policy handover", "policy refcount");
        assert!(read(&one).is_err());
        let (status, said, name) = script(&(perf + "Hint: be root\n"));
        assert_eq!(status, Some(1));
        assert!(
            said.contains("did not come to its end") && said.contains("be root"),
            "{said}"
        );
        // `lazy-tlb-*.txt` does not find it.
        assert!(
            name.ends_with(".part") && said.contains(&name),
            "{name}: {said}"
        );
    }
}
