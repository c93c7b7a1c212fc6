//! `da-moe demo`: the layer at work on a text, checked against the oracle.

mod findings;
mod html;
mod layer;
mod markdown;
mod svg;
mod terminal;
mod text;
mod vectors;

use crate::args::DemoArgs;
use crate::heat_map::{self, Colors};
use crate::run::output::replace;
use crate::{Error, Result, ahead};
use anstream::AutoStream;
use da_moe_train::pointer;
use findings::Findings;
use indicatif::ProgressBar;
use layer::Setup;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use text::Text;

const DEFAULT_TEXT: &str = include_str!("../../README.md");

/// Tokens used at most: the oracle is slow on purpose.
const MOST_TOKENS: usize = 2048;

pub(crate) fn execute(arguments: &DemoArgs) -> Result<()> {
    for (option, path) in [("--svg", &arguments.svg), ("--html", &arguments.html)] {
        path.iter().try_for_each(|path| ahead::is_another(option, path, arguments.text.as_deref()))?;
    }
    let source = match &arguments.text {
        None => markdown::prose(DEFAULT_TEXT),
        Some(path) => read(path)?,
    };
    let text = Text::split(&source, MOST_TOKENS)?;
    // Drawn on stderr, and only where that is a terminal.
    let progress = ProgressBar::new_spinner().with_message("the layer, then the oracle");
    progress.enable_steady_tick(Duration::from_millis(100));
    let setup = Setup::new(&text);
    let computed = setup.run(arguments.device)?;
    let findings = Findings::new(&text, &setup, computed)?;
    progress.finish_and_clear();

    show(&findings)?;
    if let Some(path) = &arguments.svg {
        replace(path, svg::picture(&findings).as_bytes())?;
    }
    if let Some(path) = &arguments.html {
        replace(path, html::page(&findings).as_bytes())?;
    }
    match &findings.verdict {
        Ok(_) => Ok(()),
        Err(mismatches) => {
            let first = mismatches.first().map(ToString::to_string).unwrap_or_default();
            Err(Error::Check(format!("the layer disagrees with the oracle: {first}")))
        }
    }
}

/// A text file, or standard input for `-`.
pub(crate) fn read(path: &Path) -> Result<String> {
    let text = match path.as_os_str() == "-" {
        true => io::read_to_string(io::stdin()),
        false => pointer::read_to_string(path),
    };
    text.map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

fn show(findings: &Findings<'_>) -> Result<()> {
    let page = terminal::page(findings, Colors::of_stdout(), heat_map::columns());
    AutoStream::auto(io::stdout()).write_all(page.as_bytes()).map_err(Error::Stdout)
}
