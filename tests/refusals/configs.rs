//! SPEC §7 for configurations: every field outside its domain is refused by name, in Rust and in JSON, and the JSON form
//! says exactly what the struct says.

use da_moe::{
    Cpu, DType, Error, ExpertsPerToken, ImportancePart, Keep, Layer, LayerConfig, Normalize, Policy, Source, Threshold,
};
use da_moe_harness::case::{attention_source, config, small_config};
use proptest::prelude::*;

type Change = Box<dyn Fn(&mut LayerConfig)>;

fn policy(policy: Policy) -> Change {
    Box::new(move |config| config.experts_per_token = ExpertsPerToken::between(policy.clone(), 0, 4))
}

fn interval(min: Option<usize>, max: Option<usize>) -> Change {
    Box::new(move |config| (config.experts_per_token.min, config.experts_per_token.max) = (min, max))
}

fn set(change: impl Fn(&mut LayerConfig) + 'static) -> Change {
    Box::new(change)
}

fn mix(part: ImportancePart) -> Change {
    Box::new(move |config| config.importance.source = Source::Mix(vec![part.clone()]))
}

fn part(weight: f64, source: Source, normalize: Normalize) -> ImportancePart {
    ImportancePart { weight, source, normalize }
}

/// A change to a valid configuration of 6 experts, and what is said about it.
fn refusals() -> Vec<(Change, &'static str)> {
    let thresholds = |thresholds: &[f64]| policy(Policy::Thresholds { thresholds: thresholds.to_vec() });
    let each = |count| policy(Policy::ScoreThreshold { threshold: Threshold::Each(vec![0.1; count]) });
    let everyone = |threshold| policy(Policy::ScoreThreshold { threshold: Threshold::All(threshold) });
    let groups = |n: usize, k: usize| set(move |c| (c.router.n_group, c.router.topk_group) = (n, k));
    let scale =
        |scale| Source::Attention { measure: da_moe::AttentionSource::GivenPeak, heads: Default::default(), scale };
    vec![
        (set(|c| c.hidden_size = 0), "`hidden_size`: must be at least 1"),
        (set(|c| c.num_experts = 0), "`num_experts`: must be at least 1"),
        (set(|c| c.moe_intermediate_size = 0), "`moe_intermediate_size`: must be at least 1"),
        (set(|c| c.num_experts = 513), "`num_experts`: 513 experts and 0 null experts are more than 512 together"),
        (set(|c| c.num_null_experts = 507), "`num_experts`: 6 experts and 507 null experts are more than 512"),
        (set(|c| c.num_null_experts = usize::MAX), "are more than 512 together"),
        (interval(Some(1), Some(7)), "`experts_per_token.max`: 7 experts per token, but there are 6"),
        (interval(Some(4), Some(3)), "`experts_per_token.min`: 4 is above the maximum 3"),
        (policy(Policy::Fixed { k: 7 }), "`experts_per_token.k`: 7 experts per token, but there are 6"),
        (
            set(|c| c.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 7 })),
            "`experts_per_token.k`: 7 experts per token, but there are 6",
        ),
        (policy(Policy::TopP { p: 0.0 }), "`experts_per_token.p`: 0 is outside (0, 1]"),
        (policy(Policy::TopP { p: -0.5 }), "`experts_per_token.p`: -0.5 is outside (0, 1]"),
        (policy(Policy::TopP { p: 1.5 }), "`experts_per_token.p`: 1.5 is outside (0, 1]"),
        (policy(Policy::TopP { p: f64::NAN }), "`experts_per_token.p`: NaN is outside (0, 1]"),
        (thresholds(&[0.1, f64::NAN]), "`experts_per_token.thresholds`: NaN is not finite"),
        (thresholds(&[0.1, f64::INFINITY]), "`experts_per_token.thresholds`: inf is not finite"),
        (thresholds(&[0.5, 0.5]), "`experts_per_token.thresholds`: not strictly ascending"),
        (thresholds(&[0.5, 0.2]), "`experts_per_token.thresholds`: not strictly ascending"),
        (each(5), "`experts_per_token.threshold`: 5 thresholds for 6 experts"),
        (each(7), "`experts_per_token.threshold`: 7 thresholds for 6 experts"),
        (everyone(f64::INFINITY), "`experts_per_token.threshold`: inf is not finite"),
        (policy(Policy::Proportional { scale: Some(-1.0) }), "`experts_per_token.scale`: -1 is below 0"),
        (policy(Policy::Proportional { scale: Some(f64::NAN) }), "`experts_per_token.scale`: NaN is not finite"),
        (policy(Policy::Budget { mean_k: -0.1 }), "`experts_per_token.mean_k`: -0.1 is below 0"),
        (policy(Policy::Budget { mean_k: f64::INFINITY }), "`experts_per_token.mean_k`: inf is not finite"),
        (policy(Policy::BudgetRunning { mean_k: f64::NAN, momentum: 0.5 }), "`experts_per_token.mean_k`: NaN is not"),
        (
            set(|c| c.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k: 0.5 }, 1, 4)),
            "`experts_per_token.mean_k`: 0.5 is not between the minimum 1 and the maximum 4",
        ),
        (
            policy(Policy::BudgetRunning { mean_k: 4.5, momentum: 0.5 }),
            "`experts_per_token.mean_k`: 4.5 is not between the minimum 0 and the maximum 4",
        ),
        (policy(Policy::BudgetRunning { mean_k: 1.0, momentum: 1.1 }), "`experts_per_token.momentum`: 1.1 is not"),
        (policy(Policy::BudgetRunning { mean_k: 1.0, momentum: -0.1 }), "`experts_per_token.momentum`: -0.1 is not"),
        (policy(Policy::BudgetRunning { mean_k: 1.0, momentum: f64::NAN }), "`experts_per_token.momentum`: NaN is"),
        (set(|c| c.importance.normalize = Normalize::Running { momentum: 2.0 }), "`importance.momentum`: 2 is not"),
        (set(|c| c.importance.normalize = Normalize::Affine { a: f64::NAN, b: 0.0 }), "`importance.a`: NaN is not"),
        (set(|c| c.importance.normalize = Normalize::Affine { a: 0.0, b: f64::INFINITY }), "`importance.b`: inf is"),
        (set(move |c| c.importance.source = scale(Some(f64::NAN))), "`importance.scale`: NaN is not finite"),
        (set(|c| c.importance.source = Source::Mix(vec![])), "`importance.parts`: is empty"),
        (mix(part(f64::NAN, Source::External, Normalize::None)), "`importance.parts[0].weight`: NaN is not finite"),
        (
            mix(part(1.0, Source::External, Normalize::Running { momentum: 0.5 })),
            "`importance.parts[0].normalize`: `running` carries one set of statistics",
        ),
        (
            mix(part(1.0, Source::Mix(vec![part(1.0, Source::External, Normalize::None)]), Normalize::None)),
            "`importance.parts[0].source`: a mix cannot contain a mix",
        ),
        (set(|c| c.router.routed_scaling = f64::INFINITY), "`router.routed_scaling`: inf is not finite"),
        (set(|c| c.router.capacity_factor = Some(-1.0)), "`router.capacity_factor`: -1 is below 0"),
        (set(|c| c.router.capacity_factor = Some(f64::NAN)), "`router.capacity_factor`: NaN is not finite"),
        (groups(4, 1), "`router.n_group`: 4 does not divide 6 experts"),
        (groups(0, 1), "`router.n_group`: 0 does not divide 6 experts"),
        (groups(3, 0), "`router.topk_group`: 0 is not between 1 and n_group 3"),
        (groups(3, 4), "`router.topk_group`: 4 is not between 1 and n_group 3"),
        (groups(3, 1), "`router.topk_group`: 2 experts are reachable, but a token may get 4"),
        (set(|c| c.losses.balance = f64::NAN), "`losses.balance`: NaN is not finite"),
        (set(|c| c.losses.z = f64::INFINITY), "`losses.z`: inf is not finite"),
    ]
}

