//! Macros, of which the 128 accumulators of a `wgmma` are made: what the preprocessor gives, and that in short.

use std::env;
use std::io::Write;
use std::process::Stdio;

/// A part of a header with its macros expanded, but for the mark of a wrapper.
pub fn preprocessed(part: &str) -> String {
    let kept: Vec<&str> = part.lines().filter(|line| !line.starts_with("#define PTX_FN")).collect();
    // What a build script would be told by cargo.
    let target = format!(
        "{}-{}",
        env::consts::ARCH,
        if cfg!(target_os = "macos") { "apple-darwin" } else { "unknown-linux-gnu" }
    );
    let compiler = cc::Build::new().cpp(true).std("c++17").target(&target).host(&target).opt_level(0).get_compiler();
    let mut command = compiler.to_command();
    command.args(["-E", "-P", "-x", "c++", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a C++ compiler");
    child.stdin.take().expect("its input").write_all(kept.join("\n").as_bytes()).expect("a part of a file");
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "the preprocessor");
    format!("\n{}", String::from_utf8(output.stdout).expect("text"))
}

/// A text in which a list of 128 things that differ by their numbers alone, in order, is its ends with `…` between.
pub fn shortened(text: &str) -> String {
    let text = with_sums_done(text);
    let in_short = |text: String, thing: &dyn Fn(usize) -> String, between: &str| {
        let list = (0..128).map(thing).collect::<Vec<_>>().join(between);
        text.replace(&list, &format!("{}…{}", thing(0), thing(127)))
    };
    let text = in_short(text, &|i| format!("%{i}"), ", ");
    let text = in_short(text, &|i| format!("\"+f\"(d[{i}])"), ",");
    in_short(text, &|i| format!("\"=f\"(d[{i}])"), ",")
}

/// `d[96 + 8 + 7]` is `d[111]`.
fn with_sums_done(text: &str) -> String {
    let mut pieces = text.split('[');
    let mut done = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let (index, rest) = piece.split_once(']').unwrap_or((piece, ""));
        let sum: Option<usize> = index.split('+').map(|term| term.trim().parse::<usize>().ok()).sum();
        let index = sum.map_or_else(|| index.to_string(), |sum| sum.to_string());
        let close = if piece.contains(']') { "]" } else { "" };
        done.extend(["[", &index, close, rest]);
    }
    done
}

#[test]
fn lists_are_shortened() {
    let list: Vec<String> = (0..128).map(|i| format!("\"=f\"(d[{} + {}])", i / 8 * 8, i % 8)).collect();
    assert_eq!(shortened(&list.join(",")), r#""=f"(d[0])…"=f"(d[127])"#);
    let mut swapped = list;
    swapped.swap(3, 4);
    assert!(!shortened(&swapped.join(",")).contains('…'));
    assert_eq!(shortened("a [%0], [%1, {%3}], in[0 + 1]"), "a [%0], [%1, {%3}], in[1]");
}
