//! What the plugin of `bench lines` and its workload wrote, and what that comes to per trip, exit, fork or
//! munmap.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};

use crate::bench::layout::Layout;
use crate::guest::console::{self, number, pairs, text};

/// What the first process puts in front of its lines.
const PREFIX: &str = "lazy-tlb-lines: ";
/// What it calls a turn of a load.
const SWITCH: &str = "switch";
/// Whose the lines are that programs move, or riscv's firmware, and not the kernel.
const USER: &str = "user space or firmware";
/// Of what it is told which functions run.
pub const PER_EXIT: &str = "per exit+free, all other CPUs lazy";
/// What that is called.
pub const RUN: &str = "instructions in";
/// The transfers of which a load's `share` is.
pub const MANY: &str = "lines of more than two CPUs";

/// What the console says of the workload under one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// What is done: `trip`, `exit-none` and so on.
    name: String,
    /// Empty where the kernel has none.
    pub policy: String,
    mm: u64,
    mm_size: u64,
    trips: u64,
    /// Of a load that counts them.
    operations: Option<u64>,
    of_load: bool,
    /// Where each CPU's variables are, from where the linker put them.
    percpu: Vec<u64>,
}

impl Told {
    fn is_mm(&self, at: u64) -> bool {
        (self.mm..self.mm + self.mm_size).contains(&at)
    }

    /// What the counts are per.
    pub fn unit(&self) -> String {
        match self.name.split_once('-') {
            Some((done, "none")) => format!("per {done}, no CPU lazy"),
            Some((done, "all")) => format!("per {done}, all other CPUs lazy"),
            Some((done, few)) => format!("per {done}, {few} CPUs lazy"),
            None => format!("per {}", self.name),
        }
    }

    /// The same for counts per operation, and what that is.
    fn per_operation(&self, is: &str) -> Result<Self> {
        let operations = self.operations.filter(|operations| *operations > 0);
        Ok(Told {
            name: is.into(),
            trips: operations.with_context(|| format!("no {is} was counted"))?,
            ..self.clone()
        })
    }
}

fn hex(pairs: &BTreeMap<&str, &str>, key: &str) -> Result<u64> {
    let value = text(pairs, key)?;
    u64::from_str_radix(value.trim_start_matches("0x"), 16)
        .with_context(|| format!("{key}={value} is no address"))
}

impl Told {
    /// Reads a console.
    pub fn parse(console: &str) -> Result<Vec<Self>> {
        let console = console::without_stamps(console);
        let lines = console.lines().filter_map(|line| line.strip_prefix(PREFIX));
        let (mut all, mut percpu) = (Vec::new(), Vec::new());
        for line in lines.map(pairs) {
            match text(&line, "what")? {
                "percpu" => percpu.push(hex(&line, "offset")?),
                "case" => all.push(Told {
                    name: text(&line, "name")?.into(),
                    policy: text(&line, "policy")?.into(),
                    mm: hex(&line, "mm")?,
                    mm_size: number(&line, "size")?,
                    trips: 0,
                    operations: None,
                    of_load: text(&line, "name")? == SWITCH,
                    percpu: percpu.clone(),
                }),
                "trips" => {
                    let told = all.last_mut().context("trips of no workload")?;
                    told.trips = number(&line, "trips")?;
                }
                "operations" => {
                    let told = all.last_mut().context("operations of no workload")?;
                    told.operations = Some(number(&line, "operations")?);
                }
                other => anyhow::bail!("the guest reports an unknown {other}"),
            }
        }
        ensure!(
            all.iter().all(|told| told.trips > 0),
            "the guest made no trips"
        );
        ensure!(
            all.iter().all(|told| told.mm > 0),
            "the workload did not find its own mm: does the kernel have CONFIG_PROC_KCORE?"
        );
        Ok(all)
    }
}

/// A transfer's cause: the place, the instruction, how often.
struct Moves {
    at: u64,
    insn: u64,
    exclusive: u64,
    shared: u64,
}

