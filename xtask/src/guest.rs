//! Booting a kernel in an emulator, and a watchdog over it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use cpio::newc::{self, ModeFileType};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::arch::{Arch, Firmware};
use crate::cache::Cache;
use crate::console::{self, End};
use crate::failure::{fail, Exit};
use crate::sh;

/// A guest that prints nothing for this long hangs. A lockdep kernel under emulation, with builds
/// beside it, was seen to need more than two minutes for a thousand exits.
pub const SILENCE: Duration = Duration::from_secs(300);
/// How long a guest that hangs may be silent before it says where: a kernel waits for each CPU for ten
/// seconds.
const ANSWER: Duration = Duration::from_secs(15);

/// For a guest that is booted for something else than the suites which a test kernel has.
pub const NO_KUNIT: &str = "kunit.enable=0";
/// What a kernel that needs no emulator calls the initramfs.
pub const INITRD: &str = "initrd";
/// What a kernel runs on that needs no emulator.
pub const NATIVE: &str = "native";
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

/// A guest to boot.
pub struct Guest<'a> {
    /// The architecture.
    pub arch: &'static Arch,
    /// The emulator; the architecture's own, or a stand-in. Empty where the kernel needs none.
    pub qemu: PathBuf,
    /// `kvm`, `tcg,thread=multi` or `tcg,thread=single`, or [`NATIVE`].
    pub accel: String,
    /// The kernel.
    pub image: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// How many CPUs it must come up with.
    pub smp: usize,
    /// More words for the kernel's command line.
    pub append: &'a str,
    /// All the time it has.
    pub timeout: Duration,
    /// The longest it may be silent.
    pub silence: Duration,
    /// Where the console goes.
    pub log: PathBuf,
    /// Whether the console goes to stdout as well.
    pub echo: bool,
    /// What starts it, if not the emulator's own firmware.
    pub firmware: Option<&'static Firmware>,
    /// Whether its clock goes by instructions, for which the CPUs have to take turns.
    pub icount: bool,
    /// More arguments for the emulator.
    pub more: Vec<OsString>,
}

impl<'a> Guest<'a> {
    /// What is wrong with what its console says, under `policy`.
    pub fn misread(&self, policy: &str, error: &anyhow::Error) -> anyhow::Error {
        fail(
            Exit::Failed,
            format!("{policy}: {error:#}"),
            format!("the console is in {}", self.log.display()),
        )
    }

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
            qemu: arch.qemu.into(),
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
            more: Vec::new(),
        }
    }

    /// The emulator with its arguments, or the kernel with them.
    pub fn command(&self) -> Command {
        let line = format!(
            "console={} panic=-1 panic_on_warn=1 oops=panic rdinit=/init {}",
            self.arch.console, self.append
        );
        let line = line.trim_end();
        if self.arch.is_program() {
            let mut kernel = Command::new(self.image);
            kernel.args(["mem=2G", &format!("ncpus={}", self.smp)]);
            kernel.arg(sh::assignment(INITRD, self.initramfs));
            // Its first terminal is stdout; several CPUs need seccomp; a reboot would start it again.
            kernel.args(["con0=fd:0,fd:1", "con=null", "seccomp=on", "noreboot"]);
            kernel.args(line.split_whitespace());
            return kernel;
        }
        let mut qemu = Command::new(&self.qemu);
        let cpu = if self.accel == "kvm" {
            "host"
        } else {
            self.arch.cpu
        };
        qemu.args(self.arch.machine)
            .args(["-accel", &self.accel, "-cpu", cpu]);
        qemu.args(["-m", "2G", "-smp", &self.smp.to_string()]);
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

    /// Boots it and returns what the console says about it, whatever that is.
    pub fn boot(&self) -> Result<console::Report> {
        let mut qemu = self.command();
        sh::announce(&qemu);
        if let Some(dir) = self.log.parent() {
            fs::create_dir_all(dir)?;
        }
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
                    format!("failed to run {}: {error}", self.qemu.display()),
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
        let mut take = |bytes: Vec<u8>| -> Result<()> {
            log.write_all(&bytes).context("writing the console's log")?;
            if self.echo {
                let mut stdout = std::io::stdout();
                stdout.write_all(&bytes)?;
                stdout.flush()?;
            }
            console.extend(bytes);
            Ok(())
        };
        let end = loop {
            let left = self.timeout.saturating_sub(started.elapsed());
            match from_guest.recv_timeout(left.min(self.silence)) {
                Ok(bytes) => take(bytes)?,
                Err(RecvTimeoutError::Disconnected) => break End::Exited,
                Err(RecvTimeoutError::Timeout) if left <= self.silence => {
                    break End::TimedOut(self.timeout)
                }
                Err(RecvTimeoutError::Timeout) => break End::Silent(self.silence),
            }
            if started.elapsed() >= self.timeout {
                break End::TimedOut(self.timeout);
            }
        };
        if end != End::Exited {
            // Where do its CPUs hang?
            if let Some(stdin) = &mut child.stdin {
                let (asked, patience) = (Instant::now(), ANSWER.min(self.silence));
                let _ = stdin.write_all(self.arch.sysrq);
                while let Ok(bytes) = from_guest.recv_timeout(patience) {
                    take(bytes)?;
                    if asked.elapsed() > 4 * patience {
                        break;
                    }
                }
            }
            if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
        }
        let status = child.wait()?;
        let complaint = complaint.join().unwrap_or_default();
        if end == End::Exited && !status.success() && console.is_empty() {
            return Err(fail(
                Exit::Guest,
                format!(
                    "{} failed ({status}): {}",
                    self.qemu.display(),
                    complaint.trim()
                ),
                "the emulator's own message says why; it never started the kernel",
            ));
        }
        let text = String::from_utf8_lossy(&console).replace('\r', "");
        Ok(console::Report::new(text, end, self.smp, &self.log))
    }
}

