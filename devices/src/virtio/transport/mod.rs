//! How a driver reaches a device. There is one transport so far; whatever a second one (PCI)
//! would share with it moves here.

pub mod mmio;
