//! Text to batches: what is read, what is refused, and that everything is a function of its arguments.

#[path = "data/glue.rs"]
mod glue_files;
mod tokenizer;

use da_moe_train::Corpus;
use da_moe_train::data::{
    Blocks, DataError, Example, LABELLED_SETS, Labelled, PROSE_SETS, Prose, Tokenizer, glue, labelled, mask_tokens,
    own_documentation, prose, prose_from_text,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// A new folder for the calling test, with these files.
fn folder(files: &[(&str, &str)]) -> PathBuf {
    let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("data").join(test);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn refusal<T: std::fmt::Debug>(result: Result<T, DataError>) -> String {
    result.unwrap_err().to_string()
}

fn documentation_tokenizer(vocabulary: usize) -> Tokenizer {
    Tokenizer::train(&own_documentation().train, vocabulary).unwrap()
}

mod blocks {
    use super::*;

    fn documents(lengths: &[usize]) -> Vec<Vec<u32>> {
        let mut next = 100..;
        lengths.iter().map(|&length| next.by_ref().take(length).collect()).collect()
    }

    proptest! {
        #[test]
        fn blocks_hold_the_documents_in_order(lengths in prop::collection::vec(0..40_usize, 0..20), length in 2..12_usize) {
            let documents = documents(&lengths);
            let stream = documents.iter().filter(|document| !document.is_empty()).cloned().collect::<Vec<_>>();
            let stream = stream.join(&Tokenizer::BREAK);
            match Blocks::pack(&documents, length) {
                Err(error) => prop_assert!(stream.len() < length - 1, "{error}"),
                Ok(blocks) => {
                    prop_assert_eq!(blocks.count(), stream.len() / (length - 1));
                    let packed: Vec<u32> = blocks.ids().chunks(length).flat_map(|block| block[1..].to_vec()).collect();
                    prop_assert_eq!(&packed, &stream[..packed.len()]);
                    prop_assert!(blocks.ids().chunks(length).all(|block| block[0] == Tokenizer::START));
                }
            }
        }

        #[test]
        fn each_epoch_has_every_block_once(count in 1..50_usize, batch_size in 1..8_usize, seed in any::<u64>()) {
            let blocks = Blocks::pack(&documents(&[count * 3]), 4).unwrap();
            let steps = (count * 2).div_ceil(batch_size) as u64;
            let visits: Vec<Vec<u32>> = (0..steps)
                .flat_map(|step| blocks.batch(step, batch_size, seed).chunks(4).map(Vec::from).collect::<Vec<_>>())
                .collect();
            for epoch in visits.chunks_exact(count) {
                prop_assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), count);
            }
        }
    }

    #[test]
    fn a_step_does_not_depend_on_the_steps_before() {
        let blocks = Blocks::pack(&documents(&[1000, 500]), 16).unwrap();
        let through: Vec<Vec<u32>> = (0..100).map(|step| blocks.batch(step, 6, 9)).collect();
        let resumed: Vec<Vec<u32>> = (60..100).map(|step| blocks.batch(step, 6, 9)).collect();
        assert_eq!(through[60..], resumed);
        assert_ne!(through[0], blocks.batch(0, 6, 10), "another seed, another order");
        let epochs = [0, 1].map(|epoch| blocks.batch(epoch, blocks.count(), 9));
        assert_ne!(epochs[0], epochs[1], "another epoch, another order");
    }

    #[test]
    fn what_fills_no_block_is_refused() {
        assert_eq!(
            refusal(Blocks::pack(&documents(&[3, 2]), 8)),
            "blocks of 8 tokens from 6 tokens of text: too little to fill one"
        );
        assert!(refusal(Blocks::pack(&documents(&[3]), 1)).contains("at least a start and one token"));
        assert!(Blocks::pack(&[], 2).is_err());
        assert!(Blocks::pack(&documents(&[3]), 4).unwrap().batch(u64::MAX, 2, 0).len() == 8);
    }
}

mod masks {
    use super::*;

    proptest! {
        #[test]
        fn special_tokens_are_never_masked_nor_drawn(
            ids in prop::collection::vec(0..300_u32, 0..200), rate in -0.5..1.5_f64, seed in any::<u64>(), step in any::<u64>(),
        ) {
            let masked = mask_tokens(&ids, rate, seed, step, 300);
            prop_assert_eq!(&mask_tokens(&ids, rate, seed, step, 300), &masked);
            let targets: Vec<u32> = masked.positions.iter().map(|&position| ids[position as usize]).collect();
            prop_assert_eq!(&targets, &masked.targets);
            prop_assert!(targets.iter().all(|&id| id >= Tokenizer::SPECIALS));
            prop_assert!(masked.positions.is_sorted_by(|a, b| a < b));
            for (position, (&before, &after)) in ids.iter().zip(&masked.ids).enumerate() {
                let chosen = masked.positions.contains(&(position as u32));
                prop_assert!(chosen || before == after);
                prop_assert!(before == after || after == Tokenizer::MASK || (Tokenizer::SPECIALS..300).contains(&after));
            }
        }
    }

