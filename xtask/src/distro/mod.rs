//! `distro`: other people's tests in a Debian guest, on a kernel that is configured as Debian's own.

mod config;
mod image;
mod kselftest;
mod list;
mod outcome;
pub mod root;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::Args;

use crate::distro::list::List;
use crate::distro::outcome::Column;
use crate::guest::initramfs;
use crate::guest::machine::{self, Append, Guest};
use crate::host::arch::{self, Arch};
use crate::host::failure::Exit;
use crate::host::policy;
use crate::host::sh;
use crate::kernel::workshop::Project;
use crate::results::case::{Case, Recorder};

/// The column of the kernel without the series.
const BASE: &str = "base";
/// Its variant.
const PLAIN: &str = "distro-plain";
/// How long a guest may take to boot and to switch itself off.
const BOOT: u64 = 900;
/// What the kernel's command line says: a root that systemd starts from; a warning that is counted and
/// is not the end; every line that the runner writes; KFENCE, which Debian has off until it is asked for.
/// An emulated CPU may have to wait for its turn for longer than a real one, and x86 for the timer that it tries.
const APPEND: &str =
    "root=/dev/vda rw init=/lib/systemd/systemd panic_on_warn=0 printk.devkmsg=on \
    kfence.sample_interval=100 watchdog_thresh=60 no_timer_check systemd.show_status=0 fsck.mode=skip";
/// Two nodes, for automatic NUMA balancing, of a socket each: Linux warns where a socket is in two.
const NODES: [&str; 10] = [
    "-smp",
    "4,sockets=2,cores=2",
    "-object",
    "memory-backend-ram,id=a,size=1G",
    "-object",
    "memory-backend-ram,id=b,size=1G",
    "-numa",
    "node,cpus=0-1,memdev=a",
    "-numa",
    "node,cpus=2-3,memdev=b",
];

/// What is run, where.
#[derive(Args)]
pub struct Options {
    /// x86_64 or arm64.
    #[arg(long, default_value = "x86_64", env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Only under these policies; base is the kernel without the series. Without it, all of them.
    #[arg(
        long,
        value_parser = PossibleValuesParser::new([BASE].into_iter().chain(policy::ALL)),
        value_delimiter = ','
    )]
    policy: Vec<String>,
    /// Only the tests of these names; or the list in a file such as guest/distro/tests.toml.
    #[arg(long, value_name = "FILE|NAME[,NAME]", value_delimiter = ',')]
    list: Vec<String>,
    /// Change the policy at run time all the while.
    #[arg(long)]
    flip: bool,
    /// How many guests run at once; each keeps one CPU busy.
    #[arg(long, default_value_t = 1, value_name = "N")]
    jobs: usize,
    /// Give each test N times its seconds, where guests share a machine with much else.
    #[arg(long, default_value_t = 1, value_name = "N")]
    patience: u64,
    /// Write every case to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
    /// Write configs/ARCH-distro.config from the configuration of Debian's kernel package, and do no more.
    #[arg(long)]
    config: bool,
    #[command(flatten)]
    append: Append,
}

/// What is the same for every guest.
struct Lab<'a> {
    project: &'a Project,
    arch: &'static Arch,
    disk: &'a Path,
    tests: &'a Path,
    initramfs: &'a Path,
    list: &'a List,
    options: &'a Options,
}

/// One guest: its column, its policy if it has a choice, its kernel.
type Job = (String, Option<String>, std::path::PathBuf);

