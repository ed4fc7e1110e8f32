//! Planners that break an invariant. To come.
