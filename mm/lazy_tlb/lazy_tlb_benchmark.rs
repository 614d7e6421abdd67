// SPDX-License-Identifier: GPL-2.0

//! What a lazy use of an mm costs, and its final drop, under the policy in force.
//!
//! - A *trip* is what a switch from a user task to the idle task and back does about lazy TLB:
//!   borrow the mm, and give it back. It is timed on one CPU, on two at once, on four, and so on,
//!   all with the same mm. Whatever CPUs share shows in how much longer it takes on many.
//! - A *drop* is the last `mmdrop()` of an mm that CPUs have been lazy on, but are not any more. It
//!   is timed for one such CPU, two, four, and so on.
//! - A *call* is a cross-call that does nothing, to as many CPUs, which have had time to go idle,
//!   and the wait for them: what a drop pays besides under `lazy_tlb=shootdown` if they are lazy.
//!   The calling CPU, if it is one of them, is not interrupted.
//!
//! Nothing is switched: neither the scheduler nor a TLB flush is part of the times. They are
//! printed to the kernel log when the module is loaded, after which it goes away again.

use kernel::{
    cpumask::{
        CpumaskVar,
        LiveCpumask, //
    },
    fmt,
    interrupt::LocalInterruptDisabled,
    mm::{
        lazy_tlb::{
            self,
            NotLazy, //
        },
        Mm, //
    },
    prelude::*,
    processor::cpu_relax,
    smp,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        }, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

module! {
    type: LazyTlbBenchmark,
    name: "lazy_tlb_benchmark",
    authors: ["The lazy TLB developers"],
    description: "Benchmark of lazy TLB mms",
    license: "GPL",
}

/// Each time is taken so often, once more to warm up.
const ROUNDS: usize = 31;

/// Trips in a round, shared out among the CPUs: those that contend for a cache line take the time
/// of all together, and interrupts are disabled meanwhile.
const TRIPS: usize = 10_000;

/// The least trips of each CPU in a round, so that those which begin late do not matter.
const TRIPS_OF_EACH: usize = 1_000;

/// Mms that are dropped in a round.
const DROPS: usize = 8;

/// Cross-calls in a round.
const CALLS: usize = 8;

/// The time that CPUs have to go idle before each of them.
const IDLE: Delta = Delta::from_millis(1);

/// CPUs that have not met after this time are given up, each by the others.
const PATIENCE: Delta = Delta::from_millis(100);

/// Times of the same thing in picoseconds, the shortest first.
struct Times([i64; ROUNDS]);

impl Times {
    /// Takes each time, after one that does not count.
    fn take(mut round: impl FnMut() -> Result<i64>) -> Result<Self> {
        let mut times = [0; ROUNDS];

        round()?;
        // Each goes to its place: objtool does not know that what core's sort() calls when an order
        // makes no sense never returns.
        for n in 0..ROUNDS {
            let time = round()?;
            let at = times[..n].iter().filter(|other| **other <= time).count();

            times.copy_within(at..n, at + 1);
            times[at] = time;
        }
        Ok(Self(times))
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(times) = self;

        write!(
            f,
            "rounds={ROUNDS} ps_median={} ps_min={} ps_max={}",
            times[ROUNDS / 2],
            times[0],
            times[ROUNDS - 1],
        )
    }
}

/// Picoseconds for each of `n`.
fn each(time: Delta, n: usize) -> i64 {
    time.as_nanos().saturating_mul(1000) / n as i64
}

/// Trips of each of `cpus` CPUs in a round.
// Not with `/`: objtool does not know that the panic of a division by zero never returns.
fn trips_of_each(cpus: usize) -> usize {
    TRIPS
        .checked_div(cpus)
        .map_or(TRIPS, |n| n.max(TRIPS_OF_EACH))
}