/// A line that moved.
struct Line {
    at: u64,
    cpus: u64,
    writes: u64,
    moves: Vec<Moves>,
}

/// What the plugin wrote between two marks.
#[derive(Default)]
pub struct Section {
    instructions: u64,
    /// Those of the CPU that exits, forks and unmaps.
    first_cpu: u64,
    atomics: u64,
    barriers: u64,
    /// Where some were run, and how many.
    blocks: Vec<(u64, u64)>,
    lines: Vec<Line>,
}

impl Section {
    /// Reads what the plugin wrote, once for each policy.
    pub fn parse(written: &str) -> Result<Vec<Self>> {
        let (mut all, mut ended) = (Vec::new(), 0);
        for line in written.lines().map(pairs) {
            let what = text(&line, "what")?;
            if what == "section" {
                all.push(Section::default());
            }
            let section = all.last_mut().context("no section has begun")?;
            match what {
                "cpu" => {
                    let instructions = number(&line, "instructions")?;
                    section.instructions += instructions;
                    if number(&line, "cpu")? == 0 {
                        section.first_cpu = instructions;
                    }
                    section.atomics += number(&line, "atomics")?;
                    section.barriers += number(&line, "barriers")?;
                }
                "block" => {
                    let instructions = number(&line, "instructions")?;
                    section.blocks.push((hex(&line, "address")?, instructions));
                }
                "line" => section.lines.push(Line {
                    at: hex(&line, "address")?,
                    cpus: number(&line, "cpus")?,
                    writes: number(&line, "writes")?,
                    moves: Vec::new(),
                }),
                "move" => {
                    let line_of_it = section.lines.last_mut().context("a move of no line")?;
                    line_of_it.moves.push(Moves {
                        at: hex(&line, "address")?,
                        insn: hex(&line, "insn")?,
                        exclusive: number(&line, "exclusive")?,
                        shared: number(&line, "shared")?,
                    });
                }
                "end" => ended += 1,
                _ => (),
            }
        }
        ensure!(
            ended == all.len(),
            "the plugin did not come to the end of what it counts"
        );
        Ok(all)
    }

    /// What moved, by name: exclusive transfers, and all.
    fn moved(&self, layout: &Layout, told: &Told) -> BTreeMap<String, (u64, u64)> {
        // What is told even where it does not move.
        let told_of = ["mm", "slot", "mm.mm_count"].into_iter();
        let told_of = told_of.filter(|name| *name != "mm.mm_count" || told.of_load);
        let mut cases: BTreeMap<String, (u64, u64)> =
            told_of.map(|name| (name.to_owned(), (0, 0))).collect();
        let mut add = |name: &str, moves: &Moves| {
            let case = cases.entry(name.to_owned()).or_default();
            case.0 += moves.exclusive;
            case.1 += moves.exclusive + moves.shared;
        };
        for line in &self.lines {
            if told.is_mm(line.at) {
                for moves in &line.moves {
                    add("mm", moves);
                    add(
                        &format!("mm.{}", layout.mm_field(moves.at - told.mm)),
                        moves,
                    );
                }
                continue;
            }
            let variable = |moves: &Moves| layout.variable(&told.percpu, moves.at);
            let of_slot = |moves: &&Moves| variable(moves) == Some("lazy_tlb_slot");
            line.moves
                .iter()
                .filter(of_slot)
                .for_each(|moves| add("slot", moves));
            let most = line
                .moves
                .iter()
                .max_by_key(|moves| moves.exclusive + moves.shared);
            if let Some(most) = most.filter(|_| line.cpus > 2) {
                let name = match variable(most) {
                    Some(name) => name.to_owned(),
                    None if !layout.is_code(most.insn) => USER.into(),
                    None => format!("{}()'s", layout.symbol(most.insn)),
                };
                line.moves.iter().for_each(|moves| add(&name, moves));
            }
        }
        cases
    }

