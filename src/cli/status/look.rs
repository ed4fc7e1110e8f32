//! How things are drawn: colours, symbols, aligned columns, wrapped sentences, short numbers. Pure.

use jiff::Timestamp;

/// What the drawing depends on besides the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Whether to colour.
    pub(super) color: bool,
    /// Only ASCII in what we draw.
    pub(super) ascii: bool,
    /// Columns of the terminal; sentences are wrapped to it.
    pub(super) width: Option<usize>,
    /// For ages.
    pub(super) now: Timestamp,
}

/// A colour by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Plain,
    Heading,
    Good,
    Warning,
    Bad,
    Faint,
}

impl Ink {
    /// The parameter of ANSI's SGR sequence.
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Heading => Some("1"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
            Self::Faint => Some("2"),
        }
    }
}

/// Narrowest column that sentences are wrapped to; below it the terminal may wrap as it likes.
const NARROWEST: usize = 30;

impl Look {
    /// Colours text.
    pub(super) fn paint(&self, text: &str, ink: Ink) -> String {
        match ink.code() {
            Some(code) if self.color && !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }

    /// Chooses between a symbol and its ASCII stand-in.
    pub(super) fn symbol(&self, symbol: &'static str, ascii: &'static str) -> &'static str {
        if self.ascii { ascii } else { symbol }
    }

    /// A bar that is filled by `percent`.
    pub(super) fn bar(&self, percent: u64, ink: Ink) -> String {
        const CELLS: u64 = 24;
        // Half a cell is rounded up, and what is not empty does not look empty.
        let filled = ((percent.min(100) * CELLS + 50) / 100).max(u64::from(percent > 0));
        let filled = usize::try_from(filled).unwrap_or(0);
        let empty = usize::try_from(CELLS).unwrap_or(0).saturating_sub(filled);
        let full = self.paint(&self.symbol("█", "#").repeat(filled), ink);
        format!("{full}{}", self.paint(&self.symbol("░", "-").repeat(empty), Ink::Faint))
    }

    /// Breaks a sentence so that it fits beside `indent` columns; lines after the first are indented.
    pub(super) fn wrap(&self, text: &str, indent: usize) -> String {
        let Some(room) =
            self.width.and_then(|width| width.checked_sub(indent)).filter(|room| *room >= NARROWEST)
        else {
            return text.to_owned();
        };
        let mut lines: Vec<String> = vec![String::new()];
        for word in text.split(' ') {
            match lines.last_mut() {
                Some(line) if line.is_empty() => line.push_str(word),
                Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        lines.join(&format!("\n{}", " ".repeat(indent)))
    }

    /// How long ago, as kubectl writes it: `3s`, `12m`, `5h`, `40d`.
    pub(super) fn since(&self, then: Timestamp) -> String {
        let seconds = self.now.duration_since(then).as_secs().max(0);
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        // Two digits at least: 119 s tells more than 1 m.
        match () {
            () if seconds < 120 => format!("{seconds}s"),
            () if minutes < 120 => format!("{minutes}m"),
            () if hours < 48 => format!("{hours}h"),
            () => format!("{days}d"),
        }
    }
}

/// A cell of a table.
pub(super) type Cell = (String, Ink);

/// Aligned columns, two spaces apart, nothing after the last cell of a line. The last column may hold sentences:
/// they are wrapped and do not count for its width.
pub(super) fn table(rows: &[Vec<Cell>], look: &Look) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|(text, _)| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let indent: usize = widths.iter().take(columns.saturating_sub(1)).map(|width| width + 2).sum();
    let mut drawn = String::new();
    for row in rows {
        let mut line = String::new();
        let mut gap = 0;
        for (column, ((text, ink), width)) in row.iter().zip(&widths).enumerate() {
            if text.is_empty() {
                gap += width + 2;
                continue;
            }
            let last = column + 1 == columns;
            let shown = if last { look.wrap(text, indent) } else { text.clone() };
            line.push_str(&" ".repeat(gap));
            line.push_str(&look.paint(&shown, *ink));
            gap = (width + 2).saturating_sub(text.chars().count());
        }
        drawn.push_str(&line);
        drawn.push('\n');
    }
    drawn
}

/// Text from outside may not steer the terminal.
pub(super) fn harmless(text: &str) -> String {
    let one_line = |character: char| if character.is_control() { ' ' } else { character };
    text.trim().chars().map(one_line).collect()
}

/// `18,233,412`.
pub(super) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// Reads a size for a person, such as `1.7Gi` or `1024`: the answer is for a bar, not for arithmetic.
pub(super) fn bytes(quantity: &str) -> Option<f64> {
    const UNITS: [(&str, i32); 4] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let found = UNITS.iter().find_map(|(unit, power)| Some((quantity.strip_suffix(unit)?, 2_f64.powi(*power))));
    let (number, factor) = found.unwrap_or((quantity, 1.0));
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(18_233_412), "18,233,412");
        assert_eq!(grouped(-100), "-100");
        assert_eq!(grouped(i64::MIN), "-9,223,372,036,854,775,808");
    }

    #[test]
    fn quantities_are_read_in_every_unit() {
        assert_eq!(bytes("2Gi"), Some(2_147_483_648.0));
        assert_eq!(bytes("1.5Ki"), Some(1536.0));
        assert_eq!(bytes("17"), Some(17.0));
        for wrong in ["", "Gi", "-1Gi", "NaN", "inf", "many"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ages_are_kubectls() {
        let look = Look {
            color: false,
            ascii: false,
            width: None,
            now: Timestamp::from_second(10_000_000).unwrap(),
        };
        let age = |seconds: i64| look.since(Timestamp::from_second(10_000_000 - seconds).unwrap());
        assert_eq!(
            [age(-5), age(3), age(119), age(120), age(7200), age(172_800)],
            ["0s", "3s", "119s", "2m", "2h", "2d"]
        );
    }

    #[test]
    fn what_comes_from_outside_cannot_steer_the_terminal() {
        assert_eq!(harmless("panic:\n\x1b[2Jgone\t"), "panic:  [2Jgone");
    }

    #[test]
    fn sentences_are_wrapped_to_the_terminal() {
        let look = Look { color: false, ascii: false, width: Some(40), now: Timestamp::UNIX_EPOCH };
        let text = look.wrap("one two three four five six seven eight nine", 10);
        assert_eq!(text, "one two three four five six\n          seven eight nine");
    }
}
