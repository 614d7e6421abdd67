//! What benchmarks count and measure, and how that is named.

use serde::{Deserialize, Serialize};

/// A median with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Spread { median, min, max })
    }

    /// `median (min..max)`.
    pub fn shown(&self) -> String {
        format!("{:.2} ({:.2}..{:.2})", self.median, self.min, self.max)
    }
}

/// A counter of the kernel, before the workload and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub before: u64,
    pub after: u64,
}

/// How such words are asked for, after the rest of a command; nothing if there are none.
pub fn append_option(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(" --append '{words}'"),
    }
}

/// Words of a command line as part of a file's name.
pub fn in_a_name(words: &str) -> String {
    let plain = words.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
        _ => '-',
    });
    plain.collect()
}
