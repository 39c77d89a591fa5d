//! The crate from outside: metrics against golden figures, and the files of a report.

mod comparison;
mod findings;
mod interrupt;
mod map;
mod metrics;
mod report;
mod synthetic;
