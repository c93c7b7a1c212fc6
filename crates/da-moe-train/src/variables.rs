//! A model's variables by name, with first values that depend on the seed, the name and the shape alone.

use crate::random;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Every variable of a model, in the order of their names.
#[derive(Clone)]
pub struct Variables {
    seed: u64,
    by_name: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl Variables {
    /// None yet; first values follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, by_name: Arc::default() }
    }

    /// What makes variables on first use.
    pub fn builder(&self, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, device.clone())
    }

    /// Names and variables, by name.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// Elements of all together.
    pub fn count(&self) -> usize {
        self.lock().values().map(|var| var.elem_count()).sum()
    }

    /// Other variables of the same names, with what is in these now.
    ///
    /// # Errors
    /// The device's.
    pub fn copy(&self) -> Result<Self> {
        let copied = self.all().into_iter().map(|(name, var)| Ok((name, Var::from_tensor(&var.copy()?)?)));
        let by_name: BTreeMap<String, Var> = copied.collect::<Result<_>>()?;
        Ok(Self { seed: self.seed, by_name: Arc::new(Mutex::new(by_name)) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first_values(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Var> {
        let Init::Randn { mean, stdev } = init else {
            return match init {
                Init::Const(_) => init.var(shape, dtype, device),
                _ => bail!("variable `{name}`: first values are constant or normal here"),
            };
        };
        let key = random::bits(&[self.seed, random::name(name)]);
        let values: Vec<f32> =
            (0..shape.elem_count() as u64).map(|i| (mean + stdev * random::normal(key, i)) as f32).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
    }
}

impl SimpleBackend for Variables {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(var) = self.lock().get(name) {
            if *var.shape() != shape {
                bail!("variable `{name}` has shape {:?}, {shape:?} is asked for", var.shape());
            }
            return Ok(var.as_tensor().clone());
        }
        let var = self.first_values(shape, name, init, dtype, device)?;
        let tensor = var.as_tensor().clone();
        self.lock().insert(name.into(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match self.lock().get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => bail!("there is no variable `{name}` yet, and no shape to make it with"),
        }
    }

    fn contains_tensor(&self, _: &str) -> bool {
        // Whatever is asked for is made.
        true
    }
}
