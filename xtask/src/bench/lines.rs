//! `bench lines`: which cache lines move in the kernel, and how often per trip to idle and back, as a
//! plugin of the emulator (the crate `lines`) counts them. Nothing here is a time.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Result};
use clap::Args;

use crate::bench::counts::{Results, Sample};
use crate::bench::layout::{marks, Layout};
use crate::bench::load::{self, Load};
use crate::bench::transfers::{averages, Section, Told};
use crate::guest::firmware;
use crate::guest::initramfs::GuestFile;
use crate::guest::machine::{self, Append, Guest};
use crate::host::arch::Arch;
use crate::host::sh;
use crate::kernel::build::Build;
use crate::kernel::workshop::Project;
use crate::results::machine::{of_this_machine, Machine};
use crate::results::sample::append_option;

/// Nothing of this machine's time gets into the guest.
const STEADY: [&str; 4] = [
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "base=2026-01-01,clock=vm",
];
/// A CPU of loongarch may interrupt itself by an instruction of which QEMU 10.0.2 does not expect it, and with that
/// clock it aborts; with more CPUs than these it does so at boot. Then the guest has this machine's time, and two
/// boots with one seed have not quite the same counts.
const STEADY_LOONGARCH: u32 = 4;
/// With it no CPU spends 150 ms on how long a loop takes: x86_64's TSC runs at 1 GHz with an instruction per ns,
/// and there are 100 jiffies per second. Others take the word as well and time their delays by a clock.
const KNOWN: &str = "lpj=10000000";
/// How the names of its files begin.
pub const FILES: &str = "lines-";

/// What is counted.
#[derive(Args, Clone)]
pub struct Options {
    /// What runs: a load of guest/loads.toml in a Debian system; without it, pairs of threads, exits, forks, unmaps.
    #[arg(long, value_name = "NAME")]
    pub load: Option<String>,
    /// How many CPUs the guest has, half of them for each end of the pipes.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=256))]
    pub cpus: u32,
    /// The policies.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME[,NAME]",
        default_value = "refcount,handover,shootdown"
    )]
    pub policy: Vec<String>,
    /// How often it is booted, each time with another seed.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub boots: u32,
    /// How often the policies take turns in one boot. A tick, with all that comes of it, is in some rounds and not in
    /// others.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
    pub rounds: u32,
    /// Trips of each thread that are counted.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub trips: u32,
    /// Exits without and with lazy CPUs, forks, and unmaps that are counted, of each.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub lives: u32,
    /// After how many instructions, on the average, it is another CPU's turn.
    #[arg(long, default_value_t = 300, value_name = "N")]
    pub turn: u32,
    /// The first boot's seed: the same gives the same counts on the same kernel and workload.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u32,
    /// Boot each seed twice, and fail unless the counts are the same.
    #[arg(long)]
    pub twice: bool,
    #[command(flatten)]
    pub append: Append,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 3600, value_name = "S")]
    pub timeout: u64,
}

impl Options {
    /// The variant that it is counted in unless told so.
    pub fn variant(&self) -> &'static str {
        match self.load {
            Some(_) => load::VARIANT,
            None => "lines",
        }
    }

    /// The load's name after something, nothing where there is none.
    fn of_load(&self, before: &str) -> String {
        let load = self.load.as_ref();
        load.map_or(String::new(), |load| format!("{before}{load}"))
    }

    /// How much of it is counted, as options again.
    fn amount(&self) -> String {
        match self.load {
            Some(_) => String::new(),
            None => format!("--trips {} --lives {} ", self.trips, self.lives),
        }
    }
}

/// Builds the plugin for the emulator that is there.
fn plugin(project: &Project, qemu: &str) -> Result<PathBuf> {
    let version = sh::capture(Command::new(qemu).arg("--version"))?;
    let major = version
        .split_whitespace()
        .nth(3)
        .and_then(|v| v.split('.').next()?.parse().ok());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    cargo
        .current_dir(&project.repo)
        .args(["build", "--quiet", "--release", "--package", "lines"]);
    if major.is_some_and(|major: u32| major < 9) {
        cargo.args(["--features", "qemu7"]);
    }
    sh::announce(&cargo);
    sh::capture(&mut cargo)?;
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| project.repo.join("target"), PathBuf::from);
    Ok(target.join("release/liblines.so"))
}

