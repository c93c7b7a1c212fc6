//! What was learned, as text and as a picture.

use super::{MEAN_K, Trained};
use crate::canvas::{Align, Canvas, INK, QUIET, Type};
use crate::explain::cells;
use crate::heat_map::{self, Colors, height};
use da_moe_train::Line;
use std::fmt::Write;
use std::path::Path;

const WIDTH: f64 = 1080.0;
const MARGIN: f64 = 56.0;

/// What a terminal shows.
pub(super) fn page(trained: &Trained, checkpoint: &Path) -> String {
    let (colors, columns) = (Colors::of_stdout(), heat_map::columns());
    let mut page = String::new();
    // Writing to a string cannot fail, so the results of `writeln!` carry no news.
    let _ = writeln!(
        page,
        "{}\n",
        colors.title("What the model learned: importance, and experts of a token (mean over layers)")
    );
    for sentence in &trained.sentences {
        heat_map::write(&mut page, &cells(sentence), colors, columns);
    }
    let _ = writeln!(page, "{}", colors.title("Held-out loss, nats a token"));
    let all = || trained.dynamic.iter().chain(&trained.fixed).filter_map(held_out);
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    for (name, lines) in named(trained) {
        let shares = lines.iter().filter_map(held_out).map(|loss| (loss - low) / (high - low).max(f64::MIN_POSITIVE));
        let bars: String = shares.map(height).collect();
        let _ = writeln!(page, "  {name:<28} {}  {}", colors.bar(&bars), last(lines));
    }
    let _ = writeln!(
        page,
        "\n{} parameters. One run of each says nothing about which is better: `da-moe evaluate` compares with error bars.\n\
         Try it on your own words: da-moe explain --model {} --text \"…\"",
        trained.parameters,
        checkpoint.display()
    );
    page
}

/// The same as a picture.
pub(super) fn picture(trained: &Trained) -> String {
    let title = "What the model learned: which tokens matter";
    let text = |size, bold, color| Type { size, bold, color };
    let mut canvas = Canvas::default();
    canvas.text([MARGIN, 78.0], Align::Left, text(30.0, true, INK), title);
    let note = "Importance as shade, experts of a token below it (mean over layers), on held-out text";
    canvas.text([MARGIN, 106.0], Align::Left, text(15.0, false, QUIET), note);
    let mut y = 150.0;
    for sentence in &trained.sentences {
        y = heat_map::draw(&mut canvas, &cells(sentence), [MARGIN, WIDTH - MARGIN], y) + 26.0;
    }
    let [top, bottom] = [y + 30.0, y + 230.0];
    canvas.text([MARGIN, top - 12.0], Align::Left, text(16.0, true, INK), "Held-out loss, nats a token");
    let all = || trained.dynamic.iter().chain(&trained.fixed).filter_map(held_out);
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    for (index, (name, lines)) in named(trained).into_iter().enumerate() {
        let color = ["#14608f", "#d1702b"][index];
        let steps = lines.last().map_or(1, |line| line.step.max(1)) as f64;
        let points: Vec<[f64; 2]> = lines
            .iter()
            .filter_map(|line| {
                let x = MARGIN + 600.0 * line.step as f64 / steps;
                Some([x, top + (bottom - top) * (high - held_out(line)?) / (high - low).max(f64::MIN_POSITIVE)])
            })
            .collect();
        canvas.path(&points, 2.5, color);
        let row = top + 30.0 + 26.0 * index as f64;
        canvas.path(&[[690.0, row - 5.0], [716.0, row - 5.0]], 3.0, color);
        canvas.text([726.0, row], Align::Left, text(14.0, false, INK), &format!("{name}: {}", last(lines)));
    }
    canvas.document(WIDTH, bottom + 50.0, title)
}

fn named(trained: &Trained) -> [(String, &[Line]); 2] {
    let mean = trained.dynamic.iter().rev().find_map(|line| Some(line.held_out.as_ref()?.allocated.mean_k));
    [
        (format!("dynamic, mean k {:.2}", mean.unwrap_or_default()), &trained.dynamic),
        (format!("fixed top-{MEAN_K}"), &trained.fixed),
    ]
}

fn held_out(line: &Line) -> Option<f64> {
    Some(line.held_out.as_ref()?.loss)
}

fn last(lines: &[Line]) -> String {
    lines.iter().rev().find_map(held_out).map_or_else(String::new, |loss| format!("{loss:.3}"))
}
