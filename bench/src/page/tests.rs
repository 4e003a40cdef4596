//! The page is well-formed, holds every figure, and turns no text into markup.

use roxmltree::{Document, ParsingOptions};

use super::*;
use crate::ladder::tests::{ladder, rung};
use crate::pairs::PairSummary;
use crate::report::Compares;
use crate::soak::tests::{soak, steady};

const HOSTILE: &str = "</title><script>alert('x')</script>&amp;\u{0}\"]]>";

fn read<'text>(page: &'text str) -> Document<'text> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(page, options).expect("well-formed")
}

fn case(name: &str, compares: Compares, figure: f64, control: f64) -> CaseReport {
    let summary = PairSummary {
        ratio_median: figure / control,
        ratio_low: figure / control * 0.9,
        ratio_high: figure / control * 1.1,
        a: vec![figure; 5],
        b: vec![control; 5],
    };
    CaseReport::of_pairs(name, compares, "raw echo", &summary, "5 pairs")
}

fn full(text: &str) -> Report {
    let mut invalid = rung("90 %", 7_777.0);
    invalid.counts.lost = 3;
    invalid.judge();
    invalid.withhold_unless(false);
    let mut climbed = ladder(vec![rung("10 %", 45.0), rung(text, 90.0), invalid]);
    climbed.rungs[0].offered_per_s = Some(20_000.0);
    climbed.unloaded = Some(rung("one outstanding", 30.0));
    Report {
        title: text.to_owned(),
        command: format!("ramjet bench latency --ladder {text}"),
        date: "2030-01-02T03:04:05Z".to_owned(),
        version: "1.2.3".to_owned(),
        machine: MachineFacts {
            cpu_model: format!("EPYC {text}"),
            cores: 2,
            governor: Some("performance".to_owned()),
            ..MachineFacts::default()
        },
        quiet: None,
        cases: vec![
            case("tasks 64 B", Compares::TasksPerS, 1_234_567.0, 6_000_000.0),
            case(text, Compares::P50Us, 14.5, 8.5),
        ],
        curves: vec![Curve {
            name: text.to_owned(),
            points: rung("x", 10.0).curve,
        }],
        ladder: Some(climbed),
        soak: Some(soak(steady).judged()),
    }
}

#[test]
fn a_full_page_is_well_formed_and_holds_every_figure() {
    let page = full("50 %").html();
    let document = read(&page);
    let plots = document
        .descendants()
        .filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "svg")));
    // Load, percentiles, two of the soak, two kinds of bars, the curves of the cases.
    assert_eq!(plots.count(), 7);
    for figure in [
        "1,234,567",
        "0.21",
        "14.5 µs",
        "90.0 µs",
        "810 µs",
        "20,000",
        "performance",
        "ramjet bench latency --ladder 50 %",
        "2030-01-02T03:04:05Z",
        "3 of 300000 tasks have no result",
        "Verdict: ok",
        "100.0 MiB",
        "EPYC",
    ] {
        assert!(page.contains(figure), "{figure} is missing");
    }
    assert!(
        !page.contains("7.78 ms"),
        "a figure that does not count is shown"
    );
    assert!(
        !page.contains("http-equiv") && !page.contains("src="),
        "the page loads something"
    );
}

#[test]
fn hostile_text_stays_text() {
    let report = full(HOSTILE);
    let page = report.html();
    let document = read(&page);
    assert!(!page.contains("<script"), "text became markup");
    let title = document
        .descendants()
        .find(|node| node.tag_name().name() == "h1")
        .and_then(|node| node.text())
        .expect("a heading");
    assert_eq!(title, HOSTILE.replace('\u{0}', "\u{FFFD}"));
    let json = report.json().expect("plain data");
    let read: serde_json::Value = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(read["title"], HOSTILE);
}

#[test]
fn the_json_holds_the_distributions_and_the_reasons() {
    let json = full("x").json().expect("plain data");
    let read: serde_json::Value = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(
        read["ladder"]["rungs"][0]["curve"].as_array().map(Vec::len),
        Some(5)
    );
    assert!(read["ladder"]["rungs"][2]["latencies"].is_null());
    assert_eq!(
        read["ladder"]["rungs"][2]["invalid"][0],
        "3 of 300000 tasks have no result"
    );
    assert_eq!(read["soak"]["intervals"].as_array().map(Vec::len), Some(9));
    assert_eq!(read["cases"][0]["tasks_per_s"], 1_234_567.0);
}

#[test]
fn a_page_without_figures_is_a_page() {
    let page = Report::default().html();
    read(&page);
    assert!(
        page.contains("<h2>Machine</h2>") && !page.contains("<svg"),
        "{page}"
    );
}
