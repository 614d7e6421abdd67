//! `report`: tables and plots of what the benchmarks wrote into `results/`, one folder per machine.
//!
//! The same files give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::bench::counts;
use crate::bench::lines;
use crate::host::arch::{Kind, KINDS};
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::report::plot::plot;
use crate::results::sample::{Samples, FILES, POLICIES};
use crate::results::table;

const REPORT: &str = "REPORT.md";

/// The benchmarks whose results are samples: what they are called, and what is to be known of them.
const BENCHES: [(&str, &str, &str); 4] = [
    (
        "kernel",
        "The kernel's own benchmark",
        "A trip: CPUs borrow and give back one mm, all at once, and do nothing else. A switch: on each of these CPUs, a
kernel thread with that mm and one with none wake each other; it is from one to the other and back. A final drop looks at the slots of so
many CPUs and finds none lazy; on um it also ends a process of the host, which is nearly all of its time.
",
    ),
    (
        "ipis",
        "Interrupts",
        "Counts of the kernel's own, in guests, a boot for each run, workload and policy. Function-call interrupts are
all that there were, whoever made them; only x86 counts those of TLB flushes.
",
    ),
    (
        "perf",
        "perf bench sched lazy-tlb",
        "perf changes the policy itself, all of them once in each round. A trip goes to idle and back.
",
    ),
    (
        "exit",
        "Exits",
        "The guest changes the policy itself, all of them once in each round. An exit is timed from `_exit()` to the
parent's return from `waitpid()`, when it leaves all CPUs lazy on its mm, or none.
",
    ),
];

const INTRODUCTION: &str = "
## Is it better than refcount?

Each ratio is of two values of the same round, and less is better: the median of the rounds, the least and the greatest.
It is `better` or `worse` if all rounds say so, else `same`. With one round nothing says how much chance there is in it.
`transfers mm + slot` are moves of cache lines, counted in an emulator.

";

const LINES_INTRODUCTION: &str = "
## Cache lines

Pairs of threads of one process hand a byte to and fro, the two ends of each pair on different CPUs: a trip goes
from user to idle and back. A plugin of the emulator counts how often each line has to move to another CPU, all
caches being as large as it takes; a read that writes asks for its line once. Over the boots: the median, with the
least and the greatest. `slot` is `lazy_tlb_slot` alone; then come the ten lines that move most, of those that more
than two CPUs touch. A name with `()` is of the function that moves it most. Nothing here is a time.

Where a load is named, that ran in a Debian system (`guest/loads.toml`), and the mm is its process's. A switch is any of
the whole guest, to idle and back are two. `share` is in per cent of the moves of all lines that more than two CPUs
touch, those of programs among them; `busier lines` is how many of these lines move more often than the one of
`mm_count`, and `busier kernel lines` how many of those the kernel moves most; `counted` is how many switches or operations there were in a turn.
";

/// Everything in the folder of one machine, each file by its name.
#[derive(Default)]
struct Folder {
    name: String,
    samples: BTreeMap<String, Samples>,
    lines: BTreeMap<String, counts::Results>,
    unknown: Vec<String>,
}

impl Folder {
    /// Reads it; a file that cannot be read is an error that names it.
    fn load(dir: &Path) -> Result<Self> {
        let mut folder = Folder {
            name: name_of(dir),
            ..Folder::default()
        };
        for path in files(dir)? {
            let name = name_of(&path);
            if !name.ends_with(".json") {
                continue;
            }
            if let Some(rest) = name.strip_prefix(FILES) {
                let bench = rest.split('-').next().unwrap_or_default();
                let command = format!("cargo xtask bench {bench}");
                let samples: Samples = parse(&path, &command)?;
                if samples.samples.is_empty() {
                    return Err(bad(&path, &command, "it has no sample"));
                }
                folder.samples.insert(name, samples);
            } else if name.starts_with(lines::FILES) {
                let lines: counts::Results = parse(&path, "cargo xtask bench lines")?;
                if lines.samples.is_empty() {
                    return Err(bad(&path, "cargo xtask bench lines", "it has no sample"));
                }
                folder.lines.insert(name, lines);
            } else {
                folder.unknown.push(name);
            }
        }
        Ok(folder)
    }

    fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.lines.is_empty()
    }

    fn of(&self, bench: &'static str) -> impl Iterator<Item = (&String, &Samples)> {
        let samples = self.samples.iter();
        samples.filter(move |(_, samples)| samples.bench() == bench)
    }

    /// A table that answers for each row, before all details.
    fn answers(&self) -> String {
        let mut answers: Vec<_> = self.samples.values().flat_map(Samples::answers).collect();
        for lines in self.lines.values() {
            answers.extend(lines.moves(&["mm", "slot"]).answers());
        }
        let mut header = vec!["", "guest", "CPUs", "rounds"];
        for policy in &POLICIES[1..] {
            header.extend([policy, "least..greatest", ""]);
        }
        table::of(header, answers, &[0, 1, 6, 9])
    }

    /// How often lines of the mm move per trip, over the numbers of CPUs: a plot for each guest.
    fn plots(&self) -> Result<BTreeMap<String, String>> {
        let mut guests: BTreeMap<String, Vec<Samples>> = BTreeMap::new();
        for lines in self.lines.values() {
            let mut moves = lines.moves(&["mm"]);
            moves
                .samples
                .retain(|sample| sample.unit == counts::PER_TRIP);
            if moves.append.is_empty() && moves.variant == "lines" {
                guests.entry(moves.guest.clone()).or_default().push(moves);
            }
        }
        guests.retain(|_, counted| counted.len() > 1);
        let plot_of = |(guest, counted): (String, Vec<Samples>)| {
            let name = format!("{}{guest}.svg", lines::FILES);
            Ok((name, plot(&counted.iter().collect::<Vec<_>>())?))
        };
        guests.into_iter().map(plot_of).collect()
    }

    /// The report itself, and the plots that it shows.
    fn write_up(&self) -> Result<BTreeMap<String, String>> {
        let mut written = self.plots()?;
        let mut report = format!(
            "# Results: {}\n\nWritten by `cargo xtask report` from the JSON files beside it.\n{INTRODUCTION}{}\n",
            self.name,
            self.answers()
        );
        for (bench, title, introduction) in BENCHES {
            if self.of(bench).next().is_none() {
                continue;
            }
            report.push_str(&format!("\n## {title}\n\n{introduction}"));
            for (file, samples) in self.of(bench) {
                report.push_str(&samples.section(file));
            }
        }
        if !self.lines.is_empty() {
            report.push_str(LINES_INTRODUCTION);
            for name in written.keys() {
                report.push_str(&format!("\n![Moves of lines of the mm]({name})\n"));
            }
        }
        for (file, lines) in &self.lines {
            report.push_str(&lines.section(file));
        }
        report.push_str("\n## Missing\n\n");
        report.push_str(&list(&self.missing()));
        if !self.unknown.is_empty() {
            report.push_str("\n## Not read\n\n");
            report.push_str(&list(&self.unknown));
        }
        written.insert(REPORT.to_owned(), report);
        Ok(written)
    }

    /// What nobody has measured on this machine, and how to.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.of("kernel").next().is_none() {
            let how = "cargo xtask bench kernel --arch um";
            missing.push(format!("the kernel's own benchmark: `{how}`"));
        }
        for kind in &KINDS {
            let is_of = |samples: &Samples| {
                samples.guest == kind.arch().name && samples.append == append_of(kind)
            };
            if !self.of("ipis").any(|(_, samples)| is_of(samples)) {
                let mut again = format!("cargo xtask bench ipis --arch {}", kind.arch().name);
                if !append_of(kind).is_empty() {
                    again.push_str(&format!(" --append {}", append_of(kind)));
                }
                missing.push(format!("interrupts of {}: `{again}`", kind.name));
            }
        }
        missing
    }
}

/// What a guest is measured with; what others append is for the tests only.
fn append_of(kind: &Kind) -> &'static str {
    match kind.mmu {
        Some(_) => kind.append,
        None => "",
    }
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn files(dir: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let paths: std::io::Result<BTreeSet<PathBuf>> = entries.map(|e| Ok(e?.path())).collect();
    Ok(paths?)
}

fn parse<T: DeserializeOwned>(path: &Path, command: &str) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| bad(path, command, &error.to_string()))
}

fn bad(path: &Path, command: &str, why: &str) -> anyhow::Error {
    fail(
        Exit::Internal,
        format!("{} is not what `{command}` writes: {why}", path.display()),
        format!("write it again with `{command}`, or move it out of the folder"),
    )
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        return "Nothing.\n".into();
    }
    items.iter().map(|item| format!("- {item}\n")).collect()
}

