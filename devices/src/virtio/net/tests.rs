#![allow(clippy::indexing_slicing, reason = "a test may panic")]

mod control;
mod hostile;
mod life;
mod offloads;
mod receive;
mod send;
mod tap;
mod wire;
