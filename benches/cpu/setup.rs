//! A layer of a named shape with everything that a call reads and writes.

use da_moe::{
    Attention, AttentionSource, Backend, Buffer, DType, ExpertsPerToken, ImportanceConfig, Inputs, Keep, Layer,
    LayerConfig, Parameters, Policy, Shape, Source, State, Step, TensorMut, TensorRef,
};

/// Heads, key heads and head width where importance is read off attention.
const HEADS: [usize; 3] = [8, 2, 64];

/// Shapes that fit a CPU.
pub fn cpu_shapes() -> impl Iterator<Item = Shape> {
    Shape::ALL.into_iter().take(4)
}

/// Where importance comes from.
#[derive(Clone, Copy, PartialEq)]
pub enum From {
    /// Drawn, uniform in [0, 1).
    Caller,
    /// Queries and keys.
    Attention(AttentionSource),
}

/// One layer and its tensors.
pub struct Setup<B: Backend> {
    pub layer: Layer<B>,
    pub weights: Parameters,
    tokens: usize,
    x: Buffer,
    importance: Vec<f32>,
    q: Buffer,
    k: Buffer,
    y: Buffer,
    dx: Buffer,
    gradients: Parameters,
    state: State,
    step: Step,
}

impl<B: Backend<Stream = ()>> Setup<B> {
    /// Tokens get 1 to `2m − 1` experts, `m = mean_k` on average: `ceil(I (2m − 1))` of a uniform `I`.
    pub fn new(backend: B, shape: Shape, dtype: DType, mean_k: usize, from: From) -> Self {
        let (tokens, most) = (shape.tokens, 2 * mean_k - 1);
        let source = match from {
            From::Caller => ImportanceConfig::new(Source::External),
            From::Attention(measure) => ImportanceConfig::attention(measure),
        };
        let policy = Policy::Proportional { scale: Some(most as f64) };
        let config = LayerConfig {
            hidden_act: shape.activation,
            importance: source,
            experts_per_token: ExpertsPerToken::between(policy, 1, most.min(shape.experts)),
            ..LayerConfig::da_moe(shape.hidden, shape.width, shape.experts, shape.experts)
        };
        let [heads, key_heads, width] = HEADS;
        let centred = |len, seed| {
            let values: Vec<f32> = uniform(len, seed).iter().map(|u| (u - 0.5) * 3.4).collect();
            Buffer::from_f32(dtype, &values)
        };
        let layer = Layer::new(backend, config).expect("a named shape is valid");
        let elements = tokens * shape.hidden;
        Self {
            weights: Parameters::random(layer.config(), dtype, 1),
            gradients: Parameters::zeros(layer.config(), dtype),
            state: layer.state().expect("a few bytes"),
            step: layer.step(tokens, dtype, Keep::Hidden).expect("a CPU shape fits"),
            tokens,
            x: centred(elements, 2),
            importance: uniform(tokens, 3),
            q: centred(tokens * heads * width, 4),
            k: centred(tokens * key_heads * width, 5),
            y: Buffer::zeros(dtype, elements),
            dx: Buffer::zeros(dtype, elements),
            layer,
        }
    }

    /// Rows of the last forward.
    pub fn rows(&self) -> usize {
        self.step.report().expect("after a forward").rows
    }

    pub fn forward(&mut self) {
        let [heads, key_heads, width] = HEADS;
        let shape = [self.tokens, self.layer.config().hidden_size];
        let view = |buffer, heads| TensorRef::new(buffer, [self.tokens, heads, width]).expect("made for it");
        let x = TensorRef::new(&self.x, shape).expect("made for it");
        let inputs = Inputs::new(x)
            .with_importance(TensorRef::new(&self.importance, [self.tokens]).expect("made for it"))
            .with_attention(Attention::query_key(view(&self.q, heads), view(&self.k, key_heads)));
        let y = TensorMut::new(&mut self.y, shape).expect("made for it");
        let weights = self.weights.weights().expect("made for it");
        self.layer.forward(&(), &inputs, &weights, &mut self.state, &mut self.step, y).expect("a valid call");
    }

    /// After a forward; `dy` is `x`.
    pub fn backward(&mut self) {
        let shape = [self.tokens, self.layer.config().hidden_size];
        let x = TensorRef::new(&self.x, shape).expect("made for it");
        let importance = TensorRef::new(&self.importance, [self.tokens]).expect("made for it");
        let dx = TensorMut::new(&mut self.dx, shape).expect("made for it");
        let mut gradients = self.gradients.gradients(dx).expect("made for it");
        let weights = self.weights.weights().expect("made for it");
        let inputs = Inputs::new(x).with_importance(importance);
        self.layer.backward(&(), &inputs, &weights, x, &mut self.step, &mut gradients).expect("a valid call");
    }
}

/// Deterministic numbers in [0, 1).
fn uniform(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..len).map(|_| next()).collect()
}