#[test]
fn every_field_outside_its_domain_is_refused_by_name() {
    for (change, expected) in refusals() {
        let mut config = small_config();
        change(&mut config);
        let error = Layer::new(Cpu::new(), config.clone()).expect_err(expected);
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with("config field `") && message.contains(expected), "{message}\nexpected {expected}");
        // JSON has neither NaN nor infinity; everything else is refused alike.
        if !["NaN", "inf "].iter().any(|name| expected.contains(name)) {
            assert_eq!(LayerConfig::from_json(&config.to_json()), Err(error), "{message}");
        }
    }
}

#[test]
fn the_ends_of_every_domain_are_valid() {
    let ends = [
        policy(Policy::TopP { p: 1.0 }),
        policy(Policy::TopP { p: f64::MIN_POSITIVE }),
        policy(Policy::Budget { mean_k: 0.0 }),
        policy(Policy::BudgetRunning { mean_k: 0.0, momentum: 0.0 }),
        policy(Policy::BudgetRunning { mean_k: 4.0, momentum: 1.0 }),
        set(|c| c.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k: 0.0 }, 0, 0)),
        policy(Policy::Thresholds { thresholds: vec![] }),
        policy(Policy::Proportional { scale: Some(0.0) }),
        interval(Some(0), Some(0)),
        interval(Some(6), Some(6)),
        set(|c| c.router.capacity_factor = Some(0.0)),
        set(|c| c.num_null_experts = 506),
        set(|c| (c.router.n_group, c.router.topk_group) = (6, 4)),
    ];
    for change in ends {
        let mut config = small_config();
        change(&mut config);
        Layer::new(Cpu::new(), config).unwrap();
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let mut wide = small_config();
    wide.moe_intermediate_size = usize::MAX / 2;
    let error = Layer::new(Cpu::new(), wide).unwrap_err();
    assert!(error.to_string().starts_with("expert weights overflows: [6, 2, 9223372036854775807, 12]"), "{error}");

    let layer = Layer::new(Cpu::new(), small_config()).unwrap();
    for (tokens, what) in [
        (i32::MAX as usize / 4 + 1, "row indices overflows: [536870912, 4] multiply to more than 2147483647"),
        (usize::MAX, "row indices overflows: [18446744073709551615, 4] multiply to more than 2147483647"),
    ] {
        let error = layer.step(tokens, DType::F32, Keep::Hidden).unwrap_err();
        assert_eq!(error.to_string(), what);
        assert_eq!(layer.step_bytes(tokens, DType::F32, Keep::Hidden).unwrap_err(), error);
    }
    let mut many = small_config();
    (many.num_experts, many.experts_per_token) = (512, ExpertsPerToken::new(Policy::Fixed { k: 1 }));
    let error = Layer::new(Cpu::new(), many).unwrap().step(1 << 23, DType::F32, Keep::Hidden).unwrap_err();
    assert!(error.to_string().starts_with("router logits overflows: [8388608, 512]"), "{error}");
    for dtype in [DType::I32, DType::U8] {
        let error = layer.step(4, dtype, Keep::Hidden).unwrap_err().to_string();
        assert_eq!(error, format!("step: `dtype` is {dtype}, expected f32, bf16 or f16"));
    }
}