/// A guest that counts.
struct CountingGuest<'a> {
    project: &'a Project,
    arch: &'static Arch,
    image: &'a Path,
    layout: Layout,
    plugin: PathBuf,
    marks: String,
    initramfs: PathBuf,
    load: Option<Load>,
}

impl<'a> CountingGuest<'a> {
    /// Builds the plugin and the workload for a kernel.
    fn prepare(
        project: &'a Project,
        arch: &'static Arch,
        out: &Path,
        image: &'a Path,
        load: Option<&str>,
    ) -> Result<Self> {
        let load = load
            .map(|name| Load::find(&project.repo, name))
            .transpose()?;
        let layout = Layout::of(out)?;
        let described = GuestFile {
            path: "layout".into(),
            bytes: layout.for_guest().into_bytes(),
        };
        let initramfs = match &load {
            Some(load) => load.initramfs(project, arch, vec![described], out)?,
            None => project.initramfs_with(arch, "lines", vec![described], out)?,
        };
        Ok(CountingGuest {
            project,
            arch,
            image,
            layout,
            plugin: plugin(project, arch.qemu)?,
            marks: marks(&project.init(arch)?)?,
            initramfs,
            load,
        })
    }

    /// One boot has all policies, where they can be changed.
    fn turns<'b>(&self, policies: &'b [String]) -> Vec<&'b [String]> {
        match self.layout.has("lazy_tlb_param_ops") {
            true => vec![policies],
            false => policies.chunks(1).collect(),
        }
    }

    /// Boots it; returns what the console and the plugin say.
    fn boot(&self, policies: &[String], seed: u32, options: &Options) -> Result<(String, String)> {
        let (arch, cache) = (self.arch, &self.project.cache);
        let name = format!(
            "lines-{}-{}{}-{}-{seed}",
            arch.name,
            options.cpus,
            options.of_load("-"),
            policies.join("-")
        );
        let written = cache.dir("log")?.join(format!("{name}.txt"));
        let append = format!(
            "{} lazy_tlb={} {} nokaslr {} LAZY_TLB_POLICIES={} {}",
            KNOWN,
            policies[0],
            machine::NO_KUNIT,
            match &self.load {
                Some(load) => load.words(),
                None => format!(
                    "LAZY_TLB_TRIPS={} LAZY_TLB_LIVES={}",
                    options.trips, options.lives
                ),
            },
            if policies.len() > 1 {
                vec![policies.join(","); options.rounds as usize].join(",")
            } else {
                String::new()
            },
            options.append.words
        );
        let mut argument = self.plugin.clone().into_os_string();
        argument.push(",out=");
        argument.push(&written);
        argument.push(format!(
            ",line={},turn={},seed={seed}{}",
            arch.line_bytes, options.turn, self.marks
        ));
        let steady = arch.name != "loongarch" || options.cpus <= STEADY_LOONGARCH;
        let mut more: Vec<OsString> = match steady {
            true => STEADY.map(Into::into).into(),
            false => Vec::new(),
        };
        if let Some(firmware) = firmware::for_many(cache, arch, options.cpus)? {
            more.extend(["-bios".into(), firmware.into()]);
        }
        more.extend(["-seed".into(), seed.to_string().into()]);
        more.extend(["-plugin".into(), argument]);
        let limit = Duration::from_secs(options.timeout);
        let guest = Guest {
            smp: options.cpus as usize,
            append: append.trim_end(),
            timeout: limit,
            silence: limit,
            more,
            ..Guest::of(
                arch,
                machine::TCG_BY_TURNS,
                self.image,
                &self.initramfs,
                cache.path(format!("log/{name}.log")),
            )
        };
        let report = guest.boot()?;
        report.check()?;
        Ok((report.text, fs::read_to_string(&written)?))
    }

    /// Counts under some policies of one boot.
    fn count(&self, policies: &[String], boot: u32, options: &Options) -> Result<Vec<Sample>> {
        let seed = options.seed + boot - 1;
        let (console, written) = self.boot(policies, seed, options)?;
        if options.twice {
            let (_, again) = self.boot(policies, seed, options)?;
            ensure!(again == written, "two boots with the seed {seed} differ");
        }
        let (told, sections) = (Told::parse(&console)?, Section::parse(&written)?);
        let rounds = match policies.len() {
            1 => 1,
            _ => options.rounds,
        };
        let round = |number: usize| (boot - 1) * rounds + number as u32 + 1;
        let runs: Vec<_> = told
            .iter()
            .zip(&sections)
            .collect::<Vec<_>>()
            .chunk_by(|(one, _), (other, _)| one.policy == other.policy)
            .map(<[_]>::to_vec)
            .collect();
        let ran = runs.iter().map(|run| &*run[0].0.policy);
        let asked = policies
            .iter()
            .cycle()
            .take(policies.len() * rounds as usize);
        ensure!(
            ran.clone().eq(asked) && sections.len() == told.len(),
            "the policies were {:?}, asked were {policies:?} (a kernel without the option has `--policy off`)",
            ran.collect::<Vec<_>>()
        );
        let mut samples = Vec::new();
        for (number, run) in runs.iter().enumerate() {
            let operation = self.load.as_ref().and_then(Load::operation);
            for (unit, what, case, value) in averages(&self.layout, run, operation)? {
                samples.push(Sample {
                    policy: run[0].0.policy.clone(),
                    boot: round(number / policies.len()),
                    what: what.into(),
                    case,
                    cpus: options.cpus,
                    unit,
                    value,
                });
            }
        }
        Ok(samples)
    }
}

