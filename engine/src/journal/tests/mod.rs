//! Tests of the journal as a whole; those of one file stand in that file.

mod basic;
mod faults;
mod histories;
mod snapshots;
mod space;
mod world;
