//! Parts of the examples that have tests of their own.

pub mod pool;
pub mod verdict;
