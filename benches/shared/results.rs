//! Numbers and their place in docs/benchmarks.md.

const RESULTS: &str = "docs/benchmarks.md";

/// The middle of some measurements, the least and the most of them.
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = numbers.collect();
        all.sort_by(f64::total_cmp);
        let at = |index: usize| *all.get(index).unwrap();
        Self { median: at(all.len() / 2), least: at(0), most: at(all.len() - 1) }
    }
}

/// The machine's load before the bench: what else it was busy with.
pub(crate) fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap().split(' ').next().unwrap().to_owned()
}

pub(crate) fn measured(load: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let day = jiff::Timestamp::now().strftime("%F");
    format!("Measured on {day}, {cores} cores, load {load} before.")
}

/// Replaces what stands between `<!-- name -->` and `<!-- /name -->`.
pub(crate) fn write_section(name: &str, table: &str) {
    let text = std::fs::read_to_string(RESULTS).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    std::fs::write(RESULTS, format!("{before}{begin}\n{table}\n\n{end}{after}")).unwrap();
}