/// A file of an initramfs: its path in the guest, its content.
pub struct GuestFile {
    /// Without the leading slash.
    pub path: String,
    /// An executable's bytes.
    pub bytes: Vec<u8>,
}

impl GuestFile {
    /// A program on this machine as a program of the guest.
    pub fn program(path: impl Into<String>, host: &Path) -> Result<Self> {
        let bytes = fs::read(host).map_err(|error| {
            fail(
                Exit::Usage,
                format!("failed to read {}: {error}", host.display()),
                "name a static program",
            )
        })?;
        let path = path.into();
        Ok(GuestFile { path, bytes })
    }
}

/// Writes an initramfs with the folders and devices that a first process needs.
pub fn write_initramfs(to: &Path, files: &[GuestFile]) -> Result<()> {
    let mut archive = Vec::new();
    let mut entries = 0;
    let mut entry = |name: &str| {
        entries += 1;
        newc::Builder::new(name).ino(entries).nlink(1)
    };
    let mut dirs = vec!["proc", "sys", "dev", "tmp"];
    dirs.extend(
        files
            .iter()
            .filter_map(|file| Some(file.path.rsplit_once('/')?.0)),
    );
    dirs.dedup();
    for dir in dirs {
        let builder = entry(dir)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Directory);
        builder.write(&mut archive, 0).finish()?;
    }
    for (name, major, minor) in [("dev/console", 5, 1), ("dev/null", 1, 3)] {
        let builder = entry(name)
            .mode(0o666)
            .set_mode_file_type(ModeFileType::Char);
        let builder = builder.rdev_major(major).rdev_minor(minor);
        builder.write(&mut archive, 0).finish()?;
    }
    for file in files {
        let builder = entry(&file.path)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Regular);
        let size = u32::try_from(file.bytes.len()).context("a guest file is too large")?;
        let mut writer = builder.write(&mut archive, size);
        writer.write_all(&file.bytes)?;
        writer.finish()?;
    }
    newc::trailer(&mut archive)?;
    sh::write_whole(to, &archive)
}

/// Checks that a program can be the guest's first process: static, and of its architecture.
pub fn check_init(bytes: &[u8], name: &Path, arch: &Arch) -> Result<()> {
    let name = name.display();
    let remedy = format!("build it with `{} -static`", arch.gcc);
    let refuse = |what: String| Err(fail(Exit::Usage, format!("{name} {what}"), &*remedy));
    let (machine, dynamic) = match elf_facts(bytes) {
        Some(facts) => facts,
        None => return refuse("is not an ELF program".into()),
    };
    if machine != arch.elf_machine {
        return refuse(format!(
            "is a program for another machine than {}",
            arch.name
        ));
    }
    if dynamic {
        return refuse("is dynamically linked, and the guest has no libraries".into());
    }
    Ok(())
}

