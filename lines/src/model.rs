//! Who has which cache line: a directory of MESI states, one cache per CPU, without limits.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The most CPUs.
pub const CPUS: usize = 256;

/// A set of CPUs.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct CpuSet([u64; CPUS / 64]);

impl CpuSet {
    fn only(cpu: usize) -> Self {
        let mut set = CpuSet::default();
        set.add(cpu);
        set
    }

    fn add(&mut self, cpu: usize) {
        self.0[cpu / 64] |= 1 << (cpu % 64);
    }

    fn has(&self, cpu: usize) -> bool {
        self.0[cpu / 64] & 1 << (cpu % 64) != 0
    }

    /// How many.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One access, by one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Who.
    pub cpu: usize,
    /// Where, physically.
    pub phys: u64,
    /// Where, as the CPU sees it.
    pub virt: u64,
    /// Which instruction, by a number.
    pub insn: u32,
    /// Whether it writes, or reads and writes.
    pub write: bool,
}

/// How an access got its line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Move {
    /// It had it, or nobody did.
    None,
    /// Another CPU had to let it read along.
    Shared,
    /// Every other CPU had to give it up.
    Exclusive,
}

/// The instruction and the place within the line that made it move, and how often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cause {
    /// The number of the instruction.
    pub insn: u32,
    /// Bytes from the line's start.
    pub offset: u16,
    /// Moves to a writer.
    pub exclusive: u64,
    /// Moves to a reader.
    pub shared: u64,
}

/// One line.
#[derive(Clone, Default)]
pub struct Line {
    /// Who has it: modified or exclusive where it is one, shared where there are more. Nothing is ever
    /// evicted, so that one is never left with a shared one.
    holders: CpuSet,
    /// The highest address it was accessed by: the kernel's, where there are several.
    pub virt: u64,
    /// CPUs that accessed it since counting began.
    pub cpus: CpuSet,
    /// Reads since then.
    pub reads: u64,
    /// Writes, and reads that write, since then.
    pub writes: u64,
    /// What moved it since then.
    pub causes: Vec<Cause>,
}

impl Line {
    /// Takes an access; says whether the line had to move.
    fn access(&mut self, cpu: usize, write: bool) -> Move {
        let alone = self.holders == CpuSet::only(cpu);
        let moved = match write {
            _ if self.holders.is_empty() => Move::None,
            true if !alone => Move::Exclusive,
            false if !self.holders.has(cpu) => Move::Shared,
            _ => Move::None,
        };
        if write || self.holders.is_empty() {
            self.holders = CpuSet::only(cpu);
        } else {
            self.holders.add(cpu);
        }
        moved
    }
}

/// A fast hash of line numbers; they are no one's choice.
#[derive(Default)]
pub struct LineHasher(u64);

impl Hasher for LineHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed")
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// All lines.
pub struct Directory {
    /// Log2 of a line's bytes.
    shift: u32,
    /// By their number.
    pub lines: HashMap<u64, Line, BuildHasherDefault<LineHasher>>,
}

impl Directory {
    /// No line is anywhere yet.
    pub fn new(line_bytes: u64) -> Self {
        Directory {
            shift: line_bytes.trailing_zeros(),
            lines: HashMap::default(),
        }
    }

    /// A line's bytes.
    pub fn line_bytes(&self) -> u64 {
        1 << self.shift
    }

    /// Forgets the counts, not who has which line.
    pub fn start(&mut self) {
        for line in self.lines.values_mut() {
            line.cpus = CpuSet::default();
            (line.reads, line.writes) = (0, 0);
            line.causes.clear();
        }
    }

    /// Takes an access; says whether its line had to move.
    pub fn access(&mut self, access: Access) -> Move {
        let line = self.lines.entry(access.phys >> self.shift).or_default();
        line.virt = line.virt.max(access.virt >> self.shift << self.shift);
        line.cpus.add(access.cpu);
        *(if access.write {
            &mut line.writes
        } else {
            &mut line.reads
        }) += 1;
        let moved = line.access(access.cpu, access.write);
        if moved != Move::None {
            let offset = (access.phys & ((1 << self.shift) - 1)) as u16;
            let same = |c: &Cause| c.insn == access.insn && c.offset == offset;
            let at = line.causes.iter().position(same).unwrap_or_else(|| {
                line.causes.push(Cause {
                    insn: access.insn,
                    offset,
                    exclusive: 0,
                    shared: 0,
                });
                line.causes.len() - 1
            });
            let cause = &mut line.causes[at];
            *(if access.write {
                &mut cause.exclusive
            } else {
                &mut cause.shared
            }) += 1;
        }
        moved
    }
}

/// Makes one access of the read and the write of one instruction, or of a pair of load-linked and
/// store-conditional: a CPU asks for the line once, to write.
#[derive(Default)]
pub struct Joiner {
    /// A read that a write may follow, and whether that may be another instruction's.
    read: Option<(Access, bool)>,
}

