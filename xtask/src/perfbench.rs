//! `bench perf`: `perf bench sched lazy-tlb` in all its modes in a guest under each policy, in the form
//! of what comes back from a real machine.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{ensure, Context, Result};
use clap::Args;

use crate::bench::append_option;
use crate::failure::{fail, Exit};
use crate::guest::{self, Append, Guest, GuestFile};
use crate::kbuild::Build;
use crate::lab::{self, POLICIES};
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

/// `bench perf` itself: the guests, and a file for each.
pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
) -> Result<()> {
    let arch = build.arch;
    let image = build.image()?;
    let accel = guest::accelerator(&project.cache, arch, &image)?;
    let accel = guest::for_cpus(&accel, options.cpus as usize);
    let perf = lab::perf(&shop.tree, arch, &build.out)?;
    let program = project.guest_program(arch, "perf-init")?;
    let initramfs = build.out.join("perf-init.cpio");
    let files = [
        GuestFile::program("init", &program)?,
        GuestFile::program("perf", &perf)?,
    ];
    guest::write_initramfs(&initramfs, &files)?;
    let limit = Duration::from_secs(options.timeout);
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
        times_emulated: accel.starts_with("tcg"),
        host: format!("{}, {} CPUs", here.cpu_model, here.cpus),
    };
    // One policy after the other, and again: what changes on the host meanwhile meets all of them.
    let boots = (1..=options.boots).flat_map(|boot| POLICIES.map(|policy| (boot, policy)));
    for (boot, policy) in boots {
        let append = format!(
            "lazy_tlb={policy} {} LAZY_TLB_ROUNDS={} {}",
            guest::NO_KUNIT,
            options.rounds,
            options.append.words
        );
        let file = facts.file(policy, boot);
        let log = Path::new("log").join(&file).with_extension("log");
        let guest = Guest {
            smp: options.cpus as usize,
            append: append.trim_end(),
            timeout: limit,
            silence: guest::SILENCE.min(limit),
            ..Guest::of(
                arch,
                accel.clone(),
                &image,
                &initramfs,
                project.cache.path(log),
            )
        };
        let report = guest.boot()?;
        report.check()?;
        let parsed = lab::Results::parse(&report.text).and_then(|mut all| {
            ensure!(all.len() == 1, "{} boots are in one console", all.len());
            let mut results = all.remove(0);
            ensure!(
                results.policy == policy,
                "the guest's policy is {}",
                results.policy
            );
            // The guest may have no clock.
            results.started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            results.guest = Some(facts.clone());
            Ok(results)
        });
        let results = parsed.map_err(|error| {
            fail(
                Exit::Failed,
                format!("{policy}: {error:#}"),
                format!("the console is in {}", guest.log.display()),
            )
        })?;
        let path = results::of_this_machine(project)?.join(file);
        let text = serde_json::to_string_pretty(&results).context("as JSON")?;
        sh::write_whole(&path, text.as_bytes())?;
        println!("{}", path.display());
    }
    println!("\n`cargo xtask report` shows them side by side");
    Ok(())
}
