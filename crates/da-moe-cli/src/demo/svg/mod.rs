//! The demo as a picture: sentences as a heat map, and what they cost.

use super::findings::{Findings, Fixed, Word};
use super::layer::{EXPERTS, K_MAX};
use super::terminal::{cells, grouped};
use crate::canvas::{Align, Canvas, INK, QUIET, Type};
use crate::heat_map::{self, shortened};
use crate::ramp;

const PAGE: f64 = 1080.0;
const MARGIN: f64 = 56.0;
const SENTENCES: usize = 3;

const HAIRLINE: &str = "#d9e2e9";
const ACCENT: &str = "#14608f";
const PALE: &str = "#b9d3e3";

const HEADLINE: Type = Type { size: 30.0, bold: true, color: INK };
const TITLE: Type = Type { size: 16.0, bold: true, color: INK };
const BODY: Type = Type { size: 14.0, bold: false, color: INK };
const NOTE: Type = Type { size: 13.0, bold: false, color: QUIET };

/// The whole picture.
pub(super) fn picture(findings: &Findings<'_>) -> String {
    let mut canvas = Canvas::default();
    let title = "Important tokens get more experts";
    canvas.text([MARGIN, 78.0], Align::Left, HEADLINE, title);
    canvas.text([MARGIN, 106.0], Align::Left, Type { size: 15.0, ..NOTE }, &subtitle(findings));
    let mut y = 150.0;
    for sentence in findings.telling(SENTENCES) {
        y = heat_map::draw(&mut canvas, &cells(findings, sentence), [MARGIN, PAGE - MARGIN], y) + 26.0;
    }
    y = legend(&mut canvas, y + 2.0) + 34.0;
    canvas.line([MARGIN, y], [PAGE - MARGIN, y], HAIRLINE);
    y += 44.0;
    let left = words(&mut canvas, findings, [MARGIN, y]);
    let column = 604.0;
    let middle = distribution(&mut canvas, findings, [column, y]);
    let right = rows(&mut canvas, findings, [column, middle + 40.0]);
    y = left.max(right) + 34.0;
    canvas.line([MARGIN, y], [PAGE - MARGIN, y], HAIRLINE);
    canvas.text([MARGIN, y + 30.0], Align::Left, NOTE, &verdict(findings));
    canvas.text([PAGE - MARGIN, y + 30.0], Align::Right, NOTE, &findings.device);
    canvas.document(PAGE, y + 62.0, title)
}

pub(super) fn subtitle(findings: &Findings<'_>) -> String {
    format!(
        "{} tokens, {EXPERTS} experts, 1 to {K_MAX} for each token: {:.2} on average",
        grouped(findings.k.len()),
        findings.mean_k
    )
}

/// What the oracle says, in a line.
pub(super) fn verdict(findings: &Findings<'_>) -> String {
    match &findings.verdict {
        Ok(figures) => match figures.iter().find(|figure| figure.name == "y") {
            Some(y) => format!(
                "Every figure checked against the f64 oracle: {} tensors agree, y within {:.1e} (allowed {:.1e})",
                figures.len(),
                y.error,
                y.bound
            ),
            None => format!("Every figure checked against the f64 oracle: {} tensors agree", figures.len()),
        },
        Err(_) => "Disagrees with the f64 oracle".into(),
    }
}

/// The ramp, and from which importance on a token gets one expert more; returns where it ends.
fn legend(canvas: &mut Canvas, y: f64) -> f64 {
    const WIDTH: f64 = 400.0;
    const STEPS: usize = 24;
    let stops: Vec<_> = (0..=STEPS).map(|step| ramp::hex(ramp::field(step as f32 / STEPS as f32).0)).collect();
    let x = MARGIN + 96.0;
    canvas.text([MARGIN, y + 12.0], Align::Left, NOTE, "importance");
    canvas.gradient([x, y, WIDTH, 14.0], &stops);
    canvas.text([x + WIDTH + 14.0, y + 12.0], Align::Left, NOTE, "relative to the strongest token of its paragraph");
    canvas.text([MARGIN, y + 34.0], Align::Left, NOTE, "experts");
    for k in 1..=K_MAX {
        // k experts from (k − 1) / E on.
        let from = (k - 1) as f64 / EXPERTS as f64;
        let to = if k == K_MAX { 1.0 } else { k as f64 / EXPERTS as f64 };
        canvas.text([x + WIDTH * (from + to) / 2.0, y + 34.0], Align::Center, NOTE, &k.to_string());
        if k > 1 {
            canvas.line([x + WIDTH * from, y + 14.0], [x + WIDTH * from, y + 34.0], PALE);
        }
    }
    y + 38.0
}

