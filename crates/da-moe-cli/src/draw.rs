//! Random numbers that are the same on every machine and in every version: weights and inputs of bench and demo.

use da_moe::{Buffer, DType};

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), with 24 bits: every value is exact in f32.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// `count` normal numbers of mean 0 and the given deviation (Box–Muller).
    pub(crate) fn normal(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            // 1 − u is in (0, 1], so the logarithm is finite.
            let radius = deviation * (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let (sine, cosine) = (std::f32::consts::TAU * self.uniform()).sin_cos();
            values.extend([radius * cosine, radius * sine]);
        }
        values.truncate(count);
        values
    }

    /// A matrix, or a stack of them, whose products keep the scale of their input: normal over √fan_in.
    pub(crate) fn weights(&mut self, dtype: DType, count: usize, fan_in: usize) -> Buffer {
        Buffer::from_f32(dtype, &self.normal(count, 1.0 / (fan_in as f32).sqrt()))
    }
}

#[cfg(test)]
mod tests {
    use super::Draw;

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut draw = Draw::new(1);
        let uniform: Vec<f32> = (0..10_000).map(|_| draw.uniform()).collect();
        assert!(uniform.iter().all(|u| (0.0..1.0).contains(u)));
        let normal = draw.normal(10_001, 2.0);
        assert_eq!(normal.len(), 10_001);
        let mean = normal.iter().sum::<f32>() / 10_001.0;
        let variance = normal.iter().map(|v| v * v).sum::<f32>() / 10_001.0;
        // Four standard errors of 10⁴ samples.
        assert!(mean.abs() < 0.08 && (variance - 4.0).abs() < 0.23, "{mean} {variance}");
    }
}
