//! Booting a kernel in an emulator, and a watchdog over it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use object::Object as _;

use crate::guest::console::{self, End};
use crate::guest::initramfs::write_initramfs;
use crate::guest::ktap;
use crate::host::arch::{Arch, Firmware};
use crate::host::cache::Cache;
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::host::spent;
use crate::kernel::workshop::Project;

/// A guest that prints nothing for this long hangs. A lockdep kernel under emulation, with builds
/// beside it, was seen to need more than two minutes for a thousand exits.
pub const SILENCE: Duration = Duration::from_secs(300);
/// How long a guest that hangs may be silent before it says where: a kernel waits for each CPU for ten
/// seconds.
const ANSWER: Duration = Duration::from_secs(15);
/// How often it is asked until it answers.
const ASK: usize = 3;

/// For a guest that is booted for something else than the suites which a test kernel has.
pub const NO_KUNIT: &str = "kunit.enable=0";
/// What a kernel that needs no emulator calls the initramfs.
pub const INITRD: &str = "initrd";
/// What a kernel runs on that needs no emulator.
pub const NATIVE: &str = "native";
/// Open files of such a kernel, which has one for each mm: fewer than processes in a selftest (`churn`), for fork()
/// to fail there.
const FILES: u32 = 256;
/// Emulation, each CPU a thread.
const TCG: &str = "tcg,thread=multi";
/// Emulation, the CPUs by turns.
pub const TCG_BY_TURNS: &str = "tcg,thread=single";
/// A clock that goes by instructions, at 500 million a second, and jumps where all CPUs idle.
const ICOUNT: &str = "shift=1,sleep=off";

/// What a person adds to the command line of a guest.
#[derive(Args, Clone, Default)]
pub struct Append {
    /// More words for the kernel's command line, such as disable_radix or lazy_tlb=refcount; for test
    /// guests LAZY_TLB_HOTPLUG=1 or LAZY_TLB_ONLY=churn:fork_exit.
    #[arg(
        long = "append",
        default_value = "",
        value_name = "STR",
        allow_hyphen_values = true
    )]
    pub words: String,
}

pub struct Guest<'a> {
    pub arch: &'static Arch,
    /// `kvm`, `tcg,thread=multi` or `tcg,thread=single`, or [`NATIVE`].
    pub accel: String,
    pub image: &'a Path,
    pub initramfs: &'a Path,
    pub smp: usize,
    pub append: &'a str,
    pub timeout: Duration,
    pub silence: Duration,
    pub log: PathBuf,
    pub echo: bool,
    /// What starts it, if not the emulator's own firmware.
    pub firmware: Option<&'static Firmware>,
    /// Whether its clock goes by instructions, for which the CPUs have to take turns.
    pub icount: bool,
    /// Whether the first test that fails ends it.
    pub until_red: bool,
    pub more: Vec<OsString>,
}

impl<'a> Guest<'a> {
    /// One with four CPUs that is given up when it is silent; the console goes to a log.
    pub fn of(
        arch: &'static Arch,
        accel: impl Into<String>,
        image: &'a Path,
        initramfs: &'a Path,
        log: PathBuf,
    ) -> Self {
        Guest {
            arch,
            accel: accel.into(),
            image,
            initramfs,
            smp: 4,
            append: "",
            timeout: Duration::from_secs(600),
            silence: SILENCE,
            log,
            echo: false,
            firmware: None,
            icount: false,
            until_red: false,
            more: Vec::new(),
        }
    }

