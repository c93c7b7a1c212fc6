//! Charts of a report: points with their errors, intervals around nothing, and curves.

use crate::canvas::{Align, Canvas, INK, QUIET, Type};
use da_moe_train::evaluate::Estimate;
use std::ops::Range;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 56.0;

const GRID: &str = "#e3e9ee";
const ACCENT: &str = "#14608f";
/// Curves in their order, told apart in grey too.
const COLORS: [&str; 6] = ["#14608f", "#d1702b", "#3c8d53", "#8a4f9e", "#7a7a7a", "#b3333a"];

const TITLE: Type = Type { size: 16.0, bold: true, color: INK };
const LABEL: Type = Type { size: 13.0, bold: false, color: INK };
const NOTE: Type = Type { size: 12.0, bold: false, color: QUIET };

/// A value over each of a few names, with its standard error.
pub(super) fn points(title: &str, axis: &str, named: &[(String, Estimate)]) -> String {
    let (mut canvas, height) = (Canvas::default(), 320.0);
    let reach = |(_, estimate): &(String, Estimate)| [estimate.mean - estimate.error, estimate.mean + estimate.error];
    let y = Axis::new(named.iter().flat_map(reach), height - BOTTOM..TOP);
    frame(&mut canvas, title, axis, &y);
    let step = (WIDTH - LEFT - RIGHT) / named.len().max(1) as f64;
    let mut line = Vec::new();
    for (index, (name, estimate)) in named.iter().enumerate() {
        let x = LEFT + (index as f64 + 0.5) * step;
        let [low, high] = reach(&named[index]).map(|value| y.at(value));
        canvas.path(&[[x, low], [x, high]], 2.0, ACCENT);
        canvas.text([x, height - BOTTOM + 22.0], Align::Center, LABEL, name);
        canvas.text([x + 10.0, y.at(estimate.mean) - 6.0], Align::Left, NOTE, &format!("{:.3}", estimate.mean));
        line.push([x, y.at(estimate.mean)]);
    }
    canvas.path(&line, 1.0, ACCENT);
    line.iter().for_each(|&point| canvas.dot(point, 4.0, ACCENT));
    canvas.document(WIDTH, height, title)
}

/// Differences with their 95% intervals, one below the other.
pub(super) fn intervals(title: &str, axis: &str, named: &[(String, Estimate)]) -> String {
    const ROW: f64 = 46.0;
    let mut canvas = Canvas::default();
    let height = TOP + ROW * named.len() as f64 + BOTTOM;
    let bounds = |estimate: &Estimate| estimate.interval().unwrap_or([estimate.mean; 2]);
    let x = Axis::new(named.iter().flat_map(|(_, estimate)| bounds(estimate)).chain([0.0]), LEFT..WIDTH - RIGHT);
    canvas.text([24.0, 30.0], Align::Left, TITLE, title);
    for value in x.ticks() {
        canvas.path(&[[x.at(value), TOP], [x.at(value), height - BOTTOM]], 1.0, GRID);
        canvas.text([x.at(value), height - BOTTOM + 18.0], Align::Center, NOTE, &x.name(value));
    }
    canvas.path(&[[x.at(0.0), TOP], [x.at(0.0), height - BOTTOM]], 1.5, QUIET);
    canvas.text([WIDTH / 2.0, height - 14.0], Align::Center, NOTE, axis);
    for (index, (name, estimate)) in named.iter().enumerate() {
        let y = TOP + ROW * (index as f64 + 0.75);
        let [low, high] = bounds(estimate).map(|value| x.at(value));
        let color = if estimate.is_clear() { ACCENT } else { QUIET };
        canvas.text([24.0, y - 14.0], Align::Left, LABEL, name);
        canvas.path(&[[low, y], [high, y]], 3.0, color);
        canvas.dot([x.at(estimate.mean), y], 5.0, color);
    }
    canvas.document(WIDTH, height, title)
}

