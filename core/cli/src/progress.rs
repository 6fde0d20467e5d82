//! How far long work is: a bar on a terminal, a line now and then elsewhere, nothing when quiet.

use crate::{
    args::{GlobalArgs, OutputFormat},
    remark,
};
use indicatif::{ProgressBar, ProgressStyle};
use ovs_units::format_size;
use std::io::{IsTerminal, stderr};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Whatever the label says.
    Items,
}

/// One piece of work.
pub struct Progress {
    label: String,
    unit: Unit,
    total: Option<u64>,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    /// The next amount at which a line is due.
    Lines {
        next: u64,
    },
    Nothing,
}

/// Where the total is not known, a line comes at this and at every doubling.
const LINE_BYTES_FIRST: u64 = 1 << 30;

impl Progress {
    /// Begins; `label` says what is done to what. A program that reads the standard error as JSON gets no lines.
    pub fn new(global: &GlobalArgs, label: impl Into<String>, unit: Unit, total: Option<u64>) -> Progress {
        let label = label.into();
        let shown = match (global.quiet, stderr().is_terminal(), global.output) {
            (true, ..) => Shown::Nothing,
            (_, true, _) => Shown::Bar(bar(&label, unit, total)),
            (_, _, OutputFormat::Json) => Shown::Nothing,
            (_, _, OutputFormat::Table) => Shown::Lines { next: first_line(unit, total) },
        };
        Progress { label, unit, total, shown }
    }

    /// So much is done.
    pub fn set(&mut self, done: u64) {
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines { next } if done >= *next => {
                *next = next_line(done, *next, self.total);
                let line = self.line(done);
                remark(&line);
            }
            Shown::Lines { .. } => {}
        }
    }

    /// The total is known, or another one.
    pub fn set_total(&mut self, total: Option<u64>) {
        if total == self.total {
            return;
        }
        self.total = total;
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_style(style(self.unit, total));
                bar.set_length(total.unwrap_or(0));
            }
            Shown::Lines { next } => *next = first_line(self.unit, total),
        }
    }

    fn line(&self, done: u64) -> String {
        let amount = |amount| match self.unit {
            Unit::Bytes => format_size(amount),
            Unit::Items => amount.to_string(),
        };
        match self.total {
            Some(total) => format!("{}: {} of {}", self.label, amount(done), amount(total)),
            None => format!("{}: {}", self.label, amount(done)),
        }
    }
}

impl Drop for Progress {
    /// Nothing of a bar stays behind; the result is printed instead.
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn first_line(unit: Unit, total: Option<u64>) -> u64 {
    match (total, unit) {
        (Some(total), _) => total.div_ceil(10).max(1),
        (None, Unit::Bytes) => LINE_BYTES_FIRST,
        (None, Unit::Items) => 1,
    }
}

/// The next tenth after `done`, the end being the last; or the next doubling.
fn next_line(done: u64, next: u64, total: Option<u64>) -> u64 {
    match total {
        Some(total) if done >= total => u64::MAX,
        Some(total) => {
            let tenth = total.div_ceil(10).max(1);
            (done / tenth + 1).saturating_mul(tenth).min(total)
        }
        None => (done.max(next)).saturating_mul(2),
    }
}

fn bar(label: &str, unit: Unit, total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    bar.set_style(style(unit, total));
    bar.set_message(label.to_owned());
    bar
}

fn template(unit: Unit, total: Option<u64>) -> &'static str {
    match (unit, total) {
        (Unit::Bytes, Some(_)) => {
            "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
        }
        (Unit::Bytes, None) => "{msg} {spinner} {binary_bytes}, {binary_bytes_per_sec}",
        (Unit::Items, Some(_)) => "{msg} [{wide_bar}] {pos} of {len}",
        (Unit::Items, None) => "{msg} {spinner} {pos}",
    }
}

fn style(unit: Unit, total: Option<u64>) -> ProgressStyle {
    let style =
        ProgressStyle::with_template(template(unit, total)).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At which amounts a line is printed when work goes on in these steps.
    fn check(total: Option<u64>, steps: impl Iterator<Item = u64>, expected: &[u64]) {
        let mut next = first_line(Unit::Bytes, total);
        let mut lines = Vec::new();
        for done in steps {
            if done >= next {
                lines.push(done);
                next = next_line(done, next, total);
            }
        }
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_line_every_tenth_and_at_the_end() {
        check(Some(100), 1..=100, &[10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
        check(Some(100), [5, 35, 36, 99, 100].into_iter(), &[35, 99, 100]);
        check(Some(0), [0].into_iter(), &[]);
        check(Some(3), 1..=3, &[1, 2, 3]);
        check(Some(101), [90, 101].into_iter(), &[90, 101]);
    }

    #[test]
    fn without_a_total_a_line_at_every_doubling() {
        let gib = 1 << 30;
        check(None, (1..=9).map(|n| n * gib), &[gib, 2 * gib, 4 * gib, 8 * gib]);
    }

    #[test]
    fn every_template_is_well_formed() {
        for unit in [Unit::Bytes, Unit::Items] {
            for total in [None, Some(7)] {
                assert!(ProgressStyle::with_template(template(unit, total)).is_ok(), "{unit:?} {total:?}");
            }
        }
    }
}
