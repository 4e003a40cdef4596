//! All figures of one invocation as one HTML page and one JSON object.
//!
//! The page holds everything it shows: styles and plots are inside, it loads nothing and runs
//! nothing. It is well-formed XML too. The JSON object is the [`Report`] itself, with the points of
//! every distribution.
//!
//! | file | holds |
//! |---|---|
//! | [`markup`] | escaping, tables |
//! | [`chart`] | axes, lines and their legend, as SVG |
//! | [`plots`] | which lines: distributions, ladder, soak |
//! | [`bars`] | cases beside their controls, as SVG |
//! | [`sections`] | the parts of the page and their tables |
//!
//! Invariants: whatever text comes in, nothing of it becomes markup; a figure that is absent is a
//! dash in a table and a gap in a plot; a figure that does not count is marked wherever it shows.
//! Absent: reading files, clocks, the machine: the caller brings it all.

mod bars;
mod chart;
mod markup;
mod plots;
mod sections;

use serde::Serialize;

use crate::facts::{MachineFacts, Quiet};
use crate::ladder::Ladder;
use crate::latencies::Point;
use crate::report::CaseReport;
use crate::soak::SoakReport;

use self::markup::escape;

/// The distribution behind a case.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// Whose it is.
    pub name: String,
    /// From the least to the longest.
    pub points: Vec<Point>,
}

/// All figures of one invocation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What was measured.
    pub title: String,
    /// The exact command.
    pub command: String,
    /// When, as text.
    pub date: String,
    /// The version that was measured.
    pub version: String,
    /// On what.
    pub machine: MachineFacts,
    /// What the machine did besides, from the first run to the last.
    pub quiet: Option<Quiet>,
    /// Cases, with their controls where they have one.
    pub cases: Vec<CaseReport>,
    /// Distributions behind the cases.
    pub curves: Vec<Curve>,
    /// Latency at stated rates.
    pub ladder: Option<Ladder>,
    /// A rate for a long time.
    pub soak: Option<SoakReport>,
}

impl Report {
    /// The JSON object.
    ///
    /// # Errors
    /// What the library says of a value that JSON cannot hold.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let mut body = String::new();
        if let Some(ladder) = &self.ladder {
            body.push_str(&sections::ladder(ladder));
        }
        if let Some(soak) = &self.soak {
            body.push_str(&sections::soak(soak));
        }
        if !self.cases.is_empty() {
            body.push_str(&sections::cases(&self.cases, &self.curves));
        }
        format!(
            "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n\
             <meta charset=\"utf-8\" />\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
             <p class=\"quiet\">ramjet {version}, {date}</p>\n<pre>{command}</pre>\n{body}{machine}\
             </body>\n</html>\n",
            title = escape(&self.title),
            version = escape(&self.version),
            date = escape(&self.date),
            command = escape(&self.command),
            machine = sections::machine(&self.machine, self.quiet.as_ref()),
        )
    }
}

/// Colours of lines run from cold to hot, as load does.
const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --line: #d9dee5; --back: #fff;
  --panel: #f5f7f9; --bad: #b3261e; --c0: #2b6cb0; --c1: #1b8f86; --c2: #6a9a2d; --c3: #c79200;
  --c4: #dd6b20; --c5: #c53030; --c6: #86307a; --c7: #5c6675; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333c48;
  --back: #14181e; --panel: #1c222a; --bad: #ff8a80; --c0: #6aa8e8; --c1: #4cc3b8; --c2: #a3cf62;
  --c3: #e8bd3c; --c4: #f39a5b; --c5: #f47c7c; --c6: #c983be; --c7: #9aa5b4; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
p { margin: .4rem 0; } .quiet { color: var(--soft); } .bad { color: var(--bad); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel);
  padding: .6rem .8rem; border-radius: 4px; }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; white-space: normal; }
text { fill: var(--ink); font: 12px system-ui, sans-serif; } text.soft { fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; } .series { fill: none; stroke-width: 2;
  stroke-linejoin: round; } .open { stroke-dasharray: 5 4; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); }
.s3 { stroke: var(--c3); } .s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
.s6 { stroke: var(--c6); } .s7 { stroke: var(--c7); }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); } .f3 { fill: var(--c3); }
.f4 { fill: var(--c4); } .f5 { fill: var(--c5); } .f6 { fill: var(--c6); } .f7 { fill: var(--c7); }
";

#[cfg(test)]
mod tests;
