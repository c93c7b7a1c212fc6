//! What the header of a safetensors file says, looked at before anything is made of it.
//!
//! The safetensors crate keeps the last of several tensors of one name and adds the header's length to offsets without looking for
//! overflow; whoever multiplies extents, zeros among them, may overflow too.

use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Refuses a header that has a name twice, a tensor past the end of the file, or extents that multiply to no address. What is no
/// header at all is left to the safetensors crate.
///
/// # Errors
/// What is wrong, naming the tensor.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return Ok(()) };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some(header) = rest.get(..length) else { return Ok(()) };
    let Once(entries) = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let numbers = |entry: &Value, field: &str| -> Vec<u64> {
        let list = entry.get(field).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_u64).collect()
    };
    for (name, entry) in entries.as_object().into_iter().flatten() {
        if numbers(entry, "data_offsets").iter().any(|&offset| offset > rest.len() as u64) {
            return Err(format!("tensor `{}` lies past the end of the file", name.escape_debug()));
        }
        let shape = numbers(entry, "shape");
        let extents = shape.iter().filter(|&&extent| extent > 0);
        // No type has more than 16 bytes an element.
        if extents.copied().try_fold(16u64, u64::checked_mul).is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(format!("tensor `{}` has shape {shape:?}, which no memory holds", name.escape_debug()));
        }
    }
    Ok(())
}

/// What a JSON text says, in which no object has a name twice.
///
/// # Errors
/// The parser's, or the name.
pub(crate) fn json<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let Once(value) = serde_json::from_str(text)?;
    serde_json::from_value(value)
}

/// Any JSON in which no object has a name twice.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything).map(Once)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Once(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let Once(value) = object.next_value()?;
            if values.contains_key(&name) {
                return Err(A::Error::custom(format!("the name `{}` is there twice", name.escape_debug())));
            }
            values.insert(name, value);
        }
        Ok(values.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat()
    }

    #[test]
    fn names_that_are_there_twice_are_refused_wherever_they_are() {
        let entry = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        let twice = [
            format!(r#"{{"x":{entry},"x":{entry}}}"#),
            format!(r#"{{"x":{entry},"\u0078":{entry}}}"#),
            format!(r#"{{"__metadata__":{{"x":"1","x":"2"}},"y":{entry}}}"#),
            r#"{"y":{"dtype":"F32","shape":[2],"x":[0,4],"x":[0,8]}}"#.to_string(),
        ];
        for header in twice {
            assert!(check(&file(&header)).is_err_and(|problem| problem.contains("`x` is there twice")), "{header}");
        }
        assert_eq!(check(&file(&format!(r#"{{"x":{entry},"y":{entry}}}"#))), Ok(()));
        assert!(json::<Value>(r#"{"a":{"b":1,"b":1}}"#).is_err());
    }

    #[test]
    fn sizes_that_no_memory_holds_are_refused_zeros_or_not() {
        for shape in ["[0,18446744073709551615]", "[4294967296,0,4294967296]", "[9223372036854775807]"] {
            let header = format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
            assert!(check(&file(&header)).is_err_and(|problem| problem.contains("`x`")), "{header}");
        }
        let header = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,1000000]}}"#;
        assert!(check(&file(header)).is_err_and(|problem| problem.contains("past the end")));
    }
}