    /// Each share within five standard deviations of a binomial.
    #[test]
    fn rates_are_hit() {
        let ids: Vec<u32> = (0..100_000).map(|position| 4 + position % 996).collect();
        let masked = mask_tokens(&ids, 0.15, 3, 14, 1000);
        let near = |count: usize, of: usize, share: f64| {
            let (expected, deviation) = (of as f64 * share, (of as f64 * share * (1.0 - share)).sqrt());
            assert!((count as f64 - expected).abs() < 5.0 * deviation, "{count} of {of}, expected {expected}");
        };
        let chosen = masked.positions.len();
        near(chosen, ids.len(), 0.15);
        let shown = |position: &u32| masked.ids[*position as usize];
        let hidden = masked.positions.iter().filter(|position| shown(position) == Tokenizer::MASK).count();
        near(hidden, chosen, 0.8);
        let kept = masked.positions.iter().filter(|position| shown(position) == ids[**position as usize]).count();
        near(kept, chosen, 0.1);

        let other_step = mask_tokens(&ids, 0.15, 3, 15, 1000);
        let both = masked.positions.iter().filter(|position| other_step.positions.contains(position)).count();
        near(both, chosen, 0.15);
    }

    #[test]
    fn rates_out_of_range_count_as_the_nearest() {
        let ids = [9; 50];
        let chosen = |rate| mask_tokens(&ids, rate, 0, 0, 10).positions.len();
        assert_eq!([-1.0, 0.0, f64::NAN, 1.0, f64::INFINITY].map(chosen), [0, 0, 0, 50, 50]);
        assert!(mask_tokens(&ids, 1.0, 0, 0, 0).ids.iter().all(|id| [9, Tokenizer::MASK].contains(id)));
    }
}

mod texts {
    use super::*;

    fn all(prose: &Prose) -> BTreeSet<&str> {
        prose.train.iter().chain(&prose.held_out).map(String::as_str).collect()
    }

    #[test]
    fn the_documentation_is_there() {
        let documentation = own_documentation();
        assert!(documentation.train.concat().len() > 30_000);
        assert!(documentation.held_out.len() >= 5);
        assert!(documentation.train.concat().contains("da-moe"));
    }

    proptest! {
        #[test]
        fn paragraphs_are_on_one_side(paragraphs in prop::collection::vec("[a-z]{1,3}( [A-Z]{1,3}){0,2}", 0..60)) {
            let prose = prose_from_text(&paragraphs.join("\n \n\n"));
            let letters = |text: &str| text.to_lowercase().replace(' ', "");
            let side = |texts: &[String]| texts.iter().map(|text| letters(text)).collect::<BTreeSet<_>>();
            let (train, held_out) = (side(&prose.train), side(&prose.held_out));
            prop_assert!(train.is_disjoint(&held_out));
            let given: BTreeSet<String> = paragraphs.iter().map(|text| letters(text)).collect();
            prop_assert_eq!(train.union(&held_out).cloned().collect::<BTreeSet<_>>(), given.clone());
            let expected = if given.len() < 2 { 0 } else { given.len().div_ceil(20) };
            prop_assert_eq!(held_out.len(), expected);
        }
    }

    #[test]
    fn a_paragraph_ends_at_a_blank_line() {
        let prose = prose_from_text("\n# Title\r\n\n \t\nOne\n  two  \n\n\nThree.");
        assert_eq!(all(&prose), BTreeSet::from(["# Title", "One\n  two", "Three."]));
    }

