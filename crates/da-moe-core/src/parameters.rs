//! Owned weights of a layer, or their gradients: for callers that have no storage of their own yet.

use crate::{
    Buffer, DType, ExpertGradients, ExpertWeights, Gradients, LayerConfig, NullExpert, Result, TensorMut, TensorRef,
    Weights,
};

/// Every weight of one layer in host memory, without biases. The same type holds their gradients.
#[derive(Clone, Debug)]
pub struct Parameters {
    config: LayerConfig,
    /// `W_r[E + Z, D]`.
    pub router: Buffer,
    /// `W_in[E, F or 2F, D]`.
    pub w_in: Buffer,
    /// `W_out[E, D, F]`.
    pub w_out: Buffer,
    /// The shared expert's `W_in` and `W_out`, where the layer has one.
    pub shared: Option<[Buffer; 2]>,
    /// `[Z, D]`, where the null experts are constants.
    pub constants: Option<Buffer>,
}

impl Parameters {
    /// All zero: where gradients are written.
    pub fn zeros(config: &LayerConfig, dtype: DType) -> Self {
        Self::filled(config, |len, _| Buffer::zeros(dtype, len))
    }

    /// Normally distributed with deviation `1 / sqrt(fan in)`; the same for the same seed, everywhere.
    pub fn random(config: &LayerConfig, dtype: DType, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        Self::filled(config, |len, fan_in| {
            let scale = 1.0 / (fan_in as f32).sqrt();
            let values: Vec<f32> = (0..len).map(|_| scale * numbers.normal()).collect();
            Buffer::from_f32(dtype, &values)
        })
    }

    fn filled(config: &LayerConfig, mut fill: impl FnMut(usize, usize) -> Buffer) -> Self {
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        let width = config.shared_intermediate_size;
        let constant = config.null_expert == NullExpert::Constant && config.num_null_experts > 0;
        Self {
            router: fill(config.candidates() * d, d),
            w_in: fill(e * config.rows_in() * d, d),
            w_out: fill(e * d * f, f),
            shared: (width > 0).then(|| [fill(config.shared_rows_in() * d, d), fill(d * width, width)]),
            constants: constant.then(|| fill(config.num_null_experts * d, 1)),
            config: config.clone(),
        }
    }

    /// Views for a layer call.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a buffer was replaced by one of another length.
    pub fn weights(&self) -> Result<Weights<'_>> {
        let c = &self.config;
        let experts = |w_in, w_out, [count, rows_in, width]: [usize; 3]| -> Result<ExpertWeights<'_>> {
            Ok(ExpertWeights {
                w_in: TensorRef::new(w_in, [count, rows_in, c.hidden_size])?,
                w_out: TensorRef::new(w_out, [count, c.hidden_size, width])?,
                b_in: None,
                b_out: None,
            })
        };
        let shared = self.shared.as_ref();
        let constants = self.constants.as_ref();
        Ok(Weights {
            router: TensorRef::new(&self.router, [c.candidates(), c.hidden_size])?,
            router_bias: None,
            experts: experts(&self.w_in, &self.w_out, [c.num_experts, c.rows_in(), c.moe_intermediate_size])?,
            shared: shared
                .map(|[w_in, w_out]| experts(w_in, w_out, [1, c.shared_rows_in(), c.shared_intermediate_size]))
                .transpose()?,
            constants: constants.map(|z| TensorRef::new(z, [c.num_null_experts, c.hidden_size])).transpose()?,
        })
    }

    /// Views for a backward call that writes its gradients here, and `dx[T, D]` there; made for f32, they are f32 beside
    /// weights of any type. To add to what is here, set [`Gradients::accumulate`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a buffer was replaced by one of another length.
    pub fn gradients<'a>(&'a mut self, dx: TensorMut<'a, 2>) -> Result<Gradients<'a>> {
        let c = &self.config;
        let experts = |w_in, w_out, [count, rows_in, width]: [usize; 3]| -> Result<ExpertGradients<'a>> {
            Ok(ExpertGradients {
                w_in: TensorMut::new(w_in, [count, rows_in, c.hidden_size])?,
                w_out: TensorMut::new(w_out, [count, c.hidden_size, width])?,
                b_in: None,
                b_out: None,
            })
        };
        let (shared, constants) = (self.shared.as_mut(), self.constants.as_mut());
        Ok(Gradients {
            x: dx,
            router: Some(TensorMut::new(&mut self.router, [c.candidates(), c.hidden_size])?),
            experts: experts(&mut self.w_in, &mut self.w_out, [c.num_experts, c.rows_in(), c.moe_intermediate_size])?,
            shared: shared
                .map(|[w_in, w_out]| experts(w_in, w_out, [1, c.shared_rows_in(), c.shared_intermediate_size]))
                .transpose()?,
            constants: constants.map(|z| TensorMut::new(z, [c.num_null_experts, c.hidden_size])).transpose()?,
            routing: None,
            accumulate: false,
            loss_scale: 1.0,
        })
    }
}

/// SplitMix64: small, seedable, the same on every machine.
struct Numbers(u64);

impl Numbers {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    }

    /// The sum of twelve uniform numbers less its mean has deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}