/// The machine number, and whether it asks for a dynamic loader.
fn elf_facts(bytes: &[u8]) -> Option<(u16, bool)> {
    fn facts<Elf: FileHeader<Endian = object::Endianness>>(bytes: &[u8]) -> Option<(u16, bool)> {
        let header = Elf::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, bytes).ok()?;
        let dynamic = segments
            .iter()
            .any(|s| s.p_type(endian) == object::elf::PT_INTERP);
        Some((header.e_machine(endian), dynamic))
    }
    match object::FileKind::parse(bytes).ok()? {
        object::FileKind::Elf64 => facts::<object::elf::FileHeader64<object::Endianness>>(bytes),
        object::FileKind::Elf32 => facts::<object::elf::FileHeader32<object::Endianness>>(bytes),
        _ => None,
    }
}

/// The accelerator for so many CPUs, where [`accelerator`] has chosen one for few.
///
/// Where many emulated CPUs share few real ones, those that wait for an answer to an IPI keep the
/// others from giving it: a boot with 128 of them on two took ten minutes, and less than one by
/// turns.
pub fn for_cpus(accel: &str, cpus: usize) -> String {
    let real = std::thread::available_parallelism().map_or(1, |n| n.get());
    match accel {
        TCG if cpus > 8 * real => TCG_BY_TURNS.into(),
        _ => accel.into(),
    }
}

