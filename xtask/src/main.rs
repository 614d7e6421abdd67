//! `cargo xtask`: the host side of the lazy TLB series.
//!
//! Everything a person types is here; each command lives in a module of its own.

mod bench;
mod checks;
mod distro;
mod guest;
mod host;
mod kernel;
mod lab;
mod report;
mod results;
mod series;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::guest::initramfs::GuestFile;
use crate::guest::machine::{Append, Guest, Vm};
use crate::host::cache::Cache;
use crate::host::failure::{classify, fail, Exit, EXIT_HELP};
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::Recorder;
use crate::series::patch::Selection;

/// Builds, boots, tests and mails the lazy TLB series.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXIT_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Another base tree, an unpatched Linux 7.3.x, in place of the fetched one.
    #[arg(
        long,
        global = true,
        env = "LINUX",
        value_name = "DIR",
        hide_env_values = true
    )]
    linux: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Installs the tools that are missing and fetches the base tree; the last line printed is what
    /// make is told to use them.
    #[command(after_help = "Example: cargo xtask setup --arch x86_64")]
    Setup {
        #[command(flatten)]
        guests: Guests,
    },
    /// Makes a patched kernel tree: a git repository with one commit per patch.
    #[command(after_help = "Example: cargo xtask tree --out ~/linux-lazy --upto 3")]
    Tree {
        /// A folder that is not there yet.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Only the first N patches.
        #[arg(long, value_name = "N")]
        upto: Option<usize>,
        #[command(flatten)]
        skip: Skip,
    },
    /// Rewrites patches/ and the new files from a tree made by `tree`, one patch per commit.
    #[command(after_help = "Example: cargo xtask import --from ~/linux-lazy")]
    Import {
        /// The tree.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
    /// Applies the series to your own Linux 7.3.x tree, or takes it off again.
    #[command(after_help = "Example: cargo xtask apply --linux ~/linux")]
    Apply {
        /// Take the series off.
        #[arg(long)]
        reverse: bool,
    },
    /// Builds a kernel; the last line printed is the image's path.
    #[command(after_help = "Example: cargo xtask build --arch x86_64 --variant test")]
    Build {
        #[command(flatten)]
        kernel: Kernel,
    },
    /// Boots the built kernel with a static program as its first process, console on stdout.
    #[command(after_help = "Example: cargo xtask boot --arch x86_64 --smp 2 --init ./hello")]
    Boot {
        #[command(flatten)]
        kernel: Kernel,
        #[command(flatten)]
        boot: BootArgs,
    },
    /// The main job: builds, boots the same workload under every policy, compares.
    #[command(after_help = "Example: cargo xtask run")]
    Run {
        #[command(flatten)]
        target: Target,
    },
    /// Runs every test: xtask's own, litmus, tidy, series, option off, every guest, main job, bench.
    #[command(after_help = "Example: cargo xtask test --arch x86_64 --json results.json")]
    Test {
        #[command(flatten)]
        options: checks::stages::Options,
    },
    /// Measures what the policies do: one thing, or everything there is, and writes the report.
    #[command(after_help = "Example: cargo xtask bench")]
    Bench {
        #[command(subcommand)]
        bench: Option<Bench>,
    },
    /// Builds the series into your own kernel, to be measured on a real machine; takes in the results.
    #[command(
        after_help = "Example: cargo xtask lab --config /boot/config-7.3 --out ~/lab\n\
                            and then cargo xtask lab --import lazy-tlb-*.txt"
    )]
    Lab {
        #[command(flatten)]
        options: lab::Options,
    },
    /// Writes tables of everything in results/: is each policy better than refcount, then the details.
    #[command(after_help = "Example: cargo xtask report")]
    Report,
    /// Writes the series as mails with a cover letter, ready to be signed off and sent.
    #[command(after_help = "Example: cargo xtask series --out mails")]
    Series {
        /// A folder that is not there yet.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Checks the fences: what may stand where, formatting, checkpatch --strict.
    #[command(after_help = "Example: cargo xtask tidy")]
    Tidy,
    /// Runs other people's tests in a Debian guest, on a kernel configured as Debian's, under each policy.
    #[command(after_help = "Example: cargo xtask distro --arch x86_64 --policy handover --flip")]
    Distro {
        #[command(flatten)]
        options: distro::Options,
    },
    /// Runs programs of system calls around the lifetime of mms, made from seeds, in a guest.
    #[command(
        after_help = "Example: cargo xtask fuzz --arch s390 --policy handover --seconds 600 --minimise"
    )]
    Fuzz {
        #[command(flatten)]
        options: checks::fuzz::Options,
    },
    /// Checks that take longer, or are for one thing, and are not part of `test` as they are.
    #[command(after_help = "Example: cargo xtask check mutants --list")]
    Check {
        #[command(subcommand)]
        check: Check,
    },
}

