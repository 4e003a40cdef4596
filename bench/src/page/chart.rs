//! Lines over two axes, as SVG.
//!
//! The caller places points in units of its own and brings the ticks; this file knows the drawing
//! area and nothing of what is drawn.

use std::fmt::Write as _;

use super::markup::{escape, shortened};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 186.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Longest name that fits the legend, in characters.
const NAME_CHARS_MAX: usize = 20;
/// Colours there are.
pub(super) const COLOURS: usize = 8;

/// How an axis places a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scale {
    Linear,
    Log,
}

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) scale: Scale,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Where a value lies between the ends, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let place = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
        };
        let (low, high) = (place(self.low), place(self.high));
        ((place(value) - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// From zero to a little above `high`, with round steps.
    pub(super) fn from_zero(label: &str, high: f64, tell: impl Fn(f64) -> String) -> Self {
        let step = round_step(high / 5.0);
        let steps = (high / step - 1e-9).ceil().max(1.0);
        let mut ticks = Vec::new();
        let mut count = 0.0;
        while count <= steps {
            ticks.push((count * step, tell(count * step)));
            count += 1.0;
        }
        Self {
            label: label.to_owned(),
            scale: Scale::Linear,
            low: 0.0,
            high: steps * step,
            ticks,
        }
    }

    /// Logarithmic around all values, with ticks at 1, 2 and 5, or at the decades of a long one.
    pub(super) fn logarithmic(
        label: &str,
        values: impl Iterator<Item = f64>,
        tell: impl Fn(f64) -> String,
    ) -> Self {
        let positive = values.filter(|value| *value > 0.0);
        let (least, most) = positive.fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let (least, most) = if least.is_finite() {
            (least, most)
        } else {
            (1.0, 10.0)
        };
        let mut rungs = Vec::new();
        let mut decade = 10_f64.powf(least.log10().floor());
        while decade <= most * 10.0 {
            rungs.extend([1.0, 2.0, 5.0].map(|factor| (factor * decade, factor < 1.5)));
            decade *= 10.0;
        }
        let low = rungs.iter().rfind(|(rung, _)| *rung <= least * 1.000_001);
        let high = rungs.iter().find(|(rung, _)| *rung >= most * 0.999_999);
        let low = low.map_or(least, |(rung, _)| *rung);
        let high = high.map_or(most, |(rung, _)| *rung).max(low * 2.0);
        let long = (high / low).log10() > 2.5;
        let shown = |(rung, is_decade): &(f64, bool)| {
            (low * 0.999..=high * 1.001).contains(rung) && (*is_decade || !long)
        };
        let ticks = rungs
            .iter()
            .filter(|rung| shown(rung))
            .map(|(rung, _)| (*rung, tell(*rung)));
        Self {
            label: label.to_owned(),
            scale: Scale::Log,
            low,
            high,
            ticks: ticks.collect(),
        }
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let least = if least > 0.0 { least } else { 1.0 };
    let decade = 10_f64.powf(least.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let fitting = factors
        .iter()
        .find(|factor| *factor * decade >= least * 0.999_999);
    fitting.map_or(10.0, |factor| *factor) * decade
}

/// One line.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// In the units of the axes, in order.
    pub(super) points: Vec<(f64, f64)>,
    /// Whether each point is marked.
    pub(super) dots: bool,
    /// Whether it is drawn as one that does not count.
    pub(super) open: bool,
    /// Which colour.
    pub(super) colour: usize,
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// What it shows, for those who cannot see it.
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

impl Chart {
    /// The drawing.
    pub(super) fn svg(&self) -> String {
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             role=\"img\">\n<title>{}</title>\n",
            escape(&self.title)
        );
        self.draw_axes(&mut out);
        for series in &self.series {
            self.draw_series(&mut out, series);
        }
        self.draw_legend(&mut out);
        out.push_str("</svg>\n");
        out
    }

    fn place_x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)
    }

    fn place_y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.share(value) * (HEIGHT - TOP - BOTTOM)
    }

    // Writing to a string cannot fail, here and below.
    fn draw_axes(&self, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, text) in &self.x.ticks {
            let x = self.place_x(*value);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\" />\
                 <text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                escape(text)
            );
        }
        for (value, text) in &self.y.ticks {
            let y = self.place_y(*value);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\" />\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(text)
            );
        }
        let middle = f64::midpoint(LEFT, right);
        let _ = write!(
            out,
            "<text class=\"soft\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text class=\"soft\" transform=\"translate(14 {:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>\n",
            HEIGHT - 8.0,
            escape(&self.x.label),
            f64::midpoint(TOP, bottom),
            escape(&self.y.label)
        );
    }

    fn draw_series(&self, out: &mut String, series: &Series) {
        let places: Vec<(f64, f64)> = series
            .points
            .iter()
            .map(|(x, y)| (self.place_x(*x), self.place_y(*y)))
            .collect();
        let colour = series.colour % COLOURS;
        let mut line = String::new();
        for (index, (x, y)) in places.iter().enumerate() {
            let command = if index == 0 { 'M' } else { 'L' };
            let _ = write!(line, "{command}{x:.1} {y:.1}");
        }
        let open = if series.open { " open" } else { "" };
        if places.len() > 1 {
            let _ = writeln!(
                out,
                "<path class=\"series s{colour}{open}\" d=\"{line}\" />"
            );
        }
        if series.dots || places.len() == 1 {
            for (x, y) in &places {
                let _ = writeln!(
                    out,
                    "<circle class=\"f{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" />"
                );
            }
        }
    }

    fn draw_legend(&self, out: &mut String) {
        let left = WIDTH - RIGHT + 16.0;
        let mut y = TOP + 8.0;
        for series in &self.series {
            let colour = series.colour % COLOURS;
            let open = if series.open { " open" } else { "" };
            let _ = writeln!(
                out,
                "<path class=\"series s{colour}{open}\" d=\"M{left} {y:.1}h20\" />\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left + 27.0,
                y + 4.0,
                escape(&shortened(&series.name, NAME_CHARS_MAX))
            );
            y += 20.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_all_its_values_between_round_ends() {
        let axis = Axis::logarithmic("us", [13.0, 700.0].into_iter(), |us| format!("{us:.0}"));
        assert!(
            (axis.low - 10.0).abs() < 1e-6 && (axis.high - 1_000.0).abs() < 1e-6,
            "{axis:?}"
        );
        let told: Vec<&str> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(told, ["10", "20", "50", "100", "200", "500", "1000"]);
        let long = Axis::logarithmic("us", [1.0, 60_000.0].into_iter(), |us| format!("{us:.0}"));
        assert_eq!(long.ticks.len(), 6, "{long:?}");
        let linear = Axis::from_zero("rate", 2_380_000.0, |rate| format!("{rate:.0}"));
        assert!((linear.high - 2_500_000.0).abs() < 1e-3, "{linear:?}");
        assert_eq!(linear.ticks.len(), 6, "{linear:?}");
    }

    #[test]
    fn an_axis_without_values_can_still_be_drawn() {
        let none = Axis::logarithmic("us", std::iter::empty(), |us| format!("{us}"));
        assert!(
            none.low < none.high && none.share(5.0).is_finite(),
            "{none:?}"
        );
        let zero = Axis::from_zero("rate", 0.0, |rate| format!("{rate}"));
        assert!(zero.low < zero.high, "{zero:?}");
    }

    #[test]
    fn values_lie_where_the_axis_says() {
        let log = Axis::logarithmic("us", [10.0, 1_000.0].into_iter(), |_| String::new());
        assert!((log.share(100.0) - 0.5).abs() < 1e-9);
        assert!(log.share(5.0).abs() < 1e-9, "held to the frame");
        let linear = Axis::from_zero("rate", 10.0, |_| String::new());
        assert!((linear.share(2.5) - 0.25).abs() < 1e-9);
    }
}
