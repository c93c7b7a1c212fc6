//! Random numbers as functions of what they are for, so that a run can go on from any step, and runs of one seed share
//! their data, masks and first weights whatever differs between them otherwise.

/// 64 random bits for a key of some numbers: SplitMix64's finaliser over each in turn.
pub fn bits(key: &[u64]) -> u64 {
    key.iter().fold(0x243F_6A88_85A3_08D3, |state, &word| {
        let z = (state ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Uniform in [0, 1) for a key.
pub fn unit(key: &[u64]) -> f64 {
    (bits(key) >> 11) as f64 / (1u64 << 53) as f64
}

/// A number for a name.
pub(crate) fn name(text: &str) -> u64 {
    text.bytes().fold(0, |state, byte| bits(&[state, u64::from(byte)]))
}

/// Normally distributed, number `index` of a seed (Box and Muller).
pub(crate) fn normal(seed: u64, index: u64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(&[seed, index, 0])).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(&[seed, index, 1])).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_the_moments_of_their_name() {
        let count = 100_000;
        let sum = |power: i32| (0..count).map(|i| normal(7, i).powi(power)).sum::<f64>() / count as f64;
        assert!(sum(1).abs() < 0.02, "mean {}", sum(1));
        assert!((sum(2) - 1.0).abs() < 0.03, "variance {}", sum(2));
        assert!((sum(4) - 3.0).abs() < 0.2, "fourth moment {}", sum(4));
    }

    #[test]
    fn keys_differ() {
        assert_ne!(bits(&[1, 2]), bits(&[2, 1]));
        assert_ne!(bits(&[1]), bits(&[1, 0]));
        assert_ne!(name("ab"), name("ba"));
    }
}
