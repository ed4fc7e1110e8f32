//! The arithmetic of majorities (raft thesis, section 3.3).

/// How many of `voters` must agree.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many more voters may fail before quorum is lost; `None` when it is lost already.
pub fn margin(voters: usize, healthy: usize) -> Option<usize> {
    healthy.checked_sub(quorum(voters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_count_tolerates_no_more_than_one_fewer() {
        let table: Vec<(usize, usize)> =
            (1..=7).map(|voters| (quorum(voters), voters - quorum(voters))).collect();
        assert_eq!(table, [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (4, 2), (4, 3)]);
    }

    #[test]
    fn a_lost_quorum_has_no_margin() {
        assert_eq!((margin(3, 3), margin(3, 2), margin(3, 1)), (Some(1), Some(0), None));
    }
}
