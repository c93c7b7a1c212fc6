//! SPEC §1, the leak rule: under a causal mask nothing that decides `k_t` may depend on tokens after `t`.

use da_moe::{
    AttentionSource, Buffer, Cpu, Error, ExpertsPerToken, Heads, ImportancePart, Keep, Layer, LayerConfig, Normalize,
    Policy, Source, Threshold,
};
use da_moe_harness::case::{Attend, Case, attention_source, small_config};
use da_moe_harness::data::{Data, Numbers};
use da_moe_harness::{Subject, subjects};
use da_moe_reference::check::Outcome;
use proptest::prelude::*;

const SAFE_SOURCES: &str = "given-peak, given-entropy, given-self, external, token-frequency, router-entropy";
const SAFE_RULES: &str = "none, affine, running";
const SAFE_POLICIES: &str = "budget-running, proportional, thresholds, fixed, top-p, score-threshold, given";

fn causal(source: Source, normalize: Normalize, policy: Policy) -> LayerConfig {
    let mut config = small_config();
    config.importance.source = source;
    config.importance.normalize = normalize;
    config.importance.causal = true;
    config.experts_per_token = ExpertsPerToken::between(policy, 0, 4);
    config
}

fn proportional() -> Policy {
    Policy::Proportional { scale: None }
}

fn part(source: Source, normalize: Normalize) -> ImportancePart {
    ImportancePart { weight: 0.5, source, normalize }
}

fn safe_sources() -> Vec<Source> {
    let given = [AttentionSource::GivenPeak, AttentionSource::GivenEntropy, AttentionSource::GivenSelf];
    let mut sources: Vec<Source> = given.map(attention_source).into();
    sources.push(Source::Attention { measure: AttentionSource::GivenPeak, heads: Heads::Max, scale: Some(0.7) });
    sources.extend([Source::External, Source::TokenFrequency, Source::RouterEntropy]);
    let affine = Normalize::Affine { a: 0.8, b: 0.1 };
    // A log-sum-exp is of one scale, so that a mix is too.
    let scaled = |source: &&Source| matches!(source, Source::Attention { scale: Some(_), .. });
    let parts = sources.iter().filter(|source| !scaled(source)).map(|source| part(source.clone(), affine)).collect();
    sources.push(Source::Mix(parts));
    sources
}

fn safe_policies() -> Vec<Policy> {
    vec![
        proportional(),
        Policy::Thresholds { thresholds: vec![0.2, 0.4, 0.6] },
        Policy::Fixed { k: 2 },
        Policy::BudgetRunning { mean_k: 2.0, momentum: 0.9 },
        Policy::TopP { p: 0.6 },
        Policy::ScoreThreshold { threshold: Threshold::All(0.2) },
        Policy::Given,
    ]
}

/// Refused by name and with the alternatives, by every door; accepted when the caller takes the word for it.
fn assert_leaks(config: LayerConfig, field: &str, choice: &str, safe: &str) {
    let message = format!(
        "config field `{field}`: with causal attention `{choice}` looks at later tokens, so k would leak the future; \
         causal-safe choices: {safe}; or set `importance.allow_future` to true"
    );
    let refusals = [Layer::new(Cpu::new(), config.clone()).err(), LayerConfig::from_json(&config.to_json()).err()];
    for refusal in refusals {
        let refusal = refusal.unwrap_or_else(|| panic!("`{choice}` at `{field}` must be refused"));
        assert!(matches!(refusal, Error::Leak { .. }), "{refusal:?}");
        assert_eq!(refusal.to_string(), message);
    }
    let mut allowed = config.clone();
    allowed.importance.allow_future = true;
    Layer::new(Cpu::new(), allowed).unwrap();
    let mut bidirectional = config;
    bidirectional.importance.causal = false;
    Layer::new(Cpu::new(), bidirectional).unwrap();
}

#[test]
fn what_looks_at_later_tokens_is_refused() {
    let external = || Source::External;
    for measure in [AttentionSource::ReceivedMax, AttentionSource::ReceivedSum, AttentionSource::ReceivedMean] {
        let source = attention_source(measure);
        let config = causal(source.clone(), Normalize::None, proportional());
        assert_leaks(config, "importance.source", source.name(), SAFE_SOURCES);
        let mix = Source::Mix(vec![part(external(), Normalize::None), part(source.clone(), Normalize::None)]);
        let config = causal(mix, Normalize::None, proportional());
        assert_leaks(config, "importance.parts[1].source", source.name(), SAFE_SOURCES);
    }
    for rule in [Normalize::Max, Normalize::MinMax, Normalize::Rank] {
        let config = causal(external(), rule, proportional());
        assert_leaks(config, "importance.normalize", rule.name(), SAFE_RULES);
        let config = causal(Source::Mix(vec![part(external(), rule)]), Normalize::None, proportional());
        assert_leaks(config, "importance.parts[0].normalize", rule.name(), SAFE_RULES);
    }
    let config = causal(external(), Normalize::None, Policy::Budget { mean_k: 2.0 });
    assert_leaks(config, "experts_per_token.policy", "budget", SAFE_POLICIES);
}