    /// The emulator with its arguments, or the kernel with them.
    pub fn command(&self) -> Command {
        let line = format!(
            "console={} panic=-1 panic_on_warn=1 oops=panic rdinit=/init {} {}",
            self.arch.console, self.arch.steady, self.append
        );
        let line = line.trim_end();
        if self.arch.is_program() {
            let mut kernel = Command::new("prlimit");
            kernel.arg(format!("--nofile={FILES}")).arg(self.image);
            kernel.args(["mem=2G", &format!("ncpus={}", self.smp)]);
            kernel.arg(sh::assignment(INITRD, self.initramfs));
            // Its first terminal is stdout; several CPUs need seccomp; a reboot would start it again.
            kernel.args(["con0=fd:0,fd:1", "con=null", "seccomp=on", "noreboot"]);
            kernel.args(line.split_whitespace());
            return kernel;
        }
        let mut qemu = Command::new(self.arch.qemu);
        let cpu = if self.accel == "kvm" {
            "host"
        } else {
            self.arch.cpu
        };
        qemu.args(self.arch.machine)
            .args(["-accel", &self.accel, "-cpu", cpu]);
        qemu.args(["-m", "2G", "-smp", &self.smp.to_string()]);
        // The interrupt controller that QEMU has unless told so serves no more.
        if ["arm64", "arm"].contains(&self.arch.name) && self.smp > 8 {
            qemu.args(["-machine", "gic-version=3"]);
        }
        qemu.args([
            "-nodefaults",
            "-nographic",
            "-serial",
            // With the monitor's escapes, for a break.
            "mon:stdio",
            "-no-reboot",
        ]);
        qemu.arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs);
        qemu.args(["-append", line]);
        if self.icount {
            qemu.args(["-icount", ICOUNT]);
        }
        if let Some(firmware) = self.firmware {
            qemu.args(["-bios", firmware.file]).args(firmware.args);
        }
        qemu.args(&self.more);
        qemu
    }

    pub fn boot(&self) -> Result<console::Report> {
        if let Some(dir) = self.log.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut qemu = self.command();
        sh::announce(&qemu);
        let mut log =
            File::create(&self.log).with_context(|| format!("creating {}", self.log.display()))?;
        // Its own group, so that the watchdog ends what it started as well.
        use std::os::unix::process::CommandExt;
        let mut child = qemu
            .process_group(0)
            .stdin(match self.arch.sysrq {
                [] => Stdio::null(),
                _ => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                fail(
                    Exit::Environment,
                    format!("failed to run {}: {error}", self.arch.qemu),
                    "run `cargo xtask setup`",
                )
            })?;
        let mut complaint = child.stderr.take().expect("stderr is piped");
        let complaint = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = complaint.read_to_string(&mut text);
            text
        });
        let mut output = child.stdout.take().expect("stdout is piped");
        let (to_us, from_guest) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = output.read(&mut buffer) {
                if count == 0 || to_us.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });

        let started = Instant::now();
        let mut console = Vec::new();
        let mut take = |bytes: Vec<u8>| -> Result<bool> {
            log.write_all(&bytes).context("writing the console's log")?;
            if self.echo {
                let mut stdout = std::io::stdout();
                stdout.write_all(&bytes)?;
                stdout.flush()?;
            }
            let from = console.len();
            console.extend(bytes);
            Ok(self.until_red && is_red(&console, from))
        };
        let mut red = false;
        let end = loop {
            let left = self.timeout.saturating_sub(started.elapsed());
            match from_guest.recv_timeout(left.min(self.silence)) {
                Ok(bytes) => red = take(bytes)?,
                Err(RecvTimeoutError::Disconnected) => break End::Exited,
                Err(RecvTimeoutError::Timeout) if left <= self.silence => {
                    break End::TimedOut(self.timeout)
                }
                Err(RecvTimeoutError::Timeout) => break End::Silent(self.silence),
            }
            if red {
                break End::Exited;
            }
            if started.elapsed() >= self.timeout {
                break End::TimedOut(self.timeout);
            }
        };
        if red {
            kill_group(&child);
        } else if end != End::Exited {
            // Where do its CPUs hang?
            if let Some(stdin) = &mut child.stdin {
                let (asked, patience) = (Instant::now(), ANSWER.min(self.silence));
                let mut answered = false;
                // QEMU's s390 loses a character now and then, one in 24 when it was tried.
                for _ in 0..ASK {
                    let _ = stdin.write_all(self.arch.sysrq);
                    while let Ok(bytes) = from_guest.recv_timeout(patience) {
                        answered = true;
                        take(bytes)?;
                        if asked.elapsed() > 4 * patience {
                            break;
                        }
                    }
                    if answered {
                        break;
                    }
                }
            }
            kill_group(&child);
        }
        let status = spent::wait(&mut child, &qemu)?;
        let complaint = complaint.join().unwrap_or_default();
        if end == End::Exited && !status.success() && console.is_empty() {
            return Err(fail(
                Exit::Guest,
                format!("{} failed ({status}): {}", self.arch.qemu, complaint.trim()),
                "the emulator's own message says why; it never started the kernel",
            ));
        }
        let text = String::from_utf8_lossy(&console).replace('\r', "");
        let report = console::Report::new(text, end, self.smp, &self.log);
        check_kernel(&report, self.image)?;
        Ok(report)
    }
}

/// Whether the kernel that ran is the one that was built: a boot image has a copy of it, which may be old.
fn check_kernel(report: &console::Report, image: &Path) -> Result<()> {
    let values = report.values("lazy-tlb-guest");
    let said = values.get("build_id");
    // It says so before it says how many CPUs it has.
    let too_early = said.is_none() && !values.contains_key("cpus");
    // The outermost: s390's boot image is made of another one of that name.
    let built = image.ancestors().skip(1).map(|dir| dir.join("vmlinux"));
    let built = built.filter(|path| path.is_file()).last();
    let Some(vmlinux) = built.filter(|_| !too_early) else {
        return Ok(());
    };
    let data = fs::read(&vmlinux).with_context(|| format!("reading {}", vmlinux.display()))?;
    let id = object::File::parse(&*data)?.build_id()?.unwrap_or_default();
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    if said.is_some_and(|ran| *ran == id) {
        return Ok(());
    }
    let ran = said.map_or("does not say which kernel it ran".into(), |ran| {
        format!("ran kernel {ran}")
    });
    Err(fail(
        Exit::Guest,
        format!("the guest {ran}, and {id} was built"),
        format!("delete the folder of {} and build again", vmlinux.display()),
    ))
}

