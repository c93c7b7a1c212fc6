//! Tokens over their number of experts, on a background as dark as they are important: for terminals and for pictures.

use crate::canvas::{Align, Canvas, INK, QUIET, Type, field_width};
use crate::ramp;
use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use std::fmt::Write;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// One token.
pub(crate) struct Cell<'a> {
    pub(crate) text: &'a str,
    /// From 0 to 1.
    pub(crate) importance: f32,
    /// What stands below it.
    pub(crate) experts: String,
    /// How much that is set off: nothing more than the least, something, or the most there is.
    pub(crate) rank: Rank,
}

/// See [`Cell::rank`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    Least,
    More,
    Most,
}

/// How much the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colors {
    None,
    Palette,
    True,
}

impl Colors {
    /// Of standard output.
    pub(crate) fn of_stdout() -> Self {
        match AutoStream::choice(&std::io::stdout()) {
            ColorChoice::Never => Colors::None,
            _ if anstyle_query::truecolor() => Colors::True,
            _ => Colors::Palette,
        }
    }

    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self == Colors::None || text.is_empty() { text.into() } else { format!("{style}{text}{style:#}") }
    }

    pub(crate) fn title(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    pub(crate) fn bar(self, text: &str) -> String {
        self.paint(ramp::accent(self == Colors::True), text)
    }
}

/// Columns of standard output.
pub(crate) fn columns() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(80, |(width, _)| usize::from(width.0)).clamp(40, 100)
}

const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One of eight heights, for a share of the whole; there is always some.
pub(crate) fn height(share: f64) -> char {
    let height = (share.clamp(0.0, 1.0) * 8.0).ceil() as usize;
    BARS[height.clamp(1, 8)]
}

/// For a terminal, in lines of `columns`; without colours, a bar as high as the token is important stands above it.
pub(crate) fn write(page: &mut String, cells: &[Cell<'_>], colors: Colors, columns: usize) {
    let mut lines: Vec<Vec<&Cell<'_>>> = vec![Vec::new()];
    let mut used = 0;
    for cell in cells {
        let width = width(cell) + 1;
        if used + width > columns && used > 0 {
            lines.push(Vec::new());
            used = 0;
        }
        used += width;
        if let Some(line) = lines.last_mut() {
            line.push(cell);
        }
    }
    for line in lines {
        let (mut bars, mut words, mut counts) = (String::new(), String::new(), String::new());
        for cell in line {
            let (text, width) = (cell.text, width(cell));
            let room = width - text.width() - 2;
            bars += &format!(" {}", height(f64::from(cell.importance)).to_string().repeat(width));
            counts += &format!(" {:^width$}", cell.experts);
            words += &match colors {
                Colors::None => format!("  {text}{:room$} ", ""),
                _ => {
                    let style = ramp::style(cell.importance, colors == Colors::True);
                    format!(" {style} {text}{:room$} {style:#}", "")
                }
            };
        }
        // Writing to a string cannot fail.
        if colors == Colors::None {
            let _ = writeln!(page, "{}", bars.trim_end());
        }
        let _ = writeln!(page, "{}\n{}\n", words.trim_end(), counts.trim_end());
    }
}

/// Columns of a cell: a space on both sides of its text, and room for what stands below.
fn width(cell: &Cell<'_>) -> usize {
    (cell.text.width() + 2).max(cell.experts.width())
}

/// For a picture, from `left` to `right`; returns where it ends.
pub(crate) fn draw(canvas: &mut Canvas, cells: &[Cell<'_>], [left, right]: [f64; 2], top: f64) -> f64 {
    const SIZE: f64 = 19.0;
    const HEIGHT: f64 = 1.66 * SIZE;
    const LINE: f64 = 62.0;
    let (mut x, mut y) = (left, top);
    for cell in cells {
        let text = shortened(cell.text, 60);
        if x + field_width(&text, SIZE) > right && x > left {
            (x, y) = (left, y + LINE);
        }
        let (background, ink) = ramp::field(cell.importance);
        let field = canvas.field([x, y], SIZE, [&ramp::hex(background), &ramp::hex(ink)], &text);
        let color = if cell.rank == Rank::Least { QUIET } else { INK };
        let count = Type { size: 13.0, bold: cell.rank == Rank::Most, color };
        canvas.text([x + field / 2.0, y + HEIGHT + 16.0], Align::Center, count, &cell.experts);
        x += field + 4.0;
    }
    y + HEIGHT + 18.0
}

/// At most `limit` columns wide.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    if text.width() <= limit {
        return text.into();
    }
    let mut short = String::new();
    for c in text.chars() {
        if short.width() + c.width().unwrap_or(0) + 1 > limit {
            break;
        }
        short.push(c);
    }
    short + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_and_widths() {
        assert_eq!([height(0.0), height(1.0), height(f64::NAN)], ['▁', '█', '▁']);
        assert_eq!(shortened("diagnosis", 5), "diag…");
        assert_eq!(shortened("注意力機制", 5), "注意…");
    }

    #[test]
    fn without_colours_bars_stand_above_and_numbers_below() {
        let cell = |text, importance| Cell { text, importance, experts: "1.50".into(), rank: Rank::More };
        let mut page = String::new();
        write(&mut page, &[cell("a", 0.0), cell("word", 1.0)], Colors::None, 40);
        assert_eq!(page, " ▁▁▁▁ ██████\n  a    word\n 1.50  1.50\n\n");
    }
}
