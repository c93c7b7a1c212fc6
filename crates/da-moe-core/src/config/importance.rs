//! SPEC §1: where importance comes from and how it is normalised.

use super::flat::{refuse_unused, required};
use serde::{Deserialize, Serialize};

/// How the importance of each token is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "FlatImportance", into = "FlatImportance")]
pub struct ImportanceConfig {
    /// The measure.
    pub source: Source,
    /// How a sequence's values are brought to a common scale.
    pub normalize: Normalize,
    /// Whether attention is masked to earlier positions; turns the leak rule on.
    pub causal: bool,
    /// Overrides the leak rule: `k` may depend on later tokens.
    pub allow_future: bool,
}

/// A measure of importance.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Read off the attention probabilities.
    Attention {
        /// Which reduction over positions.
        measure: AttentionSource,
        /// How heads are reduced afterwards.
        heads: Heads,
        /// Factor on `q·k`; `1/sqrt(dh)` when absent.
        scale: Option<f64>,
    },
    /// A vector from the caller.
    External,
    /// A table looked up by token id.
    TokenFrequency,
    /// `H(softmax z) / ln E` of the router's own logits.
    RouterEntropy,
    /// A weighted sum of other measures.
    Mix(Vec<ImportancePart>),
}

/// One summand of [`Source::Mix`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "FlatImportance", into = "FlatImportance")]
pub struct ImportancePart {
    /// Its weight in the sum.
    pub weight: f64,
    /// The measure; not itself a mix.
    pub source: Source,
    /// Normalisation of this part before it is weighted; `running` is for the whole only.
    pub normalize: Normalize,
}

/// A reduction of one head's attention over positions (the table of SPEC §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionSource {
    /// `max_i P[i,j]`: how strongly any token attends to `j`.
    ReceivedMax,
    /// `Σ_i P[i,j]`.
    ReceivedSum,
    /// The sum over the number of queries that may see `j`.
    ReceivedMean,
    /// `max_j P[i,j]`.
    GivenPeak,
    /// Entropy of row `i` over `ln n_i`; 0 when only one key is visible.
    GivenEntropy,
    /// `P[i,i]`.
    GivenSelf,
}

impl AttentionSource {
    /// Every attention source, in documentation order.
    pub const ALL: [AttentionSource; 6] = [
        AttentionSource::ReceivedMax,
        AttentionSource::ReceivedSum,
        AttentionSource::ReceivedMean,
        AttentionSource::GivenPeak,
        AttentionSource::GivenEntropy,
        AttentionSource::GivenSelf,
    ];

    /// Whether token `j`'s value is a reduction over queries, which under a causal mask are all later than `j`.
    pub const fn is_received(self) -> bool {
        matches!(self, AttentionSource::ReceivedMax | AttentionSource::ReceivedSum | AttentionSource::ReceivedMean)
    }
}

/// Reduction over heads, after the reduction over positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heads {
    /// Average over heads.
    #[default]
    Mean,
    /// Largest over heads.
    Max,
}

/// Normalisation of importance, per sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Normalize {
    /// As measured.
    #[default]
    None,
    /// `I / max I`.
    Max,
    /// `(I − min I) / (max I − min I)`.
    MinMax,
    /// Average rank over `n`, in (0, 1].
    Rank,
    /// `a · I + b`, clamped to [0, 1].
    Affine {
        /// Slope.
        a: f64,
        /// Offset.
        b: f64,
    },
    /// Min-max against statistics carried between steps, clamped to [0, 1].
    Running {
        /// Share of the old statistics kept at each training step.
        momentum: f64,
    },
}

impl Source {
    /// Name in the JSON form.
    pub const fn name(&self) -> &'static str {
        match self {
            Source::Attention { measure, .. } => match measure {
                AttentionSource::ReceivedMax => "received-max",
                AttentionSource::ReceivedSum => "received-sum",
                AttentionSource::ReceivedMean => "received-mean",
                AttentionSource::GivenPeak => "given-peak",
                AttentionSource::GivenEntropy => "given-entropy",
                AttentionSource::GivenSelf => "given-self",
            },
            Source::External => "external",
            Source::TokenFrequency => "token-frequency",
            Source::RouterEntropy => "router-entropy",
            Source::Mix(_) => "mix",
        }
    }

    /// Whether this source, or any part of a mix, satisfies `predicate`.
    pub fn any(&self, predicate: &dyn Fn(&Source) -> bool) -> bool {
        predicate(self) || matches!(self, Source::Mix(parts) if parts.iter().any(|part| part.source.any(predicate)))
    }

    fn sees_future(&self) -> bool {
        matches!(self, Source::Attention { measure, .. } if measure.is_received())
    }
}

