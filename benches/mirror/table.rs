//! The tables of docs/benchmarks.md, and whether the budgets of the design are kept.

use std::fmt::Write as _;
use std::time::Duration;

use crate::contender::Contender;
use crate::copy::{Copied, Load};
use crate::live::Lived;
use crate::results::{Spread, measured};
use crate::{Plan, Samples};

/// Budgets of the design, at 30 ms.
const FAR: Duration = Duration::from_millis(30);
const COPY_RATE: f64 = 20_000.0;
const COPY_RATIO: f64 = 600.0;
const BARE_RATIO: f64 = 0.8;
/// Mean lag at 100 put/s without a distance, ms.
const NEAR_LAG: f64 = 4.0;
/// 99th percentile at 700 put/s and 30 ms, ms.
const FAR_LAG: f64 = 200.0;

pub(crate) fn write(plan: &Plan, samples: &Samples, load: &str) -> String {
    let mut text = String::new();
    let mut budgets = Vec::new();
    for what in Load::ALL {
        copied(&mut text, plan, &samples.copied, what, &mut budgets);
    }
    lived(&mut text, plan, &samples.lived, &mut budgets);
    writeln!(text, "{}\n", budgets.join("; ")).unwrap();
    write!(
        text,
        "{} runs each of the bare writer and of Quorate (least to most), one of make-mirror. {}",
        plan.runs,
        measured(load)
    )
    .unwrap();
    text
}

fn copied(text: &mut String, plan: &Plan, samples: &[Copied], what: Load, budgets: &mut Vec<String>) {
    let title = match what {
        Load::Initial => "Initial copy of",
        Load::CatchUp => "Catching up with",
    };
    let unit = if what == Load::Initial { "keys" } else { "revisions" };
    writeln!(text, "{title} {} {unit}, {unit} a second:\n", thousands(plan.keys)).unwrap();
    text.push_str("| RTT | make-mirror | bare writer | Quorate | × make-mirror | of the bare writer | memory: make-mirror, Quorate |\n|---|---|---|---|---|---|---|\n");
    for distance in &plan.distances {
        let of = |contender| {
            let here = move |sample: &&Copied| {
                sample.load == what && sample.contender == contender && sample.distance == *distance
            };
            samples.iter().filter(here)
        };
        let rate = |contender| Spread::of(of(contender).map(|sample| sample.rate));
        let memory = |contender| Spread::of(of(contender).map(|sample| sample.memory)).most;
        let peer = rate(Contender::MakeMirror).median;
        let (bare, ours) = (rate(Contender::Bare), rate(Contender::Quorate));
        let (times, share) = (ours.median / peer, ours.median / bare.median);
        writeln!(
            text,
            "| {} ms | {peer:.0} | {} | {} | {times:.0} | {share:.2} | {:.0} MiB, {:.0} MiB |",
            distance.as_millis(),
            spread(&bare),
            spread(&ours),
            memory(Contender::MakeMirror),
            memory(Contender::Quorate)
        )
        .unwrap();
        if *distance == FAR {
            let words = format!("{title} {unit} at 30 ms");
            budgets.push(verdict(&words, "≥ 20,000/s", ours.median >= COPY_RATE));
            budgets.push(verdict(&words, "≥ 600 × make-mirror", times >= COPY_RATIO));
            budgets.push(verdict(&words, "≥ 0.8 of the bare writer", share >= BARE_RATIO));
        }
    }
    if what == Load::CatchUp {
        let watches = samples.iter().filter(|sample| sample.contender == Contender::Watch);
        let watch = Spread::of(watches.map(|sample| sample.rate));
        writeln!(
            text,
            "\nA watch of the same history that writes nothing: {} revisions a second. etcd sends a watcher that is behind at most \
             1,000 revisions at a time, and then lets it wait for a tenth of a second.",
            spread(&watch)
        )
        .unwrap();
    }
    text.push('\n');
}

fn lived(text: &mut String, plan: &Plan, samples: &[Lived], budgets: &mut Vec<String>) {
    text.push_str("Live, lag of a put in ms (mean, p50, p99), and how many of those sent had arrived 3 s after the last:\n\n");
    text.push_str("| RTT | put/s | make-mirror | arrived | Quorate | arrived | memory: make-mirror, Quorate |\n|---|---|---|---|---|---|---|\n");
    for distance in &plan.distances {
        for (rate, _) in &plan.rates {
            let of = |contender| {
                let here = |sample: &&Lived| {
                    sample.contender == contender && sample.distance == *distance && sample.rate == *rate
                };
                samples.iter().find(here)
            };
            let (Some(peer), Some(ours)) = (of(Contender::MakeMirror), of(Contender::Quorate)) else {
                continue;
            };
            writeln!(
                text,
                "| {} ms | {rate} | {} | {} | {} | {} | {:.0} MiB, {:.0} MiB |",
                distance.as_millis(),
                lags(peer),
                arrived(peer),
                lags(ours),
                arrived(ours),
                peer.memory,
                ours.memory
            )
            .unwrap();
            let all = ours.lags.len() == ours.sent;
            if distance.is_zero() && *rate == 100 {
                let kept = all && ours.mean() <= NEAR_LAG;
                budgets.push(verdict("100 put/s without a distance", "mean lag ≤ 4 ms", kept));
            }
            if *distance == FAR && *rate == 700 {
                let kept = all && ours.percentile(99) < FAR_LAG;
                budgets.push(verdict("700 put/s at 30 ms", "p99 < 200 ms", kept));
            }
        }
    }
    text.push('\n');
}

fn lags(lived: &Lived) -> String {
    format!("{:.1}, {:.1}, {:.1}", lived.mean(), lived.percentile(50), lived.percentile(99))
}

fn arrived(lived: &Lived) -> String {
    if lived.lags.len() == lived.sent {
        "all".to_owned()
    } else {
        format!("{} of {}", thousands(lived.lags.len()), thousands(lived.sent))
    }
}

fn verdict(what: &str, budget: &str, kept: bool) -> String {
    format!("{what}: {budget}, {}", if kept { "kept" } else { "missed" })
}

fn spread(rates: &Spread) -> String {
    format!("{:.0} ({:.0}–{:.0})", rates.median, rates.least, rates.most)
}

/// With commas, as people read it.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}
