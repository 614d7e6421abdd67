//! What processor time the commands took, and for what: that does not change with what else a machine does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;

use rustix::process::{waitid, Pid, WaitId, WaitIdOptions};

/// Ticks of the clock that /proc/PID/stat counts in, in a second: the same on every architecture.
const TICKS: f64 = 100.0;

/// Seconds, by what they were for.
static SPENT: Mutex<BTreeMap<String, f64>> = Mutex::new(BTreeMap::new());

/// Waits for a child to end, and notes what it and its own children took.
pub fn wait(child: &mut Child, command: &Command) -> io::Result<ExitStatus> {
    // One that has ended and was not waited for still tells.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let known = Pid::from_raw(child.id() as i32).map(|pid| waitid(WaitId::Pid(pid), ended));
    if known.is_some_and(|known| known.is_ok()) {
        if let Some(took) = seconds(&child.id().to_string()) {
            let mut spent = SPENT.lock().expect("no holder panics");
            *spent.entry(purpose(command)).or_default() += took;
        }
    }
    child.wait()
}

/// The program, and the architecture that it is run for.
fn purpose(command: &Command) -> String {
    // Not what only starts another.
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut words =
        words.filter(|word| *word != "prlimit" && !word.to_string_lossy().starts_with('-'));
    let program = words.next().unwrap_or_default().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default();
    let arch = command
        .get_args()
        .find(|word| word.to_string_lossy().starts_with("ARCH="));
    match arch {
        Some(arch) => format!("{program} {}", arch.to_string_lossy()),
        None => program.to_owned(),
    }
}

/// What a process took, with its children that have ended.
fn seconds(pid: &str) -> Option<f64> {
    of_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn of_stat(stat: &str) -> Option<f64> {
    // The name, in parentheses, may have anything in it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<f64>());
    Some(ticks.sum::<Result<f64, _>>().ok()? / TICKS)
}

/// Where the minutes went, most first.
pub fn shown() -> String {
    let spent = SPENT.lock().expect("no holder panics");
    let all = seconds("self").unwrap_or_default();
    let mut rows: Vec<(&str, f64)> = spent.iter().map(|(what, took)| (&**what, *took)).collect();
    rows.push(("all else", all - spent.values().sum::<f64>()));
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let rows = rows.iter().filter(|(_, took)| *took >= 3.0);
    let lines = rows.map(|(what, took)| format!("    {:6.1} {what}\n", took / 60.0));
    format!(
        "minutes of CPU, {:.1} in all:\n{}",
        all / 60.0,
        lines.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_what_it_and_its_children_took() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 100 20 3000 400 20 0 1 0 5 6 7";
        assert_eq!(of_stat(stat), Some(35.2));
        assert_eq!(of_stat("7 (a) S 1"), None);
        assert_eq!(of_stat(""), None);
    }

    #[test]
    fn a_command_is_told_by_its_program_and_architecture() {
        let mut make = Command::new("/usr/bin/make");
        make.args(["-C", "/tree", "ARCH=s390"]);
        assert_eq!(purpose(&make), "make ARCH=s390");
        assert_eq!(purpose(&Command::new("cargo")), "cargo");
        let mut limited = Command::new("prlimit");
        limited.args(["--nofile=256", "/cache/linux", "ncpus=4"]);
        assert_eq!(purpose(&limited), "linux");
    }

    #[test]
    fn what_a_child_takes_is_noted_once() {
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done",
            "ARCH=toy",
        ]);
        let mut child = shell.spawn().unwrap();
        assert!(wait(&mut child, &shell).unwrap().success());
        assert!(SPENT.lock().unwrap()["sh ARCH=toy"] > 0.0);
        assert!(shown().contains(" in all:\n"));
    }
}
