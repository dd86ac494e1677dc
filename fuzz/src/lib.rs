//! What fuzz targets share, by the crate that they fuzz.

pub mod boot;
