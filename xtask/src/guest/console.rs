//! What a guest's console says about it. A guest is crashed until it prints its last line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use regex::Regex;

use crate::host::failure::{fail, Exit};

/// How the emulator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited,
    /// The watchdog ended it, for it was silent for so long.
    Silent(Duration),
    /// The watchdog ended it when its time was up.
    TimedOut(Duration),
}

/// A console and what follows from it.
#[derive(Debug)]
pub struct Report {
    /// All of it, without carriage returns.
    pub text: String,
    pub end: End,
    /// How many CPUs the guest counted; else what the kernel says it brought up.
    pub cpus: Option<usize>,
    pub asked: usize,
    /// What its first process reported at the end.
    pub status: Option<i32>,
    pub warnings: Vec<String>,
    log: PathBuf,
}

/// Lines by which a kernel says that something is wrong with it.
static WARNING: LazyLock<Regex> = LazyLock::new(|| {
    let words = [
        r"\bBUG:",
        r"\bWARNING:",
        r"\bOops\b",
        "Kernel panic",
        "rcu: INFO: rcu_",
        "INFO: task .* blocked",
        "soft lockup",
        "hard LOCKUP",
        "possible circular locking",
        "inconsistent lock state",
        "suspicious RCU usage",
        "sleeping function called from invalid context",
        "csd: Detected",
        r"\bKASAN\b.*\bin\b",
        r"\bKCSAN\b.*\bin\b",
        r"\bUBSAN:",
        r"\bworkqueue: ",
        r"\bODEBUG: ",
        r"\bBUG \S+ \(",
        "unchecked MSR access error",
        "register non-static key",
        "general protection fault",
        "Unable to handle kernel",
    ];
    Regex::new(&words.join("|")).expect("a valid expression")
});

/// The level of KERN_WARNING; what is worse has a lower one. Lines have theirs where the command line says
/// console_msg_format=syslog.
const WARNS: u32 = 4;
/// What a kernel that is well says at such a level.
static HARMLESS: LazyLock<Regex> = LazyLock::new(|| {
    let words = [
        // A test of upstream's, of Rust's spinlocks.
        "work func .*spinlock5tests.* enqueued on deprecated workqueue",
    ];
    Regex::new(&words.join("|")).expect("a valid expression")
});

/// What a kernel says before the backtraces of all CPUs.
const BACKTRACES: &str = "Show backtrace of all active CPUs";
/// How many lines of those are shown at most.
const MOST_LINES: usize = 120;

/// Functions that the series changes, or that its inline ones end up in: what KCSAN calls a race
/// of ours.
const RACES: [&str; 7] = [
    "lazy_tlb",
    "lazy_mm",
    "mmdrop",
    "exit_mm",
    "do_exit",
    "kthread_use_mm",
    "kthread_unuse_mm",
];

/// The time in front of a kernel message.
static STAMP: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(<\d+>)?\[ *\d+\.\d+\](\[ *[TC]\d+\])? ").expect("valid"));

impl Report {
    pub fn new(text: String, end: End, asked: usize, log: &Path) -> Self {
        let after = |key: &str| {
            let lines = text
                .lines()
                .filter_map(|line| message(line).strip_prefix(key));
            lines
                .map(|rest| rest.trim().to_owned())
                .reduce(|_, last| last)
        };
        let cpus = after("lazy-tlb-guest: cpus=").and_then(|n| n.parse().ok());
        let status = after("lazy-tlb-guest: done status=").and_then(|n| n.parse().ok());
        let log = log.to_owned();
        Report {
            cpus: cpus.or_else(|| brought_up(&text)),
            status,
            warnings: warnings(&text),
            text,
            end,
            asked,
            log,
        }
    }

