//! `explain`: the section of the operations manual on one reason, without a network.

use super::problem::Problem;
use super::{Exit, terminal};

/// The manual, as it was when this program was built.
const MANUAL: &str = include_str!("../../docs/operations.md");

/// Arguments of `explain`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// A reason such as QuorumLost; without one, all are listed.
    #[arg(value_name = "REASON")]
    reason: Option<String>,
}

/// Prints the section, or the list of reasons.
pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<Exit> {
    let Some(reason) = &arguments.reason else {
        terminal::print(&list(MANUAL))?;
        return Ok(Exit::Done);
    };
    let Some(section) = find(MANUAL, reason) else {
        return Err(Problem::Usage(unknown(MANUAL, reason)).into());
    };
    terminal::print(&format!("{}\n\n{}\n", section.heading, section.text))?;
    Ok(Exit::Done)
}

/// A part of the manual under a heading of the third level.
#[derive(Debug, PartialEq)]
struct Section<'a> {
    heading: &'a str,
    text: &'a str,
}

impl Section<'_> {
    /// A heading may name several reasons that share a section.
    fn reasons(&self) -> impl Iterator<Item = &str> {
        self.heading.split([',', '/', ' ']).map(|word| word.trim_matches('`')).filter(|word| !word.is_empty())
    }
}

fn sections(manual: &str) -> impl Iterator<Item = Section<'_>> {
    manual.split("\n### ").skip(1).map(|part| {
        let (heading, rest) = part.split_once('\n').unwrap_or((part, ""));
        // The section ends at the next heading of a higher level.
        let end = ["\n# ", "\n## "].iter().filter_map(|mark| rest.find(mark)).min().unwrap_or(rest.len());
        let text = rest.get(..end).unwrap_or(rest);
        Section { heading: heading.trim(), text: text.trim() }
    })
}

fn find<'a>(manual: &'a str, reason: &str) -> Option<Section<'a>> {
    sections(manual).find(|section| section.reasons().any(|known| known.eq_ignore_ascii_case(reason)))
}

fn list(manual: &str) -> String {
    let width = sections(manual).map(|section| section.heading.chars().count()).max().unwrap_or(0);
    let line = |section: Section<'_>| {
        let first = section.text.lines().next().unwrap_or_default();
        format!("{:width$}  {first}\n", section.heading).replace("  \n", "\n")
    };
    sections(manual).map(line).collect()
}

fn unknown(manual: &str, reason: &str) -> String {
    let all: Vec<&str> = sections(manual).map(|section| section.heading).collect();
    format!("there is no reason {reason}; known are: {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const SAMPLE: &str = "\
# Operations

## Conditions

### QuorumLost
Too few voters answer.

Look at the nodes.

### DataLost, RolledBack
The guard refused to start.

## Other things
### Healthy
All is well.
";

    #[test]
    fn a_section_ends_where_the_next_heading_begins() {
        let section = find(SAMPLE, "quorumlost").unwrap();
        assert_eq!(section.text, "Too few voters answer.\n\nLook at the nodes.");
        assert_eq!(find(SAMPLE, "RolledBack").unwrap().text, "The guard refused to start.");
    }

    #[test]
    fn an_unknown_reason_lists_the_known_ones() {
        assert_eq!(find(SAMPLE, "Lost"), None);
        expect!["there is no reason Lost; known are: QuorumLost, DataLost, RolledBack, Healthy"]
            .assert_eq(&unknown(SAMPLE, "Lost"));
    }

    #[test]
    fn without_a_reason_all_are_listed() {
        expect![[r#"
            QuorumLost            Too few voters answer.
            DataLost, RolledBack  The guard refused to start.
            Healthy               All is well.
        "#]]
        .assert_eq(&list(SAMPLE));
    }
}