#[derive(Subcommand)]
enum Check {
    /// Asks the kernel's memory model about every litmus test of the series.
    #[command(after_help = "Example: cargo xtask check litmus")]
    Litmus,
    /// Breaks the series in each of the ways in mutants/, and checks that a test notices.
    #[command(after_help = "Example: cargo xtask check mutants --arch arm64 --json mutants.json")]
    Mutants {
        #[command(flatten)]
        options: checks::mutants::Options,
    },
    /// Has the kernel's own checkers look at the series' files: W=1, sparse, clippy, rustdoc, htmldocs.
    #[command(after_help = "Example: cargo xtask check lint --arch all")]
    Lint {
        #[command(flatten)]
        options: checks::lint::Options,
    },
    /// Builds and boots the series patch by patch, the option off and on.
    #[command(after_help = "Example: cargo xtask check bisect --arch x86_64 --patch 13..15")]
    Bisect {
        #[command(flatten)]
        options: checks::bisect::Options,
    },
    /// Tries the series on every kernel from 7.2 on that Debian's archive has, and on LINUX=.
    #[command(after_help = "Example: cargo xtask check drift --out rebased")]
    Drift {
        #[command(flatten)]
        options: checks::drift::Options,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Final drops, scans and interrupts of the same workloads under each policy.
    #[command(after_help = "Example: cargo xtask bench ipis --cpus 32 --workload build")]
    Ipis(Measured<bench::ipis::Options>),
    /// What a lazy TLB borrow and a final drop cost in the kernel, by its own benchmark.
    #[command(after_help = "Example: cargo xtask bench kernel --arch um --cpus 2")]
    Kernel(Measured<bench::kernel::Options>),
    /// What perf bench sched lazy-tlb says when it compares the policies in a guest; without KVM, emulated.
    #[command(after_help = "Example: cargo xtask bench perf --arch arm64")]
    Perf(Measured<bench::paired::Options>),
    /// Which cache lines move per trip to idle and back, counted in the emulator under each policy.
    #[command(after_help = "Example: cargo xtask bench lines --arch x86_64 --cpus 32")]
    Lines {
        #[command(flatten)]
        target: Target,
        /// A fragment in configs/variants/; without it, lines, and for a load, loads.
        #[arg(long)]
        variant: Option<String>,
        #[command(flatten)]
        options: bench::lines::Options,
        /// Write every sample to FILE; without it, into results/.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// How long an exit takes under each policy, changed at run time in a guest; without KVM, emulated.
    #[command(after_help = "Example: cargo xtask bench exit --arch arm64 --icount")]
    Exit(Measured<bench::paired::Options>),
}

/// What is measured of which kernel.
#[derive(Args)]
struct Measured<O: Args> {
    #[command(flatten)]
    kernel: Kernel,
    #[command(flatten)]
    options: O,
    /// Write every sample to FILE; without it, into results/.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl<O: Args> Measured<O> {
    fn by(
        &self,
        project: &Project,
        run: fn(&Project, &Workshop<'_>, &Build<'_>, &O, Option<&Path>) -> Result<()>,
    ) -> Result<()> {
        with_kernel(project, &self.kernel, |shop, build| {
            run(project, shop, build, &self.options, self.json.as_deref())
        })
    }
}

/// Which patches to leave out.
#[derive(Args)]
struct Skip {
    /// Leave out the patches whose file names start so (to see the tests fail without them).
    #[arg(long, value_name = "N[,N]", value_delimiter = ',')]
    skip: Vec<String>,
}

/// Which guests.
#[derive(Args)]
struct Guests {
    /// x86_64, arm64, s390, powerpc, riscv, arm, loongarch, um, a guest such as powerpc-hash, or all.
    #[arg(long, default_value = host::arch::ALL, env = "ARCH", hide_env_values = true)]
    arch: String,
}

/// Which machine, with which part of the series.
#[derive(Args)]
struct Target {
    /// x86_64, arm64, s390, powerpc, riscv, arm, loongarch or um.
    #[arg(long, default_value = "x86_64", env = "ARCH", hide_env_values = true)]
    arch: String,
    #[command(flatten)]
    skip: Skip,
}

/// Which kernel.
#[derive(Args)]
struct Kernel {
    #[command(flatten)]
    target: Target,
    /// A fragment in configs/variants/.
    #[arg(long, default_value = "default")]
    variant: String,
}

#[derive(Args)]
struct BootArgs {
    /// How many CPUs.
    #[arg(long, default_value_t = 4, value_name = "N")]
    smp: usize,
    #[command(flatten)]
    append: Append,
    /// The first process, a static program; without it, the workload of `run`.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Seconds until the guest is ended.
    #[arg(long, default_value_t = 300, value_name = "S")]
    timeout: u64,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            let (exit, error) = classify(error);
            eprintln!("error: {error:#}");
            ExitCode::from(exit as u8)
        }
    }
}

