//! What is learned, by candle's names, and one of anything for each of it.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use da_moe::{LayerConfig, NullExpert};

/// One `T` for each weight: the weight itself, its memory while it is borrowed, its gradient.
pub(crate) struct Parts<T> {
    pub router: T,
    pub w_in: T,
    pub w_out: T,
    pub shared: Option<[T; 2]>,
    pub constants: Option<T>,
}

impl<T> Parts<T> {
    /// In the order of [`Parts::into_vec`].
    pub fn each(&self) -> impl Iterator<Item = &T> {
        [&self.router, &self.w_in, &self.w_out].into_iter().chain(self.shared.iter().flatten()).chain(&self.constants)
    }

    pub fn into_vec(self) -> Vec<T> {
        let mut all = vec![self.router, self.w_in, self.w_out];
        all.extend(self.shared.into_iter().flatten());
        all.extend(self.constants);
        all
    }

    /// The same of what `map` makes of each weight and its name.
    pub fn try_map<'t, U>(&'t self, map: impl Fn(&'static str, &'t T) -> Result<U>) -> Result<Parts<U>> {
        Ok(Parts {
            router: map("router.weight", &self.router)?,
            w_in: map("experts.w_in", &self.w_in)?,
            w_out: map("experts.w_out", &self.w_out)?,
            shared: match &self.shared {
                Some([w_in, w_out]) => Some([map("shared.w_in", w_in)?, map("shared.w_out", w_out)?]),
                None => None,
            },
            constants: self.constants.as_ref().map(|constants| map("null.constants", constants)).transpose()?,
        })
    }
}

impl<T> Parts<T> {
    /// As [`Parts::try_map`], of what is borrowed exclusively.
    pub fn try_map_mut<'t, U>(&'t mut self, map: impl Fn(&'t mut T) -> Result<U>) -> Result<Parts<U>> {
        Ok(Parts {
            router: map(&mut self.router)?,
            w_in: map(&mut self.w_in)?,
            w_out: map(&mut self.w_out)?,
            shared: match &mut self.shared {
                Some([w_in, w_out]) => Some([map(w_in)?, map(w_out)?]),
                None => None,
            },
            constants: self.constants.as_mut().map(map).transpose()?,
        })
    }
}

impl Parts<Tensor> {
    /// The weights of a layer; new ones are drawn from a normal distribution with deviation `1 / sqrt(fan in)`.
    pub fn get(config: &LayerConfig, vb: &VarBuilder) -> Result<Self> {
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        let matrix = |vb: &VarBuilder, name, shape: &[usize], fan_in: usize| {
            vb.get_with_hints(shape, name, Init::Randn { mean: 0.0, stdev: (fan_in.max(1) as f64).sqrt().recip() })
        };
        let experts = vb.pp("experts");
        let width = config.shared_intermediate_size;
        let shared = vb.pp("shared");
        let constant = config.null_expert == NullExpert::Constant && config.num_null_experts > 0;
        Ok(Self {
            router: matrix(&vb.pp("router"), "weight", &[config.candidates(), d], d)?,
            w_in: matrix(&experts, "w_in", &[e, config.rows_in(), d], d)?,
            w_out: matrix(&experts, "w_out", &[e, d, f], f)?,
            shared: match width {
                0 => None,
                _ => Some([
                    matrix(&shared, "w_in", &[1, config.shared_rows_in(), d], d)?,
                    matrix(&shared, "w_out", &[1, d, width], width)?,
                ]),
            },
            constants: match constant {
                true => Some(matrix(&vb.pp("null"), "constants", &[config.num_null_experts, d], d)?),
                false => None,
            },
        })
    }
}
