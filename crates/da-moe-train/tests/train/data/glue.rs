//! Files of GLUE in the published form, with rows written for these tests.

use super::*;

/// A task's files in the published form, with rows written for this test.
fn load(task: &str, files: &[(&str, &str)]) -> Result<Labelled, DataError> {
    let files: Vec<(String, &str)> = files.iter().map(|(name, text)| (format!("{task}/{name}"), *text)).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    glue::load(&folder(&files), task)
}

fn same(task: &str, text: &str) -> Result<Labelled, DataError> {
    load(task, &[("train.tsv", text), ("dev.tsv", text), ("dev_matched.tsv", text), ("dev_mismatched.tsv", text)])
}

/// Text, pair and label's name of each.
fn rows(task: &str, text: &str) -> Vec<(String, Option<String>, String)> {
    let set = same(task, text).unwrap();
    assert_eq!(set.train, set.validation);
    let row = |example: &Example| (example.text.clone(), example.pair.clone(), set.labels[example.label].clone());
    set.train.iter().map(row).collect()
}

fn pair(text: &str, pair: &str, label: &str) -> (String, Option<String>, String) {
    (text.into(), Some(pair.into()), label.into())
}

fn single(text: &str, label: &str) -> (String, Option<String>, String) {
    (text.into(), None, label.into())
}

#[test]
fn cola_has_no_header() {
    let text = "ab12\t1\t\tBirds fly.\nab12\t0\t*\tBirds flies \"high.\n";
    assert_eq!(rows("CoLA", text), [single("Birds fly.", "acceptable"), single("Birds flies \"high.", "unacceptable")]);
}

#[test]
fn sst_2_has_a_space_behind_each_sentence() {
    let text = "sentence\tlabel\na joy to watch \t1\nno joy \t0\n";
    assert_eq!(rows("SST-2", text), [single("a joy to watch", "positive"), single("no joy", "negative")]);
    let folder = folder(&[("SST-2/train.tsv", text), ("SST-2/dev.tsv", text)]);
    assert_eq!(glue::load(&folder, "sst-2").unwrap().name, "SST-2");
}

#[test]
fn mrpc_has_a_mark_a_carriage_return_and_quotation_marks_that_quote_nothing() {
    let text = "\u{FEFF}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n\
                1\t70\t71\t\"Yes, he said.\tHe said \" yes.\r\n0\t72\t73\tRain fell.\t\"Snow fell.\r\n";
    assert_eq!(
        rows("MRPC", text),
        [
            pair("\"Yes, he said.", "He said \" yes.", "equivalent"),
            pair("Rain fell.", "\"Snow fell.", "not_equivalent")
        ]
    );
}

#[test]
fn qqp_has_rows_torn_by_line_breaks() {
    let text = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n\
                1\t3\t4\tHow far?\tHow near?\t0\n2\t5\t6\tWhat is\n\tWhat then?\t0\n3\t7\t8\tWhy?\tWhy so?\t1\n";
    assert_eq!(
        rows("QQP", text),
        [pair("How far?", "How near?", "not_duplicate"), pair("Why?", "Why so?", "duplicate")]
    );
}

#[test]
fn mnli_has_more_columns_in_development_and_two_of_those_sets() {
    let front = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t\
                 sentence2_parse\tsentence1\tsentence2";
    let train =
        format!("{front}\tlabel1\tgold_label\n0\tp\tq\tg\t( a )\t( b )\t(A a)\t(B b)\tA.\tB.\tneutral\tneutral\n");
    let development = |label: &str| {
        format!(
            "{front}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n\
             0\tp\tq\tg\t( a )\t( b )\t(A a)\t(B b)\tC.\tD.\tneutral\tneutral\tneutral\tneutral\tneutral\t{label}\n"
        )
    };
    let (matched, mismatched) = (development("entailment"), development("contradiction"));
    let set =
        load("MNLI", &[("train.tsv", &train), ("dev_matched.tsv", &matched), ("dev_mismatched.tsv", &mismatched)])
            .unwrap();
    let label = |examples: &[Example]| set.labels[examples[0].label].clone();
    assert_eq!(
        [label(&set.train), label(&set.validation), label(&set.test)],
        ["neutral", "entailment", "contradiction"]
    );
    assert_eq!((set.train[0].text.as_str(), set.train[0].pair.as_deref()), ("A.", Some("B.")));
}

#[test]
fn qnli_rte_and_wnli_name_their_texts_each_its_own_way() {
    let qnli = "index\tquestion\tsentence\tlabel\n0\tWho?\tShe did.\tentailment\n1\tWhen?\tHere.\tnot_entailment\n";
    assert_eq!(rows("QNLI", qnli), [pair("Who?", "She did.", "entailment"), pair("When?", "Here.", "not_entailment")]);
    let rte = "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n";
    assert_eq!(rows("RTE", rte), [pair("It rains.", "It is wet.", "entailment")]);
    let wnli = "index\tsentence1\tsentence2\tlabel\n0\tA box fits.\tThe box fits.\t1\n";
    assert_eq!(rows("WNLI", wnli), [pair("A box fits.", "The box fits.", "entailment")]);
    assert!(same("WNLI", wnli).unwrap().test.is_empty());
}

#[test]
fn refusals_name_the_line() {
    let refused = |task: &str, text: &str| refusal(same(task, text));
    assert!(refused("SST-2", "sentence\tlabel\nfine\t1\nbad\n").contains("line 3: has 1 columns, 2 are needed"));
    assert!(refused("CoLA", "a\t1\t\tb\na\t2\t\tb\n").contains("line 2: has the label `2`, known are 0, 1"));
    assert!(refused("RTE", "sentence1\tsentence2\n").contains("line 1: is a header without the column `label`"));
    assert!(refused("QNLI", "question\tsentence\tlabel\n").contains("has no examples"));
    assert!(refused("STS-B", "").contains("GLUE task `STS-B`: is a regression"));
    assert!(refused("SNLI", "").contains("known are CoLA, SST-2"));
    assert!(refusal(load("MRPC", &[])).contains("cannot read"));
}
