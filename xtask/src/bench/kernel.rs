//! `bench kernel`: what a borrow, a switch and a final drop cost in the kernel itself, as its own benchmark
//! (`CONFIG_LAZY_TLB_BENCHMARK`) says at boot, where policies take turns.
//!
//! User-mode Linux runs it at the speed of this machine's CPUs. Everywhere else an emulator makes the
//! times.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::bench::paired::{self, Bench};
use crate::guest::console::{number, pairs, text};
use crate::guest::machine::Append;
use crate::host::failure::{fail, Exit};
use crate::kernel::build::{values, Build};
use crate::kernel::workshop::{Project, Workshop};
use crate::results::sample::Sample;

/// What the kernel puts in front of its lines.
const PREFIX: &str = "lazy_tlb_benchmark: ";

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many CPUs the guest has.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub cpus: u32,
    /// How many guests are booted.
    #[arg(long, alias = "repeat", default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub boots: u32,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 300, value_name = "S")]
    pub timeout: u64,
    /// Measure nothing here: put kernel, initramfs and a script into DIR, to be run on another machine.
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
}

/// What measures there, without xtask.
const SCRIPT: &str = "lazy-tlb-um.sh";

/// A line is of the rounds that the kernel makes, of one thing on so many CPUs.
fn read(line: &str, boot: u32) -> Result<Vec<Sample>> {
    let line = line.strip_prefix(PREFIX).map(pairs);
    let Some(line) = line.filter(|line| line.contains_key("what")) else {
        return Ok(Vec::new());
    };
    Ok(vec![Sample {
        policy: text(&line, "policy")?.into(),
        boot,
        round: 1,
        what: text(&line, "what")?.into(),
        case: String::new(),
        cpus: number(&line, "cpus")?.try_into()?,
        unit: "ns".into(),
        value: number(&line, "ps_median")? as f64 / 1000.0,
    }])
}

pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let bench = Bench {
        name: "kernel",
        build,
        initramfs: project.initramfs(build.arch, "alive")?,
        words: "",
        rounds: None,
        read,
    };
    let bundle = options.bundle.as_deref();
    let options = paired::Options {
        cpus: options.cpus,
        boots: options.boots,
        rounds: None,
        icount: false,
        append: Append::default(),
        timeout: options.timeout,
    };
    build.configure()?;
    let config = build.out.join(".config");
    let config =
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    if values(&config).get("LAZY_TLB_BENCHMARK") != Some(&"y") {
        return Err(fail(
            Exit::Usage,
            "this kernel has no benchmark of its own (CONFIG_LAZY_TLB_BENCHMARK)",
            "use --arch um, whose configuration has it",
        ));
    }
    match bundle {
        Some(dir) => pack(project, build, &bench.initramfs, dir),
        None => bench.run(project, shop, &options, json),
    }
}

fn pack(project: &Project, build: &Build<'_>, initramfs: &Path, dir: &Path) -> Result<()> {
    if !build.arch.is_program() {
        return Err(fail(
            Exit::Usage,
            format!(
                "a kernel of {} is no program that another machine could start",
                build.arch.name
            ),
            "use --arch um",
        ));
    }
    let image = build.image()?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let script = project.repo.join("lab").join(SCRIPT);
    for (from, name) in [
        (image.as_path(), "linux"),
        (initramfs, "initramfs"),
        (&script, SCRIPT),
    ] {
        let to = dir.join(name);
        fs::copy(from, &to).with_context(|| format!("writing {}", to.display()))?;
    }
    println!(
        "\nTake {} to a machine with many CPUs (x86_64, a C library no older than here), and there: sh {SCRIPT}\n\
         Its JSON file goes into a folder of results/ for that machine.",
        dir.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sh;
    use crate::results::machine::Machine;
    use crate::results::sample::{Samples, FILES};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// A kernel that says what the benchmark says, in place of user-mode Linux.
    #[test]
    fn the_bundle_s_script_writes_samples() {
        let dir = tempfile::tempdir().unwrap();
        let script = crate::kernel::workshop::repository()
            .join("lab")
            .join(SCRIPT);
        fs::copy(script, dir.path().join(SCRIPT)).unwrap();
        let run = |kernel: &str, cpus: &str| {
            let path = dir.path().join("linux");
            sh::write_whole(&path, kernel.as_bytes()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let mut sh = Command::new("sh");
            let output = sh
                .args([SCRIPT, "2", cpus])
                .current_dir(dir.path())
                .output()
                .unwrap();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            (output.status.code(), said)
        };
        let (status, said) = run("#!/bin/sh\necho Kernel panic\n", "2");
        assert_eq!(status, Some(7), "{said}");
        assert!(said.contains("Kernel panic"), "{said}");
        for cpus in ["0", "many"] {
            let (status, said) = run("#!/bin/sh\n", cpus);
            assert!(status == Some(2) && said.starts_with("usage:"), "{said}");
        }
        let mut kernel = "#!/bin/sh\necho '[0.0] Linux version 7.3.4 (a@b)'\n".to_owned();
        for what in ["trip", "switch", "drop"] {
            for (policy, ps) in [("refcount", 42500), ("handover", 7000), ("shootdown", 7001)] {
                kernel += &format!(
                    "echo '[0.1] {PREFIX}what={what} policy={policy} cpus=2 rounds=31 ps_median={ps} ps_min=1'\n"
                );
            }
        }
        let (status, said) = run(&kernel, "2");
        assert_eq!(status, Some(0), "{said}");
        assert!(said.contains("| 42.5 (42.5..42.5) "), "{said}");
        let file = said.lines().rfind(|line| line.ends_with(".json")).unwrap();
        assert!(file.starts_with(FILES), "{file}");
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        let samples: Samples = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (samples.bench(), samples.kernel.as_str()),
            ("kernel", "7.3.4")
        );
        assert_eq!(samples.machine.cpus, Machine::here().unwrap().cpus);
        let rows: Vec<_> = samples.samples.iter().map(|s| (s.boot, s.value)).collect();
        assert_eq!(rows.len(), 18);
        assert_eq!((rows[0], rows[17]), ((1, 42.5), (2, 7.001)));
    }

    #[test]
    fn a_line_is_a_median() {
        let line = "lazy_tlb_benchmark: what=drop policy=refcount cpus=2 rounds=31 \
                    ps_median=42500 ps_min=5900 ps_max=70000 times=8";
        let sample = read(line, 3).unwrap().remove(0);
        assert_eq!(sample.row(), ("drop", "", 2, "ns"));
        assert_eq!((sample.boot, sample.value), (3, 42.5));
        assert!(read(&line.replace("ps_median=42500 ", ""), 1).is_err());
        let said = "lazy_tlb_benchmark: not all of 4 CPUs came in time";
        assert!(read(said, 1).unwrap().is_empty());
    }
}
