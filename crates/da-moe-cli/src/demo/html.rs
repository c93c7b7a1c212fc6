//! The demo as a web page: the whole text as a heat map, every figure beside it. One file, nothing to load.

use super::findings::{Findings, Word};
use super::layer::{EXPERTS, K_MAX};
use super::svg::{saving, subtitle, verdict};
use super::terminal::{grouped, stages};
use crate::canvas::escape;
use crate::ramp;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// The page, which is also well-formed XML.
pub(super) fn page(findings: &Findings<'_>) -> String {
    let sections = [heat_map(findings), cards(findings), oracle(findings)].join("\n");
    format!(
        r#"<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>Important tokens get more experts</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<h1>Important tokens get more experts</h1>
<p class="lead">{subtitle}. The number under a word is its number of experts; the darker, the more attention it draws.</p>
{sections}
</main>
</body>
</html>
"#,
        subtitle = escape(&subtitle(findings))
    )
}

// Writing to a string cannot fail, so the results of `write!` below carry no news.

fn heat_map(findings: &Findings<'_>) -> String {
    let mut html = legend() + "<article>\n";
    for paragraph in &findings.text.paragraphs {
        html += "<p><span class=\"run\">";
        let mut after_word = false;
        for token in paragraph.clone() {
            let (word, importance, k) = (&findings.text.tokens[token], findings.importance[token], findings.k[token]);
            // Punctuation stays on the line of the word that it touches.
            if token > paragraph.start && (word.spaced || (word.is_word && after_word)) {
                let space = if word.spaced { " " } else { "" };
                let _ = write!(html, r#"</span>{space}<span class="run">"#);
            }
            after_word = word.is_word;
            let (background, ink) = ramp::field(importance);
            let _ = write!(
                html,
                r#"<span class="token" title="importance {importance:.3}, {k} of {EXPERTS} experts"><span style="background:{};color:{}">{}</span><small>{k}</small></span>"#,
                ramp::hex(background),
                ramp::hex(ink),
                escape(&word.text)
            );
        }
        html += "</span></p>\n";
    }
    html + "</article>"
}

fn legend() -> String {
    let stops: Vec<_> = (0..=24).map(|step| ramp::hex(ramp::field(step as f32 / 24.0).0)).collect();
    let mut html = format!(
        "<div class=\"legend\"><span>importance 0</span><i style=\"background:linear-gradient(90deg,{})\"></i>\
         <span>1, the strongest token of its paragraph</span></div>\n<p class=\"quiet\">",
        stops.join(",")
    );
    for k in 1..=K_MAX {
        let _ = match k {
            1 => write!(html, "1 expert up to an importance of 1/{EXPERTS}"),
            K_MAX => write!(html, ", {k} above."),
            _ => write!(html, ", {k} up to {k}/{EXPERTS}"),
        };
    }
    html + "</p>\n"
}

fn cards(findings: &Findings<'_>) -> String {
    let most: Vec<&Word> = findings.most_important().iter().collect();
    let cards = [
        ("Experts per token", distribution(findings)),
        ("Rows through the experts", rows(findings)),
        ("Most important", table(&most)),
        ("Least important", table(&findings.least_important())),
        ("Load of the experts", load(findings)),
        ("Time per stage", times(findings)),
    ];
    let cards = cards.map(|(title, body)| format!("<section><h2>{title}</h2>\n{body}</section>\n"));
    format!("<div class=\"cards\">\n{}</div>", cards.concat())
}

/// A line of a bar chart.
fn bar(name: &str, share: f64, class: &str, note: &str) -> String {
    let width = 100.0 * share.clamp(0.0, 1.0);
    format!(
        "<tr><th>{}</th><td class=\"bar\"><i class=\"{class}\" style=\"width:{width:.1}%\"></i></td><td>{}</td></tr>\n",
        escape(name),
        escape(note)
    )
}

fn distribution(findings: &Findings<'_>) -> String {
    let most = findings.histogram.iter().copied().max().unwrap_or(1).max(1) as f64;
    let total = findings.k.len().max(1) as f64;
    let line = |(level, count): (usize, &usize)| {
        let note = format!("{} ({:.0}%)", grouped(*count), 100.0 * *count as f64 / total);
        bar(&format!("k = {}", level + 1), *count as f64 / most, "", &note)
    };
    format!("<table>{}</table>\n", findings.histogram.iter().enumerate().map(line).collect::<String>())
}

fn rows(findings: &Findings<'_>) -> String {
    let fixed = findings.fixed();
    let most = fixed.iter().map(|fixed| fixed.rows).max().unwrap_or(1).max(1) as f64;
    let mut lines = bar("dynamic k", findings.rows as f64 / most, "", &grouped(findings.rows));
    for fixed in fixed {
        let note = format!("{}: {}", grouped(fixed.rows), saving(&fixed));
        lines += &bar(&format!("fixed top-{}", fixed.k), fixed.rows as f64 / most, "pale", &note);
    }
    format!("<table>{lines}</table>\n")
}

fn load(findings: &Findings<'_>) -> String {
    let most = findings.load.iter().copied().max().unwrap_or(1).max(1) as f64;
    let line = |(expert, count): (usize, &usize)| bar(&expert.to_string(), *count as f64 / most, "", &grouped(*count));
    format!("<table>{}</table>\n", findings.load.iter().enumerate().map(line).collect::<String>())
}

fn table(words: &[&Word]) -> String {
    let mut html = String::from("<table><tr><td></td><td>importance</td><td>k</td><td>times</td></tr>\n");
    for word in words {
        let (background, ink) = ramp::field(word.importance as f32);
        let _ = writeln!(
            html,
            r#"<tr><th><span style="background:{};color:{}">{}</span></th><td>{:.3}</td><td>{:.1}</td><td>{}</td></tr>"#,
            ramp::hex(background),
            ramp::hex(ink),
            escape(&word.text),
            word.importance,
            word.mean_k,
            grouped(word.count)
        );
    }
    html + "</table>\n"
}

fn times(findings: &Findings<'_>) -> String {
    let mut html = String::from("<table><tr><td></td><td>forward</td><td>backward</td></tr>\n");
    let cell = |time: std::time::Duration| format!("{:.3} ms", 1e3 * time.as_secs_f64());
    for (stage, forward, backward) in stages(findings) {
        let backward = backward.map_or_else(|| "–".into(), cell);
        let _ = writeln!(html, "<tr><th>{stage}</th><td>{}</td><td>{backward}</td></tr>", cell(forward));
    }
    let _ = writeln!(
        html,
        "<tr><th>together</th><td>{}</td><td>{}</td></tr></table>\n<p class=\"quiet\">on {}</p>",
        cell(findings.times.forward()),
        cell(findings.times.backward()),
        escape(&findings.device)
    );
    html
}

fn oracle(findings: &Findings<'_>) -> String {
    let mut html = format!("<section class=\"oracle\"><h2>{}</h2>\n", escape(&verdict(findings)));
    match &findings.verdict {
        Ok(figures) => {
            html += "<table><tr><td></td><td>relative error</td><td>allowed</td></tr>\n";
            for figure in figures {
                let _ = writeln!(
                    html,
                    "<tr><th>{}</th><td>{:.1e}</td><td>{:.1e}</td></tr>",
                    escape(figure.name),
                    figure.error,
                    figure.bound
                );
            }
            html += "</table>\n";
        }
        Err(mismatches) => {
            for mismatch in mismatches.iter().take(20) {
                let _ = writeln!(html, "<p>{}</p>", escape(&mismatch.to_string()));
            }
        }
    }
    html + "</section>"
}