/// Curves over steps, each with its name.
pub(super) fn curves(title: &str, axis: &str, named: &[(String, Vec<(f64, f64)>)]) -> String {
    let height = 380.0 + 20.0 * named.len() as f64;
    let base = 380.0 - BOTTOM;
    let mut canvas = Canvas::default();
    let all = || named.iter().flat_map(|(_, curve)| curve);
    let y = Axis::new(all().map(|(_, value)| *value), base..TOP);
    let x = Axis::new(all().map(|(step, _)| *step), LEFT..WIDTH - RIGHT);
    frame(&mut canvas, title, axis, &y);
    for value in x.ticks() {
        canvas.text([x.at(value), base + 20.0], Align::Center, NOTE, &x.name(value));
    }
    canvas.text([WIDTH - RIGHT, base + 38.0], Align::Right, NOTE, "steps");
    for (index, (name, curve)) in named.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let points: Vec<[f64; 2]> = curve.iter().map(|&(step, value)| [x.at(step), y.at(value)]).collect();
        canvas.path(&points, 2.0, color);
        let row = 380.0 + 20.0 * index as f64;
        canvas.path(&[[LEFT, row - 4.0], [LEFT + 26.0, row - 4.0]], 3.0, color);
        canvas.text([LEFT + 36.0, row], Align::Left, LABEL, name);
    }
    canvas.document(WIDTH, height, title)
}

fn frame(canvas: &mut Canvas, title: &str, axis: &str, y: &Axis) {
    canvas.text([24.0, 30.0], Align::Left, TITLE, title);
    canvas.text([24.0, 48.0], Align::Left, NOTE, axis);
    for value in y.ticks() {
        canvas.path(&[[LEFT, y.at(value)], [WIDTH - RIGHT, y.at(value)]], 1.0, GRID);
        canvas.text([LEFT - 8.0, y.at(value) + 4.0], Align::Right, NOTE, &y.name(value));
    }
}

/// From values to places, with round numbers to mark.
struct Axis {
    values: Range<f64>,
    places: Range<f64>,
    step: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, places: Range<f64>) -> Self {
        let finite = values.filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if low < high { (low, high) } else { (low.min(0.0) - 0.5, high.max(0.0) + 0.5) };
        let (low, high) = if low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|round| round * power).into_iter().find(|&step| step >= rough);
        let step = step.unwrap_or(rough);
        let values = (low / step).floor() * step..(high / step).ceil() * step;
        Self { values, places, step }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value - self.values.start) / (self.values.end - self.values.start);
        self.places.start + part * (self.places.end - self.places.start)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.values.end - self.values.start) / self.step).round() as usize;
        (0..=count).map(|index| self.values.start + index as f64 * self.step)
    }

    fn name(&self, value: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        // No minus before nothing.
        let value = if value.abs() < self.step / 2.0 { 0.0 } else { value };
        format!("{value:.digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_hold_all_values() {
        let axis = Axis::new([0.013, -0.021].into_iter(), 0.0..100.0);
        assert_eq!(
            axis.ticks().map(|value| axis.name(value)).collect::<Vec<_>>(),
            ["-0.03", "-0.02", "-0.01", "0.00", "0.01", "0.02"]
        );
        assert!(axis.at(-0.021) > 0.0 && axis.at(0.013) < 100.0);
    }

    #[test]
    fn an_axis_without_values_or_with_one_is_an_axis() {
        for values in [vec![], vec![3.0], vec![f64::NAN]] {
            let axis = Axis::new(values.into_iter(), 0.0..10.0);
            assert!(axis.ticks().count() > 1 && axis.at(3.0).is_finite());
        }
    }

    #[test]
    fn charts_are_documents() {
        let estimate = Estimate::of(&[1.0, 1.2, 0.9]);
        let named: Vec<_> = estimate.into_iter().map(|estimate| ("a < b".to_string(), estimate)).collect();
        let curve = vec![("c".to_string(), vec![(0.0, 3.0), (10.0, 2.0)])];
        for chart in [points("t", "nats", &named), intervals("t", "nats", &named), curves("t", "nats", &curve)] {
            assert!(roxmltree::Document::parse(&chart).is_ok(), "{chart}");
        }
    }
}