impl Joiner {
    /// Takes an access, and hands on what is known to be one.
    pub fn take(
        &mut self,
        access: Access,
        linked: bool,
        line_bytes: u64,
        mut hand_on: impl FnMut(Access),
    ) {
        if let Some((read, linked)) = self.read.take() {
            let line = |access: &Access| access.phys / line_bytes;
            let joined = access.write
                && read.cpu == access.cpu
                && line(&read) == line(&access)
                && (linked || read.insn == access.insn);
            if !joined {
                hand_on(read);
            }
        }
        match access.write {
            true => hand_on(access),
            false => self.read = Some((access, linked)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(cpu: usize, phys: u64, insn: u32, write: bool) -> Access {
        Access {
            cpu,
            phys,
            virt: phys,
            insn,
            write,
        }
    }

    /// `0r8`: CPU 0 reads byte 8; `w` writes, `m` reads and writes at once, `l` reads and links.
    fn moves(words: &str, line_bytes: u64) -> (u64, u64) {
        let mut directory = Directory::new(line_bytes);
        let mut joiner = Joiner::default();
        let mut made = Vec::new();
        for (insn, word) in (0..).zip(words.split_whitespace()) {
            let at = word.find(|c: char| !c.is_ascii_digit()).unwrap();
            let (cpu, phys) = (word[..at].parse().unwrap(), word[at + 1..].parse().unwrap());
            let writes = match &word[at..=at] {
                "m" => vec![false, true],
                kind => vec![kind == "w"],
            };
            for write in writes {
                let linked = &word[at..=at] == "l";
                let this = access(cpu, phys, insn, write);
                joiner.take(this, linked, line_bytes, |a| made.push(a));
            }
        }
        made.extend(joiner.read.map(|(read, _)| read));
        let moves: Vec<Move> = made.into_iter().map(|a| directory.access(a)).collect();
        let count = |what| moves.iter().filter(|&&m| m == what).count() as u64;
        let causes = directory.lines.values().flat_map(|line| &line.causes);
        let sums = causes.fold((0, 0), |sum, c| (sum.0 + c.exclusive, sum.1 + c.shared));
        assert_eq!(
            sums,
            (count(Move::Exclusive), count(Move::Shared)),
            "{words}"
        );
        sums
    }

    #[test]
    fn what_one_cpu_has_for_itself_never_moves() {
        assert_eq!(moves("0r0 0w0 0m8 0r64 0w64 1w128 1r128", 64), (0, 0));
    }

    #[test]
    fn a_line_that_two_write_in_turn_moves_each_time() {
        assert_eq!(moves("0m0 1m0 0m0 1m0 2m0", 64), (4, 0));
    }

    #[test]
    fn two_variables_of_one_line_move_it_as_one_does() {
        assert_eq!(moves("0w0 1w8 0w0 1w8", 64), (3, 0));
        assert_eq!(moves("0w0 1w64 0w0 1w64", 64), (0, 0));
        // As wide as the lines of s390.
        assert_eq!(moves("0w0 1w64 0w0 1w64", 256), (3, 0));
    }

    #[test]
    fn what_is_mostly_read_moves_once_to_each_reader() {
        assert_eq!(moves("0w0 1r0 2r0 1r0 2r0 0r0 1r0", 64), (0, 2));
        // A write takes it from all of them, once, and each has to fetch it again.
        assert_eq!(moves("0w0 1r0 2r0 0w0 0w0 1r0 2r0", 64), (1, 4));
    }

    #[test]
    fn a_reader_that_writes_asks_the_others_to_give_it_up() {
        assert_eq!(moves("0w0 1r0 1w0 1w0 0r0", 64), (1, 2));
        // The one who has it alone does not.
        assert_eq!(moves("0r0 0w0", 64), (0, 0));
    }

    #[test]
    fn a_read_that_writes_asks_once() {
        assert_eq!(moves("0w0 1m0", 64), (1, 0));
        assert_eq!(moves("0w0 1l0 1w0", 64), (1, 0));
        // Two instructions ask twice.
        assert_eq!(moves("0w0 1r0 1w0", 64), (1, 1));
    }

    #[test]
    fn a_read_that_comes_to_no_write_is_a_read() {
        // A load-linked without its store-conditional: what was compared differed.
        assert_eq!(moves("0w0 1l0 1r8 0r0 0w0", 64), (1, 1));
        // Another CPU's write came between.
        assert_eq!(moves("0w0 1l0 0w0 1w0", 64), (2, 1));
    }

    #[test]
    fn counts_start_anew_and_states_stay() {
        let mut directory = Directory::new(64);
        directory.access(access(0, 0, 7, true));
        directory.access(access(1, 0, 7, true));
        directory.start();
        assert!(directory.lines[&0].causes.is_empty());
        assert_eq!(directory.access(access(1, 0, 7, true)), Move::None);
        assert_eq!(directory.access(access(0, 8, 7, false)), Move::Shared);
        let line = &directory.lines[&0];
        assert_eq!((line.cpus.len(), line.reads, line.writes), (2, 1, 1));
        let cause = Cause {
            insn: 7,
            offset: 8,
            exclusive: 0,
            shared: 1,
        };
        assert_eq!(line.causes, [cause]);
    }

    #[test]
    fn the_last_cpu_fits() {
        assert_eq!(moves("255w0 0w0 255w0 64r0", 64), (2, 1));
    }
}
