//! What commands print: data on standard output, talk on standard error.
//!
//! Invariants: with `--json` standard output holds JSON and nothing else, one value a line. Colours
//! and progress bars appear on a terminal only. Text that came from another node is printed without
//! its control characters, so that nobody's capability moves our cursor.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::{Exit, Failure};

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How something is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// It went well.
    Good,
    /// It went wrong.
    Bad,
    /// It matters less.
    Dim,
    /// It matters more.
    Bold,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Dim => "2",
            Paint::Bold => "1",
        }
    }
}

/// Where a command prints.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whether standard output holds JSON.
    pub json: bool,
    terminal: bool,
    colored: bool,
    silent: bool,
    /// Talk goes into the log, which is not for people's eyes.
    logged: bool,
    bar: Option<ProgressBar>,
}

impl Output {
    /// Decides by the terminal, `color` and `NO_COLOR`.
    pub fn new(json: bool, color: Color) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let colored = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        Output {
            json,
            terminal,
            colored,
            silent: false,
            logged: false,
            bar: None,
        }
    }

    /// Says nothing on standard error.
    pub fn quiet() -> Self {
        Output {
            json: false,
            terminal: false,
            colored: false,
            silent: true,
            logged: false,
            bar: None,
        }
    }

    /// From now on talk is logged, since lines among entries of another form would be lost or break them.
    pub(super) fn talk_in_log(&mut self) {
        self.logged = true;
    }

    /// Whether talk is logged.
    pub(super) fn is_logged(&self) -> bool {
        self.logged
    }

    /// What ended the command.
    pub(super) fn fault(&self, message: &str) {
        if self.logged {
            tracing::error!(message_id = crate::events::FAILED, "{message}");
        } else {
            self.say(&format!("{} {message}", self.paint(Paint::Bad, "error:")));
        }
    }

    /// One line of talk, above the progress bar if there is one.
    pub fn say(&self, text: &str) {
        if self.silent {
            return;
        }
        if self.logged {
            tracing::info!("{text}");
            return;
        }
        let write = || {
            // Nobody is left to be told that standard error is closed.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// `text` in a colour, if colours are on.
    pub fn paint(&self, paint: Paint, text: &str) -> String {
        if self.colored {
            format!("\x1b[{}m{text}\x1b[0m", paint.code())
        } else {
            text.to_owned()
        }
    }

    /// One line of data.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        let write = || -> std::io::Result<()> {
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "{text}")?;
            stdout.flush()
        };
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        written.map_err(stdout_failure)
    }

    /// One JSON value as a line of data.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn object(&self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(Exit::Failed, format!("no JSON: {error}")))?;
        self.data(&text)
    }

    /// Shows a bar of `total` steps on a terminal, and nothing elsewhere.
    pub fn start_bar(&mut self, total: u64) {
        if !self.terminal {
            return;
        }
        let bar =
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        let template = "  {bar:32} {human_pos}/{human_len}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        self.bar = Some(bar);
    }

    /// Moves the bar.
    pub fn move_bar(&self, position: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(message());
        }
    }

    /// Takes the bar away.
    pub fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// The failure of a write to standard output. A reader that went away, as `head` does, is told
/// nothing.
pub fn stdout_failure(error: std::io::Error) -> Failure {
    if error.kind() == ErrorKind::BrokenPipe {
        Failure::new(Exit::Interrupted, "")
    } else {
        Failure::environment(format!("standard output: {error}"))
    }
}

/// Rows under a header, columns two blanks apart, without blanks at line ends.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(&header)
        .chain(rows)
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let mut widths = vec![0; header.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines: Vec<String> = lines
        .iter()
        .map(|line| {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

/// `text` with every control character replaced by U+FFFD.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// A whole number with commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `singular` or `plural` after its number.
pub fn counted(number: u64, singular: &str, plural: &str) -> String {
    format!(
        "{} {}",
        grouped(number),
        if number == 1 { singular } else { plural }
    )
}

/// Nanoseconds as microseconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "a latency has no more than three digits of meaning"
)]
pub fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// A latency in the unit that suits it, three digits of meaning.
pub fn latency(nanos: u64) -> String {
    let us = micros(nanos);
    match us {
        _ if us < 100.0 => format!("{us:.1} µs"),
        _ if us < 1e3 => format!("{us:.0} µs"),
        _ if us < 1e5 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// How many a second; 0 in no time.
#[expect(
    clippy::cast_precision_loss,
    reason = "a rate has no more than four digits of meaning"
)]
pub fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

/// A rate as people read it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive and below 2^53"
)]
pub fn rate(per_s: f64) -> String {
    format!("{}/s", grouped(per_s.round() as u64))
}

/// `value` rounded to one decimal, for JSON.
pub fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_its_columns_and_shows_no_control_character() {
        let rows = vec![
            vec![
                "0:0000.0000.0007".to_owned(),
                "89".to_owned(),
                "langid".to_owned(),
            ],
            vec![
                "0:0000.0000.0012".to_owned(),
                "-1".to_owned(),
                "a\x1b[2Jb".to_owned(),
            ],
        ];
        assert_eq!(
            table(&["ADDRESS", "POLO", "SKILLS"], &rows),
            "ADDRESS           POLO  SKILLS\n\
             0:0000.0000.0007  89    langid\n\
             0:0000.0000.0012  -1    a\u{fffd}[2Jb"
        );
        assert_eq!(table(&["A", "B"], &[]), "A  B");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let table = [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ];
        for (number, text) in table {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(counted(1, "line", "lines"), "1 line");
        assert_eq!(counted(2_000, "line", "lines"), "2,000 lines");
    }

    #[test]
    fn latencies_and_rates_take_the_unit_that_suits_them() {
        let table = [
            (13_700, "13.7 µs"),
            (130_400, "130 µs"),
            (2_345_000, "2.35 ms"),
            (1_500_000_000, "1.50 s"),
        ];
        for (nanos, text) in table {
            assert_eq!(latency(nanos), text);
        }
        assert_eq!(rate(per_second(3_000, Duration::from_secs(2))), "1,500/s");
        assert_eq!(per_second(5, Duration::ZERO), 0.0);
    }

    #[test]
    fn colours_are_on_only_when_asked_for_away_from_a_terminal() {
        let plain = Output::new(false, Color::Never);
        assert_eq!(plain.paint(Paint::Bad, "x"), "x");
        let colored = Output::new(false, Color::Always);
        assert_eq!(colored.paint(Paint::Bad, "x"), "\x1b[31mx\x1b[0m");
    }

    #[test]
    fn a_reader_that_went_away_is_an_interruption_without_words() {
        let failure = stdout_failure(ErrorKind::BrokenPipe.into());
        assert_eq!(
            (failure.exit, failure.message.as_str()),
            (Exit::Interrupted, "")
        );
        assert_eq!(
            stdout_failure(ErrorKind::StorageFull.into()).exit,
            Exit::Environment
        );
    }
}