    fn words(count: usize) -> String {
        (0..count)
            .map(|n| ["river", "fox", "bridge", "day"][n * n % 7 % 4].repeat(n % 3 + 1))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_text_may_have_any_ends_of_lines_and_few_paragraphs() {
        let paragraphs = (0..60).map(|n| format!("{} {}", "x".repeat(n), words(20))).collect::<Vec<_>>();
        let usual = prose_from_text(&paragraphs.join("\n\n"));
        assert_eq!(usual.held_out.len(), 3);
        for end in ["\r", "\r\n"] {
            assert_eq!(prose_from_text(&paragraphs.join(&end.repeat(2))), usual, "{end:?}");
        }
        let titled = format!("A title\n\n{}\n\nThe end", words(900));
        for text in [
            words(900),
            titled,
            "世界。".repeat(2000),
            "the cat sat on the mat. ".repeat(300),
            "word ".repeat(400),
            "one line\nand another\n".repeat(300),
        ] {
            let prose = prose_from_text(&text);
            assert!(prose.held_out.concat().len() >= 390, "{} bytes held out", prose.held_out.concat().len());
            assert!(!prose.train.is_empty());
            Corpus::new(&prose, 300, 64).unwrap();
        }
        let kept = |text: &str| text.split_whitespace().map(String::from).collect::<BTreeSet<_>>();
        let prose = prose_from_text(&words(900));
        assert_eq!(kept(&[prose.train, prose.held_out].concat().join(" ")), kept(&words(900)), "words stay whole");
    }

    #[test]
    fn a_text_that_is_too_short_says_how_much_is_needed() {
        let refusal = Corpus::new(&prose_from_text("a few words"), 300, 64).map(drop).unwrap_err().to_string();
        let says = "the text is too short: 11 tokens of it are to train on, at least 63 are needed for a block of 64";
        assert_eq!(refusal, says);
        let refusal = Corpus::new(&prose_from_text(&words(75)), 300, 64).map(drop).unwrap_err().to_string();
        assert!(refusal.contains("0 tokens of it are held out, at least 63"), "{refusal}");
    }

    /// The evaluation's split: another function here would hold out other documents.
    #[test]
    fn these_documents_are_held_out_for_ever() {
        let documents: Vec<String> = (0..60).map(|number| format!("document {}", "x".repeat(number))).collect();
        let held_out = prose_from_text(&documents.join("\n\n")).held_out;
        let lengths: Vec<usize> = held_out.iter().map(|text| text.len() - "document ".len()).collect();
        assert_eq!(lengths, [8, 30, 56]);
    }

    #[test]
    fn sets_come_in_their_order() {
        let files = PROSE_SETS.map(|name| {
            (format!("prose/{name}.jsonl"), format!("{{\"text\":\"{name} a\"}}\n{{\"text\":\"{name} \\\"b\\\"\"}}\n"))
        });
        let files = files.each_ref().map(|(name, content)| (name.as_str(), content.as_str()));
        let prose = prose(&folder(&files)).unwrap();
        let firsts: Vec<&str> = prose.train.iter().map(|text| text.split(' ').next().unwrap()).collect();
        assert_eq!(firsts, PROSE_SETS);
        assert_eq!(prose.held_out.len(), 3);
    }

    #[test]
    fn refusals_name_the_line() {
        let with = |brown: &str| {
            let folder = folder(&[("prose/brown.jsonl", brown)]);
            refusal(prose(&folder))
        };
        assert!(with("{\"text\":\"a\"}\n{\"txt\":\"b\"}\n").contains("brown.jsonl`, line 2: unknown field `txt`"));
        assert!(with("{\"text\":\"a\"}\n\n").contains("line 2: EOF"));
        assert!(with("").contains("brown.jsonl` has no documents"));
        assert!(with("{\"text\":\"a\"}").contains("wordnet.jsonl`: run `cargo xtask data`"));
        let bytes = folder(&[("prose/brown.jsonl", "")]);
        fs::write(bytes.join("prose/brown.jsonl"), b"{\"text\":\"a\"}\n\xFF\n").unwrap();
        assert!(refusal(prose(&bytes)).contains("line 2: is not UTF-8"));
    }

    #[test]
    fn labelled_sets_are_read() {
        let lines =
            [("good", "1", "train"), ("bad", "0", "train"), ("fine", "1", "validation"), ("so so", "0", "test")];
        let line =
            |(text, label, split)| format!("{{\"text\":\"{text}\",\"label\":\"{label}\",\"split\":\"{split}\"}}\n");
        let text = lines.map(line).concat();
        let name = LABELLED_SETS[0];
        let path = format!("labelled/{name}.jsonl");
        let set = labelled(&folder(&[(&path, &text)]), name).unwrap();
        assert_eq!((set.name.as_str(), set.labels), (name, vec!["0".into(), "1".into()]));
        let flat = |examples: Vec<Example>| {
            examples.into_iter().map(|example| (example.text, example.pair, example.label)).collect::<Vec<_>>()
        };
        assert_eq!(flat(set.train), [("good".into(), None, 1), ("bad".into(), None, 0)]);
        assert_eq!(flat(set.validation), [("fine".into(), None, 1)]);
        assert_eq!(flat(set.test), [("so so".into(), None, 0)]);

        let with = |text: &str| refusal(labelled(&folder(&[(&path, text)]), name));
        assert!(with(&text.replace("validation", "dev")).contains("line 3: unknown variant `dev`"));
        assert!(with(&text.replace("validation", "train")).contains("has no examples for validation"));
        assert!(with(&text.replace("\"0\"", "\"1\"")).contains("has 1 labels: needs two or more"));
        assert!(refusal(labelled(&folder(&[]), "no")).contains("no.jsonl`: run `cargo xtask data`"));
    }
}
