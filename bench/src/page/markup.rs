//! Text into markup, and tables.

use std::fmt::Write as _;

/// Text as it may stand in an element or a quoted attribute. Characters that XML cannot hold become
/// U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(letter),
            _ if letter.is_control() || matches!(letter, '\u{FFFE}' | '\u{FFFF}') => {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            _ => out.push(letter),
        }
    }
    out
}

/// Text of at most so many characters, the last of them an ellipsis where some were cut off.
pub(super) fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let head: String = text.chars().take(chars_max - 1).collect();
    format!("{}…", head.trim_end())
}

/// A table under its head; the first column to the left, the others to the right. Cells are text.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"wide\"><table><thead><tr>");
    for name in head {
        // Writing to a string cannot fail.
        let _ = write!(out, "<th>{}</th>", escape(name));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// Names beside their values, both text.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let mut out = String::from("<table class=\"facts\"><tbody>\n");
    for (name, value) in rows {
        let (name, value) = (escape(name), escape(value));
        let _ = writeln!(
            out,
            "<tr><td class=\"quiet\">{name}</td><td>{value}</td></tr>"
        );
    }
    out.push_str("</tbody></table>\n");
    out
}

/// A paragraph of text.
pub(super) fn paragraph(class: &str, text: &str) -> String {
    format!("<p class=\"{class}\">{}</p>\n", escape(text))
}

/// A latency in the unit that suits it, three digits of meaning.
pub(super) fn latency(us: f64) -> String {
    match us {
        _ if us < 9.995 => format!("{us:.2} µs"),
        _ if us < 99.95 => format!("{us:.1} µs"),
        _ if us < 999.5 => format!("{us:.0} µs"),
        _ if us < 9_995.0 => format!("{:.2} ms", us / 1e3),
        _ if us < 99_950.0 => format!("{:.1} ms", us / 1e3),
        _ if us < 999_500.0 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// A round latency, as on an axis.
pub(super) fn round_latency(us: f64) -> String {
    let (value, unit) = match us {
        _ if us < 999.5 => (us, "µs"),
        _ if us < 999_500.0 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    let digits = format!("{value:.2}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits} {unit}")
}

/// A latency, or a dash.
pub(super) fn latency_or_dash(us: Option<f64>) -> String {
    us.map_or_else(dash, latency)
}

/// What stands for a figure that is absent.
pub(super) fn dash() -> String {
    String::from("–")
}

/// A rate in the unit that suits an axis.
pub(super) fn short(rate: f64) -> String {
    let (value, unit) = match rate {
        _ if rate >= 1e6 => (rate / 1e6, " M"),
        _ if rate >= 1e3 => (rate / 1e3, " k"),
        _ => (rate, ""),
    };
    let digits = format!("{value:.2}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_becomes_markup() {
        assert_eq!(
            escape("<a href=\"x\">'&\u{0}\u{1b}[2J\u{FFFF}</a>\n"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;\u{FFFD}\u{FFFD}[2J\u{FFFD}&lt;/a&gt;\n"
        );
        let table = table(&["<th>"], &[vec!["</td>".to_owned()]]);
        assert!(
            table.contains("<th>&lt;th&gt;</th>") && table.contains("&lt;/td&gt;"),
            "{table}"
        );
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        assert_eq!(shortened("tasks", 5), "tasks");
        assert_eq!(shortened("tasks 64 B", 7), "tasks…");
        assert_eq!(shortened("µµµµ", 3), "µµ…");
    }

    #[test]
    fn figures_take_the_unit_that_suits_them() {
        let latencies = [
            (0.25, "0.25 µs"),
            (13.72, "13.7 µs"),
            (130.4, "130 µs"),
            (2_345.0, "2.35 ms"),
            (1.5e6, "1.50 s"),
        ];
        for (us, text) in latencies {
            assert_eq!(latency(us), text);
        }
        for (rate, text) in [
            (0.0, "0"),
            (250.0, "250"),
            (1_500.0, "1.5 k"),
            (2_650_000.0, "2.65 M"),
        ] {
            assert_eq!(short(rate), text);
        }
    }
}
