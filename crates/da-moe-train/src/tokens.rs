//! A batch of token sequences, as every layer sees it.

use candle_core::{Device, Result, Tensor};

/// `B` sequences of `S` tokens, and what ways to allocate experts may ask about them.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// U32 `[B, S]`.
    pub ids: Tensor,
    /// U8 `[B, S]`: 0 marks padding. Absent: there is none.
    pub present: Option<Tensor>,
    /// The same ids for the host, `B · S`.
    pub(crate) host_ids: Vec<u32>,
    /// Which tokens have to be predicted from the others, `B · S`; all `false` where every token predicts the next.
    pub(crate) masked: Vec<bool>,
    /// Which tokens are there, `B · S`; absent with `present`.
    pub(crate) host_present: Option<Vec<bool>>,
    /// `S`.
    pub(crate) length: usize,
    /// What random decisions about this batch are a function of: it is the same whenever the batch is.
    pub(crate) key: u64,
}

impl Tokens {
    /// Sequences of `length` tokens, one after another in `ids`; random decisions about them are a function of `key`.
    ///
    /// # Errors
    /// Ids that are not whole sequences.
    pub fn new(ids: &[u32], length: usize, key: u64, device: &Device) -> Result<Self> {
        let sequences = ids.len() / length.max(1);
        Ok(Self {
            ids: Tensor::from_slice(ids, (sequences, length), device)?,
            present: None,
            host_ids: ids.to_vec(),
            masked: vec![false; ids.len()],
            host_present: None,
            length,
            key,
        })
    }

    /// With the tokens that have to be predicted.
    pub fn with_masked(self, masked: Vec<bool>) -> Self {
        Self { masked, ..self }
    }

    /// With padding where `present` is false.
    ///
    /// # Errors
    /// Another number of tokens.
    pub fn with_present(self, present: Vec<bool>) -> Result<Self> {
        let bytes: Vec<u8> = present.iter().map(|&there| u8::from(there)).collect();
        let tensor = Tensor::from_vec(bytes, self.ids.shape(), self.ids.device())?;
        Ok(Self { present: Some(tensor), host_present: Some(present), ..self })
    }

    /// Whether token `t` is not padding.
    pub(crate) fn is_present(&self, t: usize) -> bool {
        self.host_present.as_ref().is_none_or(|present| present[t])
    }
}