fn run(cli: Cli) -> Result<Exit> {
    let project = Project {
        repo: kernel::workshop::repository(),
        cache: Cache::of_user()?,
        // `make LINUX=` passes an empty one.
        linux: cli.linux.filter(|dir| !dir.as_os_str().is_empty()),
    };
    match cli.command {
        Command::Setup { guests } => setup(&project, &guests)?,
        Command::Tree { out, upto, skip } => {
            let skip = skip.skip;
            let selection = Selection { upto, skip };
            let (base, series) = (project.base()?, project.series()?);
            series::git::export(
                &project.cache,
                &base,
                &series,
                &selection,
                &out,
                series::git::Checkout::All,
            )?;
            println!("{}", out.display());
        }
        Command::Import { from } => series::import::import(&project.repo, &from)?,
        Command::Apply { reverse } => {
            let dir = project.linux.as_ref().ok_or_else(|| {
                fail(
                    Exit::Usage,
                    "apply to which tree?",
                    "give it with --linux DIR (or `make apply LINUX=DIR`)",
                )
            })?;
            series::user::apply(&project.series()?, dir, reverse)?;
        }
        Command::Build { kernel } => println!("{}", build(&project, &kernel)?.display()),
        Command::Boot { kernel, boot: args } => boot(&project, &kernel, &args)?,
        Command::Run { target } => {
            return bench::run::run(&project, host::arch::find(&target.arch)?, &target.skip.skip)
        }
        Command::Test { options } => return checks::stages::run(&project, &options),
        Command::Bench { bench: Some(bench) } => match bench {
            Bench::Ipis(measured) => measured.by(&project, bench::ipis::run)?,
            Bench::Kernel(measured) => measured.by(&project, bench::kernel::run)?,
            Bench::Perf(measured) => measured.by(&project, bench::perf::run)?,
            Bench::Exit(measured) => measured.by(&project, bench::exit::run)?,
            Bench::Lines {
                target,
                variant,
                options,
                json,
            } => {
                let variant = variant.unwrap_or_else(|| options.variant().to_owned());
                with_kernel(&project, &Kernel { target, variant }, |_, build| {
                    bench::lines::run(&project, build, &options, json.as_deref())
                })?
            }
        },
        Command::Bench { bench: None } => return bench_everything(project.linux.as_deref()),
        Command::Lab { options } => lab::run(&project, &options)?,
        Command::Check { check } => return run_check(&project, check),
        Command::Report => report::page::run(&project.repo)?,
        Command::Series { out } => {
            let (base, series) = (project.base()?, project.series()?);
            series::mail::write(&project.cache, &base, &series, &out)?;
            for file in series::git::files_of(&out)? {
                println!("{}", out.join(file).display());
            }
        }
        Command::Tidy => {
            let mut recorder = Recorder::default();
            recorder.stage("tidy", || checks::tidy::cases(&project));
            return Ok(recorder.finish());
        }
        Command::Distro { options } => return distro::run(&project, &options),
        Command::Fuzz { options } => return checks::fuzz::run(&project, &options),
    }
    Ok(Exit::Ok)
}

