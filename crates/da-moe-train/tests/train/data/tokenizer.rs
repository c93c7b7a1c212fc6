//! Any text comes back, and the same texts give the same tokenizer.

use super::*;

proptest! {
    #[test]
    fn any_text_comes_back(text in any::<String>(), learnt in any::<String>()) {
        let tokenizer = Tokenizer::train(&[learnt, text.clone()], 300).unwrap();
        let ids = tokenizer.encode(&text);
        prop_assert_eq!(tokenizer.decode(&ids), text);
        prop_assert!(ids.iter().all(|&id| (Tokenizer::SPECIALS..tokenizer.vocabulary() as u32).contains(&id)));
    }

    #[test]
    fn saved_and_loaded_it_is_the_same(text in any::<String>(), vocabulary in Tokenizer::LEAST..400) {
        let tokenizer = Tokenizer::train(&[text], vocabulary).unwrap();
        prop_assert_eq!(&Tokenizer::from_json(&tokenizer.to_json()).unwrap(), &tokenizer);
    }

    /// As the definition has it, without the bookkeeping that makes it fast: count all pairs, merge, again.
    #[test]
    fn merges_are_those_of_the_definition(words in prop::collection::vec("[ab]{1,6}", 1..12), extra in 0..20_usize) {
        let mut pieces: Vec<Vec<String>> =
            words.iter().map(|word| word.chars().map(String::from).collect()).collect();
        let mut expected = Vec::new();
        while expected.len() < extra {
            let mut counts = BTreeMap::new();
            for piece in &pieces {
                for pair in piece.windows(2) {
                    *counts.entry((pair[0].clone(), pair[1].clone())).or_insert(0) += 1;
                }
            }
            // Of equally frequent pairs that which was there first, letters in their order.
            let age = |part: &String| match expected.iter().position(|merge| merge == part) {
                Some(place) => place as i64,
                None => i64::from(part.as_bytes()[0]) - 256,
            };
            let best = counts.iter().max_by_key(|((left, right), count)| (**count, -age(left), -age(right)));
            let Some(((left, right), 2..)) = best else { break };
            let (left, right) = (left.clone(), right.clone());
            for piece in &mut pieces {
                let mut merged: Vec<String> = Vec::new();
                for part in piece.drain(..) {
                    match merged.last_mut() {
                        Some(last) if *last == left && part == right => last.push_str(&part),
                        _ => merged.push(part),
                    }
                }
                *piece = merged;
            }
            expected.push(format!("{left}{right}"));
        }
        // Two merges of one text, as `a`+`ba` and `ab`+`a`, are two tokens, which these strings cannot tell apart.
        prop_assume!(expected.iter().collect::<BTreeSet<_>>().len() == expected.len());

        let texts: Vec<String> = words.iter().map(|word| format!("\n{word}")).collect();
        let tokenizer = Tokenizer::train(&texts, Tokenizer::LEAST + extra).unwrap();
        let learnt = Tokenizer::LEAST as u32..tokenizer.vocabulary() as u32;
        prop_assert_eq!(learnt.map(|id| tokenizer.token(id)).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn the_order_of_texts_does_not_matter() {
    let mut texts = own_documentation().train;
    let there = Tokenizer::train(&texts, 700).unwrap();
    texts.reverse();
    assert_eq!(Tokenizer::train(&texts, 700).unwrap(), there);
    assert_eq!(there.vocabulary(), 700);
}

/// A tokenizer in a checkpoint must go on encoding as it did.
#[test]
fn these_ids_are_for_ever() {
    let tokenizer = Tokenizer::train(&["the cat, the hat: that\n".repeat(3)], 268).unwrap();
    let ids = tokenizer.encode("the cat's é");
    assert_eq!(
        tokenizer.to_json(),
        r#"{"byte_pairs":[[101,120],[120,108],[36,261],[36,103],[36,108],[261,105],[262,105],[262,260]]}"#
    );
    assert_eq!(ids, [265, 263, 260, 43, 119, 36, 199, 173]);
}

#[test]
fn learning_shortens_text() {
    let documentation = own_documentation();
    let text = documentation.held_out.concat();
    let ids = documentation_tokenizer(1024).encode(&text);
    let bytes_per_token = text.len() as f64 / ids.len() as f64;
    assert!(bytes_per_token > 2.0, "{bytes_per_token} bytes per token");
}

#[test]
fn the_names_of_special_tokens_are_text_like_any_other() {
    let tokenizer = Tokenizer::train(&["[MASK] [MASK] [PAD] [PAD]".into()], 300).unwrap();
    let ids = tokenizer.encode("[MASK][PAD]");
    assert!(ids.iter().all(|&id| id >= Tokenizer::SPECIALS));
    assert_eq!(tokenizer.decode(&ids), "[MASK][PAD]");
}

#[test]
fn every_token_can_be_shown() {
    let tokenizer = documentation_tokenizer(Tokenizer::LEAST + 1);
    assert_eq!(tokenizer.token(Tokenizer::MASK), "[MASK]");
    let byte = |byte: u8| tokenizer.token(Tokenizer::SPECIALS + u32::from(byte));
    assert_eq!([byte(b'a'), byte(b' '), byte(b'\n'), byte(0xE2)], ["a", " ", "\\n", "\\xE2"]);
    assert_eq!(tokenizer.token(4_000_000_000), "[4000000000]");
    assert_eq!(tokenizer.decode(&[Tokenizer::START, byte_id(b'a'), Tokenizer::BREAK, 4_000_000_000]), "a");
}

fn byte_id(byte: u8) -> u32 {
    Tokenizer::SPECIALS + u32::from(byte)
}

#[test]
fn impossible_tokenizers_are_refused() {
    assert_eq!(
        refusal(Tokenizer::train(&[], 259)),
        "a vocabulary of 259 tokens: at least 260 are needed, for the special tokens and each byte"
    );
    let refused = |json: &str| refusal(Tokenizer::from_json(json));
    let doubling: Vec<String> = (259..300).map(|id| format!("[{id},{id}]")).collect();
    for (json, problem) in [
        ("{}".to_owned(), "missing field `byte_pairs`"),
        (r#"{"byte_pairs":[[1,5]]}"#.into(), "merge 0 of (1, 5) is not of two earlier tokens"),
        (r#"{"byte_pairs":[[5,260]]}"#.into(), "merge 0 of (5, 260) is not of two earlier tokens"),
        (r#"{"byte_pairs":[[5,6],[5,6]]}"#.into(), "merge 1 of (5, 6) is there twice"),
        (format!("{{\"byte_pairs\":[{}]}}", doubling.join(",")), "merge 5 of (264, 264) makes a token longer"),
    ] {
        assert!(refused(&json).contains(problem), "{json}: {}", refused(&json));
    }
}
