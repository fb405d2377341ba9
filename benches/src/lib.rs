//! Baselines and helpers that the benches share.