    /// Everything, per trip or the like.
    pub fn samples(&self, layout: &Layout, told: &Told) -> Vec<(&'static str, String, f64)> {
        let per_trip = |count: u64| count as f64 / told.trips as f64;
        let mut samples = Vec::new();
        for (case, (exclusive, all)) in self.moved(layout, told) {
            samples.push(("transfers", case.clone(), per_trip(all)));
            samples.push(("exclusive transfers", case, per_trip(exclusive)));
        }
        let of_mm = self.lines.iter().filter(|line| told.is_mm(line.at));
        samples.push((
            "writes",
            "mm".into(),
            per_trip(of_mm.map(|line| line.writes).sum()),
        ));
        let mut all = |what, case: &str, count| samples.push((what, case.into(), per_trip(count)));
        all("instructions", "all", self.instructions);
        // On a trip every CPU does the same.
        if told.name != "trip" && !told.of_load {
            all("instructions", "its own CPU", self.first_cpu);
        }
        all("atomics", "all", self.atomics);
        all("barriers", "all", self.barriers);
        if told.of_load {
            samples.extend(self.shares(layout, told));
        }
        if told.unit() == PER_EXIT {
            let functions = self.functions(layout).into_iter();
            samples.extend(functions.map(|(name, count)| (RUN, name, per_trip(count))));
        }
        samples
    }

    /// The instructions of each function.
    fn functions(&self, layout: &Layout) -> BTreeMap<String, u64> {
        let mut functions = BTreeMap::new();
        for (at, instructions) in &self.blocks {
            let name = match layout.is_code(*at) {
                true => format!("{}()", layout.symbol(*at)),
                false => USER.into(),
            };
            *functions.entry(name).or_default() += instructions;
        }
        functions
    }

    /// All moves of lines that more than two CPUs touch, whoever's they are, how many per cent of them are the mm's,
    /// and how many lines, and how many that the kernel moves most, move more often than that of mm_count.
    fn shares(&self, layout: &Layout, told: &Told) -> Vec<(&'static str, String, f64)> {
        let number = |moves: &Moves| moves.exclusive + moves.shared;
        let is_count = |moves: &&Moves| {
            told.is_mm(moves.at) && layout.mm_field(moves.at - told.mm) == "mm_count"
        };
        let (mut all, mut mm, mut count, mut of_count) = (0, 0, 0, 0);
        let mut moved = Vec::new();
        for line in self.lines.iter().filter(|line| line.cpus > 2) {
            let of_line: u64 = line.moves.iter().map(number).sum();
            all += of_line;
            let most = line.moves.iter().max_by_key(|moves| number(moves));
            moved.push((of_line, most.is_some_and(|most| layout.is_code(most.insn))));
            if told.is_mm(line.at) {
                mm += of_line;
                let counts: u64 = line.moves.iter().filter(is_count).map(number).sum();
                if counts > 0 {
                    (count, of_count) = (counts, of_line);
                }
            }
        }
        let per_cent = |part: u64| match all {
            0 => 0.0,
            all => 100.0 * part as f64 / all as f64,
        };
        moved.retain(|(moves, _)| *moves > of_count);
        let of_kernel = moved.iter().filter(|(_, of_kernel)| *of_kernel).count();
        let busier = |what, number| (what, "mm.mm_count".into(), number as f64);
        let busier = [
            busier("busier lines", moved.len()),
            busier("busier kernel lines", of_kernel),
        ];
        let shares = vec![
            ("transfers", MANY.into(), all as f64 / told.trips as f64),
            ("share", "mm".into(), per_cent(mm)),
            ("share", "mm.mm_count".into(), per_cent(count)),
            ("counted", "all".into(), told.trips as f64),
        ];
        // A line that does not move has no place among those that do.
        let busier = busier.into_iter().filter(|_| count > 0);
        shares.into_iter().chain(busier).collect()
    }
}

