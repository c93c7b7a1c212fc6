//! Gradients at the ends of f16's range: a layer whose `dy` is scaled by a power of two, and whose weights have gradients in f32,
//! which say what the products made of it whatever the type of the weights can hold.

use super::case::Case;
use super::data::Data;
use super::forward;
use da_moe::{Backend, Buffer, DType, Error, Layer};
use da_moe_reference::{Problem, backward};

/// A case, and by how many octaves its `dy` is scaled.
#[derive(Clone, Debug)]
pub struct Ends {
    pub case: Case,
    pub octaves: i32,
}

/// Gradients of `x`, and of the experts' two matrices.
pub type Gradients = [Vec<f64>; 3];

/// The largest number of f16 that is a power of two.
const LARGEST: f32 = 32768.0;

fn scaled(buffer: &Buffer, octaves: i32) -> Buffer {
    let values = buffer.to_f32().into_iter().map(|value| (value * 2f32.powi(octaves)).clamp(-LARGEST, LARGEST));
    Buffer::from_f32(buffer.dtype(), &values.collect::<Vec<f32>>())
}

fn widened(buffer: &Buffer) -> Vec<f64> {
    buffer.to_f32().into_iter().map(f64::from).collect()
}

impl Ends {
    /// The first matrix is scaled the other way, so that `dx` is of ordinary size in any type, and `x` so that hidden rows are.
    pub fn tensors(&self) -> Data {
        let mut data = Data::new(&self.case);
        data.dy = scaled(&data.dy, self.octaves);
        let of_weights = (-self.octaves).clamp(-10, 10);
        data.experts.w_in = scaled(&data.experts.w_in, of_weights);
        data.x = scaled(&data.x, -of_weights);
        data
    }

    /// What the oracle says.
    pub fn expected(&self, data: &Data) -> Gradients {
        let problem =
            Problem::new(data.config.clone(), &data.inputs().unwrap(), &data.weights().unwrap(), &[0.0; 4]).unwrap();
        let gradients = backward(&problem, &da_moe_reference::forward(&problem), &data.dy_values());
        [gradients.x, gradients.experts.w_in, gradients.experts.w_out]
    }

    /// # Errors
    /// The backend's.
    pub fn run<B: Backend<Stream = ()>>(&self, data: &Data, backend: B) -> Result<Gradients, Error> {
        let layer = Layer::new(backend, data.config.clone())?;
        let mut step = layer.step(data.tokens, data.dtype, self.case.keep)?;
        forward(&layer, data, &mut layer.state()?, &mut step)?;
        let mut gradients = data.gradients_of(Some(DType::F32));
        layer.backward(&(), &data.inputs()?, &data.weights()?, data.dy()?, &mut step, &mut gradients.view_mut()?)?;
        Ok([widened(&gradients.x), widened(&gradients.experts.w_in), widened(&gradients.experts.w_out)])
    }

    /// Within SPEC §8's bound; and neither too small nor too large as a whole, as they would be if factors were cut, not
    /// rounded: that no sum shows for itself.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, expected: &Gradients, found: &Gradients) -> Result<(), String> {
        let (bound, most) = match self.case.dtype {
            DType::Bf16 => (8e-3, 8e-4),
            DType::F16 => (1e-3, 1e-4),
            _ => (1e-5, 1e-6),
        };
        for ((found, expected), name) in found.iter().zip(expected).zip(["d.x", "d.w_in", "d.w_out"]) {
            let dot = |a: &mut dyn Iterator<Item = f64>, b: &[f64]| a.zip(b).map(|(a, b)| a * b).sum::<f64>();
            let apart: Vec<f64> = found.iter().zip(expected).map(|(found, expected)| found - expected).collect();
            let size = dot(&mut expected.iter().copied(), expected);
            let error = (dot(&mut apart.iter().copied(), &apart) / size).sqrt();
            let larger = dot(&mut apart.iter().copied(), expected) / size;
            // Written so that NaN is wrong.
            if !(error <= bound && larger.abs() <= most) {
                return Err(format!("{name} is off by {error:e}, and larger by {larger:e}"));
            }
        }
        Ok(())
    }
}