/// The two tables side by side; returns where they end.
fn words(canvas: &mut Canvas, findings: &Findings<'_>, [x, y]: [f64; 2]) -> f64 {
    let most: Vec<&Word> = findings.most_important().iter().collect();
    let left = table(canvas, "Most important", &most, [x, y]);
    left.max(table(canvas, "Least important", &findings.least_important(), [x + 262.0, y]))
}

fn table(canvas: &mut Canvas, title: &str, words: &[&Word], [x, y]: [f64; 2]) -> f64 {
    const ROW: f64 = 27.0;
    canvas.text([x, y], Align::Left, TITLE, title);
    canvas.text([x + 186.0, y], Align::Right, NOTE, "k");
    canvas.text([x + 228.0, y], Align::Right, NOTE, "times");
    for (index, word) in words.iter().enumerate() {
        let line = y + ROW * (index + 1) as f64 + 4.0;
        let (background, ink) = ramp::field(word.importance as f32);
        let text = shortened(&word.text, 17);
        canvas.field([x, line - 16.0], 14.0, [&ramp::hex(background), &ramp::hex(ink)], &text);
        canvas.text([x + 186.0, line], Align::Right, BODY, &format!("{:.1}", word.mean_k));
        canvas.text([x + 228.0, line], Align::Right, NOTE, &grouped(word.count));
    }
    y + ROW * words.len() as f64 + 10.0
}

const LABEL: f64 = 98.0;
const BAR: f64 = 140.0;

/// How many tokens got how many experts; returns where it ends.
fn distribution(canvas: &mut Canvas, findings: &Findings<'_>, [x, y]: [f64; 2]) -> f64 {
    canvas.text([x, y], Align::Left, TITLE, "Experts per token");
    let most = findings.histogram.iter().copied().max().unwrap_or(1).max(1) as f64;
    let total = findings.k.len().max(1) as f64;
    for (level, count) in findings.histogram.iter().enumerate() {
        let name = if level == 0 { "1 expert".into() } else { format!("{} experts", level + 1) };
        let share = format!("{:.0}%", 100.0 * *count as f64 / total);
        bar(canvas, [x, y + 28.0 + 26.0 * level as f64], &name, *count as f64 / most, ACCENT, &share);
    }
    y + 28.0 + 26.0 * (findings.histogram.len() - 1) as f64
}

/// Rows of dynamic k beside fixed top-k; returns where it ends.
fn rows(canvas: &mut Canvas, findings: &Findings<'_>, [x, y]: [f64; 2]) -> f64 {
    canvas.text([x, y], Align::Left, TITLE, "Rows through the experts");
    let fixed = findings.fixed();
    let most = fixed.iter().map(|fixed| fixed.rows).max().unwrap_or(1).max(1) as f64;
    let share = findings.rows as f64 / most;
    bar(canvas, [x, y + 28.0], "dynamic k", share, ACCENT, &grouped(findings.rows));
    let mut line = y + 28.0;
    for fixed in fixed {
        line += 26.0;
        let note = format!("{}: {}", grouped(fixed.rows), saving(&fixed));
        bar(canvas, [x, line], &format!("fixed top-{}", fixed.k), fixed.rows as f64 / most, PALE, &note);
    }
    line
}

/// What dynamic k saves of a fixed top-k's work.
pub(super) fn saving(fixed: &Fixed) -> String {
    let percent = 100.0 * fixed.saved.abs();
    if fixed.saved >= 0.0 {
        format!("dynamic saves {percent:.0}%")
    } else {
        format!("dynamic takes {percent:.0}% more")
    }
}

fn bar(canvas: &mut Canvas, [x, y]: [f64; 2], name: &str, share: f64, color: &str, note: &str) {
    canvas.text([x, y], Align::Left, BODY, name);
    canvas.rect([x + LABEL, y - 13.0, (BAR * share).max(1.0), 16.0], 3.0, color);
    canvas.text([x + LABEL + BAR * share + 8.0, y], Align::Left, NOTE, note);
}