/// Counts on a kernel.
pub fn count(
    project: &Project,
    arch: &'static Arch,
    out: &Path,
    image: &Path,
    options: &Options,
) -> Result<Vec<Sample>> {
    let guest = CountingGuest::prepare(project, arch, out, image, options.load.as_deref())?;
    let mut samples = Vec::new();
    for boot in 1..=options.boots {
        for policies in guest.turns(&options.policy) {
            samples.extend(guest.count(policies, boot, options)?);
        }
    }
    Ok(samples)
}

/// `bench lines` itself: the guests, the file, the table.
pub fn run(
    project: &Project,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let arch = build.arch;
    let image = build.image()?;
    let version = sh::capture(Command::new(arch.qemu).arg("--version"))?;
    let results = Results {
        command: format!(
            "cargo xtask bench lines{} --arch {} --variant {} --cpus {} --policy {} --boots {} --rounds {} \
             {}--turn {} --seed {}{}",
            options.of_load(" --load "),
            arch.name,
            build.variant,
            options.cpus,
            options.policy.join(","),
            options.boots,
            options.rounds,
            options.amount(),
            options.turn,
            options.seed,
            append_option(&options.append.words)
        ),
        machine: Machine::here()?,
        guest: arch.name.into(),
        guest_cpus: options.cpus,
        load: options.load.clone(),
        line_bytes: arch.line_bytes,
        variant: build.variant.into(),
        qemu: version.lines().next().unwrap_or_default().into(),
        samples: count(project, arch, &build.out, &image, options)?,
    }
    .without_like_functions();
    let path = match json {
        Some(path) => path.to_owned(),
        None => {
            let load = options.of_load("-");
            let more = unlike(options.variant(), build.variant);
            let name = format!("{FILES}{}-{}{load}{more}.json", arch.name, options.cpus);
            of_this_machine(&project.repo)?.join(name)
        }
    };
    let text = serde_json::to_string(&results)?.replace("},{", "},\n{") + "\n";
    sh::write_whole(&path, text.as_bytes())?;
    println!("\n{}\n\n{}", results.tables(), path.display());
    Ok(())
}

/// What tells a variant from the usual one in the name of a file.
fn unlike(usual: &str, variant: &str) -> String {
    let more = variant.strip_prefix(usual).map(str::to_owned);
    more.unwrap_or_else(|| format!("-{variant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_variant_is_in_the_name_of_the_file() {
        assert_eq!(unlike("lines", "lines"), "");
        assert_eq!(unlike("lines", "lines-off"), "-off");
        assert_eq!(unlike("loads", "test"), "-test");
    }
}
