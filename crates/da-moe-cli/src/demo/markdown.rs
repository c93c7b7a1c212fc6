//! The sentences of a Markdown page: paragraphs and list items, without code blocks, tables and headings.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// The prose of `page`, a blank line between paragraphs.
pub(super) fn prose(page: &str) -> String {
    let mut text = String::new();
    let mut skipping = 0;
    for event in Parser::new_ext(page, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::CodeBlock(_) | Tag::Table(_) | Tag::Heading { .. }) => skipping += 1,
            Event::End(TagEnd::CodeBlock | TagEnd::Table | TagEnd::Heading(_)) => skipping -= 1,
            Event::End(TagEnd::Paragraph | TagEnd::Item) => text.push_str("\n\n"),
            Event::Text(words) | Event::Code(words) if skipping == 0 => text.push_str(&words),
            Event::SoftBreak | Event::HardBreak if skipping == 0 => text.push(' '),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_sentences_remain() {
        let page =
            "# Title\n\nOne [link](there)\nand `code`.\n\n```sh\nnot this\n```\n\n- An item.\n\n|a|b|\n|-|-|\n|c|d|\n";
        assert_eq!(super::prose(page), "One link and code.\n\nAn item.\n\n");
    }
}