    /// The values of `PREFIX: key=value` lines, the last one of a key.
    pub fn values(&self, prefix: &str) -> std::collections::BTreeMap<String, String> {
        let lines = self.text.lines().filter_map(|line| {
            let pair = message(line).strip_prefix(prefix)?.strip_prefix(": ")?;
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.trim().to_owned()))
        });
        lines.collect()
    }

    pub fn check_mmu(&self, wanted: &str) -> Result<()> {
        let said = self.values("lazy-tlb-guest").remove("mmu");
        if said.as_deref() == Some(wanted) {
            return Ok(());
        }
        let found = said.map_or("names none".to_owned(), |mmu| format!("is {mmu}"));
        Err(fail(
            Exit::Guest,
            format!("the guest's MMU {found}, {wanted} was asked for"),
            format!("see the console: {}", self.log.display()),
        ))
    }

    /// Whether it finished in good order, saying that all is well.
    pub fn finished(&self) -> bool {
        let powered_off = [
            "reboot: Power down",
            "reboot: Restarting",
            "reboot: System halted",
        ];
        match self.status {
            Some(status) => status == 0,
            // Some other first process: it must have ended the machine itself.
            None => powered_off.iter().any(|words| self.text.contains(words)),
        }
    }

    pub fn check(&self) -> Result<()> {
        self.check_end()?;
        self.check_cpus()?;
        self.check_warnings()
    }

    pub fn panicked(&self) -> bool {
        let mut warnings = self.warnings.iter();
        warnings.any(|line| line.contains("Kernel panic"))
    }

    pub fn check_end(&self) -> Result<()> {
        let panicked = self.panicked();
        if self.finished() && !panicked {
            return Ok(());
        }
        let (what, remedy) = match (self.end, self.status) {
            _ if panicked => (
                format!("the guest crashed: {}", self.first_warning()),
                "the kernel's report is in the log",
            ),
            (_, Some(status)) if status != 0 => (
                format!("the guest's first process reports status {status}"),
                "its messages are in the log",
            ),
            (End::Silent(_) | End::TimedOut(_), _) if self.text.trim().is_empty() => (
                "the guest printed nothing".to_owned(),
                "check the console (CONFIG_SERIAL_8250_CONSOLE, console=) and the image",
            ),
            (End::Silent(limit), _) => (
                format!(
                    "the guest hangs: it was silent for {} s{}",
                    limit.as_secs(),
                    self.stuck()
                ),
                "the last lines say where; a slow machine may need a longer --timeout",
            ),
            (End::TimedOut(limit), _) => (
                format!(
                    "the guest did not finish within {} s{}",
                    limit.as_secs(),
                    self.stuck()
                ),
                "the last lines say how far it came; --timeout gives it longer",
            ),
            (End::Exited, _) => (
                "the guest ended without its last line".to_owned(),
                "it crashed or was reset; the last lines say where",
            ),
        };
        Err(crate::host::sh::log_failure(
            &self.with_tail(&what),
            &self.log,
            Exit::Guest,
            remedy,
        ))
    }

    /// What its CPUs were doing when they were asked for it at last.
    pub fn backtraces(&self) -> Option<&str> {
        let at = self.text.rfind(BACKTRACES)?;
        Some(self.text[at + BACKTRACES.len()..].trim())
    }

    /// The same, behind what went wrong.
    fn stuck(&self) -> String {
        match self.backtraces() {
            Some("") => "; asked where its CPUs are, it began to answer".into(),
            Some(shown) => {
                let mut lines: Vec<&str> = shown.lines().map(message).collect();
                let left = lines.len().saturating_sub(MOST_LINES);
                lines.truncate(MOST_LINES);
                let more = match left {
                    0 => String::new(),
                    _ => format!("\n... and {left} lines more in its log"),
                };
                format!("; its CPUs:\n{}{more}", lines.join("\n"))
            }
            None => String::new(),
        }
    }

    pub fn check_cpus(&self) -> Result<()> {
        match self.cpus {
            Some(cpus) if cpus == self.asked => Ok(()),
            Some(cpus) => {
                let plural = if cpus == 1 { "" } else { "s" };
                Err(fail(
                    Exit::Guest,
                    format!(
                        "the guest has {cpus} CPU{plural}, asked were {}",
                        self.asked
                    ),
                    "the kernel needs CONFIG_SMP, CONFIG_ACPI (x86 finds other CPUs by it) and a \
                     CONFIG_NR_CPUS that is no less than --smp",
                ))
            }
            None => Err(fail(
                Exit::Guest,
                "the guest did not say how many CPUs it has",
                format!("its log is {}", self.log.display()),
            )),
        }
    }

    pub fn check_warnings(&self) -> Result<()> {
        if self.warnings.is_empty() {
            return Ok(());
        }
        Err(fail(
            Exit::Guest,
            format!("the kernel warned:\n  {}", self.warnings.join("\n  ")),
            format!("the whole report is in {}", self.log.display()),
        ))
    }

    fn first_warning(&self) -> &str {
        self.warnings.first().map_or("", String::as_str)
    }

    /// The log may lie in a folder that is gone by the time the error is read.
    fn with_tail(&self, what: &str) -> String {
        if self.log.exists() {
            return what.to_owned();
        }
        let lines: Vec<&str> = self.text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(30)..];
        format!("{what}\n{}", tail.join("\n"))
    }
}

