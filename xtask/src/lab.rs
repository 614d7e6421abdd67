//! `lab`: the series in a person's own kernel, to be measured on a real machine, and what comes back.
//!
//! There, `lab/lazy-tlb-lab.sh` writes down what `perf bench sched lazy-tlb` prints, line by line and
//! as it is; here it becomes JSON beside the other results, and part of the same report.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{ensure, Context, Result};
use clap::{Args, ValueEnum};
use walkdir::WalkDir;

use crate::bench::boots::{Results, Run};
use crate::host::arch::{self, Arch};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::build::{self, Build};
use crate::kernel::programs::perf;
use crate::kernel::workshop::Project;

/// What runs on the machine, relative to the repository.
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
    /// Take in files that lazy-tlb-lab.sh wrote, or logs of consoles with such files in them.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["config", "out"])]
    import: Vec<PathBuf>,
}

/// What the kernel is packaged as.
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

/// Why the lines of configs/lab.config were not taken, and what to do.
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

/// `lab` itself.
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
    let refused = build.configure_own(&config, &project.repo.join("configs/lab.config"))?;
    check_config(&shop.tree, &refused)?;

    let tools = out.join("lab");
    fs::create_dir_all(tools.join("selftests"))
        .with_context(|| format!("creating {}", tools.display()))?;
    let copy = |from: &Path, to: PathBuf| {
        fs::copy(from, &to).with_context(|| format!("writing {}", to.display()))
    };
    copy(&project.repo.join(SCRIPT), out.join(SCRIPT))?;
    copy(&perf(&shop.tree, arch, &out)?, tools.join("perf"))?;
    for program in shop.selftests(&build)? {
        let name = program.file_name().context("a program has a name")?;
        copy(&program, tools.join("selftests").join(name))?;
    }
    let packages = package(&build, &out, options.format)?;
    println!("\n{}", instructions(&out, &packages, options.format));
    Ok(())
}

/// Builds the kernel and returns its packages.
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

/// What to do on the machine.
fn instructions(out: &Path, packages: &[PathBuf], format: Format) -> String {
    let list = |paths: &[PathBuf]| -> String {
        let line = |path: &PathBuf| format!("  {}\n", path.display());
        paths.iter().map(line).collect()
    };
    let (_, _, install) = format.facts();
    let boots = policy::ALL.map(|policy| format!("  lazy_tlb={policy}\n"));
    format!(
        "The kernel, with all policies in one build:\n{}\
         perf, the selftests and the script:\n{}\n\
         1. Take all that to the machine and install the kernel, as root:\n  {install}\n\
         2. Boot it three times, each time with one of these on its command line:\n{}\
         (in GRUB press e on its entry and put it at the end of the line that begins with linux; or \
         kexec -l IMAGE --initrd=INITRD --command-line=\"... lazy_tlb=handover\" && systemctl kexec)\n\
         3. On each boot, as root, while the machine has nothing else to do:\n  \
         sh lab/lazy-tlb-lab.sh\n\
         4. Bring the lazy-tlb-*.txt back here:\n  \
         cargo xtask lab --import lazy-tlb-*.txt && cargo xtask report\n",
        list(packages),
        list(&[out.join("lab")]),
        boots.concat(),
    )
}