/// A layer with these members beside its sizes.
fn json(members: &str) -> String {
    format!(r#"{{ "hidden_size": 8, "num_experts": 4, "moe_intermediate_size": 8, {members} }}"#)
}

#[test]
fn unknown_and_unused_fields_are_named() {
    let cases = [
        (r#""hiden_act": "silu""#, "hiden_act"),
        (r#""hidden_act": "swish""#, "swish"),
        (r#""num_null_experts": -1"#, "num_null_experts"),
        (r#""hidden_size": 9"#, "hidden_size"),
        (r#""importance": { "sauce": 1 }"#, "sauce"),
        (r#""importance": { "source": "received-most" }"#, "received-most"),
        (r#""importance": { "weight": 1.0 }"#, "weight"),
        (r#""importance": { "source": "external", "heads": "mean" }"#, "heads"),
        (r#""importance": { "source": "external", "scale": 1.0 }"#, "scale"),
        (r#""importance": { "source": "external", "parts": [] }"#, "parts"),
        (r#""importance": { "source": "mix" }"#, "parts"),
        (r#""importance": { "source": "mix", "parts": [{ "source": "external" }] }"#, "weight"),
        (
            r#""importance": { "source": "mix", "parts": [{ "weight": 1, "source": "external", "causal": true }] }"#,
            "causal",
        ),
        (r#""importance": { "normalize": "max", "momentum": 0.9 }"#, "momentum"),
        (r#""importance": { "normalize": "affine", "a": 1.0 }"#, "b"),
        (r#""importance": { "normalize": "running" }"#, "momentum"),
        (r#""experts_per_token": { "policy": "fixed" }"#, "k"),
        (r#""experts_per_token": { "policy": "fixed", "k": 2, "p": 0.5 }"#, "p"),
        (r#""experts_per_token": { "policy": "top-p", "p": 0.5, "mean_k": 2 }"#, "mean_k"),
        (r#""experts_per_token": { "policy": "budget", "mean_k": 2, "momentum": 0.5 }"#, "momentum"),
        (r#""experts_per_token": { "policy": "budget-running", "mean_k": 2 }"#, "momentum"),
        (r#""experts_per_token": { "policy": "given", "thresholds": [0.5] }"#, "thresholds"),
        (r#""experts_per_token": { "policy": "thresholds", "thresholds": [0.5], "scale": 2 }"#, "scale"),
        (r#""router": { "capacity": 2 }"#, "capacity"),
        (r#""router": { "scoring": "tanh" }"#, "tanh"),
        (r#""losses": { "zloss": 2 }"#, "zloss"),
    ];
    for (members, name) in cases {
        let error = LayerConfig::from_json(&json(members)).expect_err(members);
        assert!(matches!(error, Error::Json { .. }), "{error:?}");
        assert!(
            error.to_string().contains(&format!("`{name}`")) || error.to_string().contains(name),
            "{members}: {error}"
        );
    }
    for text in ["", "[]", "{}", "{ \"hidden_size\": 8", "nonsense"] {
        assert!(matches!(LayerConfig::from_json(text), Err(Error::Json { .. })), "{text:?}");
    }
    let twice = format!("{} {{}}", json(r#""num_null_experts": 0"#));
    assert!(matches!(LayerConfig::from_json(&twice), Err(Error::Json { .. })), "something after the configuration");
}

#[test]
fn what_is_not_said_is_the_usual() {
    let of = |members: &str| LayerConfig::from_json(&json(members)).unwrap();
    let source = |members: &str| of(members).importance.source.name();
    assert_eq!(source(r#""num_null_experts": 0"#), "received-max");
    assert_eq!(source(r#""importance": { "causal": true }"#), "given-peak");
    assert_eq!(of(r#""importance": {}"#).importance.source, attention_source(da_moe::AttentionSource::ReceivedMax));
    let bounds = |policy: &str| {
        let config = of(&format!(r#""experts_per_token": {{ {policy} }}"#));
        (config.k_min(), config.k_max())
    };
    assert_eq!(bounds(r#""policy": "fixed", "k": 2"#), (2, 2));
    assert_eq!(bounds(r#""policy": "thresholds", "thresholds": [0.1, 0.2]"#), (1, 3));
    assert_eq!(bounds(r#""policy": "top-p", "p": 0.5"#), (1, 4));
    assert_eq!(bounds(r#""min": 0"#), (0, 4));
}

proptest! {
    #![proptest_config(da_moe_harness::cases(400))]

    #[test]
    fn json_says_what_the_struct_says(config in config()) {
        prop_assert_eq!(LayerConfig::from_json(&config.to_json()), Ok(config));
    }
}