/// A console line without the kernel's time stamp.
fn message(line: &str) -> &str {
    STAMP.find(line).map_or(line, |stamp| &line[stamp.end()..])
}

/// The level of a kernel message, where the console has it.
fn level(line: &str) -> Option<u32> {
    let (level, _) = line.strip_prefix('<')?.split_once(">[")?;
    level.parse().ok()
}

/// A console as its programs and the kernel's tests wrote it.
pub fn without_stamps(text: &str) -> String {
    let mut plain: String = text
        .lines()
        .flat_map(|line| [message(line), "\n"])
        .collect();
    if !text.ends_with('\n') {
        plain.pop();
    }
    plain
}

/// `smp: Brought up 1 node, 4 CPUs`.
fn brought_up(text: &str) -> Option<usize> {
    let line = text
        .lines()
        .find(|line| line.contains("smp: Brought up "))?;
    let mut words = line.rsplit(' ');
    words.next()?;
    words.next()?.parse().ok()
}

fn warnings(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| (level(line), message(line)))
        // A test's diagnostics may quote anything.
        .filter(|(_, line)| !line.trim_start().starts_with('#'))
        .filter(|(level, line)| level.is_some_and(|n| n <= WARNS) || WARNING.is_match(line))
        .map(|(_, line)| line)
        .filter(|line| !others_race(line) && !HARMLESS.is_match(line))
        .map(str::to_owned)
        .collect()
}

/// Whether KCSAN has found a race of the kernel's own, of which it has some.
fn others_race(line: &str) -> bool {
    line.contains("KCSAN: data-race in") && !RACES.iter().any(|name| line.contains(name))
}

/// `key=value key=value`.
pub fn pairs(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .collect()
}

/// The value of a key that must be there.
pub fn text<'a>(pairs: &BTreeMap<&str, &'a str>, key: &str) -> Result<&'a str> {
    let value = pairs.get(key);
    Ok(value.with_context(|| format!("the guest did not report {key}"))?)
}

