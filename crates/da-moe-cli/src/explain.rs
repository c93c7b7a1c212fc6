//! `da-moe explain`: what a trained model makes of a text.

use crate::args::ExplainArgs;
use crate::canvas::{Align, Canvas, INK, QUIET, Type, escape};
use crate::heat_map::{self, Cell, Colors, Rank};
use crate::ramp;
use crate::run::output::replace;
use crate::{Error, Result, ahead, memory};
use anstream::AutoStream;
use da_moe_train::{Checkpoint, Explained, Piece, explain};
use std::fmt::Write as _;
use std::io::{self, Write as _};

pub(crate) fn execute(arguments: &ExplainArgs) -> Result<()> {
    let model = arguments.model.display();
    if arguments.model.is_dir() {
        let problem = "is a folder: name the checkpoint in it, such as `dynamic/checkpoint.safetensors`";
        return Err(Error::Usage(format!("--model `{model}` {problem}")));
    }
    if arguments.model.try_exists().is_ok_and(|is_there| !is_there) {
        let remedy = "`da-moe train` writes one; or name another with --model";
        return Err(Error::Usage(format!("there is no checkpoint `{model}`: {remedy}")));
    }
    for (option, path) in [("--svg", &arguments.svg), ("--html", &arguments.html)] {
        path.iter().try_for_each(|path| ahead::is_another(option, path, Some(&arguments.model)))?;
    }
    let checkpoint = Checkpoint::read(&arguments.model)?;
    memory::expect_room("this model's sequences", checkpoint.sequence_bytes()?)?;
    let explained = explain(&checkpoint, &arguments.text)?;
    if let Some(path) = &arguments.svg {
        replace(path, picture(&explained).as_bytes())?;
    }
    if let Some(path) = &arguments.html {
        replace(path, html(&explained).as_bytes())?;
    }
    let page = page(&explained, Colors::of_stdout(), heat_map::columns());
    AutoStream::auto(io::stdout()).write_all(page.as_bytes()).map_err(Error::Stdout)
}

/// Tokens with importance relative to the text's largest, over their mean number of experts.
pub(crate) fn cells(explained: &Explained) -> Vec<Cell<'_>> {
    let most = explained.pieces.iter().map(Piece::importance).fold(f32::MIN_POSITIVE, f32::max);
    let ks = || explained.pieces.iter().map(Piece::mean_k);
    let (low, high) = (ks().fold(f64::INFINITY, f64::min), ks().fold(0.0, f64::max));
    let cell = |piece: &'_ Piece| {
        let k = piece.mean_k();
        let rank = if k >= high {
            Rank::Most
        } else if k <= low {
            Rank::Least
        } else {
            Rank::More
        };
        (piece.importance() / most, format!("{k:.1}").replace(".0", ""), rank)
    };
    let made = explained.pieces.iter().map(|piece| (piece, cell(piece)));
    made.map(|(piece, (importance, experts, rank))| Cell { text: &piece.text, importance, experts, rank }).collect()
}

// Writing to a string cannot fail, so the results of `writeln!` below carry no news.

fn page(explained: &Explained, colors: Colors, columns: usize) -> String {
    let mut page = String::new();
    heat_map::write(&mut page, &cells(explained), colors, columns);
    let _ = writeln!(page, "{}", colors.title("token             layer  importance  k  experts (weight)"));
    for piece in &explained.pieces {
        for (layer, given) in piece.layers.iter().enumerate() {
            let name = if layer == 0 { heat_map::shortened(&piece.text, 16) } else { String::new() };
            let _ = writeln!(
                page,
                "{name:<16}  {:>5}  {:>10.3}  {}  {}",
                layer + 1,
                given.importance,
                given.k,
                experts(&given.experts)
            );
        }
    }
    page
}

fn experts(experts: &[(usize, f32)]) -> String {
    experts.iter().map(|(expert, weight)| format!("{expert} ({weight:.2})")).collect::<Vec<_>>().join(", ")
}

fn picture(explained: &Explained) -> String {
    const WIDTH: f64 = 1080.0;
    const MARGIN: f64 = 40.0;
    let title = "Importance, and experts of a token";
    let mut canvas = Canvas::default();
    canvas.text([MARGIN, 52.0], Align::Left, Type { size: 22.0, bold: true, color: INK }, title);
    let note = Type { size: 13.0, bold: false, color: QUIET };
    canvas.text(
        [MARGIN, 74.0],
        Align::Left,
        note,
        "shade: importance relative to the strongest token; below: experts, mean over layers",
    );
    let bottom = heat_map::draw(&mut canvas, &cells(explained), [MARGIN, WIDTH - MARGIN], 100.0);
    canvas.document(WIDTH, bottom + 30.0, title)
}

fn html(explained: &Explained) -> String {
    let mut body = String::new();
    for (piece, cell) in explained.pieces.iter().zip(cells(explained)) {
        let (background, ink) = ramp::field(cell.importance);
        let layers: Vec<String> = piece
            .layers
            .iter()
            .enumerate()
            .map(|(layer, given)| {
                format!("layer {}: importance {:.3}, experts {}", layer + 1, given.importance, experts(&given.experts))
            })
            .collect();
        let _ = writeln!(
            body,
            r#"<span class="token" title="{}"><span style="background:{};color:{}">{}</span><small>{}</small></span>"#,
            escape(&layers.join("; ")),
            ramp::hex(background),
            ramp::hex(ink),
            escape(&piece.text),
            cell.experts
        );
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Importance, and experts of a token</title>\n<style>\n\
         body {{ font: 18px/1.2 Helvetica, Arial, sans-serif; max-width: 60rem; margin: 3rem auto; color: {INK} }}\n\
         .token {{ display: inline-block; text-align: center; margin: 0 2px 12px }}\n\
         .token span {{ display: block; padding: 3px 7px; border-radius: 5px; white-space: pre }}\n\
         small {{ color: {QUIET} }}\n</style>\n<h1>Importance, and experts of a token</h1>\n\
         <p>Shade: importance relative to the strongest token. Below: experts, mean over layers; point at a token for each layer.</p>\n\
         <p>\n{body}</p>\n</html>\n"
    )
}
