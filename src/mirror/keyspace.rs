//! Which keys are mirrored, under which name, and which are left alone.
//!
//! Keys are bytes, order is that of bytes, and a name is changed at its front only. So within one mapping the order
//! of names is the same on both sides, and with mappings sorted by their source prefix one cursor, a source key,
//! says how far a scan of both sides has come.
//! **Invariant:** (I7) what is [`Fate::Mirrored`] is inside a mapping, matches no ignore pattern, is not empty, and is
//! no key of a mirror by either of its names.

use regex::bytes::{RegexSet, RegexSetBuilder};
use serde::{Deserialize, Serialize};

/// Under it, on both sides, mirrors keep what they know; never copied, never pruned.
pub const OWN_KEYS: &[u8] = b"/__quorate/mirror/";

/// Patterns of one mirror: far above what people write by hand, and few enough to try on every key.
const MAX_PATTERNS: usize = 256;
/// Bytes of one pattern.
const MAX_PATTERN_BYTES: usize = 4096;
/// Of the compiled patterns together, so that `(a{1000}){1000}` is refused and not compiled.
const MAX_COMPILED_BYTES: usize = 4 << 20;

/// Which of the two etcds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one that is copied from.
    Source,
    /// The one that is written to.
    Target,
}

/// Keys below `source` in the source are keys below `target` in the target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// Front of the names in the source.
    pub source: String,
    /// What takes its place in the target.
    pub target: String,
}

/// Keys from `start` up to, not with, `end`; `None`: to the last key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First name; never empty.
    pub start: Vec<u8>,
    /// First name behind it.
    pub end: Option<Vec<u8>>,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is mirrored, and this is its name on the other side.
    Mirrored(Vec<u8>),
    /// A pattern matches: neither copied nor deleted.
    Ignored,
    /// A mirror's own: neither copied nor deleted.
    Own,
    /// No mapping has it.
    Outside,
    /// Its name on the other side would be empty, which etcd refuses.
    Nameless,
}

/// Mappings or patterns that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyspace {
    /// Two mappings have keys in common.
    #[error(
        "the mappings {first:?} and {second:?} overlap in the {side}: a key would be mirrored twice; give prefixes of \
         which none begins with another"
    )]
    Overlap {
        /// In which names.
        side: &'static str,
        /// The shorter prefix.
        first: String,
        /// The one that begins with it.
        second: String,
    },
    /// Not one mapping.
    #[error("there is no mapping: give at least one prefix, or none at all for the whole keyspace")]
    NoMapping,
    /// The mapping is inside of what mirrors keep for themselves.
    #[error(
        "the prefix {0:?} is where mirrors keep their checkpoints: nothing below /__quorate/mirror/ is mirrored"
    )]
    OwnKeys(String),
    /// Not a pattern.
    #[error("the ignore pattern {pattern:?} is no regular expression: {problem}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What the parser says, in one line.
        problem: String,
    },
    /// Too many or too large.
    #[error("{0}")]
    TooLarge(String),
}

/// Mappings and patterns, ready to be asked.
#[derive(Clone, Debug)]
pub struct Keyspace {
    /// Sorted by source prefix; disjoint on both sides.
    mappings: Vec<Mapping>,
    patterns: RegexSet,
    /// By which name patterns are matched.
    ignore_at: Side,
}

impl Keyspace {
    /// Checks mappings and compiles patterns.
    pub fn new(mappings: &[Mapping], patterns: &[String], ignore_at: Side) -> Result<Self, InvalidKeyspace> {
        let mut mappings = mappings.to_vec();
        mappings.sort();
        if mappings.is_empty() {
            return Err(InvalidKeyspace::NoMapping);
        }
        disjoint("source", mappings.iter().map(|mapping| &mapping.source))?;
        disjoint("target", mappings.iter().map(|mapping| &mapping.target))?;
        Ok(Self { mappings, patterns: compiled(patterns)?, ignore_at })
    }

    /// What becomes of a key of the source.
    pub fn of_source(&self, key: &[u8]) -> Fate {
        self.fate(key, Side::Source)
    }