/// Whether a test has failed by what is new on a console from there on.
fn is_red(console: &[u8], from: usize) -> bool {
    let newline = |text: &[u8]| text.iter().rposition(|c| *c == b'\n');
    // The line that was not whole yet is new.
    let (from, whole) = (newline(&console[..from]), newline(console));
    let new = &console[from.unwrap_or(0)..whole.unwrap_or(0)];
    let new = String::from_utf8_lossy(new).replace('\r', "");
    !ktap::course(&new).failed.is_empty()
}

/// Ends a process and what it has started.
fn kill_group(leader: &Child) {
    if let Some(pid) = rustix::process::Pid::from_raw(leader.id() as i32) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

/// A kernel and what it runs on: what its guests have in common.
pub struct Vm<'a> {
    pub project: &'a Project,
    pub arch: &'static Arch,
    pub image: &'a Path,
    pub accel: String,
}

impl<'a> Vm<'a> {
    /// With the best accelerator that runs this kernel here.
    pub fn new(project: &'a Project, arch: &'static Arch, image: &'a Path) -> Result<Self> {
        let accel = accelerator(&project.cache, arch, image)?;
        Ok(Vm {
            project,
            arch,
            image,
            accel,
        })
    }

    /// The same for so many CPUs.
    ///
    /// Where many emulated CPUs share few real ones, those that wait for an answer to an IPI keep the
    /// others from giving it: a boot with 128 of them on two took ten minutes, and less than one by
    /// turns.
    pub fn for_cpus(mut self, cpus: usize) -> Self {
        let real = std::thread::available_parallelism().map_or(1, |n| n.get());
        if self.accel == TCG && cpus > 8 * real {
            self.accel = TCG_BY_TURNS.into();
        }
        self
    }

    pub fn is_emulated(&self) -> bool {
        self.accel.starts_with("tcg")
    }

    /// A guest, whose console goes to a log of that name.
    pub fn guest<'b>(&'b self, initramfs: &'b Path, log: &str) -> Guest<'b> {
        let log = self.project.cache.path(format!("log/{log}.log"));
        Guest::of(self.arch, &*self.accel, self.image, initramfs, log)
    }
}

