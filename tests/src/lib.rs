//! Booted guests.