#[test]
fn everything_else_is_accepted() {
    for source in safe_sources() {
        for rule in [Normalize::None, Normalize::Affine { a: 1.0, b: 0.0 }, Normalize::Running { momentum: 0.9 }] {
            for policy in safe_policies() {
                let config = causal(source.clone(), rule, policy);
                assert_eq!(LayerConfig::from_json(&config.to_json()).unwrap(), config);
            }
        }
    }
}

/// Other contents for every tensor from token `from` on.
fn change_later(data: &mut Data, from: usize, seed: u64) {
    let mut n = Numbers::new(seed);
    let tokens = data.tokens;
    let mut redraw = |buffer: &mut Buffer, scale: f32, later: &dyn Fn(usize) -> bool| {
        let mut values = buffer.to_f32();
        values.iter_mut().enumerate().filter(|(at, _)| later(*at)).for_each(|(_, v)| *v = n.normal(scale));
        *buffer = Buffer::from_f32(buffer.dtype(), &values);
    };
    let [heads, key_heads, width] = data.heads;
    redraw(&mut data.q, 1.5, &|at| at / (heads * width) >= from);
    redraw(&mut data.k, 1.0, &|at| at / (key_heads * width) >= from);
    // Above every score, whatever they are now.
    let mut lse = data.lse.to_f32();
    lse.iter_mut().enumerate().filter(|(at, _)| at % tokens >= from).for_each(|(at, lse)| *lse = 90.0 + at as f32);
    data.lse = lse.into();
    let (hidden, side) = (data.config.hidden_size, data.side);
    redraw(&mut data.x, 1.0, &|at| at / hidden >= from);
    // Rows are queries: later ones, and later columns, which no earlier query may look at.
    redraw(&mut data.probabilities, 1.0, &|at| at / side % side >= from || at % side >= from);
    redraw(&mut data.importance, 1.0, &|at| at >= from);
    redraw(&mut data.token_ids, 0.0, &|at| at >= from);
}

/// The first `tokens` tokens of a call that is one sequence.
fn prefix(case: &Case, data: &Data, tokens: usize) -> (Case, Data) {
    let short = Case { lengths: vec![tokens], ..case.clone() };
    let mut cut = Data::new(&short);
    let [heads, key_heads, width] = data.heads;
    let keep = |buffer: &Buffer, each: usize| {
        let values = buffer.to_f32();
        Buffer::from_f32(buffer.dtype(), &values[..tokens * each])
    };
    cut.q = keep(&data.q, heads * width);
    cut.k = keep(&data.k, key_heads * width);
    let lse = data.lse.to_f32();
    cut.lse = lse.chunks(data.tokens).flat_map(|row| row[..tokens].to_vec()).collect::<Vec<f32>>().into();
    (cut.probabilities, cut.side) = (data.probabilities.clone(), data.side);
    cut.x = keep(&data.x, data.config.hidden_size);
    (cut.importance, cut.token_ids) = (keep(&data.importance, 1), keep(&data.token_ids, 1));
    cut.k_given = keep(&data.k_given, 1);
    cut.router = data.router.clone();
    cut.token_frequency = data.token_frequency.clone();
    (cut.experts, cut.shared) = (data.experts.clone(), data.shared.clone());
    (short, cut)
}

/// What was decided about token `t`: importance, logits, `k`, experts, weights.
fn decided(config: &LayerConfig, outcome: &Outcome, t: usize) -> (Vec<f64>, Vec<i64>) {
    let (slots, candidates) = (config.k_max(), config.candidates());
    let mut floats = vec![outcome.importance[t]];
    floats.extend(&outcome.logits[t * candidates..][..candidates]);
    floats.extend(&outcome.weights[t * slots..][..slots]);
    let mut integers = vec![outcome.k[t]];
    integers.extend(&outcome.experts[t * slots..][..slots]);
    (floats, integers)
}

