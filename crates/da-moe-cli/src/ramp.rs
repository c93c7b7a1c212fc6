//! Importance as colour: one hue from nearly white to deep blue, so that it also reads in grey.

use anstyle::{Ansi256Color, Color, RgbColor, Style};

/// Colours at equal steps of the ramp.
const STOPS: [[f32; 3]; 6] = [
    [238.0, 244.0, 249.0],
    [208.0, 227.0, 239.0],
    [152.0, 199.0, 222.0],
    [74.0, 150.0, 190.0],
    [20.0, 96.0, 144.0],
    [8.0, 52.0, 88.0],
];

/// Contrast that text of ordinary size needs (WCAG 2, level AA).
const READABLE: f32 = 4.5;

/// The ramp on 256 colours, with its ink: the blues among them, because the nearest colours would change their hue.
const PALETTE: [(u8, u8); 7] = [(255, 16), (153, 16), (110, 16), (68, 16), (26, 231), (25, 231), (17, 231)];

/// Ink of light fields: darker than the pictures' own, because the middle of the ramp is as far from white as from black.
const DARK: [u8; 3] = [0, 4, 8];
/// Ink of dark fields.
const LIGHT: [u8; 3] = [255, 255, 255];

/// The field of a token: background and the ink that reads best on it.
pub(crate) fn field(importance: f32) -> ([u8; 3], [u8; 3]) {
    let background = background(importance);
    // Where both read well, light letters look calmer on blue.
    let ink = if contrast(background, LIGHT) >= READABLE { LIGHT } else { DARK };
    (background, ink)
}

/// Half of all tokens lie below a tenth of the largest importance, so the ramp is steeper there.
fn position(importance: f32) -> f32 {
    if importance.is_finite() { importance.clamp(0.0, 1.0).powf(0.7) } else { 0.0 }
}

fn background(importance: f32) -> [u8; 3] {
    let at = position(importance) * (STOPS.len() - 1) as f32;
    let below = (at as usize).min(STOPS.len() - 2);
    let part = at - below as f32;
    let mix = |channel: usize| STOPS[below][channel] * (1.0 - part) + STOPS[below + 1][channel] * part;
    [mix(0), mix(1), mix(2)].map(|channel| channel.round() as u8)
}

/// As the web writes it.
pub(crate) fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// For a terminal, in as many colours as it has.
pub(crate) fn style(importance: f32, true_color: bool) -> Style {
    if true_color {
        let (background, ink) = field(importance);
        return Style::new().bg_color(Some(rgb(background))).fg_color(Some(rgb(ink)));
    }
    let at = position(importance) * (PALETTE.len() - 1) as f32;
    let (background, ink) = PALETTE[(at.round() as usize).min(PALETTE.len() - 1)];
    Style::new().bg_color(Some(Ansi256Color(background).into())).fg_color(Some(Ansi256Color(ink).into()))
}

/// What bars are drawn in on a terminal.
pub(crate) fn accent(true_color: bool) -> Style {
    Style::new().fg_color(Some(if true_color { rgb([74, 150, 190]) } else { Ansi256Color(74).into() }))
}

fn rgb([r, g, b]: [u8; 3]) -> Color {
    RgbColor(r, g, b).into()
}

/// Contrast ratio of two colours as WCAG 2 defines it.
fn contrast(a: [u8; 3], b: [u8; 3]) -> f32 {
    let luminance = |rgb: [u8; 3]| {
        let [r, g, b] = rgb.map(|channel| {
            let c = f32::from(channel) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_readable() {
        for step in 0..=1000 {
            let (background, ink) = field(step as f32 / 1000.0);
            assert!(contrast(background, ink) >= READABLE, "{step}: {background:?} {ink:?}");
        }
    }

    #[test]
    fn importance_out_of_range_has_a_colour() {
        assert_eq!(field(f32::NAN), field(0.0));
        assert_eq!(field(-3.0), field(0.0));
        assert_eq!(field(f32::INFINITY), field(0.0));
        assert_eq!(field(7.0), field(1.0));
    }
}