/// The accelerator: `LAZY_TLB_ACCEL`, or KVM where it really boots this kernel, or emulation.
///
/// `/dev/kvm` may exist and still not run a guest, so it is asked to; the answer is kept until
/// the machine reboots.
fn accelerator(cache: &Cache, arch: &'static Arch, image: &Path) -> Result<String> {
    if arch.is_program() {
        return Ok(NATIVE.into());
    }
    if let Some(accel) = std::env::var_os("LAZY_TLB_ACCEL") {
        return Ok(accel.to_string_lossy().into_owned());
    }
    let own = arch.machine_name == std::env::consts::ARCH;
    if !own
        || File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
    {
        return Ok(TCG.into());
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let kept = cache.path(format!("accel-{}-{}", arch.name, boot_id.trim()));
    if let Ok(answer) = fs::read_to_string(&kept) {
        return Ok(answer);
    }
    println!("trying KVM");
    let dir = tempfile::tempdir()?;
    let initramfs = dir.path().join("initramfs");
    write_initramfs(&initramfs, &[])?;
    let probe = Guest {
        smp: 2,
        timeout: Duration::from_secs(15),
        silence: Duration::from_secs(5),
        ..Guest::of(arch, "kvm", image, &initramfs, cache.path("log/kvm.log"))
    };
    // Without an init the kernel panics at the end of its own start: that is far enough.
    let works = probe
        .boot()
        .is_ok_and(|report| report.text.contains("Kernel panic"));
    let answer = if works { "kvm" } else { TCG };
    println!("using -accel {answer}");
    sh::write_whole(&kept, answer.as_bytes())?;
    Ok(answer.into())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::host::failure::classify;
    use std::os::unix::fs::PermissionsExt;

    /// x86_64 with a shell script in place of the emulator.
    pub fn scripted(dir: &Path, script: &str) -> &'static Arch {
        let qemu = dir.join("qemu");
        fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
        Box::leak(Box::new(Arch {
            qemu: Box::leak(qemu.to_string_lossy().into_owned().into_boxed_str()),
            ..*crate::host::arch::find("x86_64").unwrap()
        }))
    }

    /// Boots a shell script in place of the emulator, to be silent for so many seconds at most.
    fn boot_script(script: &str, smp: usize, silence: u64) -> Result<console::Report> {
        let dir = tempfile::tempdir().unwrap();
        Guest {
            smp,
            append: "lazy_tlb=shootdown",
            timeout: Duration::from_secs(3),
            silence: Duration::from_secs(silence),
            ..Guest::of(
                scripted(dir.path(), script),
                "tcg",
                Path::new("bzImage"),
                Path::new("initramfs"),
                dir.path().join("console.log"),
            )
        }
        .boot()
    }

    #[test]
    fn a_guest_that_ran_another_kernel_than_the_one_that_was_built_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("arch/x86/boot/bzImage");
        let own = fs::read("/proc/self/exe").unwrap();
        let id = object::File::parse(&*own).unwrap().build_id().unwrap();
        let id: String = id
            .unwrap_or_default()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let check = |said: &str| {
            let text = format!("lazy-tlb-guest: cpus=4\n{said}\n");
            let report = console::Report::new(text, End::Exited, 4, Path::new("log"));
            check_kernel(&report, &image)
        };
        let other = "lazy-tlb-guest: build_id=00ff";
        assert!(check(other).is_ok(), "there is nothing to compare with");
        fs::write(dir.path().join("vmlinux"), own).unwrap();
        assert!(check(&format!("lazy-tlb-guest: build_id={id}")).is_ok());
        assert!(check("").unwrap_err().to_string().contains("does not say"));
        let early = console::Report::new("booting\n".into(), End::Exited, 4, Path::new("log"));
        assert!(check_kernel(&early, &image).is_ok());
        let error = check(other).unwrap_err().to_string();
        assert!(error.contains("ran kernel 00ff"), "{error}");
    }

    #[test]
    fn a_guest_that_hangs_is_asked_where() {
        let asked = "head -c 3 | grep -q bl && echo Show backtrace of all active CPUs";
        let report = boot_script(&format!("{asked} && echo cpu 0; sleep 60"), 4, 1).unwrap();
        assert_eq!(report.backtraces(), Some("cpu 0"));
    }

    #[test]
    fn a_guest_whose_test_fails_is_ended_where_that_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo \"[ 1.0]    ok 1 good\"; echo \"[ 1.1]    not ok 2 bad\"; sleep 60";
        let arch = scripted(dir.path(), script);
        let files = [Path::new("bzImage"), Path::new("initramfs")];
        let log = dir.path().join("console.log");
        let guest = Guest {
            until_red: true,
            ..Guest::of(arch, "tcg", files[0], files[1], log)
        };
        let started = Instant::now();
        let report = guest.boot().unwrap();
        assert!(started.elapsed() < Duration::from_secs(30));
        let failed = ktap::course(&report.text).failed;
        assert!(failed[0].test.contains("bad"));
    }

    fn exit_of(report: console::Report) -> (Exit, String) {
        let (exit, error) = classify(report.check().unwrap_err());
        (exit, error.to_string())
    }

    #[test]
    fn a_guest_that_finishes_passes() {
        let script = "echo 'lazy-tlb-guest: cpus=4'; echo 'lazy-tlb-guest: done status=0'";
        boot_script(script, 4, 60).unwrap().check().unwrap();
    }

    #[test]
    fn a_guest_that_says_nothing_is_silent() {
        let (exit, text) = exit_of(boot_script("sleep 60", 4, 1).unwrap());
        assert_eq!(exit, Exit::Guest);
        assert!(text.contains("printed nothing"), "{text}");
    }

    #[test]
    fn a_guest_that_hangs_is_ended_and_its_last_words_are_shown() {
        let script = "echo booting; sleep 60";
        let (exit, text) = exit_of(boot_script(script, 4, 1).unwrap());
        assert_eq!(exit, Exit::Guest);
        assert!(
            text.contains("silent for 1 s") && text.contains("booting"),
            "{text}"
        );
    }

    #[test]
    fn a_guest_that_never_ends_runs_out_of_time() {
        let script = "while :; do echo busy; sleep 0.1; done";
        // A machine with much else to do may leave it silent for longer than that.
        let (exit, text) = exit_of(boot_script(script, 4, 60).unwrap());
        assert_eq!(exit, Exit::Guest);
        assert!(text.contains("did not finish within 3 s"), "{text}");
    }

    #[test]
    fn an_emulator_that_does_not_start_shows_its_own_message() {
        let error = boot_script("echo 'qemu: no such machine' >&2; exit 1", 4, 60)
            .err()
            .unwrap();
        let (exit, error) = classify(error);
        assert_eq!(exit, Exit::Guest);
        assert!(error.to_string().contains("no such machine"), "{error}");
    }
}
