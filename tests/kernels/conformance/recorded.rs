//! Vectors recorded on a GPU: how they are written and read. The README beside them says it for people.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// What one GPU made of every kernel's words.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Model, architecture and driver.
    pub device: String,
    pub seed: u64,
    pub vectors: Vec<Vector>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    pub kernel: String,
    /// [`checksum`] of the words that it was given.
    pub input: u64,
    pub output: Vec<u32>,
}

const WORDS_A_LINE: usize = 12;

impl Recording {
    pub fn to_text(&self) -> String {
        let mut text = format!("device {}\nseed {}\n", self.device, self.seed);
        for Vector { kernel, input, output } in &self.vectors {
            write!(text, "\nkernel {kernel} input {input:016x}").expect("a string takes everything");
            for (place, word) in output.iter().enumerate() {
                let before = if place % WORDS_A_LINE == 0 { '\n' } else { ' ' };
                write!(text, "{before}{word:08x}").expect("a string takes everything");
            }
            text.push('\n');
        }
        text
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let mut recording = Self { device: String::new(), seed: 0, vectors: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            let bad = || format!("line {} is not understood: {line}", number + 1);
            match line.split_once(' ') {
                _ if line.is_empty() || line.starts_with('#') => {}
                Some(("device", name)) => recording.device = name.into(),
                Some(("seed", seed)) => recording.seed = seed.parse().map_err(|_| bad())?,
                Some(("kernel", rest)) => {
                    let (kernel, input) = rest.split_once(" input ").ok_or_else(bad)?;
                    let input = u64::from_str_radix(input, 16).map_err(|_| bad())?;
                    recording.vectors.push(Vector { kernel: kernel.into(), input, output: Vec::new() });
                }
                _ => {
                    let words: Result<Vec<u32>, _> =
                        line.split(' ').map(|word| u32::from_str_radix(word, 16)).collect();
                    recording.vectors.last_mut().ok_or_else(bad)?.output.extend(words.map_err(|_| bad())?);
                }
            }
        }
        if recording.device.is_empty() || recording.vectors.is_empty() {
            return Err("there is no device, or no kernel".into());
        }
        Ok(recording)
    }

    /// The file's name: of a device one recording, the latest, is kept.
    pub fn file_name(&self) -> String {
        let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = self.device.chars().map(letter).collect();
        name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-") + ".txt"
    }
}

/// Every recording in a folder, with its file's name; none where there is no folder.
pub fn read_all(folder: &Path) -> Vec<(String, Recording)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let read = |path: &Path| {
        let text = fs::read_to_string(path).map_err(|error| error.to_string());
        text.and_then(|text| Recording::parse(&text)).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()))
    };
    files.iter().map(|path| (path.file_name().unwrap_or_default().to_string_lossy().into(), read(path))).collect()
}

/// FNV-1a of words, so that a recording of other words than today's is told from a disagreement.
pub fn checksum(words: &[u32]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn recordings_are_read_as_they_were_written() {
    let vector = |kernel: &str, count| Vector { kernel: kernel.into(), input: 5, output: (0..count).collect() };
    let vectors = vec![vector("conformance_a", 30), vector("conformance_b", 12), vector("conformance_c", 0)];
    let recording = Recording { device: "NVIDIA H100 80GB (sm_90), driver 13.0".into(), seed: 9, vectors };
    let text = recording.to_text();
    assert_eq!(Recording::parse(&format!("# a note\n{text}")), Ok(recording.clone()));
    assert_eq!(recording.file_name(), "nvidia-h100-80gb-sm-90-driver-13-0.txt");
    for bad in ["", "device x\n", "device x\n00000000\n", "device x\nkernel y\n", "device x\nseed -1\n"] {
        assert!(Recording::parse(bad).is_err(), "{bad:?}");
    }
    assert!(Recording::parse(&text.replace("00000007", "0000000g")).is_err_and(|text| text.contains("line 5")));
    assert_ne!(checksum(&[1, 2]), checksum(&[2, 1]));
}
