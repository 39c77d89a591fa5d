//! ResNet-50 on libtorch: its weights, its convolutions, the device that computes them, and the threads that feed it.

pub(crate) mod bridge;
pub(crate) mod device;
pub(crate) mod lanes;
pub(crate) mod resnet50;
pub(crate) mod weights;
mod winograd;