/// `report` itself: reads every folder, and writes only if all could be read.
pub fn run(repo: &Path) -> Result<()> {
    let results = repo.join("results");
    let mut reports = Vec::new();
    let paths = match results.is_dir() {
        true => files(&results)?,
        false => BTreeSet::new(),
    };
    for dir in paths.into_iter().filter(|path| path.is_dir()) {
        let folder = Folder::load(&dir)?;
        // What was measured long ago and in other forms keeps the report that it has.
        if !folder.is_empty() {
            reports.push((dir, folder.write_up()?));
        }
    }
    if reports.is_empty() {
        return Err(fail(
            Exit::Usage,
            format!("there are no results in {}", results.display()),
            "run `cargo xtask bench kernel --arch um` or `cargo xtask bench ipis` first",
        ));
    }
    for (dir, written) in reports {
        for (name, content) in written {
            sh::write_whole(&dir.join(name), content.as_bytes())?;
        }
        println!("{}", dir.join(REPORT).display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;
    use crate::results::sample::tests::{example, of};

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let machine = dir.path().join("results/machine");
        fs::create_dir_all(&machine).unwrap();
        for (name, content) in files {
            fs::write(machine.join(name), content).unwrap();
        }
        dir
    }

    fn loaded(files: &[(&str, String)]) -> Result<Folder> {
        Folder::load(&folder(files).path().join("results/machine"))
    }

    fn json(samples: &Samples) -> String {
        serde_json::to_string(samples).unwrap()
    }

    const EXIT: &str = "paired-exit-arm64-4.json";

    #[test]
    fn what_was_measured_has_a_section_and_the_rest_is_missing() {
        let mut hash = example(1.0, 1.1);
        hash.command = "cargo xtask bench ipis --arch powerpc".into();
        (hash.guest, hash.append) = ("powerpc".into(), "disable_radix".into());
        let files = [
            (EXIT, json(&example(1.0, 1.1))),
            ("paired-ipis-powerpc-4-disable_radix.json", json(&hash)),
            ("other.json", "{}".into()),
        ];
        let report = &loaded(&files).unwrap().write_up().unwrap()[REPORT];
        for words in [
            "| exit lazy, us | arm64 ",
            "\n### Guest arm64: exit\n",
            "From `paired-exit-arm64-4.json`",
            "\n### Guest powerpc, `disable_radix`: ipis\n",
            "- the kernel's own benchmark: `cargo xtask bench kernel --arch um`",
            "of powerpc-radix: `cargo xtask bench ipis --arch powerpc`",
            "## Not read\n\n- other.json\n",
        ] {
            assert!(report.contains(words), "{words}: {report}");
        }
        assert!(!report.contains("of powerpc-hash"), "{report}");
    }

    #[test]
    fn moves_per_trip_are_plotted_over_cpus() {
        let of = |cpus: u32| {
            let mut lines = counts::tests::example();
            lines.guest_cpus = cpus;
            lines
                .samples
                .iter_mut()
                .for_each(|sample| sample.cpus = cpus);
            serde_json::to_string(&lines).unwrap()
        };
        let files = [
            ("lines-x86_64-4.json", of(4)),
            ("lines-x86_64-128.json", of(128)),
        ];
        let written = loaded(&files).unwrap().write_up().unwrap();
        assert!(written[REPORT].contains("](lines-x86_64.svg)"));
        for word in ["shootdown", "transfers mm", "128"] {
            assert!(written["lines-x86_64.svg"].contains(word), "{word}");
        }
        assert_eq!(loaded(&files[..1]).unwrap().write_up().unwrap().len(), 1);
    }

    #[test]
    fn a_bad_file_is_named_with_a_remedy() {
        let empty = json(&of("cargo xtask bench exit", Vec::new()));
        for (name, content, why) in [
            (EXIT, "[".to_owned(), "bench exit"),
            (EXIT, "{}".into(), "command"),
            (EXIT, empty, "no sample"),
            ("lines-a.json", "{}".into(), "bench lines"),
        ] {
            let error = loaded(&[(name, content)]).err().unwrap();
            let text = format!("{:#}", classify(error).1);
            for word in [name, why, "remedy: write it again"] {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
    }

    #[test]
    fn no_results_are_an_error() {
        let dir = folder(&[("old.json", "{}".into())]);
        for repo in [dir.path().to_owned(), dir.path().join("gone")] {
            assert_eq!(classify(run(&repo).unwrap_err()).0, Exit::Usage);
        }
    }
}