/// A unit, what was counted of which case, and the count.
type Average = (String, &'static str, String, f64);

/// Over all trips, all exits of a kind and so on of one turn: in some of them a line does not move. Of a load also
/// per operation, where it says what that is.
pub fn averages(
    layout: &Layout,
    turn: &[(&Told, &Section)],
    operation: Option<&str>,
) -> Result<Vec<Average>> {
    let mut order: Vec<Average> = Vec::new();
    let mut times: BTreeMap<String, f64> = BTreeMap::new();
    let mut at = BTreeMap::new();
    for (told, section) in turn {
        let mut views = vec![(*told).clone()];
        if let Some(is) = operation {
            views.push(told.per_operation(is)?);
        }
        for told in views {
            *times.entry(told.unit()).or_default() += 1.0;
            for (what, case, value) in section.samples(layout, &told) {
                let key = (told.unit(), what, case.clone());
                let at = *at.entry(key).or_insert_with(|| {
                    order.push((told.unit(), what, case, 0.0));
                    order.len() - 1
                });
                order[at].3 += value;
            }
        }
    }
    for (unit, .., value) in &mut order {
        *value /= times[unit];
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::layout;

    const CONSOLE: &str = "\
lazy-tlb-lines: what=percpu cpu=0 offset=0xf0000000
lazy-tlb-lines: what=percpu cpu=1 offset=0xf0010000
lazy-tlb-lines: what=case name=trip policy=refcount cpus=4 mm=0xd000 size=1024
lazy-tlb-lines: what=trips trips=9 switches=21
[    1.000000] lazy-tlb-lines: what=case name=trip policy=shootdown cpus=4 mm=0xe000 size=1024
lazy-tlb-lines: what=trips trips=10 switches=21
";
    const WRITTEN: &str = "\
what=section number=1
what=end
what=section number=2
what=cpu cpu=0 instructions=600 atomics=20 barriers=1
what=cpu cpu=1 instructions=400 atomics=10 barriers=4
what=block address=0x1180 instructions=300
what=block address=0x1100 instructions=600
what=block address=0x1200 instructions=1
what=block address=0x700 instructions=99
what=line address=0x1800 cpus=4 reads=9 writes=5
what=move address=0x1804 insn=0x1100 exclusive=3 shared=2
what=line address=0x9000 cpus=2 reads=9 writes=5
what=move address=0x9000 insn=0x1100 exclusive=100 shared=100
what=line address=0x9040 cpus=3 reads=9 writes=5
what=move address=0x9040 insn=0x1100 exclusive=1 shared=0
what=move address=0x9048 insn=0x1208 exclusive=1 shared=1
what=line address=0x9080 cpus=3 reads=9 writes=5
what=move address=0x9080 insn=0x700 exclusive=30 shared=0
what=line address=0x90c0 cpus=2 reads=9 writes=5
what=move address=0x90c0 insn=0x1100 exclusive=90 shared=0
what=line address=0xe000 cpus=4 reads=0 writes=40
what=move address=0xe000 insn=0x1100 exclusive=20 shared=0
what=move address=0xe008 insn=0x1100 exclusive=0 shared=7
what=line address=0xf0012040 cpus=2 reads=0 writes=40
what=move address=0xf0012040 insn=0x1100 exclusive=2 shared=2
what=end
";

    fn samples(written: &str) -> Vec<(&'static str, String, f64)> {
        let told = Told::parse(CONSOLE).unwrap();
        let sections = Section::parse(written).unwrap();
        assert_eq!((told.len(), sections.len()), (2, 2));
        assert_eq!(told[1].unit(), "per trip");
        sections[1].samples(&layout::tests::example(), &told[1])
    }

    #[test]
    fn an_exit_says_what_its_own_cpu_does() {
        let console = CONSOLE.replace("name=trip", "name=exit-3");
        let told = Told::parse(&console).unwrap();
        assert_eq!(told[1].unit(), "per exit, 3 CPUs lazy");
        let section = &Section::parse(WRITTEN).unwrap()[1];
        let samples = section.samples(&layout::tests::example(), &told[1]);
        assert!(samples.contains(&("instructions", "its own CPU".into(), 60.0)));
        assert!(samples.iter().all(|(what, ..)| *what != RUN));
    }

    #[test]
    fn an_exit_until_the_mm_is_freed_says_which_functions_run() {
        let console = CONSOLE.replace("name=trip", "name=exit+free-all");
        let told = Told::parse(&console).unwrap();
        let section = &Section::parse(WRITTEN).unwrap()[1];
        let mut samples = section.samples(&layout::tests::example(), &told[1]);
        samples.retain(|(what, ..)| *what == RUN);
        let of = |case: &str, value| (RUN, case.to_owned(), value);
        let functions = [of("switch()", 90.0), of(USER, 9.9), of("wake()", 0.1)];
        assert_eq!(samples, functions);
    }

    #[test]
    fn every_move_has_a_name() {
        let samples = samples(WRITTEN);
        let value = |what: &str, case: &str| {
            let found = samples.iter().find(|s| s.0 == what && s.1 == case);
            found.map(|s| s.2)
        };
        for (what, case, expected) in [
            ("transfers", "mm", Some(2.7)),
            ("exclusive transfers", "mm", Some(2.0)),
            ("transfers", "mm.mm_count", Some(2.0)),
            ("transfers", "mm.pgd", Some(0.7)),
            ("writes", "mm", Some(4.0)),
            ("transfers", "slot", Some(0.4)),
            ("transfers", "jiffies", Some(0.5)),
            // Named after who moves it most; what two CPUs have is left out.
            ("transfers", "wake()'s", Some(0.3)),
            ("transfers", "switch()'s", None),
            ("transfers", USER, Some(3.0)),
            ("instructions", "all", Some(100.0)),
            ("atomics", "all", Some(3.0)),
            ("barriers", "all", Some(0.5)),
        ] {
            assert_eq!(value(what, case), expected, "{what} {case}");
        }
    }

    #[test]
    fn a_load_has_a_share_and_counts_per_operation() {
        let console = CONSOLE.replace("name=trip", "name=switch")
            + "lazy-tlb-lines: what=operations operations=5\n";
        let (told, sections) = (
            Told::parse(&console).unwrap(),
            Section::parse(WRITTEN).unwrap(),
        );
        let layout = layout::tests::example();
        let turn = [(&told[1], &sections[1])];
        let averages = averages(&layout, &turn, Some("request")).unwrap();
        let value = |unit: &str, what: &str, case: &str| {
            let found = averages
                .iter()
                .find(|(u, w, c, _)| u == unit && *w == what && c == case);
            found.map(|(.., value)| *value)
        };
        for (unit, what, case, expected) in [
            ("per switch", "transfers", "mm.mm_count", Some(2.0)),
            ("per request", "transfers", "mm.mm_count", Some(4.0)),
            // 5, 3, 30 and 27 of lines that more than two CPUs touch.
            ("per switch", "transfers", MANY, Some(6.5)),
            ("per switch", "share", "mm.mm_count", Some(2000.0 / 65.0)),
            ("per request", "share", "mm", Some(2700.0 / 65.0)),
            ("per switch", "counted", "all", Some(10.0)),
            ("per switch", "busier lines", "mm.mm_count", Some(1.0)),
            (
                "per switch",
                "busier kernel lines",
                "mm.mm_count",
                Some(0.0),
            ),
            ("per switch", "instructions", "its own CPU", None),
        ] {
            assert_eq!(value(unit, what, case), expected, "{unit} {what} {case}");
        }
        let other = [(&told[0], &sections[1])];
        assert!(super::averages(&layout, &other, Some("request")).is_err());
        assert!(super::averages(&layout, &other, None).is_ok());
    }

    #[test]
    fn a_run_that_did_not_come_to_its_end_is_an_error() {
        assert!(Section::parse(&WRITTEN.replace("what=end\n", "")).is_err());
        let none = Told::parse(&CONSOLE.replace("trips=10", "trips=0")).unwrap_err();
        assert!(none.to_string().contains("no trips"), "{none}");
        assert!(Told::parse(&CONSOLE.replace("mm=0xe000", "mm=0")).is_err());
    }
}
