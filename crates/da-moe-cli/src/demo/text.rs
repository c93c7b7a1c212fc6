//! Splitting text into paragraphs, sentences and tokens, by the Unicode rules (UAX #29).

use crate::{Error, Result};
use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

/// Tokens that a sequence has at least, if the text has them.
const SHORTEST: usize = 16;
/// Tokens that a sequence has at most: the work of attention, and far more the oracle's, grows with the square.
const LONGEST: usize = 256;

/// A word, a number or a punctuation mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    /// Has a letter or a digit.
    pub(super) is_word: bool,
    /// Whether white space stood before it.
    pub(super) spaced: bool,
}

impl Token {
    /// How the token is counted: capitals at the start of a sentence make no other word.
    pub(super) fn folded(&self) -> String {
        self.text.to_lowercase()
    }
}

/// A text as a packed batch of sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) tokens: Vec<Token>,
    /// Token ranges, in order.
    pub(super) paragraphs: Vec<Range<usize>>,
    /// Token ranges, in order.
    pub(super) sentences: Vec<Range<usize>>,
    /// How many tokens the text has; more than `tokens` where it was cut.
    pub(super) total: usize,
}

impl Text {
    /// The first `limit` tokens of `source`.
    ///
    /// # Errors
    /// [`Error::Text`] when there is no word in it.
    pub(super) fn split(source: &str, limit: usize) -> Result<Self> {
        let clean: String = source.chars().filter(|c| is_printable(*c)).collect();
        let mut text = Self::default();
        for paragraph in paragraphs(&clean) {
            let first = text.tokens.len();
            // Line breaks inside a paragraph are spaces, and end no sentence.
            let flowing = paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            for sentence in flowing.split_sentence_bounds() {
                let start = text.tokens.len();
                text.push_tokens(sentence, limit);
                text.sentences.extend(non_empty(start..text.tokens.len()));
            }
            text.paragraphs.extend(non_empty(first..text.tokens.len()));
        }
        match text.tokens.iter().any(|token| token.is_word) {
            true => Ok(text),
            false => Err(Error::Text("has no words in it")),
        }
    }

    fn push_tokens(&mut self, sentence: &str, limit: usize) {
        let mut spaced = true;
        for piece in sentence.split_word_bounds() {
            if piece.chars().all(char::is_whitespace) {
                spaced = true;
                continue;
            }
            self.total += 1;
            if self.tokens.len() < limit {
                let is_word = piece.chars().any(char::is_alphanumeric);
                self.tokens.push(Token { text: piece.into(), is_word, spaced });
            }
            spaced = false;
        }
    }

    /// Token ranges within which tokens see each other: paragraphs, but headings and other short ones join what follows,
    /// because importance is relative and among three tokens each is important, and long ones are cut evenly.
    pub(super) fn sequences(&self) -> Vec<Range<usize>> {
        let mut sequences: Vec<Range<usize>> = Vec::new();
        for (index, paragraph) in self.paragraphs.iter().enumerate() {
            let is_last = index + 1 == self.paragraphs.len();
            match sequences.last_mut() {
                Some(open) if open.len() < SHORTEST || (is_last && paragraph.len() < SHORTEST) => {
                    open.end = paragraph.end;
                }
                _ => sequences.push(paragraph.clone()),
            }
        }
        sequences.into_iter().flat_map(pieces).collect()
    }

    /// `[B + 1]`: first token of each sequence, and the end.
    pub(super) fn cu_seqlens(&self) -> Vec<i32> {
        let starts = self.sequences().into_iter().map(|range| range.start);
        starts.chain([self.tokens.len()]).map(|start| start as i32).collect()
    }
}

/// `range` in the fewest equal pieces that are not too long.
fn pieces(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let length = range.len().div_ceil(range.len().div_ceil(LONGEST).max(1)).max(1);
    range.clone().step_by(length).map(move |start| start..(start + length).min(range.end))
}

fn non_empty(range: Range<usize>) -> Option<Range<usize>> {
    (!range.is_empty()).then_some(range)
}

/// Blocks between blank lines.
fn paragraphs(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match (line.trim().is_empty(), blocks.last_mut()) {
            (false, Some(block)) => {
                block.push_str(line);
                block.push('\n');
            }
            _ => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// Leaves out what could move the cursor of a terminal, turn its writing direction or is not allowed in XML.
fn is_printable(c: char) -> bool {
    let is_direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_noncharacter = matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{feff}');
    matches!(c, '\n' | '\t' | '\r') || !(c.is_control() || is_direction || is_noncharacter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &Text) -> Vec<&str> {
        text.tokens.iter().map(|token| token.text.as_str()).collect()
    }

    #[test]
    fn words_sentences_and_paragraphs() {
        let text = Text::split("Don't wait,\nit costs 3.5 francs! Go.\n\n\n  Then stop.", 100).unwrap();
        let expected = ["Don't", "wait", ",", "it", "costs", "3.5", "francs", "!", "Go", ".", "Then", "stop", "."];
        assert_eq!(words(&text), expected);
        assert_eq!(text.sentences, [0..8, 8..10, 10..13]);
        assert_eq!(text.paragraphs, [0..10, 10..13]);
        assert_eq!(text.cu_seqlens(), [0, 13]);
        assert!(!text.tokens[2].spaced && text.tokens[3].spaced && !text.tokens[2].is_word);
    }

    #[test]
    fn headings_join_what_they_head() {
        let long = "word ".repeat(20);
        let text = Text::split(&format!("Title\n\n{long}\n\nAnother\n\n{long}\n\nThe end."), 100).unwrap();
        assert_eq!(text.paragraphs.len(), 5);
        assert_eq!(text.cu_seqlens(), [0, 21, 45]);
    }

    #[test]
    fn long_paragraphs_are_cut_evenly() {
        let text = Text::split(&"word ".repeat(600), 1000).unwrap();
        assert_eq!(text.cu_seqlens(), [0, 200, 400, 600]);
    }

    #[test]
    fn a_long_text_is_cut() {
        let text = Text::split("a b c d\n\ne f", 3).unwrap();
        assert_eq!((words(&text), text.total, text.paragraphs.len()), (vec!["a", "b", "c"], 6, 1));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let text = Text::split("\u{1b}[31mred\u{202e} \u{0}end", 100).unwrap();
        assert!(words(&text).concat().chars().all(|c| !c.is_control() && c != '\u{202e}'));
    }

    #[test]
    fn a_text_without_words_is_refused() {
        for empty in ["", " \n\n", "... !", "\u{1b}\u{0}"] {
            assert!(matches!(Text::split(empty, 9), Err(Error::Text(_))), "{empty:?}");
        }
    }
}
