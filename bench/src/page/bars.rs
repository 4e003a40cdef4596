//! Cases beside their controls, as SVG.
//!
//! Bars begin at zero and share one linear scale, so that twice as long is twice as much.

use std::fmt::Write as _;

use super::markup::{escape, latency, shortened};
use crate::report::{CaseReport, Compares, grouped};

const WIDTH: f64 = 900.0;
const BAR_LEFT: f64 = 290.0;
const BAR_RIGHT: f64 = 720.0;
const BAR_HEIGHT: f64 = 15.0;
const GAP: f64 = 14.0;
/// Longest label that fits its column, in characters.
const LABEL_CHARS_MAX: usize = 40;

/// The cases that are compared in this unit; nothing if there is none.
pub(super) fn bars(cases: &[CaseReport], compares: Compares) -> Option<String> {
    let figure = |case: &CaseReport| match compares {
        Compares::TasksPerS => case.tasks_per_s,
        Compares::P50Us => case.p50_us,
        Compares::P99Us => case.p99_us,
    };
    let tell = |value: f64| match compares {
        Compares::TasksPerS => format!("{}/s", grouped(value)),
        Compares::P50Us | Compares::P99Us => latency(value),
    };
    let shown: Vec<(&CaseReport, f64)> = cases
        .iter()
        .filter(|case| case.compares == compares)
        .filter_map(|case| Some((case, figure(case)?)))
        .collect();
    let controls = shown.iter().filter_map(|(case, _)| case.control);
    let longest = controls
        .chain(shown.iter().map(|(_, value)| *value))
        .fold(0.0, f64::max);
    if shown.is_empty() || longest <= 0.0 {
        return None;
    }
    let mut body = String::new();
    let mut y = 6.0;
    for (case, value) in &shown {
        let ratio = case
            .ratio
            .map_or_else(String::new, |ratio| format!(" ({ratio:.2} × control)"));
        draw_label(&mut body, y, &case.case);
        draw_bar(
            &mut body,
            y,
            0,
            value / longest,
            &format!("{}{ratio}", tell(*value)),
        );
        y += BAR_HEIGHT + 2.0;
        if let Some(control) = case.control {
            draw_bar(
                &mut body,
                y,
                7,
                control / longest,
                &format!("control {}", tell(control)),
            );
            y += BAR_HEIGHT;
        }
        y += GAP;
    }
    let title = match compares {
        Compares::TasksPerS => "tasks per second beside the controls",
        Compares::P50Us => "median latency beside the controls",
        Compares::P99Us => "99th percentile of the latency beside the controls",
    };
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" \
         role=\"img\">\n<title>{title}</title>\n{body}</svg>\n"
    ))
}

// Writing to a string cannot fail, here and below.
fn draw_label(out: &mut String, y: f64, label: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        BAR_LEFT - 10.0,
        y + 12.0,
        escape(&shortened(label, LABEL_CHARS_MAX))
    );
}

fn draw_bar(out: &mut String, y: f64, colour: usize, share: f64, text: &str) {
    let length = (share * (BAR_RIGHT - BAR_LEFT)).max(1.0);
    let _ = writeln!(
        out,
        "<rect class=\"f{colour}\" x=\"{BAR_LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" \
         height=\"{BAR_HEIGHT}\" rx=\"2\" />\
         <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        BAR_LEFT + length + 8.0,
        y + 12.0,
        escape(text)
    );
}