/// Makes trips on the calling CPU, once all of `cpus` CPUs have `arrived` here. Returns the time of
/// one, or [`None`] if some CPU does not come.
fn trips(
    mm: &Mm,
    arrived: &Atomic<usize>,
    cpus: usize,
    irq: &LocalInterruptDisabled,
) -> Option<i64> {
    let cpu = NotLazy::new(irq);
    let start = Instant::<Monotonic>::now();

    // CPUs tell each other nothing but that they are there: relaxed is enough.
    arrived.fetch_add(1, Relaxed);
    while arrived.load(Relaxed) < cpus {
        if start.elapsed() > PATIENCE {
            return None;
        }
        cpu_relax();
    }

    let trips = trips_of_each(cpus);
    let start = Instant::<Monotonic>::now();
    for _ in 0..trips {
        cpu.borrow_and_return(mm);
    }
    Some(each(start.elapsed(), trips))
}

/// Times a trip on as many CPUs at once as are in `mask`: the mean over them.
fn round_of_trips(mm: &Mm, mask: &LiveCpumask) -> Result<i64> {
    let cpus = mask.weight() as usize;
    let arrived = Atomic::new(0usize);
    let finished = Atomic::new(0usize);
    let sum = Atomic::new(0i64);

    smp::on_each_cpu_mask(mask, |irq| {
        if let Some(time) = trips(mm, &arrived, cpus, irq) {
            // Read after the call, which orders that, see `smp`.
            sum.fetch_add(time, Relaxed);
            finished.fetch_add(1, Relaxed);
        }
    });
    if finished.load(Relaxed) != cpus {
        return Err(EBUSY);
    }
    sum.load(Relaxed).checked_div(cpus as i64).ok_or(EBUSY)
}

/// Times the final drop of an mm that the CPUs in `mask` have been lazy on.
fn round_of_drops(mask: &LiveCpumask) -> Result<i64> {
    let mut mms = KVec::<ARef<Mm>>::with_capacity(DROPS, GFP_KERNEL)?;

    for _ in 0..DROPS {
        let mm = lazy_tlb::new_mm().ok_or(ENOMEM)?;
        for cpu in mask {
            lazy_tlb::candidates(&mm).set(cpu);
        }
        mms.push(mm, GFP_KERNEL)?;
    }

    let start = Instant::<Monotonic>::now();
    drop(mms);
    Ok(each(start.elapsed(), DROPS))
}

/// Times a cross-call to the CPUs in `mask`.
fn round_of_calls(mask: &LiveCpumask) -> Result<i64> {
    let mut sum = Delta::ZERO;

    for _ in 0..CALLS {
        fsleep(IDLE);

        let start = Instant::<Monotonic>::now();
        smp::on_each_cpu_mask(mask, |_| ());
        sum += start.elapsed();
    }
    Ok(each(sum, CALLS))
}

/// Times everything on the first `cpus` CPUs.
fn measure(cpus: usize) -> Result {
    let policy = lazy_tlb::policy_name();
    let mask = CpumaskVar::new_zero(GFP_KERNEL)?;
    let mask: &LiveCpumask = (*mask).as_ref();

    for cpu in LiveCpumask::online().iter().take(cpus) {
        mask.set(cpu);
    }

    let mm = lazy_tlb::new_mm().ok_or(ENOMEM)?;
    let times = Times::take(|| round_of_trips(&mm, mask)).inspect_err(|_| {
        pr_err!("not all of {cpus} CPUs came in time, try again when the system is idle\n")
    })?;
    let trips = trips_of_each(cpus);
    pr_info!("what=trip policy={policy} cpus={cpus} {times} trips={trips}\n");

    let times = Times::take(|| round_of_drops(mask))?;
    pr_info!("what=drop policy={policy} cpus={cpus} {times} drops={DROPS}\n");

    let times = Times::take(|| round_of_calls(mask))?;
    pr_info!("what=call policy={policy} cpus={cpus} {times} calls={CALLS}\n");
    Ok(())
}

struct LazyTlbBenchmark;

impl kernel::Module for LazyTlbBenchmark {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let online = LiveCpumask::online().weight() as usize;
        let powers = core::iter::successors(Some(1), |cpus| Some(cpus * 2));

        for cpus in powers.take_while(|&cpus| cpus < online) {
            measure(cpus)?;
        }
        measure(online)?;

        // Nothing is left to do: fail, so that the module can be loaded again.
        Err(EAGAIN)
    }
}