/// Writes what came back from a machine beside the other results; nothing unless all can be read.
fn import(project: &Project, files: &[PathBuf]) -> Result<()> {
    let mut written = BTreeMap::new();
    for file in files {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let all = Results::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| {
            fail(
                Exit::Usage,
                format!("{}: {error:#}", file.display()),
                "name files that lazy-tlb-lab.sh wrote, or run it again on that boot",
            )
        })?;
        for results in all {
            let folder = project.repo.join("results").join(results.machine.slug());
            written.insert(folder.join(results.file()), results);
        }
    }
    for (path, results) in &written {
        sh::write_whole(path, serde_json::to_string_pretty(results)?.as_bytes())?;
        println!("{}", path.display());
        let failed: Vec<&Run> = results.runs.iter().filter(|run| run.status != 0).collect();
        if let Some(first) = failed.first() {
            println!(
                "warning: {} of {} calls of perf failed; the first, `{}`, said: {}",
                failed.len(),
                results.runs.len(),
                first.command,
                first.said.join(" / ")
            );
        }
        if results.kernel.is_empty() {
            let said = match results.kernel_said.first() {
                Some(said) => format!("it said: {said}"),
                None => "was the module lazy_tlb_benchmark installed?".into(),
            };
            println!("warning: the kernel's own benchmark measured nothing; {said}");
        }
    }
    println!("now `cargo xtask report` has them");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::boots::tests::{EXIT, KERNEL, THREADS};
    use crate::bench::boots::{counted, MEASURES};
    use crate::host::failure::classify;
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
    fn the_instructions_have_the_boots_and_one_command() {
        let packages = [PathBuf::from("/out/linux-image.deb")];
        let text = instructions(Path::new("/out"), &packages, Format::Deb);
        for policy in policy::ALL {
            assert!(text.contains(&format!("  lazy_tlb={policy}\n")), "{text}");
        }
        for words in [
            "/out/linux-image.deb",
            "dpkg -i",
            "\n  sh lab/lazy-tlb-lab.sh\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn the_tarball_leaves_a_symbolic_link_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (root, packed) = (dir.path().join("root"), dir.path().join("packed"));
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
        fs::create_dir_all(packed.join("lib/modules")).unwrap();
        let run = |program: &str, words: &[&str]| {
            let mut command = Command::new(program);
            assert!(command
                .args(words)
                .current_dir(dir.path())
                .status()
                .unwrap()
                .success());
        };
        run("tar", &["-C", "packed", "-cf", "linux-7.tar.xz", "lib"]);
        let command = UNPACK.lines().next().unwrap().replace(" / ", " root ");
        run("sh", &["-c", &command]);
        assert!(root.join("lib").is_symlink());
        assert!(root.join("usr/lib/modules").is_dir());
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

    /// A machine for the script: its /proc and /sys, its programs, and the script.
    fn machine(policy: &str, user: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        put(
            "proc/vmstat",
            "nr_free_pages 9\nlazy_tlb_final_drops 4\nlazy_tlb_nudged 2\n",
        );
        put(
            "proc/cpuinfo",
            "processor\t: 0\ncpu MHz\t: 7\nmodel name\t: Some CPU\n",
        );
        put(
            "proc/cmdline",
            &format!("BOOT_IMAGE=x root=UUID=1-2 quiet lazy_tlb={policy}\n"),
        );
        put("proc/loadavg", "0.00 0.00 0.00 1/9 9\n");
        put("sys/module/kernel/parameters/lazy_tlb", "handover\n");
        put("bin/id", &format!("#!/bin/sh\necho {user}\n"));
        // A log that has what the module said before, which is of no matter.
        let old = "[    1.0] lazy_tlb_benchmark: what=old\n";
        put("dev/kmsg", "");
        put("bin/dmesg", "#!/bin/sh\nexec cat \"$LAZY_TLB_ROOT/log\"\n");
        put("log", old);
        put(
            "bin/modprobe",
            &format!(
                "#!/bin/sh\ncd \"$LAZY_TLB_ROOT\" && cat dev/kmsg >>log && printf '{}' |\n\
                 sed 's/^/[    2.0][    T1] lazy_tlb_benchmark: /' >>log\nexit 1\n",
                KERNEL.replace("POLICY", "handover").replace('\n', "\\n")
            ),
        );
        let perf = format!(
            "#!/bin/sh\ncase \"$*\" in\n'bench sched') echo '  lazy-tlb: x' ;;\n\
             'bench -f simple sched lazy-tlb -i 1 --exit') printf '{}' ;;\n*) printf '{}' ;;\nesac\n",
            EXIT.replace('\n', "\\n"),
            THREADS.replace('\n', "\\n")
        );
        put("perf", &perf.replace("POLICY", "handover"));
        let script = crate::kernel::workshop::repository().join(SCRIPT);
        fs::copy(script, dir.path().join("lab.sh")).unwrap();
        dir
    }

    /// What the script writes and says there.
    fn run_script(dir: &Path, rounds: &str) -> std::process::Output {
        let mut path = dir.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut sh = Command::new("sh");
        sh.arg(dir.join("lab.sh")).arg(rounds).current_dir(dir);
        sh.env("PATH", path)
            .env("LAZY_TLB_ROOT", dir)
            .env_remove("PERF");
        sh.output().unwrap()
    }

    #[test]
    fn what_the_script_writes_is_read() {
        let dir = machine("handover", 0);
        let output = run_script(dir.path(), "2");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let file = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        let results = Results::parse(&text).unwrap().remove(0);
        assert_eq!(results.policy, "handover");
        assert_eq!(results.cmdline, "quiet");
        assert_eq!(results.machine.cpu_model, "Some CPU");
        assert_eq!(results.runs.len(), 10);
        assert_eq!(
            results.runs[4].command,
            "perf bench -f simple sched lazy-tlb -i 1 --exit"
        );
        assert_eq!(counted(&[&results], "final_drops"), Some(0));
        assert_eq!((results.kernel.len(), results.kernel_said.len()), (6, 2));
        let (_, count) = MEASURES[7].spread(&[&results]).unwrap();
        assert_eq!(count, 2);
    }

    #[test]
    fn the_script_refuses_where_nothing_can_be_measured() {
        let refused = |dir: &tempfile::TempDir, why: &str| {
            let output = run_script(dir.path(), "1");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(why) && said.contains("remedy"), "{said}");
        };
        refused(&machine("handover", 1000), "only root");
        refused(&machine("refcount", 0), "the policy in force is handover");
        let dir = machine("handover", 0);
        fs::write(dir.path().join("perf"), "#!/bin/sh\necho messaging\n").unwrap();
        refused(&dir, "no `bench sched lazy-tlb`");
        fs::write(dir.path().join("proc/vmstat"), "nr_free_pages 9\n").unwrap();
        refused(&dir, "no lazy_tlb_* counters");
    }
}
