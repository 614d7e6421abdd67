//! `bench perf`: `perf bench sched lazy-tlb` in all its modes in a guest under each policy, in the form
//! of what comes back from a real machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{ensure, Context, Result};
use clap::Args;

use crate::arch::Arch;
use crate::bench::append_option;
use crate::guest::{self, Append, Guest, GuestFile};
use crate::kbuild::Build;
use crate::lab;
use crate::policy;
use crate::project::{Project, Workshop};
use crate::results::{self, Machine};
use crate::sh;

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many CPUs the guest has.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub cpus: u32,
    /// How often each policy is booted.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub boots: u32,
    /// How often each mode is run on each boot.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    #[command(flatten)]
    pub append: Append,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 900, value_name = "S")]
    pub timeout: u64,
}

/// A guest that runs perf, under any policy.
pub struct PerfGuest<'a> {
    project: &'a Project,
    arch: &'static Arch,
    image: PathBuf,
    accel: String,
    initramfs: PathBuf,
    cpus: u32,
    append: &'a str,
    limit: Duration,
}

impl<'a> PerfGuest<'a> {
    /// Builds the kernel, perf and the initramfs.
    pub fn prepare(
        project: &'a Project,
        shop: &Workshop<'_>,
        build: &Build<'_>,
        cpus: u32,
        append: &'a Append,
        timeout: u64,
    ) -> Result<Self> {
        let arch = build.arch;
        let image = build.image()?;
        let accel = guest::accelerator(&project.cache, arch, &image)?;
        let accel = guest::for_cpus(&accel, cpus as usize);
        let perf = lab::perf(&shop.tree, arch, &build.out)?;
        let program = project.guest_program(arch, "perf-init")?;
        let initramfs = build.out.join("perf-init.cpio");
        let files = [
            GuestFile::program("init", &program)?,
            GuestFile::program("perf", &perf)?,
        ];
        guest::write_initramfs(&initramfs, &files)?;
        Ok(PerfGuest {
            project,
            arch,
            image,
            accel,
            initramfs,
            cpus,
            append: &append.words,
            limit: Duration::from_secs(timeout),
        })
    }

    /// Whether the times are an emulator's.
    pub fn times_emulated(&self) -> bool {
        self.accel.starts_with("tcg")
    }

    /// Boots it, with a word for its first process. `take` gets the console, and what perf said in it.
    pub fn boot<T>(
        &self,
        policy: &str,
        word: &str,
        file: &str,
        take: impl FnOnce(&str, lab::Results) -> Result<T>,
    ) -> Result<T> {
        let append = format!(
            "lazy_tlb={policy} {} {word} {}",
            guest::NO_KUNIT,
            self.append
        );
        let log = Path::new("log").join(file).with_extension("log");
        let guest = Guest {
            smp: self.cpus as usize,
            append: append.trim_end(),
            timeout: self.limit,
            silence: guest::SILENCE.min(self.limit),
            ..Guest::of(
                self.arch,
                self.accel.clone(),
                &self.image,
                &self.initramfs,
                self.project.cache.path(log),
            )
        };
        let report = guest.boot()?;
        report.check()?;
        let taken = lab::Results::parse(&report.text).and_then(|mut all| {
            ensure!(all.len() == 1, "{} boots are in one console", all.len());
            let results = all.remove(0);
            ensure!(
                results.policy == policy,
                "the guest's policy is {}",
                results.policy
            );
            take(&report.text, results)
        });
        taken.map_err(|error| guest.misread(policy, &error))
    }
}

/// `bench perf` itself: the guests, and a file for each.
pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
) -> Result<()> {
    let arch = build.arch;
    let (cpus, timeout) = (options.cpus, options.timeout);
    let guest = PerfGuest::prepare(project, shop, build, cpus, &options.append, timeout)?;
    let here = Machine::here()?;
    let facts = lab::Guest {
        command: format!(
            "cargo xtask bench perf --arch {} --variant {} --cpus {} --boots {} --rounds {}{}",
            arch.name,
            build.variant,
            options.cpus,
            options.boots,
            options.rounds,
            append_option(&options.append.words)
        ),
        arch: arch.name.into(),
        variant: build.variant.into(),
        append: options.append.words.clone(),
        cpus: options.cpus as usize,
        times_emulated: guest.times_emulated(),
        host: format!("{}, {} CPUs", here.cpu_model, here.cpus),
    };
    let rounds = format!("LAZY_TLB_ROUNDS={}", options.rounds);
    // One policy after the other, and again: what changes on the host meanwhile meets all of them.
    let boots = (1..=options.boots).flat_map(|boot| policy::ALL.map(|policy| (boot, policy)));
    for (boot, policy) in boots {
        let file = facts.file(policy, boot);
        let results = guest.boot(policy, &rounds, &file, |_, mut results| {
            // The guest may have no clock.
            results.started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            results.guest = Some(facts.clone());
            Ok(results)
        })?;
        let path = results::of_this_machine(project)?.join(file);
        let text = serde_json::to_string_pretty(&results).context("as JSON")?;
        sh::write_whole(&path, text.as_bytes())?;
        println!("{}", path.display());
    }
    println!("\n`cargo xtask report` shows them side by side");
    Ok(())
}