/// The accelerator: `LAZY_TLB_ACCEL`, or KVM where it really boots this kernel, or emulation.
///
/// `/dev/kvm` may exist and still not run a guest, so it is asked to; the answer is kept until
/// the machine reboots.
pub fn accelerator(cache: &Cache, arch: &'static Arch, image: &Path) -> Result<String> {
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
mod tests {
    use super::*;
    use crate::failure::classify;
    use std::os::unix::fs::PermissionsExt;

    /// Boots a shell script in place of the emulator.
    fn boot_script(script: &str, smp: usize) -> Result<console::Report> {
        let dir = tempfile::tempdir().unwrap();
        let qemu = dir.path().join("qemu");
        fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
        Guest {
            qemu,
            smp,
            append: "lazy_tlb=shootdown",
            timeout: Duration::from_secs(3),
            silence: Duration::from_secs(1),
            ..Guest::of(
                crate::arch::find("x86_64").unwrap(),
                "tcg",
                Path::new("bzImage"),
                Path::new("initramfs"),
                dir.path().join("console.log"),
            )
        }
        .boot()
    }

    #[test]
    fn a_guest_that_hangs_is_asked_where() {
        let asked = "head -c 3 | grep -q bl && echo Show backtrace of all active CPUs";
        let report = boot_script(&format!("{asked} && echo cpu 0; sleep 60"), 4).unwrap();
        assert_eq!(report.backtraces(), Some("cpu 0"));
    }

    #[test]
    fn a_kernel_that_is_a_program_is_run_by_itself() {
        let guest = Guest {
            smp: 3,
            append: "lazy_tlb=handover",
            ..Guest::of(
                crate::arch::find("um").unwrap(),
                NATIVE,
                Path::new("/b/linux"),
                Path::new("/g/init.cpio"),
                PathBuf::new(),
            )
        };
        let command = guest.command();
        assert_eq!(command.get_program(), "/b/linux");
        let words: Vec<_> = command.get_args().collect();
        for word in [
            "ncpus=3",
            "initrd=/g/init.cpio",
            // Without these: one CPU, and a program that starts again instead of ending.
            "seccomp=on",
            "noreboot",
            "lazy_tlb=handover",
        ] {
            assert!(words.contains(&std::ffi::OsStr::new(word)), "{words:?}");
        }
    }

    #[test]
    fn only_many_emulated_cpus_run_by_turns() {
        let many = 100 * std::thread::available_parallelism().map_or(1, |n| n.get());
        assert_eq!(for_cpus(TCG, many), TCG_BY_TURNS);
        for (accel, cpus) in [(TCG, 4), ("kvm", many), (NATIVE, many), (TCG_BY_TURNS, 4)] {
            assert_eq!(for_cpus(accel, cpus), accel);
        }
    }

    fn exit_of(report: console::Report) -> (Exit, String) {
        let (exit, error) = classify(report.check().unwrap_err());
        (exit, error.to_string())
    }

    #[test]
    fn a_guest_that_finishes_passes() {
        let script = "echo 'lazy-tlb-guest: cpus=4'; echo 'lazy-tlb-guest: done status=0'";
        boot_script(script, 4).unwrap().check().unwrap();
    }

    #[test]
    fn the_kernel_gets_the_words_asked_for() {
        let report = boot_script("for a; do echo \"$a\"; done", 4).unwrap();
        assert!(report.text.contains("panic_on_warn=1"));
        assert!(report.text.contains("lazy_tlb=shootdown"));
        assert!(report.text.contains("-smp\n4\n"));
    }

    #[test]
    fn a_guest_that_says_nothing_is_silent() {
        let (exit, text) = exit_of(boot_script("sleep 60", 4).unwrap());
        assert_eq!(exit, Exit::Guest);
        assert!(text.contains("printed nothing"), "{text}");
    }

    #[test]
    fn a_guest_that_hangs_is_ended_and_its_last_words_are_shown() {
        let script = "echo booting; sleep 60";
        let (exit, text) = exit_of(boot_script(script, 4).unwrap());
        assert_eq!(exit, Exit::Guest);
        assert!(
            text.contains("silent for 1 s") && text.contains("booting"),
            "{text}"
        );
    }

    #[test]
    fn a_guest_that_never_ends_runs_out_of_time() {
        let script = "while :; do echo busy; sleep 0.1; done";
        let (exit, text) = exit_of(boot_script(script, 4).unwrap());
        assert_eq!(exit, Exit::Guest);
        assert!(text.contains("did not finish within 3 s"), "{text}");
    }

    #[test]
    fn a_guest_with_fewer_cpus_is_a_failure() {
        let script = "echo 'lazy-tlb-guest: cpus=1'; echo 'lazy-tlb-guest: done status=0'";
        let (exit, text) = exit_of(boot_script(script, 4).unwrap());
        assert_eq!(exit, Exit::Guest);
        assert!(
            text.contains("1 CPU") && text.contains("CONFIG_ACPI"),
            "{text}"
        );
    }

    #[test]
    fn an_emulator_that_does_not_start_shows_its_own_message() {
        let error = boot_script("echo 'qemu: no such machine' >&2; exit 1", 4)
            .err()
            .unwrap();
        let (exit, error) = classify(error);
        assert_eq!(exit, Exit::Guest);
        assert!(error.to_string().contains("no such machine"), "{error}");
    }

    #[test]
    fn a_dynamic_or_foreign_init_is_refused() {
        let arch = crate::arch::find("x86_64").unwrap();
        let ours = fs::read("/proc/self/exe").unwrap();
        let name = Path::new("init");
        if cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
            let text = check_init(&ours, name, arch).unwrap_err().to_string();
            assert!(
                text.contains("dynamically linked") && text.contains("-static"),
                "{text}"
            );
        }
        assert!(check_init(b"#!/bin/sh\n", name, arch).is_err());
        let mut foreign = ours;
        foreign[18] = 0xb7;
        let text = check_init(&foreign, name, arch).unwrap_err().to_string();
        assert!(text.contains("another machine"), "{text}");
    }

    #[test]
    fn an_initramfs_has_what_a_first_process_needs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initramfs");
        let file = |path: &str| GuestFile {
            path: path.into(),
            bytes: b"abc".to_vec(),
        };
        write_initramfs(&path, &[file("init"), file("tests/a"), file("tests/b")]).unwrap();
        let archive = fs::read(&path).unwrap();
        let mut rest: &[u8] = &archive;
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            names.push(format!("{} {:o}", entry.name(), entry.mode()));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            names,
            [
                "proc 40755",
                "sys 40755",
                "dev 40755",
                "tmp 40755",
                "tests 40755",
                "dev/console 20666",
                "dev/null 20666",
                "init 100755",
                "tests/a 100755",
                "tests/b 100755",
            ]
        );
    }
}
