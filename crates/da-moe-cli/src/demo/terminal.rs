//! The demo as text: in colour where the terminal has it, with bars where it has not.

use super::findings::{Findings, Word};
use super::layer::{EXPERTS, K_MAX};
use crate::heat_map::{self, Cell, Colors, Rank, shortened};
use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// Everything that the demo prints, for lines of `columns`.
pub(super) fn page(findings: &Findings<'_>, colors: Colors, columns: usize) -> String {
    let mut page = String::new();
    heading(&mut page, findings);
    for sentence in findings.telling(1) {
        heat_map::write(&mut page, &cells(findings, sentence), colors, columns);
    }
    tables(&mut page, findings, colors);
    distribution(&mut page, findings, colors);
    rows(&mut page, findings, colors);
    load(&mut page, findings, colors);
    times(&mut page, findings, colors);
    verdict(&mut page, findings, columns);
    page
}

// Writing to a string cannot fail, so the results of `writeln!` below carry no news.

fn heading(page: &mut String, findings: &Findings<'_>) {
    let text = findings.text;
    let shown = text.tokens.len();
    let of = if text.total > shown { format!(" (the first of {})", grouped(text.total)) } else { String::new() };
    let _ = writeln!(
        page,
        "{} tokens{of} in {} paragraphs, {EXPERTS} experts, 1 to {} for each token, {:.2} on average\n",
        grouped(shown),
        text.paragraphs.len(),
        findings.histogram.len(),
        findings.mean_k
    );
}

/// A sentence over its numbers of experts.
pub(super) fn cells<'a>(findings: &'a Findings<'_>, sentence: Range<usize>) -> Vec<Cell<'a>> {
    let cell = |token: usize| {
        let k = findings.k[token];
        let rank = match k {
            K_MAX => Rank::Most,
            1 => Rank::Least,
            _ => Rank::More,
        };
        let text = findings.text.tokens[token].text.as_str();
        Cell { text, importance: findings.importance[token], experts: k.to_string(), rank }
    };
    sentence.map(cell).collect()
}

fn tables(page: &mut String, findings: &Findings<'_>, colors: Colors) {
    let least = findings.least_important();
    let cell = |word: &Word| {
        let text = shortened(&word.text, 16);
        let room = 16usize.saturating_sub(text.width());
        format!("{text}{:room$} {:.3} {:>4.1} {:>4}", "", word.importance, word.mean_k, word.count)
    };
    let titles = |title: &str| format!("{title:<16}   imp    k times");
    let titles = colors.title(&format!("{}     {}", titles("most important"), titles("least important")));
    let _ = writeln!(page, "  {titles}");
    for (index, most) in findings.most_important().iter().enumerate() {
        let right = least.get(index).map(|word| cell(word)).unwrap_or_default();
        let _ = writeln!(page, "{}", format!("  {}     {right}", cell(most)).trim_end());
    }
    page.push('\n');
}

fn distribution(page: &mut String, findings: &Findings<'_>, colors: Colors) {
    let total = findings.k.len().max(1) as f64;
    let _ = writeln!(page, "  {}", colors.title("experts per token"));
    for (level, count) in findings.histogram.iter().enumerate() {
        let share = *count as f64 / total;
        let bar = colors.bar(&blocks(share, 40));
        let _ = writeln!(page, "  k {}  {:>6} {:>4.0}%  {bar}", level + 1, grouped(*count), 100.0 * share);
    }
    page.push('\n');
}

fn rows(page: &mut String, findings: &Findings<'_>, colors: Colors) {
    let _ = writeln!(page, "  {}", colors.title("expert rows"));
    let most = findings.fixed().iter().map(|fixed| fixed.rows).max().unwrap_or(1).max(1) as f64;
    let line = |name: String, rows: usize, note: String| {
        let bar = blocks(rows as f64 / most, 28);
        // Padded by hand: a format's width would count the colour codes.
        let room = " ".repeat(28usize.saturating_sub(bar.width()));
        format!("  {name:<14}{:>7}  {}{room} {note}", grouped(rows), colors.bar(&bar))
    };
    let _ = writeln!(page, "{}", line("dynamic k".into(), findings.rows, String::new()).trim_end());
    for fixed in findings.fixed() {
        let saved = match fixed.saved {
            saved if saved >= 0.0 => format!("{:.0}% of the expert work saved", 100.0 * saved),
            saved => format!("{:.0}% more expert work", -100.0 * saved),
        };
        let _ = writeln!(page, "{}", line(format!("fixed top-{}", fixed.k), fixed.rows, saved).trim_end());
    }
    page.push('\n');
}

fn load(page: &mut String, findings: &Findings<'_>, colors: Colors) {
    let most = findings.load.iter().copied().max().unwrap_or(1).max(1) as f64;
    let title = format!("load of the experts (even would be {:.0})", findings.even_load());
    let _ = writeln!(page, "  {}", colors.title(&title));
    for (expert, count) in findings.load.iter().enumerate() {
        let bar = colors.bar(&blocks(*count as f64 / most, 28));
        let _ = writeln!(page, "  {expert}  {:>6}  {bar}", grouped(*count));
    }
    page.push('\n');
}

fn times(page: &mut String, findings: &Findings<'_>, colors: Colors) {
    let times = &findings.times;
    let _ = writeln!(page, "  {}", colors.title("milliseconds   forward  backward"));
    for (stage, forward, backward) in stages(findings) {
        let backward = backward.map_or_else(|| format!("{:>10}", "–"), |time| format!("{:>10.3}", milliseconds(time)));
        let _ = writeln!(page, "  {stage:<12}{:>10.3}{backward}", milliseconds(forward));
    }
    let _ = writeln!(
        page,
        "  {:<12}{:>10.3}{:>10.3}   on {}\n",
        "together",
        milliseconds(times.forward()),
        milliseconds(times.backward()),
        findings.device
    );
}

/// Name, forward and backward of each stage.
pub(super) fn stages(findings: &Findings<'_>) -> [(&'static str, Duration, Option<Duration>); 5] {
    let times = &findings.times;
    [
        ("importance", times.importance, None),
        ("gate", times.gate, Some(times.gate_backward)),
        ("permute", times.permute, Some(times.permute_backward)),
        ("experts", times.experts, Some(times.experts_backward)),
        ("combine", times.combine, Some(times.combine_backward)),
    ]
}

fn verdict(page: &mut String, findings: &Findings<'_>, columns: usize) {
    match &findings.verdict {
        Ok(figures) => {
            let _ = writeln!(page, "  agrees with the f64 oracle; relative errors (allowed):");
            let parts = figures.iter().map(|f| format!("{} {:.1e} ({:.1e})", f.name, f.error, f.bound));
            let mut line = String::new();
            for part in parts {
                if !line.is_empty() && line.width() + part.width() + 5 > columns {
                    let _ = writeln!(page, "  {line},");
                    line.clear();
                }
                line = if line.is_empty() { part } else { format!("{line}, {part}") };
            }
            let _ = writeln!(page, "  {line}");
        }
        Err(mismatches) => {
            let _ = writeln!(page, "  DISAGREES with the f64 oracle:");
            for mismatch in mismatches.iter().take(5) {
                let _ = writeln!(page, "  {mismatch}");
            }
        }
    }
}

/// A bar of `share · width` columns, in eighths.
fn blocks(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// 12345 as 12,345.
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn milliseconds(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_bars() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(blocks(0.5, 3), "█▌");
    }
}
