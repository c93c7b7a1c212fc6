//! A layer of a named shape on the GPU, with importance from queries and keys, and everything that its calls read and write.

use da_moe::cuda::cost::Contents;
use da_moe::cuda::{Cuda, DeviceMemory, Driver, Most, Stream};
use da_moe::{
    Activation, Attention, AttentionSource, Buffer, DType, ExpertGradients, ExpertsPerToken, Gradients,
    ImportanceConfig, Inputs, Keep, Layer, LayerConfig, Policy, Result, Shape, State, Step, TensorMut, TensorRef,
    Weights,
};

/// Heads, key heads and head width of the attention that importance is read off.
const HEADS: [usize; 3] = [16, 4, 128];
/// Tokens of a sequence at most.
const SEQUENCE: usize = 4096;

const TINY: Shape = Shape {
    name: "tiny",
    tokens: 64,
    hidden: 64,
    width: 32,
    experts: 4,
    mean_k: 2,
    varies: true,
    activation: Activation::Swiglu,
};

/// The shapes that stand for models on a GPU.
pub fn shapes(is_tiny: bool) -> Vec<Shape> {
    if is_tiny { vec![TINY] } else { Shape::ALL.into_iter().skip(3).collect() }
}

/// What shapes are called.
pub fn names() -> impl Iterator<Item = &'static str> {
    shapes(false).into_iter().chain([TINY]).map(|shape| shape.name)
}

type Memory = DeviceMemory<Driver>;

/// One layer and its tensors.
pub struct Workload {
    shape: Shape,
    layer: Layer<Cuda>,
    state: State,
    step: Step,
    cu_seqlens: Memory,
    x: Memory,
    q: Memory,
    k: Memory,
    router: Memory,
    w_in: Memory,
    w_out: Memory,
    y: Memory,
    dy: Memory,
    to: To,
}

/// Where gradients go.
struct To {
    x: Memory,
    router: Memory,
    w_in: Memory,
    w_out: Memory,
}

impl Workload {
    pub fn new(cuda: &Cuda, shape: &Shape) -> Result<Self> {
        let Shape { tokens: t, hidden: d, width: f, experts: e, mean_k, .. } = *shape;
        let most = if shape.varies { (2 * mean_k).min(e) } else { mean_k };
        let policy = match shape.varies {
            true => ExpertsPerToken::between(Policy::Budget { mean_k: mean_k as f64 }, 1, most),
            false => ExpertsPerToken::new(Policy::Fixed { k: mean_k }),
        };
        let config = LayerConfig {
            hidden_act: shape.activation,
            importance: ImportanceConfig::attention(AttentionSource::ReceivedMax),
            experts_per_token: policy,
            ..LayerConfig::da_moe(d, f, e, most)
        };
        let layer = Layer::new(cuda.clone(), config)?;
        let [heads, key_heads, width] = HEADS;
        let starts: Vec<i32> = (0..=t.div_ceil(SEQUENCE)).map(|b| (b * SEQUENCE).min(t) as i32).collect();
        let drawn = |len, scale, seed| cuda.upload(&drawn(len, scale, seed));
        let fan = |n: usize| 1.0 / (n as f32).sqrt();
        let rows_in = layer.config().rows_in();
        Ok(Self {
            shape: *shape,
            state: layer.state()?,
            step: layer.step(t, DType::Bf16, Keep::Hidden)?,
            cu_seqlens: cuda.upload(&starts)?,
            x: drawn(t * d, 1.0, 1)?,
            q: drawn(t * heads * width, 1.0, 2)?,
            k: drawn(t * key_heads * width, 1.0, 3)?,
            router: drawn(e * d, fan(d), 4)?,
            w_in: drawn(e * rows_in * d, fan(d), 5)?,
            w_out: drawn(e * d * f, fan(f), 6)?,
            y: cuda.zeros(DType::Bf16, t * d)?,
            dy: drawn(t * d, 1.0, 7)?,
            to: To {
                x: cuda.zeros(DType::Bf16, t * d)?,
                router: cuda.zeros(DType::Bf16, e * d)?,
                w_in: cuda.zeros(DType::Bf16, e * rows_in * d)?,
                w_out: cuda.zeros(DType::Bf16, e * d * f)?,
            },
            layer,
        })
    }

    pub fn workspace_bytes(&self, cuda: &Cuda) -> Result<usize> {
        cuda.workspace_bytes(self.layer.config(), Most::of(&self.inputs()?, Keep::Hidden))
    }

    fn inputs(&self) -> Result<Inputs<'_>> {
        inputs(&self.shape, &self.x, &self.q, &self.k, &self.cu_seqlens)
    }

    /// Forward and backward.
    pub fn call(&mut self, stream: &Stream<Driver>) -> Result<()> {
        let Shape { tokens: t, hidden: d, width: f, experts: e, .. } = self.shape;
        let rows_in = self.layer.config().rows_in();
        let Self { layer, state, step, x, q, k, cu_seqlens, to, .. } = self;
        let inputs = inputs(&self.shape, x, q, k, cu_seqlens)?;
        let weights = Weights::new(
            TensorRef::new(&self.router, [e, d])?,
            TensorRef::new(&self.w_in, [e, rows_in, d])?,
            TensorRef::new(&self.w_out, [e, d, f])?,
        );
        layer.forward(stream, &inputs, &weights, state, step, TensorMut::new(&mut self.y, [t, d])?)?;
        let experts = ExpertGradients {
            w_in: TensorMut::new(&mut to.w_in, [e, rows_in, d])?,
            w_out: TensorMut::new(&mut to.w_out, [e, d, f])?,
            b_in: None,
            b_out: None,
        };
        let mut gradients = Gradients {
            x: TensorMut::new(&mut to.x, [t, d])?,
            router: Some(TensorMut::new(&mut to.router, [e, d])?),
            experts,
            constants: None,
            routing: None,
            shared: None,
            accumulate: false,
            loss_scale: 1.0,
        };
        layer.backward(stream, &inputs, &weights, TensorRef::new(&self.dy, [t, d])?, step, &mut gradients)
    }

    /// What the last call found, for the cost model.
    pub fn contents(&self) -> Result<Contents> {
        let full = (self.shape.tokens / SEQUENCE, self.shape.tokens % SEQUENCE);
        let pairs = full.0 * SEQUENCE * SEQUENCE + full.1 * full.1;
        Ok(Contents { rows: self.step.report()?.rows, pairs: pairs as f64 })
    }
}

fn inputs<'a>(
    shape: &Shape,
    x: &'a Memory,
    q: &'a Memory,
    k: &'a Memory,
    cu_seqlens: &'a Memory,
) -> Result<Inputs<'a>> {
    let (t, [heads, key_heads, width]) = (shape.tokens, HEADS);
    let attention =
        Attention::query_key(TensorRef::new(q, [t, heads, width])?, TensorRef::new(k, [t, key_heads, width])?);
    Ok(Inputs {
        cu_seqlens: Some(TensorRef::new(cu_seqlens, [cu_seqlens.len()])?),
        ..Inputs::new(TensorRef::new(x, [t, shape.hidden])?).with_attention(attention)
    })
}

/// Numbers of about this deviation; never zeros, whose products are faster.
fn drawn(len: usize, scale: f32, seed: u64) -> Buffer {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f32 / (1 << 24) as f32;
        da_moe::bf16::from_f32((unit - 0.5) * 3.46 * scale)
    };
    (0..len).map(|_| next()).collect::<Vec<_>>().into()
}