impl Normalize {
    /// Name in the JSON form.
    pub const fn name(&self) -> &'static str {
        match self {
            Normalize::None => "none",
            Normalize::Max => "max",
            Normalize::MinMax => "min-max",
            Normalize::Rank => "rank",
            Normalize::Affine { .. } => "affine",
            Normalize::Running { .. } => "running",
        }
    }

    fn sees_future(&self) -> bool {
        matches!(self, Normalize::Max | Normalize::MinMax | Normalize::Rank)
    }
}

impl ImportanceConfig {
    /// A bidirectional measure with no normalisation.
    pub fn new(source: Source) -> Self {
        Self { source, normalize: Normalize::None, causal: false, allow_future: false }
    }

    /// An attention source with mean over heads and the default scale.
    pub fn attention(measure: AttentionSource) -> Self {
        Self::new(Source::Attention { measure, heads: Heads::Mean, scale: None })
    }

    /// The first choice that looks at later tokens, with its field: the subject of the leak rule.
    pub(super) fn future_choice(&self) -> Option<(String, &'static str)> {
        if self.source.sees_future() {
            return Some(("importance.source".into(), self.source.name()));
        }
        if let Source::Mix(parts) = &self.source {
            for (index, part) in parts.iter().enumerate() {
                if part.source.sees_future() {
                    return Some((format!("importance.parts[{index}].source"), part.source.name()));
                }
                if part.normalize.sees_future() {
                    return Some((format!("importance.parts[{index}].normalize"), part.normalize.name()));
                }
            }
        }
        self.normalize.sees_future().then(|| ("importance.normalize".into(), self.normalize.name()))
    }
}

