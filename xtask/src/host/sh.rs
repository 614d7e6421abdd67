//! Running other programs: printed first, logged, with progress, and with a useful error.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::host::failure::{fail, Exit, DISK_REMEDY};
use crate::host::spent;

/// How many lines of a log an error shows.
const TAIL_LINES: usize = 30;
/// How often progress is printed where no bar can be drawn.
const QUIET_PERIOD: Duration = Duration::from_secs(30);

/// Who the commits are by that are made here.
pub const IDENTITY: (&str, &str) = ("Lazy TLB", "lazy-tlb@localhost");

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    if let Some(dir) = command.get_current_dir() {
        words.push(format!("(in {})", dir.display()));
    }
    for (name, value) in command.get_envs() {
        // What only keeps git and others to plain output says nothing to a reader.
        let plumbing = name.to_string_lossy().starts_with("GIT_") || name == "LC_ALL";
        if let Some(value) = value.filter(|_| !plumbing) {
            words.push(format!("{}={}", name.to_string_lossy(), quoted(value)));
        }
    }
    words.push(quoted(command.get_program()));
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn quoted(word: &std::ffi::OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

pub fn announce(command: &Command) {
    println!("+ {}", shown(command));
}

/// Runs a quick helper command and returns what it printed; its own words are in the error.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {}", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!("{} failed: {}", shown(command), stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// git in a folder, without the person's own settings, which could change what it prints.
pub fn git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(dir)
        .args(["-c", "safe.directory=*", "-c", "core.quotePath=false"])
        // A function that other code moves away from stays whole.
        .args(["-c", "diff.algorithm=patience"]);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("LC_ALL", "C");
    // What it commits is by nobody in particular.
    for name in ["GIT_AUTHOR", "GIT_COMMITTER"] {
        git.env(format!("{name}_NAME"), IDENTITY.0);
        git.env(format!("{name}_EMAIL"), IDENTITY.1);
    }
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        git.env_remove(name);
    }
    git
}

/// The bars of steps that run at once, one below the other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Progress of a long step: a bar on a terminal, else a line now and then.
pub struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: u64,
    done: u64,
    printed: Instant,
    started: Instant,
}

impl Progress {
    /// A step counted in things, of which there are about `total`.
    pub fn counted(label: &str, total: u64) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let style = "{prefix} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}";
            let bar = BARS.add(ProgressBar::new(total));
            bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
            bar.set_prefix(label.to_owned());
            bar
        });
        Progress {
            bar,
            label: label.to_owned(),
            total,
            done: 0,
            printed: Instant::now(),
            started: Instant::now(),
        }
    }

    pub fn tick(&mut self, message: &str) {
        self.done += 1;
        // An estimate that was too low grows with the count.
        self.total = self.total.max(self.done);
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
            bar.set_position(self.done);
            bar.set_message(message.to_owned());
        } else if self.printed.elapsed() >= QUIET_PERIOD {
            self.printed = Instant::now();
            println!("{}", self.line());
        }
    }

    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        format!(
            "  {}: {}/{}, {seconds} s",
            self.label, self.done, self.total
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
        println!("{}", self.line());
    }
}

/// Runs a long command with both outputs in `log`; `on_line` sees every line.
///
/// A failure shows the end of the log, its path and `remedy`, and exits with `exit`.
pub fn logged(
    command: &Command,
    log: &Path,
    exit: Exit,
    remedy: &str,
    mut on_line: impl FnMut(&str),
) -> Result<()> {
    announce(command);
    let mut file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    writeln!(file, "+ {}", shown(command))?;
    // One pipe for both outputs keeps their order; the shell joins them.
    let mut child = Command::new("sh");
    child
        .args(["-c", "exec \"$@\" 2>&1", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => child.env(name, value),
            None => child.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        child.current_dir(dir);
    }
    let mut child = child
        .spawn()
        .with_context(|| format!("failed to run {}", shown(command)))?;
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        file.write_all(&line)?;
        on_line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let status = spent::wait(&mut child, command)?;
    drop(file);
    if status.success() {
        return Ok(());
    }
    // The whole command stands above; its program is enough to find it there.
    let what = format!(
        "{} failed ({status})",
        command.get_program().to_string_lossy()
    );
    Err(log_failure(&what, log, exit, remedy))
}

/// A failure that shows the end of a log; a full disk is recognised in it.
pub fn log_failure(what: &str, log: &Path, exit: Exit, remedy: &str) -> anyhow::Error {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let shown_tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    let full = shown_tail.contains("No space left on device");
    let (exit, what, remedy) = if full {
        (
            Exit::Environment,
            format!("disk full: {what}"),
            DISK_REMEDY.to_owned(),
        )
    } else {
        (exit, what.to_owned(), remedy.to_owned())
    };
    let what = format!(
        "{what}\n--- last lines of {} ---\n{shown_tail}\n---",
        log.display()
    );
    fail(
        exit,
        what,
        format!("{remedy} (whole log: {})", log.display()),
    )
}

pub fn find_program(name: &str, path: &std::ffi::OsStr) -> Option<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|file| {
            fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

/// Writes a file under a temporary name and renames it, so that it is whole or not there.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().context("a file has a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("creating a file in {}", dir.display()))?;
    file.write_all(content)
        .with_context(|| format!("writing {}", path.display()))?;
    file.persist(path)
        .with_context(|| format!("writing {}", path.display()))?;
    // tempfile makes private files; what is written here is for everybody.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// `name=value`, which need not be UTF-8.
pub fn assignment(name: &str, value: impl AsRef<std::ffi::OsStr>) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from(name);
    word.push("=");
    word.push(value);
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("make");
        command
            .args(["CC=ccache clang-19", "O=/b"])
            .env("A", "it's");
        assert_eq!(
            shown(&command),
            r"A='it'\''s' make 'CC=ccache clang-19' O=/b"
        );
    }

    #[test]
    fn a_failing_step_shows_the_log_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("build.log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; echo the reason >&2; exit 3"]);
        let mut seen = 0;
        let error = logged(&command, &log, Exit::Build, "read it", |_| seen += 1).unwrap_err();
        assert_eq!(seen, 101);
        let (exit, error) = classify(error);
        let text = format!("{error:#}");
        assert_eq!(exit, Exit::Build);
        assert!(text.contains("the reason") && text.contains("read it"));
        assert!(text.contains("build.log"));
        assert!(!text.contains("\n60\n"), "only the end of the log is shown");
    }

    #[test]
    fn a_full_disk_in_a_log_is_an_environment_failure() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("build.log");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'ld.lld: error: No space left on device'; exit 1",
        ]);
        let error = logged(&command, &log, Exit::Build, "", |_| ()).unwrap_err();
        let (exit, error) = classify(error);
        assert_eq!(exit, Exit::Environment);
        assert!(format!("{error:#}").contains("XDG_CACHE_HOME"));
    }
}