    /// Which source key a key of the target stands for.
    pub fn of_target(&self, key: &[u8]) -> Fate {
        self.fate(key, Side::Target)
    }

    fn fate(&self, key: &[u8], side: Side) -> Fate {
        let Some(other) = self.mappings.iter().find_map(|mapping| renamed(key, mapping, side)) else {
            return Fate::Outside;
        };
        if key.starts_with(OWN_KEYS) || other.starts_with(OWN_KEYS) {
            return Fate::Own;
        }
        if key.is_empty() || other.is_empty() {
            return Fate::Nameless;
        }
        let judged = if side == self.ignore_at { key } else { &other };
        if self.patterns.is_match(judged) { Fate::Ignored } else { Fate::Mirrored(other) }
    }

    /// One span a mapping, in the order of the source.
    pub fn spans(&self, side: Side) -> Vec<Span> {
        self.mappings.iter().map(|mapping| Span::of_prefix(mapping.prefix(side).as_bytes())).collect()
    }

    /// The first mapping, by its place, that has keys which are not before `cursor`.
    pub fn next(&self, cursor: Option<&[u8]>) -> Option<usize> {
        let goes_on = |span: &Span| match (cursor, &span.end) {
            (Some(cursor), Some(end)) => cursor < end.as_slice(),
            (None, _) | (_, None) => true,
        };
        self.spans(Side::Source).iter().position(goes_on)
    }

    /// Where the keys of a span inside the mapping at `place` are on the other side.
    pub fn opposite(&self, place: usize, span: &Span, side: Side) -> Option<Span> {
        let mapping = self.mappings.get(place)?;
        let (own, other) = (Span::of_prefix(mapping.prefix(side).as_bytes()), mapping.prefix(side.other()));
        let other = Span::of_prefix(other.as_bytes());
        let start = if span.start <= own.start { other.start } else { renamed(&span.start, mapping, side)? };
        let end =
            if span.end == own.end { other.end } else { Some(renamed(span.end.as_ref()?, mapping, side)?) };
        Some(Span { start, end })
    }

    /// The smallest span that holds all of them.
    pub fn hull(&self, side: Side) -> Span {
        let spans = self.spans(side);
        let start = spans.iter().map(|span| span.start.clone()).min().unwrap_or_else(|| vec![0]);
        let end = spans.into_iter().map(|span| span.end).reduce(|one, other| Some(one?.max(other?)));
        Span { start, end: end.flatten() }
    }
}