/// Token `t` was decided alike. Sums over other blocks of work may round differently; what is rounded alike must be
/// decided alike.
fn assert_decided_alike(
    config: &LayerConfig,
    a: &Outcome,
    b: &Outcome,
    t: usize,
    exact: bool,
) -> Result<(), TestCaseError> {
    let ((a, a_integers), (b, b_integers)) = (decided(config, a, t), decided(config, b, t));
    let same_bits = a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
    prop_assert!(same_bits || !exact, "token {t}: {a:?} and {b:?}");
    prop_assert!(a_integers == b_integers || !same_bits, "token {t}: {a_integers:?} and {b_integers:?}");
    for (a, b) in a.iter().zip(&b) {
        prop_assert!(a_integers != b_integers || (a - b).abs() <= 1e-5 * (1.0 + a.abs()), "token {t}: {a} and {b}");
    }
    // Importance itself is close, whatever was decided.
    prop_assert!((a[0] - b[0]).abs() <= 1e-5 * (1.0 + a[0].abs()), "token {t}: importance {} and {}", a[0], b[0]);
    Ok(())
}

prop_compose! {
    fn safe_case()(
        source in prop::sample::select(safe_sources()),
        rule in prop::sample::select(vec![
            Normalize::None, Normalize::Affine { a: 0.9, b: 0.05 }, Normalize::Running { momentum: 0.5 },
        ]),
        policy in prop::sample::select(safe_policies()),
        attend in prop::sample::select(vec![Attend::QueryKey, Attend::WithLse, Attend::Probabilities]),
        seed in any::<u64>(),
        length in prop_oneof![4 => 2usize..40, 1 => 120usize..150],
        training in any::<bool>(),
    ) -> Case {
        // What is decided is decided on the way there.
        let keep = Keep::Nothing;
        Case { attend, seed, lengths: vec![length], training, keep, ..Case::plain(causal(source, rule, policy)) }
    }
}

proptest! {
    #![proptest_config(da_moe_harness::cases(200))]

    #[test]
    fn later_tokens_do_not_change_what_was_decided(case in safe_case(), at in any::<prop::sample::Index>()) {
        let data = Data::new(&case);
        let from = at.index(data.tokens);
        let mut changed = data.clone();
        change_later(&mut changed, from, case.seed ^ 1);
        for subject in subjects() {
            let (a, b) = (subject.run(&data, &case).unwrap(), subject.run(&changed, &case).unwrap());
            (0..from).try_for_each(|t| assert_decided_alike(&case.config, &a, &b, t, true))?;
        }
    }

    #[test]
    fn appended_tokens_do_not_change_what_was_decided(case in safe_case(), at in any::<prop::sample::Index>()) {
        let data = Data::new(&case);
        let tokens = at.index(data.tokens) + 1;
        let (short, cut) = prefix(&case, &data, tokens);
        for subject in subjects() {
            let (a, b) = (subject.run(&data, &case).unwrap(), subject.run(&cut, &short).unwrap());
            (0..tokens).try_for_each(|t| assert_decided_alike(&case.config, &a, &b, t, false))?;
        }
    }
}

/// Tokens before `from` whose `k` another future changes.
fn changed_k(subject: &dyn Subject, config: LayerConfig, from: usize) -> usize {
    let case = Case { lengths: vec![30], keep: Keep::Nothing, ..Case::plain(config) };
    let data = Data::new(&case);
    let mut changed = data.clone();
    change_later(&mut changed, from, 77);
    let (a, b) = (subject.run(&data, &case).unwrap(), subject.run(&changed, &case).unwrap());
    (0..from).filter(|&t| a.k[t] != b.k[t]).count()
}

#[test]
fn what_is_refused_does_leak() {
    let leaking = [
        causal(
            attention_source(AttentionSource::ReceivedMax),
            Normalize::None,
            Policy::Proportional { scale: Some(9.0) },
        ),
        causal(
            attention_source(AttentionSource::ReceivedSum),
            Normalize::None,
            Policy::Proportional { scale: Some(1.5) },
        ),
        causal(
            attention_source(AttentionSource::ReceivedMean),
            Normalize::None,
            Policy::Proportional { scale: Some(30.0) },
        ),
        causal(Source::External, Normalize::Max, proportional()),
        causal(Source::External, Normalize::MinMax, proportional()),
        causal(Source::External, Normalize::Rank, Policy::Proportional { scale: Some(4.0) }),
        causal(Source::External, Normalize::None, Policy::Budget { mean_k: 2.0 }),
    ];
    for mut config in leaking {
        config.importance.allow_future = true;
        for subject in subjects() {
            let importance = &config.importance;
            assert!(changed_k(&*subject, config.clone(), 15) > 0, "{}: {importance:?}", subject.name());
        }
    }
}
