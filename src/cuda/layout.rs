//! How a struct lies in memory, so that a test can hold C's idea of it against Rust's.

/// One struct that host and kernel share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The same in both languages.
    pub name: &'static str,
    /// In bytes, with everything.
    pub size: usize,
    /// Of the whole struct, in bytes.
    pub align: usize,
    /// In their order.
    pub fields: &'static [Field],
}

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The same in both languages.
    pub name: &'static str,
    /// From the start of the struct, in bytes.
    pub offset: usize,
    /// In bytes.
    pub size: usize,
}

impl Layout {
    /// Where the first bytes lie that belong to no field. Nothing initialises them, so a struct that is copied to a GPU
    /// as bytes must have none.
    pub fn padding(&self) -> Option<usize> {
        let mut end = 0;
        for field in self.fields {
            if field.offset != end {
                return Some(end);
            }
            end += field.size;
        }
        (end != self.size).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn field(offset: usize, size: usize) -> Field {
        Field { name: "field", offset, size }
    }

    #[test]
    fn padding_is_found() {
        const NONE: &[Field] = &[field(0, 8), field(8, 4), field(12, 4)];
        const BETWEEN: &[Field] = &[field(0, 4), field(8, 8)];
        const AT_THE_END: &[Field] = &[field(0, 8), field(8, 4)];
        for (fields, padding) in [(NONE, None), (BETWEEN, Some(4)), (AT_THE_END, Some(12))] {
            assert_eq!(Layout { name: "Struct", size: 16, align: 8, fields }.padding(), padding);
        }
    }
}
