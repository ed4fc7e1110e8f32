//! Keys as text: what can be read is left as it is, every other byte is `%` and two hex digits.
//!
//! For the checkpoint and for people. JSON cannot hold a key that is not UTF-8.

use serde::{Deserialize, Deserializer, Serializer};

/// The text of a key.
pub fn shown(key: &[u8]) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key {
        let plain = byte.is_ascii_graphic() && !matches!(byte, b'%' | b'"' | b'\\');
        if plain { text.push(char::from(*byte)) } else { text.push_str(&format!("%{byte:02X}")) }
    }
    text
}

/// The key of a text; `None` if a `%` has not two hex digits after it.
pub fn read(text: &str) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        key.push(if byte == b'%' { digit(bytes.next()?)? << 4 | digit(bytes.next()?)? } else { byte });
    }
    Some(key)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// For `#[serde(with = …)]`.
pub(super) mod key {
    use super::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde gives a reference")]
    pub(in super::super) fn serialize<S: Serializer>(
        key: &Option<Vec<u8>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match key {
            Some(key) => to.serialize_some(&super::shown(key)),
            None => to.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| super::read(&text).ok_or_else(|| super::bad::<D::Error>(&text))).transpose()
    }
}

fn bad<E: serde::de::Error>(text: &str) -> E {
    E::custom(format!("{text:?} is no key: after % two hex digits are expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(read(&shown(&all)), Some(all));
        assert_eq!(shown(b"/a%\"\xff "), "/a%25%22%FF%20");
        assert_eq!((read("%4"), read("%zz"), read("%+1")), (None, None, None));
    }
}
