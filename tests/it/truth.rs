//! Cache truth through the real binary.
