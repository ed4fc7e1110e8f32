//! Sizes as Kubernetes writes them.

/// A text that is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a size: use a whole number with Ki, Mi, Gi or Ti, such as 8Gi")]
pub struct InvalidQuantity(String);

const UNITS: [(&str, u32); 4] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];

/// Bytes of a size such as `8Gi`.
pub fn parse_bytes(text: &str) -> Result<u64, InvalidQuantity> {
    let invalid = || InvalidQuantity(text.to_owned());
    let (digits, shift) =
        UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    number.checked_mul(1 << shift).ok_or_else(invalid)
}

/// A size for a person: `212Mi`, `1.7Gi`.
pub fn format_bytes(bytes: u64) -> String {
    let (unit, shift) = UNITS.iter().rev().find(|(_, shift)| bytes >= 1 << shift).copied().unwrap_or(("", 0));
    let whole = bytes >> shift;
    let tenth = ((bytes - (whole << shift)) * 10) >> shift;
    if whole < 10 && tenth > 0 { format!("{whole}.{tenth}{unit}") } else { format!("{whole}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_as_kubernetes_does() {
        assert_eq!((parse_bytes("8Gi"), parse_bytes("512")), (Ok(8 << 30), Ok(512)));
        assert!(
            parse_bytes("8GB").is_err() && parse_bytes("").is_err() && parse_bytes("99999999999Ti").is_err()
        );
        let texts: Vec<String> =
            [0, 1023, 20 << 10, 212 << 20, (17 << 30) / 10].into_iter().map(format_bytes).collect();
        assert_eq!(texts, ["0", "1023", "20Ki", "212Mi", "1.6Gi"]);
    }
}
