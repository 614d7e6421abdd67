//! What a run counts, between the marks of the workload.

use std::collections::HashMap;
use std::fmt::Write;

use crate::kind::Kind;
use crate::model::{Access, Directory, Joiner, CPUS};

/// What one CPU did.
#[derive(Clone, Copy, Default)]
struct Cpu {
    insns: u64,
    atomics: u64,
    barriers: u64,
}

/// An instruction: where it is, and what.
pub type Insn = (u64, Kind);

/// What is translated as one: where it is, how many instructions, how often it was run.
struct Block {
    at: u64,
    insns: u64,
    runs: u64,
}

/// Everything that is counted.
pub struct Counts {
    directory: Directory,
    joiner: Joiner,
    cpus: Vec<Cpu>,
    insns: Vec<Insn>,
    numbers: HashMap<Insn, u32>,
    blocks: Vec<Block>,
    block_numbers: HashMap<(u64, u64), usize>,
    /// Between the marks.
    counting: bool,
    section: u32,
    turns: Turns,
}

/// When the next CPU gets its turn: after so many instructions, which differ but are the same with the
/// same seed.
struct Turns {
    mean: u64,
    left: i64,
    random: u64,
}

impl Turns {
    fn pass(&mut self, insns: u64) -> bool {
        self.left -= insns as i64;
        if self.mean == 0 || self.left > 0 {
            return false;
        }
        // xorshift
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.left = (self.mean / 2 + self.random % self.mean.max(1)) as i64;
        true
    }
}

impl Counts {
    /// Nothing is counted yet. A turn takes `turn` instructions on the average, 0 for no turns.
    pub fn new(line_bytes: u64, turn: u64, seed: u64) -> Self {
        Counts {
            directory: Directory::new(line_bytes),
            joiner: Joiner::default(),
            cpus: vec![Cpu::default(); CPUS],
            insns: Vec::new(),
            numbers: HashMap::new(),
            blocks: Vec::new(),
            block_numbers: HashMap::new(),
            counting: false,
            section: 0,
            turns: Turns {
                mean: turn,
                left: 0,
                random: seed.wrapping_mul(2) | 1,
            },
        }
    }

    /// The number of an instruction.
    pub fn number(&mut self, insn: Insn) -> u32 {
        *self.numbers.entry(insn).or_insert_with(|| {
            self.insns.push(insn);
            self.insns.len() as u32 - 1
        })
    }

    /// The number of a block.
    pub fn block(&mut self, at: u64, insns: u64) -> usize {
        let blocks = &mut self.blocks;
        *self.block_numbers.entry((at, insns)).or_insert_with(|| {
            blocks.push(Block { at, insns, runs: 0 });
            blocks.len() - 1
        })
    }

    /// A block is run; says whether it is the next CPU's turn.
    pub fn run(&mut self, cpu: usize, block: usize) -> bool {
        let block = &mut self.blocks[block];
        block.runs += 1;
        self.cpus[cpu].insns += block.insns;
        self.turns.pass(block.insns)
    }

    /// An instruction that is not plain is run.
    pub fn special(&mut self, cpu: usize, insn: u32) {
        match self.insns[insn as usize].1 {
            Kind::Atomic | Kind::Conditional => self.cpus[cpu].atomics += 1,
            Kind::Barrier => self.cpus[cpu].barriers += 1,
            Kind::Plain | Kind::Linked => (),
        }
    }

    /// An access to memory.
    pub fn access(&mut self, access: Access) {
        let linked = self.insns[access.insn as usize].1 == Kind::Linked;
        let directory = &mut self.directory;
        self.joiner
            .take(access, linked, directory.line_bytes(), |access| {
                directory.access(access);
            });
    }

    /// The workload says that what is to be counted begins.
    pub fn begin(&mut self) {
        self.directory.start();
        self.cpus.fill(Cpu::default());
        self.blocks.iter_mut().for_each(|block| block.runs = 0);
        self.counting = true;
    }

    /// The workload says that it is over. Returns what was counted, a line of text for each thing.
    pub fn end(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.counting) {
            return None;
        }
        self.section += 1;
        let mut text = format!("what=section number={}\n", self.section);
        for (cpu, counts) in self.cpus.iter().enumerate().filter(|(_, c)| c.insns > 0) {
            let Cpu {
                insns,
                atomics,
                barriers,
            } = counts;
            let _ = writeln!(
                text,
                "what=cpu cpu={cpu} instructions={insns} atomics={atomics} barriers={barriers}"
            );
        }
        for block in self.blocks.iter().filter(|block| block.runs > 0) {
            let Block { at, insns, runs } = block;
            let instructions = insns * runs;
            let _ = writeln!(
                text,
                "what=block address={at:#x} instructions={instructions}"
            );
        }
        let moved = |line: &&crate::model::Line| !line.causes.is_empty();
        let mut lines: Vec<_> = self.directory.lines.values().filter(moved).collect();
        lines.sort_by_key(|line| line.virt);
        for line in lines {
            let _ = writeln!(
                text,
                "what=line address={:#x} cpus={} reads={} writes={}",
                line.virt,
                line.cpus.len(),
                line.reads,
                line.writes
            );
            for cause in &line.causes {
                let _ = writeln!(
                    text,
                    "what=move address={:#x} insn={:#x} exclusive={} shared={}",
                    line.virt + u64::from(cause.offset),
                    self.insns[cause.insn as usize].0,
                    cause.exclusive,
                    cause.shared
                );
            }
        }
        text.push_str("what=end\n");
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_told() {
        let mut counts = Counts::new(64, 0, 1);
        let plain = counts.number((0x10, Kind::Plain));
        let atomic = counts.number((0x20, Kind::Atomic));
        assert_eq!(counts.number((0x10, Kind::Plain)), plain);
        let block = counts.block(0x10, 3);
        assert_eq!(counts.block(0x10, 3), block);
        assert_ne!(counts.block(0x10, 2), block);
        let write = |counts: &mut Counts, cpu, insn| {
            counts.run(cpu, block);
            counts.special(cpu, insn);
            counts.access(Access {
                cpu,
                phys: 0x48,
                virt: 0xf048,
                insn,
                write: true,
            });
        };
        write(&mut counts, 0, plain);
        assert_eq!(counts.end(), None, "it never began");
        counts.begin();
        write(&mut counts, 1, atomic);
        assert_eq!(
            counts.end().unwrap(),
            "what=section number=1\n\
             what=cpu cpu=1 instructions=3 atomics=1 barriers=0\n\
             what=block address=0x10 instructions=3\n\
             what=line address=0xf040 cpus=1 reads=0 writes=1\n\
             what=move address=0xf048 insn=0x20 exclusive=1 shared=0\n\
             what=end\n"
        );
        assert_eq!(counts.end(), None);
    }

    #[test]
    fn turns_are_of_the_length_asked_for_and_the_seeds() {
        let turns = |seed| -> Vec<u64> {
            let mut counts = Counts::new(64, 100, seed);
            let block = counts.block(0, 10);
            (0..10_000).filter(|_| counts.run(0, block)).collect()
        };
        assert_eq!(turns(1), turns(1));
        assert_ne!(turns(1), turns(2));
        let nr = turns(1).len();
        assert!((800..1200).contains(&nr), "{nr} turns of 100 in 100000");
        let mut none = Counts::new(64, 0, 1);
        let block = none.block(0, 10);
        assert!((0..1000).all(|_| !none.run(0, block)));
    }
}
