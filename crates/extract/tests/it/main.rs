//! The extract crate from outside: against torchvision, on real folders, with faults.

mod golden;
mod music10;
mod scan;
mod stage;
mod weights;
