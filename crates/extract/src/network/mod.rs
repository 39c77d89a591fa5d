//! ResNet-50 on libtorch: its weights, its convolutions, the device that runs them, and the threads
//! that feed it.
//!
//! [`weights`] says which weights there are, [`weights_store`] fetches them, and [`weights_search`]
//! finds those of a model; [`parameters`] checks what they hold. [`resnet50`] folds them into
//! convolutions, some of which are [`winograd`]'s, or quantizes them to [`int8`] by the scales of
//! [`calibration`]. [`portable`] has them for other programs. [`lanes`] keep a processor busy, and [`gpu`] the other
//! kinds of [`device`]: both fill [`batches`].
//! [`bridge`] is the only module that calls C++.

pub(crate) mod batches;
pub(crate) mod bridge;
pub(crate) mod calibration;
mod checkpoint;
pub(crate) mod device;
pub(crate) mod gpu;
pub(crate) mod int8;
pub(crate) mod lanes;
pub(crate) mod parameters;
pub(crate) mod portable;
pub(crate) mod resnet50;
mod sha256;
pub(crate) mod weights;
mod weights_search;
pub(crate) mod weights_store;
mod winograd;
