//! How far the target is behind, in seconds: the age of the newest moment whose state of the source the target has.
//!
//! Each look at the source is linearizable, so it says what the newest revision was at that moment. That is true while
//! nobody writes and while one side cannot be reached: then no newer look comes, and the age grows. (A lag that is
//! computed when an event arrives was 0 all through the incident that this is for.)

use std::collections::VecDeque;
use std::time::Duration;

/// Looks that are remembered: one a second, thinned out when the target is further behind.
const LOOKS: usize = 4096;

/// What the source's newest revision was, and when.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    /// Not yet in the target, oldest first; but the first, which is.
    looks: VecDeque<(Duration, i64)>,
}

impl Lag {
    /// At `now`, the newest revision was `head`.
    pub fn look(&mut self, now: Duration, head: i64) {
        if self.looks.len() == LOOKS {
            let mut keep = false;
            self.looks.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.looks.push_back((now, head));
    }

    /// The target has everything up to this revision.
    pub fn reached(&mut self, revision: i64) {
        while self.looks.get(1).is_some_and(|(_, head)| *head <= revision) {
            self.looks.pop_front();
        }
    }

    /// How old what the target has is; `None` until it has what the source had at the first look.
    pub fn age(&self, now: Duration, revision: i64) -> Option<Duration> {
        let (at, head) = self.looks.front()?;
        (*head <= revision).then(|| now.saturating_sub(*at))
    }

    /// The same, or at least how long it has been unknown.
    pub fn seconds(&self, now: Duration, revision: i64) -> f64 {
        let first = self.looks.front().map_or(now, |(at, _)| now.saturating_sub(*at));
        self.age(now, revision).unwrap_or(first).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lag_is_that_of_the_newest_look_that_the_target_has_reached() {
        let mut lag = Lag::default();
        assert_eq!(lag.age(at(9), 5), None);
        for (second, head) in [(10, 5), (11, 5), (12, 8), (13, 9)] {
            lag.look(at(second), head);
        }
        lag.reached(5);
        assert_eq!(lag.age(at(14), 5), Some(at(3)), "it had everything at 11");
        lag.reached(9);
        assert_eq!(lag.age(at(14), 9), Some(at(1)));
        assert_eq!(lag.age(at(60), 9), Some(at(47)), "nobody has looked since: an outage is no zero");
    }

    #[test]
    fn before_the_first_copy_it_is_not_known() {
        let mut lag = Lag::default();
        lag.look(at(10), 5);
        lag.reached(3);
        assert_eq!(lag.age(at(30), 3), None);
        assert!((lag.seconds(at(30), 3) - 20.0).abs() < 0.001);
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let mut lag = Lag::default();
        for second in 0..100_000 {
            lag.look(at(second), i64::try_from(second).unwrap());
        }
        assert!(lag.looks.len() <= LOOKS);
        lag.reached(0);
        assert_eq!(lag.age(at(100_000), 0), Some(at(100_000)));
    }
}