impl Default for ImportanceConfig {
    fn default() -> Self {
        Self::attention(AttentionSource::ReceivedMax)
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SourceName {
    ReceivedMax,
    ReceivedSum,
    ReceivedMean,
    GivenPeak,
    GivenEntropy,
    GivenSelf,
    External,
    TokenFrequency,
    RouterEntropy,
    Mix,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NormalizeName {
    None,
    Max,
    MinMax,
    Rank,
    Affine,
    Running,
}

/// The JSON object: every field of every variant, all optional.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatImportance {
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<f64>,
    source: Option<SourceName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heads: Option<Heads>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<ImportancePart>>,
    normalize: Option<NormalizeName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    a: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    causal: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_future: Option<bool>,
}

impl FlatImportance {
    fn take_source(&mut self, name: SourceName) -> Result<Source, String> {
        let mut attention = |measure| {
            let (heads, scale) = (self.heads.take().unwrap_or_default(), self.scale.take());
            Source::Attention { measure, heads, scale }
        };
        let source = match name {
            SourceName::ReceivedMax => attention(AttentionSource::ReceivedMax),
            SourceName::ReceivedSum => attention(AttentionSource::ReceivedSum),
            SourceName::ReceivedMean => attention(AttentionSource::ReceivedMean),
            SourceName::GivenPeak => attention(AttentionSource::GivenPeak),
            SourceName::GivenEntropy => attention(AttentionSource::GivenEntropy),
            SourceName::GivenSelf => attention(AttentionSource::GivenSelf),
            SourceName::External => Source::External,
            SourceName::TokenFrequency => Source::TokenFrequency,
            SourceName::RouterEntropy => Source::RouterEntropy,
            SourceName::Mix => Source::Mix(required(&mut self.parts, "parts", "mix")?),
        };
        let left = [("heads", self.heads.is_some()), ("scale", self.scale.is_some()), ("parts", self.parts.is_some())];
        refuse_unused(&left, source.name())?;
        Ok(source)
    }

    fn take_normalize(&mut self) -> Result<Normalize, String> {
        let normalize = match self.normalize.take() {
            None | Some(NormalizeName::None) => Normalize::None,
            Some(NormalizeName::Max) => Normalize::Max,
            Some(NormalizeName::MinMax) => Normalize::MinMax,
            Some(NormalizeName::Rank) => Normalize::Rank,
            Some(NormalizeName::Affine) => {
                Normalize::Affine { a: required(&mut self.a, "a", "affine")?, b: required(&mut self.b, "b", "affine")? }
            }
            Some(NormalizeName::Running) => {
                Normalize::Running { momentum: required(&mut self.momentum, "momentum", "running")? }
            }
        };
        let left = [("a", self.a.is_some()), ("b", self.b.is_some()), ("momentum", self.momentum.is_some())];
        refuse_unused(&left, format_args!("normalize: {}", normalize.name()))?;
        Ok(normalize)
    }

    fn put_source(&mut self, source: Source) {
        self.source = Some(match source {
            Source::Attention { measure, heads, scale } => {
                (self.heads, self.scale) = (Some(heads), scale);
                match measure {
                    AttentionSource::ReceivedMax => SourceName::ReceivedMax,
                    AttentionSource::ReceivedSum => SourceName::ReceivedSum,
                    AttentionSource::ReceivedMean => SourceName::ReceivedMean,
                    AttentionSource::GivenPeak => SourceName::GivenPeak,
                    AttentionSource::GivenEntropy => SourceName::GivenEntropy,
                    AttentionSource::GivenSelf => SourceName::GivenSelf,
                }
            }
            Source::External => SourceName::External,
            Source::TokenFrequency => SourceName::TokenFrequency,
            Source::RouterEntropy => SourceName::RouterEntropy,
            Source::Mix(parts) => {
                self.parts = Some(parts);
                SourceName::Mix
            }
        });
    }

    fn put_normalize(&mut self, normalize: Normalize) {
        self.normalize = Some(match normalize {
            Normalize::None => NormalizeName::None,
            Normalize::Max => NormalizeName::Max,
            Normalize::MinMax => NormalizeName::MinMax,
            Normalize::Rank => NormalizeName::Rank,
            Normalize::Affine { a, b } => {
                (self.a, self.b) = (Some(a), Some(b));
                NormalizeName::Affine
            }
            Normalize::Running { momentum } => {
                self.momentum = Some(momentum);
                NormalizeName::Running
            }
        });
    }
}

impl TryFrom<FlatImportance> for ImportanceConfig {
    type Error = String;

    fn try_from(mut flat: FlatImportance) -> Result<Self, String> {
        refuse_unused(&[("weight", flat.weight.is_some())], "importance")?;
        let causal = flat.causal.unwrap_or(false);
        let usual = if causal { SourceName::GivenPeak } else { SourceName::ReceivedMax };
        let name = flat.source.take().unwrap_or(usual);
        let source = flat.take_source(name)?;
        let normalize = flat.take_normalize()?;
        Ok(Self { source, normalize, causal, allow_future: flat.allow_future.unwrap_or(false) })
    }
}

impl TryFrom<FlatImportance> for ImportancePart {
    type Error = String;

    fn try_from(mut flat: FlatImportance) -> Result<Self, String> {
        let left = [("causal", flat.causal.is_some()), ("allow_future", flat.allow_future.is_some())];
        refuse_unused(&left, "a part of a mix; it belongs to `importance` itself")?;
        let weight = required(&mut flat.weight, "weight", "a part of a mix")?;
        let name = required(&mut flat.source, "source", "a part of a mix")?;
        let source = flat.take_source(name)?;
        let normalize = flat.take_normalize()?;
        Ok(Self { weight, source, normalize })
    }
}

impl From<ImportanceConfig> for FlatImportance {
    fn from(config: ImportanceConfig) -> Self {
        let mut flat = FlatImportance {
            causal: Some(config.causal),
            allow_future: Some(config.allow_future),
            ..FlatImportance::default()
        };
        flat.put_source(config.source);
        flat.put_normalize(config.normalize);
        flat
    }
}

impl From<ImportancePart> for FlatImportance {
    fn from(part: ImportancePart) -> Self {
        let mut flat = FlatImportance { weight: Some(part.weight), ..FlatImportance::default() };
        flat.put_source(part.source);
        flat.put_normalize(part.normalize);
        flat
    }
}