pub fn number(pairs: &BTreeMap<&str, &str>, key: &str) -> Result<u64> {
    let value = text(pairs, key)?;
    value
        .parse()
        .with_context(|| format!("{key}={value} is no count"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;

    /// A recorded console, judged as a guest that was given four CPUs.
    fn recorded(text: &str, end: End) -> Report {
        Report::new(text.to_owned(), end, 4, Path::new("gone/console.log"))
    }

    fn error_of(report: &Report) -> String {
        let (exit, error) = classify(report.check().unwrap_err());
        assert_eq!(exit, Exit::Guest);
        error.to_string()
    }

    const PASS: &str = include_str!("../../tests/consoles/pass.log");
    const CRASH: &str = include_str!("../../tests/consoles/crash.log");
    const WARN: &str = include_str!("../../tests/consoles/warn.log");
    const HANG: &str = include_str!("../../tests/consoles/hang.log");
    const ONE_CPU: &str = include_str!("../../tests/consoles/one-cpu.log");

    #[test]
    fn a_race_counts_where_the_series_may_be_in_it() {
        let found = |race: &str| warnings(&format!("[    1.0] BUG: KCSAN: {race}\n")).len();
        assert_eq!(found("data-race in tick_sched_do_timer / ktime_get"), 0);
        assert_eq!(found("data-race in __mmdrop / do_exit"), 1);
        assert_eq!(found("data-race in lazy_tlb_scan / unknown"), 1);
        assert_eq!(found("assert: race in a / b"), 1);
    }

    #[test]
    fn a_guest_that_hangs_says_where() {
        let asked = "[    9.0] sysrq: Show backtrace of all active CPUs\n";
        let hung = |rest: &str| {
            let text = format!("[    1.0] last words\n{asked}{rest}");
            error_of(&recorded(&text, End::Silent(Duration::from_secs(60))))
        };
        let text = hung("[    9.1] NMI backtrace for cpu 1\n[    9.2]  lazy_tlb_scan+0x8/0x10\n");
        let cpus = "60 s; its CPUs:\nNMI backtrace for cpu 1\n lazy_tlb_scan+0x8/0x10";
        assert!(text.contains(cpus), "{text}");
        let text = hung(&"[    9.1]  f+0x0/0x8\n".repeat(MOST_LINES + 3));
        assert!(text.contains("... and 3 lines more in its log"), "{text}");
        assert!(hung("").contains("it began to answer"));
    }

    #[test]
    fn another_mmu_than_asked_for_is_a_failure() {
        let report = |text: &str| Report::new(text.into(), End::Exited, 4, Path::new("gone"));
        let radix = report("lazy-tlb-guest: cpus=4\nlazy-tlb-guest: mmu=Radix\n");
        radix.check_mmu("Radix").unwrap();
        let text = radix.check_mmu("Hash").unwrap_err().to_string();
        assert!(text.contains("Radix") && text.contains("Hash"), "{text}");
        let none = report("lazy-tlb-guest: cpus=4\n");
        let text = none.check_mmu("Hash").unwrap_err().to_string();
        assert!(text.contains("names none"), "{text}");
    }

    #[test]
    fn a_good_console_passes() {
        let report = recorded(PASS, End::Exited);
        report.check().unwrap();
        assert_eq!((report.cpus, report.status), (Some(4), Some(0)));
    }

    #[test]
    fn a_panic_is_a_crash_even_after_the_last_line() {
        let text = error_of(&recorded(CRASH, End::Exited));
        assert!(text.contains("crashed"), "{text}");
        let late = format!("{PASS}\n[    9.000000] Kernel panic - not syncing: late\n");
        assert!(error_of(&recorded(&late, End::Exited)).contains("crashed"));
    }

    #[test]
    fn a_warning_fails_a_guest_that_finished() {
        let report = recorded(WARN, End::Exited);
        report.check_end().unwrap();
        assert!(error_of(&report).contains("WARNING: "));
    }

    #[test]
    fn a_hang_is_told_from_a_crash() {
        let text = error_of(&recorded(HANG, End::Silent(Duration::from_secs(120))));
        assert!(text.contains("silent for 120 s"), "{text}");
        let text = error_of(&recorded(HANG, End::Exited));
        assert!(text.contains("without its last line"), "{text}");
    }

    #[test]
    fn one_cpu_is_not_four() {
        let text = error_of(&recorded(ONE_CPU, End::Exited));
        assert!(text.contains("has 1 CPU, asked were 4"), "{text}");
    }

    #[test]
    fn the_kernels_own_count_serves_where_the_guest_gives_none() {
        let text =
            "[    0.310000] smp: Brought up 1 node, 4 CPUs\n[ 1.000000] reboot: Power down\n";
        let report = recorded(text, End::Exited);
        assert_eq!(report.cpus, Some(4));
        report.check().unwrap();
        let text = "[ 1.000000] reboot: Power down\n";
        assert!(error_of(&recorded(text, End::Exited)).contains("did not say"));
    }

    #[test]
    fn a_bad_status_fails() {
        let text = PASS.replace("done status=0", "done status=2");
        assert!(error_of(&recorded(&text, End::Exited)).contains("status 2"));
    }

    #[test]
    fn diagnostics_of_a_test_are_no_warnings() {
        assert!(warnings("# expected: WARNING: x\n    # BUG: y\n").is_empty());
        for line in [
            "[    1.0] BUG: kernel NULL pointer dereference",
            "[    1.000000][    T1] WARNING: possible circular locking dependency detected",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
            "BUG: KASAN: use-after-free in foo+0x1/0x2",
            "[ 2.000000] Oops: general protection fault, 0000 [#1] SMP",
        ] {
            assert_eq!(warnings(line).len(), 1, "{line}");
        }
    }

    #[test]
    fn what_has_the_level_of_a_warning_is_one() {
        assert_eq!(warnings("<4>[    1.0] odd\n<6>[    1.0] even\n"), ["odd"]);
        assert!(warnings("[    1.0] odd\n<4> odd\n").is_empty());
        let deprecated = |name: &str| {
            let end = "enqueued on deprecated workqueue. Use system_dfl_wq instead.";
            warnings(&format!("<4>[    1.0] workqueue: work func {name} {end}\n")).len()
        };
        assert_eq!(deprecated("_R4lock8spinlock5tests4Test3run"), 0);
        assert_eq!(deprecated("mmdrop_async_fn"), 1);
    }

    #[test]
    fn values_are_read_with_and_without_time_stamps() {
        let report = recorded(
            "lazy-tlb-run: policy=refcount\n[    3.141592] lazy-tlb-run: exits=1000\n",
            End::Exited,
        );
        let values = report.values("lazy-tlb-run");
        assert_eq!(
            (values["policy"].as_str(), values["exits"].as_str()),
            ("refcount", "1000")
        );
    }
}
