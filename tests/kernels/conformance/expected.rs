//! What a word of a kernel's output has to be, and how far a device may be from it.

/// Bits of f32 behind the first one.
const BITS: f64 = 8_388_608.0;

/// One word of output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expected {
    /// This and nothing else: integers, moved data, conversions.
    Bits(u32),
    /// The f32 that is not a number; of which bits is the device's choice.
    Nan,
    /// An f32 that is as near.
    Near { value: f64, within: f64 },
}

impl Expected {
    /// An f32 to the bit.
    pub fn exactly(value: f32) -> Self {
        if value.is_nan() { Expected::Nan } else { Expected::Bits(value.to_bits()) }
    }

    /// An f32 accumulator and 16 products at most, added in whatever order and grouping a tensor core likes. Before
    /// they are added, terms are shifted to the exponent of the largest, and each may lose what falls behind the 24th
    /// bit of that: 17 losses in one group of 16, or 18 in two of eight. A group's sum is rounded or cut once more.
    /// None of these 20 is as much as a unit in the last place of the sum of magnitudes; neither is any of the
    /// emulator's 16 roundings, which add one product after the other. Swapped operands are wrong by about that sum.
    pub fn sum(value: f64, magnitude: f64) -> Self {
        if value.is_finite() {
            Expected::Near { value, within: 20.0 * magnitude / BITS }
        } else {
            Expected::exactly(value as f32)
        }
    }

    /// Whether a device's word may be this.
    pub fn admits(self, word: u32) -> bool {
        let found = f32::from_bits(word);
        match self {
            Expected::Bits(bits) => word == bits,
            Expected::Nan => found.is_nan(),
            Expected::Near { value, within } => (f64::from(found) - value).abs() <= within,
        }
    }

    /// Whether two devices agree about this word: exactly, or within what each of them may be off.
    pub fn agree(self, one: u32, other: u32) -> bool {
        match self {
            Expected::Bits(_) => one == other,
            Expected::Nan => f32::from_bits(one).is_nan() == f32::from_bits(other).is_nan(),
            Expected::Near { within, .. } => {
                let [one, other] = [one, other].map(|word| f64::from(f32::from_bits(word)));
                (one - other).abs() <= 2.0 * within
            }
        }
    }
}

pub fn all_bits(words: impl IntoIterator<Item = u32>) -> Vec<Expected> {
    words.into_iter().map(Expected::Bits).collect()
}

/// As near to a real number as that many units in the last place of f32.
pub fn ulps(value: f64, count: f64) -> Expected {
    if !value.is_finite() || value.abs() > f64::from(f32::MAX) {
        return Expected::exactly(value as f32);
    }
    let exponent = value.abs().log2().floor().max(-126.0);
    Expected::Near { value, within: count * exponent.exp2() / BITS }
}

/// 2^x within 2^-22 of it, and +0 instead of what is subnormal then. Of either kind may be what is that near to the
/// smallest normal number.
pub fn power_of_two(x: u32) -> Expected {
    let value = f64::from(f32::from_bits(x)).exp2();
    let error = (-22.0f64).exp2();
    let to_smallest = value / f64::from(f32::MIN_POSITIVE) - 1.0;
    match value {
        _ if value.is_nan() || value > f64::from(f32::MAX) => Expected::exactly(value as f32),
        _ if to_smallest < -error => Expected::Bits(0),
        _ if to_smallest < error => Expected::Near { value, within: value },
        _ => Expected::Near { value, within: value * error },
    }
}

/// The first word that a device may not have given, and how many there are.
pub fn wrong(expected: &[Expected], found: &[u32]) -> Option<String> {
    let bad = |place: &usize| !expected[*place].admits(found[*place]);
    let first = |place: usize| format!("word {place} is {}, expected {}", shown(found[place]), wanted(expected[place]));
    tell(expected, found, bad, first)
}

/// The first word about which two devices differ.
pub fn differ(expected: &[Expected], one: &[u32], other: &[u32]) -> Option<String> {
    assert_eq!(one.len(), other.len(), "words of two devices");
    let bad = |place: &usize| !expected[*place].agree(one[*place], other[*place]);
    let first = |place: usize| format!("word {place} is {} and {}", shown(one[place]), shown(other[place]));
    tell(expected, one, bad, first)
}

fn tell(
    expected: &[Expected],
    found: &[u32],
    bad: impl Fn(&usize) -> bool,
    first: impl Fn(usize) -> String,
) -> Option<String> {
    if expected.len() != found.len() {
        return Some(format!("{} words, expected {}", found.len(), expected.len()));
    }
    let places: Vec<usize> = (0..found.len()).filter(bad).collect();
    let text = format!("{} ({} of {} words)", first(*places.first()?), places.len(), found.len());
    Some(text)
}

fn shown(word: u32) -> String {
    format!("{word:#010x} ({:e})", f32::from_bits(word))
}

fn wanted(expected: Expected) -> String {
    match expected {
        Expected::Bits(bits) => shown(bits),
        Expected::Nan => "NaN".into(),
        Expected::Near { value, within } => format!("{value:e} within {within:e}"),
    }
}

#[test]
fn words_are_told_apart() {
    let near = Expected::Near { value: 2.0, within: 0.25 };
    for (expected, good, bad) in [
        (Expected::Bits(7), 7, 8),
        (Expected::Nan, f32::NAN.to_bits(), 0),
        (near, 2.25f32.to_bits(), 2.5f32.to_bits()),
        (near, 2.0f32.to_bits(), f32::NAN.to_bits()),
        (Expected::sum(3.0, 8.0), 3.0f32.to_bits() + 1, 3.0001f32.to_bits()),
        (Expected::sum(f64::INFINITY, f64::INFINITY), f32::INFINITY.to_bits(), f32::MAX.to_bits()),
        (ulps(1.0, 2.0), 1.0f32.to_bits() + 2, 1.0f32.to_bits() + 3),
        (ulps(1e39, 2.0), f32::INFINITY.to_bits(), f32::MAX.to_bits()),
        (power_of_two((-127.0f32).to_bits()), 0, (f32::MIN_POSITIVE / 2.0).to_bits()),
        (power_of_two(f32::NEG_INFINITY.to_bits()), 0, 0x8000_0000),
        (power_of_two((-126.0f32).to_bits()), f32::MIN_POSITIVE.to_bits(), 1.0f32.to_bits()),
        (power_of_two(1), 1.0f32.to_bits(), 1.0f32.to_bits() + 4),
    ] {
        assert!(expected.admits(good) && !expected.admits(bad), "{expected:?}");
        assert!(wrong(&[expected; 2], &[good; 2]).is_none());
        assert!(wrong(&[expected; 2], &[good, bad]).is_some_and(|text| text.contains("word 1 is")));
        assert!(differ(&[expected], &[good], &[good]).is_none(), "{expected:?}");
        assert!(differ(&[expected], &[good], &[0x4170_0000]).is_some(), "{expected:?}");
    }
    assert!(wrong(&[near], &[]).is_some());
}
