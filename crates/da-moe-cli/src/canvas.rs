//! Text and boxes of an SVG document, and how wide text is without a font at hand.

use std::fmt::Write;
use unicode_width::UnicodeWidthChar;

/// Widths of Helvetica, Arial and their metric twins, in thousandths of the size, from space to tilde.
#[rustfmt::skip]
const WIDTHS: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556,
    556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833,
    722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556,
    556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334,
    260, 334, 584,
];

/// Ink of text.
pub(crate) const INK: &str = "#10212e";
/// Grey ink for what is said in passing.
pub(crate) const QUIET: &str = "#5b6b78";

/// Where text stands relative to its point.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Center,
    Right,
}

/// How text looks.
#[derive(Clone, Copy)]
pub(crate) struct Type {
    pub(crate) size: f64,
    pub(crate) bold: bool,
    pub(crate) color: &'static str,
}

/// A document under construction.
#[derive(Default)]
pub(crate) struct Canvas {
    body: String,
}

// Writing to a string cannot fail, so the results of `write!` below carry no news.
impl Canvas {
    pub(crate) fn rect(&mut self, [x, y, width, height]: [f64; 4], radius: f64, fill: &str) {
        let _ = write!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="{radius:.1}" fill="{fill}"/>"#
        );
        self.body.push('\n');
    }

    pub(crate) fn line(&mut self, [x, y]: [f64; 2], [to_x, to_y]: [f64; 2], color: &str) {
        let _ = writeln!(
            self.body,
            r#"<line x1="{x:.1}" y1="{y:.1}" x2="{to_x:.1}" y2="{to_y:.1}" stroke="{color}" stroke-width="1"/>"#
        );
    }

    /// Straight lines through points.
    pub(crate) fn path(&mut self, points: &[[f64; 2]], thickness: f64, color: &str) {
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="{thickness}" stroke-linejoin="round"/>"#,
            points.join(" ")
        );
    }

    pub(crate) fn dot(&mut self, [x, y]: [f64; 2], radius: f64, color: &str) {
        let _ = writeln!(self.body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{color}"/>"#);
    }

    pub(crate) fn text(&mut self, [x, y]: [f64; 2], align: Align, style: Type, text: &str) {
        let anchor = match align {
            Align::Left => "start",
            Align::Center => "middle",
            Align::Right => "end",
        };
        let weight = if style.bold { r#" font-weight="600""# } else { "" };
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{}"{weight} text-anchor="{anchor}" fill="{}">{}</text>"#,
            style.size,
            style.color,
            escape(text)
        );
    }

    /// A rounded field with text in its middle; returns the field's width. Programs that honour `textLength` hold the
    /// text to the width reckoned with, whatever font they draw it in; for the others there is room for a wider font.
    pub(crate) fn field(&mut self, [x, y]: [f64; 2], size: f64, [background, ink]: [&str; 2], text: &str) -> f64 {
        let (length, total) = (width(text, size), field_width(text, size));
        self.rect([x, y, total, 1.66 * size], 0.26 * size, background);
        let (middle, base) = (x + total / 2.0, y + 1.18 * size);
        let _ = writeln!(
            self.body,
            r#"<text x="{middle:.1}" y="{base:.1}" font-size="{size}" fill="{ink}" text-anchor="middle" textLength="{length:.1}" lengthAdjust="spacingAndGlyphs">{}</text>"#,
            escape(text)
        );
        total
    }

    /// A bar that fades through `stops`, evenly spaced from left to right.
    pub(crate) fn gradient(&mut self, field: [f64; 4], stops: &[String]) {
        let last = stops.len().saturating_sub(1).max(1) as f64;
        self.body.push_str(r#"<defs><linearGradient id="ramp">"#);
        for (index, color) in stops.iter().enumerate() {
            let _ = write!(self.body, r#"<stop offset="{:.4}" stop-color="{color}"/>"#, index as f64 / last);
        }
        self.body.push_str("</linearGradient></defs>\n");
        self.rect(field, 3.0, "url(#ramp)");
    }

    pub(crate) fn document(self, width: f64, height: f64, title: &str) -> String {
        let title = escape(title);
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{title}" font-family="Helvetica, Arial, 'Liberation Sans', sans-serif" fill="{ink}">
<title>{title}</title>
<rect width="100%" height="100%" fill="#ffffff"/>
{body}</svg>
"##,
            ink = INK,
            body = self.body
        )
    }
}

/// Width of `text` in a sans-serif font of this size. Beyond ASCII a guess: an em for wide characters, most of one else.
fn width(text: &str, size: f64) -> f64 {
    let thousandths = |c: char| match (c as usize).checked_sub(32).and_then(|index| WIDTHS.get(index)) {
        Some(width) => f64::from(*width),
        None => 500.0 * c.width().unwrap_or(1) as f64 + 60.0,
    };
    text.chars().map(thousandths).sum::<f64>() * size / 1000.0
}

/// Width of [`Canvas::field`]: the widest common fallback font takes about an eighth more than the one reckoned with.
pub(crate) fn field_width(text: &str, size: f64) -> f64 {
    1.1 * width(text, size) + 0.7 * size
}

/// As XML text or attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_and_widths() {
        assert_eq!(escape(r#"<a b="c">&'"#), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;");
        assert!(width("mmm", 10.0) > 2.0 * width("iii", 10.0));
        assert!(width("注意", 10.0) > 20.0);
    }
}
