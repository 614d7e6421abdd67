//! What `test` makes of the lines that trips move: nobody may write the mm who does not count in it.

use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::bench::counts::{Sample, Spread, PER_TRIP};
use crate::bench::lines::{count, Options};
use crate::guest::machine::Append;
use crate::host::arch::Kind;
use crate::host::policy;
use crate::kernel::workshop::Project;
use crate::results::case::Case;

/// How often a line of an mm may be written per trip by who counts nobody: another process on a CPU that a
/// trip goes through writes its own.
const HARDLY: f64 = 0.05;
/// How many per cent more instructions than with `refcount` a trip may have.
const MARGIN: f64 = 5.0;

/// What must hold for the trips of a few CPUs on a kernel that is tested.
pub fn cases(
    project: &Project,
    kind: &'static Kind,
    out: &Path,
    image: &Path,
) -> Result<Vec<Case>> {
    let options = Options {
        load: None,
        cpus: 4,
        policy: policy::ALL.map(str::to_owned).into(),
        boots: 1,
        rounds: 3,
        trips: 50,
        lives: 0,
        turn: 300,
        seed: 1,
        twice: false,
        append: Append {
            words: kind.append.to_owned(),
        },
        timeout: 600,
    };
    let samples = count(project, kind.arch(), out, image, &options)?;
    Ok(judge(&samples))
}

/// Whether `refcount` writes the mm twice a trip, as the counter must see, and the others do not.
fn judge(samples: &[Sample]) -> Vec<Case> {
    let spread = |policy: &str, what: &str, case: &str| {
        Spread::of(samples, PER_TRIP, policy, what, case)
            .with_context(|| format!("no {what} of {case} with {policy}"))
    };
    let value = |policy: &str, what: &str, case: &str| Ok(spread(policy, what, case)?.0);
    // There may have been a tick in the others.
    let least = |policy: &str| anyhow::Ok(spread(policy, "instructions", "all")?.1);
    let writes: Result<f64> = value(policy::REFCOUNT, "writes", "mm");
    let counted = writes.and_then(|writes| {
        ensure!((1.9..2.2).contains(&writes), "{writes:.3} writes per trip");
        Ok(())
    });
    let mut cases = vec![Case::of("refcount writes the mm twice a trip", counted)];
    for policy in policy::ALL.into_iter().filter(|p| *p != policy::REFCOUNT) {
        let few = |what: &str| {
            let value = value(policy, what, "mm")?;
            ensure!(value < HARDLY, "{value:.3} {what} per trip");
            Ok(())
        };
        let short = || {
            let (own, base) = (least(policy)?, least(policy::REFCOUNT)?);
            ensure!(
                own < base * (1.0 + MARGIN / 100.0),
                "{own:.0} instructions per trip, {base:.0} with refcount"
            );
            Ok(())
        };
        cases.push(Case::of(
            format!("{policy} writes no line of the mm"),
            few("writes").and_then(|()| few("transfers")),
        ));
        cases.push(Case::of(
            format!("{policy} takes no more instructions"),
            short(),
        ));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::case::Status;

    fn sample(policy: &str, what: &str, case: &str, value: f64) -> Sample {
        Sample {
            policy: policy.into(),
            boot: 1,
            what: what.into(),
            case: case.into(),
            cpus: 4,
            unit: PER_TRIP.into(),
            value,
        }
    }

    #[test]
    fn a_kernel_that_writes_the_mm_is_found() {
        let judged = |writes: f64, moves: f64, more: f64| {
            let mut samples = Vec::new();
            for policy in policy::ALL {
                let counts = policy == policy::REFCOUNT;
                let own = |here: f64| if counts { 2.0 } else { here };
                samples.push(sample(policy, "writes", "mm", own(writes)));
                samples.push(sample(policy, "transfers", "mm", own(moves)));
                let instructions = if counts { 5000.0 } else { 5000.0 + more };
                samples.push(sample(policy, "instructions", "all", instructions));
            }
            let cases = judge(&samples);
            cases
                .iter()
                .map(|case| case.status == Status::Pass)
                .collect::<Vec<_>>()
        };
        assert_eq!(judged(0.0, 0.01, 10.0), [true; 5]);
        assert_eq!(judged(1.0, 0.0, 0.0), [true, false, true, false, true]);
        assert_eq!(judged(0.0, 1.0, 0.0), [true, false, true, false, true]);
        assert_eq!(judged(0.0, 0.0, 300.0), [true, true, false, true, false]);
        // A counter that sees nothing shows nothing.
        let blind = judge(&[sample(policy::REFCOUNT, "writes", "mm", 0.0)]);
        assert!(blind.iter().all(|case| case.status == Status::Fail));
    }
}