impl Side {
    /// The one that it is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

/// The next name in the order of bytes.
pub fn next_key(key: &[u8]) -> Vec<u8> {
    key.iter().copied().chain([0]).collect()
}

impl Mapping {
    fn prefix(&self, side: Side) -> &str {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

impl Span {
    /// All keys that begin with `prefix`.
    pub fn of_prefix(prefix: &[u8]) -> Self {
        // etcd has no empty key.
        let start = if prefix.is_empty() { vec![0] } else { prefix.to_vec() };
        let last = prefix.iter().rposition(|byte| *byte != u8::MAX);
        let end = last.and_then(|last| {
            let mut end = prefix.get(..=last)?.to_vec();
            let byte = end.last_mut()?;
            *byte = byte.checked_add(1)?;
            Some(end)
        });
        Self { start, end }
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_slice() && self.end.as_deref().is_none_or(|end| key < end)
    }

    /// What of it is not before `cursor`.
    #[must_use]
    pub fn from(&self, cursor: Option<&[u8]>) -> Self {
        let start = cursor.map_or(self.start.as_slice(), |cursor| cursor.max(&self.start));
        Self { start: start.to_vec(), end: self.end.clone() }
    }

    /// The end as etcd writes it: `\0` is "to the last key".
    pub fn range_end(&self) -> Vec<u8> {
        self.end.clone().unwrap_or_else(|| vec![0])
    }
}

fn renamed(key: &[u8], mapping: &Mapping, side: Side) -> Option<Vec<u8>> {
    let (from, to) = match side {
        Side::Source => (&mapping.source, &mapping.target),
        Side::Target => (&mapping.target, &mapping.source),
    };
    let rest = key.strip_prefix(from.as_bytes())?;
    Some([to.as_bytes(), rest].concat())
}

fn disjoint<'a>(
    side: &'static str,
    prefixes: impl Iterator<Item = &'a String>,
) -> Result<(), InvalidKeyspace> {
    let mut prefixes: Vec<&String> = prefixes.collect();
    prefixes.sort();
    if let Some(own) = prefixes.iter().find(|prefix| prefix.as_bytes().starts_with(OWN_KEYS)) {
        return Err(InvalidKeyspace::OwnKeys((*own).clone()));
    }
    // Sorted, a prefix stands directly before what begins with it.
    match prefixes.windows(2).find_map(|pair| match pair {
        [first, second] if second.starts_with(first.as_str()) => Some((*first, *second)),
        _ => None,
    }) {
        Some((first, second)) => {
            Err(InvalidKeyspace::Overlap { side, first: first.clone(), second: second.clone() })
        }
        None => Ok(()),
    }
}

/// Bytes, not characters: a key need not be UTF-8, and `.` is every byte of it.
fn compiled(patterns: &[String]) -> Result<RegexSet, InvalidKeyspace> {
    if patterns.len() > MAX_PATTERNS {
        return Err(InvalidKeyspace::TooLarge(format!(
            "there are {} ignore patterns; at most {MAX_PATTERNS} are taken, join some with |",
            patterns.len()
        )));
    }
    if let Some(long) = patterns.iter().find(|pattern| pattern.len() > MAX_PATTERN_BYTES) {
        let start: String = long.chars().take(40).collect();
        return Err(InvalidKeyspace::TooLarge(format!(
            "the ignore pattern {start:?}… has {} bytes; at most {MAX_PATTERN_BYTES} are taken",
            long.len()
        )));
    }
    let set = |patterns: &[String]| {
        RegexSetBuilder::new(patterns)
            .unicode(false)
            .dot_matches_new_line(true)
            .size_limit(MAX_COMPILED_BYTES)
            .build()
    };
    // Alone first: `a)|(b` is made a pattern only by the brackets around it.
    for pattern in patterns {
        set(std::slice::from_ref(pattern)).map_err(|error| unusable(pattern, &error))?;
    }
    let whole: Vec<String> = patterns.iter().map(|pattern| format!(r"\A(?:{pattern})\z")).collect();
    set(&whole).map_err(|error| unusable(&patterns.join(" | "), &error))
}

fn unusable(pattern: &str, error: &regex::Error) -> InvalidKeyspace {
    let text = error.to_string();
    // The parser's last line says what is wrong; the others draw arrows.
    let problem = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
    InvalidKeyspace::Pattern { pattern: pattern.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyspace(mappings: &[(&str, &str)], patterns: &[&str]) -> Result<Keyspace, InvalidKeyspace> {
        let mappings: Vec<Mapping> = mappings
            .iter()
            .map(|(source, target)| Mapping { source: (*source).to_owned(), target: (*target).to_owned() })
            .collect();
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Keyspace::new(&mappings, &patterns, Side::Source)
    }

    #[test]
    fn a_key_changes_its_front_only_and_comes_back() {
        let two = keyspace(&[("/a/", "/b/"), ("/c", "/d")], &[]).unwrap();
        let none = keyspace(&[("/c", "")], &[]).unwrap();
        for (keyspace, source, target) in [
            (&two, "/a/x", "/b/x"),
            (&two, "/a//a/", "/b//a/"),
            (&two, "/c", "/d"),
            (&two, "/a/", "/b/"),
            (&none, "/cx", "x"),
        ] {
            assert_eq!(keyspace.of_source(source.as_bytes()), Fate::Mirrored(target.into()));
            assert_eq!(keyspace.of_target(target.as_bytes()), Fate::Mirrored(source.into()));
        }
        assert_eq!(two.of_source(b"/b/x"), Fate::Outside);
        assert_eq!(none.of_source(b"/c"), Fate::Nameless);
    }

    #[test]
    fn patterns_match_whole_names_of_bytes() {
        let keyspace = keyspace(&[("", "")], &["/spicerack/locks/etcd(/.*)?", "x"]).unwrap();
        for ignored in [
            &b"/spicerack/locks/etcd"[..],
            b"/spicerack/locks/etcd/\xff\n",
            b"/spicerack/locks/etcd/a/b",
            b"x",
        ] {
            assert_eq!(keyspace.of_source(ignored), Fate::Ignored, "{}", ignored.escape_ascii());
        }
        for kept in [&b"/spicerack/locks/etcds"[..], b"/a/spicerack/locks/etcd", b"xx", b"\xff"] {
            assert_eq!(keyspace.of_source(kept), Fate::Mirrored(kept.to_vec()));
        }
    }

    #[test]
    fn a_mirrors_own_keys_are_left_alone_by_either_name() {
        let whole = keyspace(&[("", "")], &[]).unwrap();
        assert_eq!(whole.of_source(b"/__quorate/mirror/default/checkpoint"), Fate::Own);
        let shifted = keyspace(&[("/x", "")], &[]).unwrap();
        assert_eq!(shifted.of_source(b"/x/__quorate/mirror/a/owner"), Fate::Own);
        assert_eq!(shifted.of_target(b"/__quorate/mirror/a/owner"), Fate::Own);
    }

    #[test]
    fn overlaps_and_bad_patterns_are_refused_by_name() {
        let text = |mappings: &[(&str, &str)], patterns: &[&str]| {
            keyspace(mappings, patterns).unwrap_err().to_string()
        };
        assert!(
            text(&[("/a", "/x"), ("/ab", "/y")], &[]).contains("\"/a\" and \"/ab\" overlap in the source")
        );
        assert!(text(&[("/a", ""), ("/b", "/y")], &[]).contains("overlap in the target"));
        assert!(text(&[("/__quorate/mirror/x", "/y")], &[]).contains("keep their checkpoints"));
        assert!(text(&[("", "")], &["a("]).contains("unclosed group"));
        assert!(text(&[("", "")], &["a)|(b"]).contains("unopened group"));
        assert!(text(&[("", "")], &["((a{1000}){1000}){1000}"]).contains("is no regular expression"));
        assert!(keyspace(&[], &[]).is_err());
    }

    #[test]
    fn spans_end_where_etcd_says() {
        assert_eq!(Span::of_prefix(b"a\xff"), Span { start: b"a\xff".to_vec(), end: Some(b"b".to_vec()) });
        assert_eq!(Span::of_prefix(b"\xff"), Span { start: b"\xff".to_vec(), end: None });
        assert_eq!(Span::of_prefix(b""), Span { start: vec![0], end: None });
        let hull = keyspace(&[("/a/", "/z/"), ("/c", "/d")], &[]).unwrap().hull(Side::Source);
        assert_eq!(hull, Span { start: b"/a/".to_vec(), end: Some(b"/d".to_vec()) });
        assert!(hull.contains(b"/b") && !hull.contains(b"/d"));
        assert_eq!(
            (hull.from(Some(b"/b")).start, hull.from(Some(b"/")).start),
            (b"/b".to_vec(), b"/a/".to_vec())
        );
    }

    #[test]
    fn a_scan_goes_from_mapping_to_mapping() {
        let two = keyspace(&[("/a/", "/z/"), ("/a0", "/x")], &[]).unwrap();
        assert_eq!(two.spans(Side::Source)[0].end.as_deref(), Some(&b"/a0"[..]));
        assert_eq!(
            (two.next(None), two.next(Some(b"/a/x")), two.next(Some(b"/a0"))),
            (Some(0), Some(0), Some(1))
        );
        assert_eq!(two.next(Some(b"/a1")), None);
        let part = Span { start: b"/a/b".to_vec(), end: Some(b"/a/c\0".to_vec()) };
        let there = Span { start: b"/z/b".to_vec(), end: Some(b"/z/c\0".to_vec()) };
        assert_eq!(two.opposite(0, &part, Side::Source), Some(there.clone()));
        assert_eq!(two.opposite(0, &there, Side::Target), Some(part));
        let none = keyspace(&[("/a0", "")], &[]).unwrap();
        let all = Span { start: vec![0], end: None };
        assert_eq!(none.opposite(0, &none.spans(Side::Source)[0], Side::Source), Some(all));
    }
}