impl Lab<'_> {
    /// A drive that forgets what is written to it.
    fn drive(file: &Path, how: &str) -> [OsString; 2] {
        let mut drive = sh::assignment("file", file);
        drive.push(format!(",if=virtio,format=raw,{how}"));
        ["-drive".into(), drive]
    }

    fn boot(&self, (column, policy, image): &Job) -> Result<Column> {
        let mut append = format!("{APPEND} {}", self.options.append.words);
        if let Some(policy) = policy {
            append.push_str(&format!(" lazy_tlb={policy}"));
        }
        let flip = if self.options.flip { "-flip" } else { "" };
        let log = format!("log/distro-{}-{column}{flip}.log", self.arch.name);
        let mut more: Vec<OsString> = NODES.iter().map(OsString::from).collect();
        more.extend(Self::drive(self.disk, "snapshot=on,cache=unsafe"));
        more.extend(Self::drive(self.tests, "readonly=on"));
        // By turns: with a thread for each CPU QEMU runs into a breakpoint of text patching, and these
        // kernels have jump labels (configs/x86_64.config).
        let report = Guest {
            append: append.trim_end(),
            timeout: Duration::from_secs(BOOT + self.list.total()),
            silence: machine::SILENCE.max(Duration::from_secs(self.list.longest() + 120)),
            more,
            ..Guest::of(
                self.arch,
                machine::TCG_BY_TURNS,
                image,
                self.initramfs,
                self.project.cache.path(log),
            )
        }
        .boot()?;
        let tests = &self.list.tests;
        Ok(Column::read(column, policy.as_deref(), tests, &report))
    }

    /// Boots all of them, some at once, and returns what came of each in their order.
    fn boot_all(&self, jobs: &[Job], recorder: &mut Recorder) -> Vec<Column> {
        let next = Mutex::new(jobs.iter().enumerate());
        let done = Mutex::new(Vec::new());
        let work = || loop {
            let Some((index, job)) = next.lock().expect("no panic").next() else {
                return;
            };
            println!("\n== {}", job.0);
            let (started, column) = (Instant::now(), self.boot(job));
            done.lock()
                .expect("no panic")
                .push((index, started, column));
        };
        std::thread::scope(|scope| {
            for _ in 0..self.options.jobs.clamp(1, jobs.len()) {
                scope.spawn(work);
            }
        });
        let mut done = done.into_inner().expect("no panic");
        done.sort_by_key(|(index, ..)| *index);
        let mut columns = Vec::new();
        for (index, started, column) in done {
            let cases: Result<Vec<Case>> = column.map(|column| {
                let cases = column.cases.clone();
                columns.push(column);
                cases
            });
            recorder.ended(&jobs[index].0, started, cases);
        }
        columns
    }
}

/// `distro` itself.
pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let arch = arch::find(&options.arch)?;
    if options.config {
        config::write(project, arch)?;
        return Ok(Exit::Ok);
    }
    let list = List::find(&project.repo, &options.list)?.with_patience(options.patience);
    let disk = image::find(project, arch, &list.packages)?;
    println!("the guest's disk is {}", disk.display());
    let all: Vec<&str> = [BASE].into_iter().chain(policy::ALL).collect();
    let wanted =
        |name: &&str| options.policy.is_empty() || options.policy.iter().any(|p| p == name);
    let shop = project.workshop(&[], &[arch])?;
    let mut jobs: Vec<Job> = Vec::new();
    let mut patched = None;
    for name in all.into_iter().filter(wanted) {
        if name == BASE {
            let image = shop.build_base(arch, PLAIN)?.image()?;
            jobs.push((name.into(), None, image));
            continue;
        }
        if patched.is_none() {
            patched = Some(shop.build(arch, config::VARIANT)?.image()?);
        }
        let image = patched.clone().expect("just built");
        jobs.push((name.into(), Some(name.into()), image));
    }
    let kselftests = match list.collections() {
        none if none.is_empty() => None,
        wanted => Some(kselftest::install(project, &shop, arch, &wanted)?),
    };
    let work = tempfile::tempdir()?;
    let initramfs = work.path().join("initramfs");
    initramfs::write_initramfs(&initramfs, &[])?;
    let lab = Lab {
        project,
        arch,
        disk: &disk,
        tests: &list.disk(
            &project.repo,
            work.path(),
            options.flip,
            kselftests.as_deref(),
        )?,
        initramfs: &initramfs,
        list: &list,
        options,
    };
    let mut recorder = Recorder::default();
    let columns = lab.boot_all(&jobs, &mut recorder);
    println!("\n{}\n", outcome::table(&list.tests, &columns));
    let same = outcome::same(&list.tests, &columns);
    if !same.is_empty() {
        recorder.stage("same", || Ok(same));
    }
    if let Some(path) = &options.json {
        recorder.write_json(path)?;
    }
    let said = recorder.finish();
    Ok(match said {
        Exit::Ok => outcome::exit(&columns),
        other => other,
    })
}