fn run_check(project: &Project, check: Check) -> Result<Exit> {
    match check {
        Check::Litmus => {
            // Before the stage: having no test, or no herd7, has an exit code of its own.
            let cases = checks::litmus::cases(project)?;
            let mut recorder = Recorder::default();
            recorder.stage("litmus", || Ok(cases));
            Ok(recorder.finish())
        }
        Check::Mutants { options } => checks::mutants::run(project, &options),
        Check::Lint { options } => checks::lint::run(project, &options),
        Check::Bisect { options } => checks::bisect::run(project, &options),
        Check::Drift { options } => checks::drift::run(project, &options),
    }
}

/// Everything that can be measured on any machine, each as a command that can be given alone.
const BENCHES: [&str; 6] = [
    "bench kernel --arch um",
    "bench ipis",
    "bench perf",
    "bench exit --icount",
    "bench lines",
    "report",
];

/// One after the other; the report shows what one that failed has left out as missing.
fn bench_everything(linux: Option<&Path>) -> Result<Exit> {
    let mut worst = Exit::Ok;
    for command in BENCHES {
        println!("\n== cargo xtask {command}");
        let mut cli = Cli::parse_from(["xtask"].into_iter().chain(command.split(' ')));
        cli.linux = linux.map(Path::to_owned);
        let ended = run(cli).unwrap_or_else(|error| {
            let (exit, error) = classify(error);
            eprintln!("error: {error:#}");
            exit
        });
        if ended != Exit::Ok {
            worst = ended;
        }
    }
    Ok(worst)
}

fn setup(project: &Project, guests: &Guests) -> Result<()> {
    let arches = host::arch::of_kinds(&host::arch::kinds(&guests.arch)?);
    host::install::ask_again(&project.cache);
    let tools = host::install::ensure(&project.cache, &arches)?;
    let base = project.base()?;
    println!(
        "ready: Linux {}, clang {}, rustc {}, bindgen {}",
        base.version, tools.clang_version, tools.rustc_version, tools.bindgen_version
    );
    for error in arches
        .iter()
        .filter_map(|arch| tools.check_rustc(arch).err())
    {
        println!("without {error:#}");
    }
    println!("make uses these in a kernel tree with:");
    println!("{}", tools.words().join(OsStr::new(" ")).to_string_lossy());
    Ok(())
}

/// What is to be done with the kernel that the command line names.
fn with_kernel<T>(
    project: &Project,
    kernel: &Kernel,
    work: impl FnOnce(&Workshop<'_>, &Build<'_>) -> Result<T>,
) -> Result<T> {
    let arch = host::arch::find(&kernel.target.arch)?;
    let shop = project.workshop(&kernel.target.skip.skip, &[arch])?;
    let build = shop.build(arch, &kernel.variant)?;
    work(&shop, &build)
}

fn build(project: &Project, kernel: &Kernel) -> Result<PathBuf> {
    with_kernel(project, kernel, |_, build| build.image())
}

fn boot(project: &Project, kernel: &Kernel, args: &BootArgs) -> Result<()> {
    let arch = host::arch::find(&kernel.target.arch)?;
    // Checked before the build, which takes minutes.
    let given = match &args.init {
        Some(file) => {
            let program = GuestFile::program("init", file)?;
            guest::initramfs::check_init(&program.bytes, file, arch)?;
            Some(program)
        }
        None => None,
    };
    let image = build(project, kernel)?;
    let dir = tempfile::tempdir()?;
    let own = dir.path().join("initramfs");
    let initramfs: &Path = match given {
        Some(program) => {
            guest::initramfs::write_initramfs(&own, &[program])?;
            &own
        }
        None => &project.initramfs(arch, "run")?,
    };
    let vm = Vm::new(project, arch, &image)?;
    let limit = Duration::from_secs(args.timeout);
    let report = Guest {
        smp: args.smp,
        append: &args.append.words,
        timeout: limit,
        silence: guest::machine::SILENCE.min(limit),
        echo: true,
        ..vm.guest(initramfs, &format!("boot-{}-{}", arch.name, kernel.variant))
    }
    .boot()?;
    report.check()
}
