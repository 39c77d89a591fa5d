//! The parts of libtorch that tch does not reach, by way of a small C++ bridge: oneDNN's fused
//! convolutions, pinned memory, and the free memory of GPUs. Also the values of tensors as slices.
//!
//! All unsafe code of the workspace is in this module, and what it exports is safe. Each function
//! of the bridge borrows its arguments for the call, keeps no pointer, and gives away what it
//! returns. No exception leaves the bridge.
#![expect(
    unsafe_code,
    reason = "the bridge is C++: this module is the border, and the only one"
)]

use std::ffi::{CStr, c_char};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Error, Result};

unsafe extern "C" {
    fn luthier_onednn_is_available() -> bool;
    fn luthier_onednn_has_bf16() -> bool;
    fn luthier_free(error: *mut c_char);
    fn luthier_onednn_reorder(
        weight: *const C_tensor,
        shape: Shape,
        input_shape: *const i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_onednn_convolution(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        shape: Shape,
        attr: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_onednn_convolution_add_relu(
        sum: *const C_tensor,
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        shape: Shape,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_keep_freed_memory();
    fn luthier_upload(images: *const u8, n: i64, side: i64, index: i64, error: *mut *mut c_char) -> *mut C_tensor;
    fn luthier_free_memory(index: i64, error: *mut *mut c_char) -> u64;
}

/// Whether this libtorch has oneDNN's fused convolutions.
pub(crate) fn has_onednn() -> bool {
    // SAFETY: the function looks names up in a table, and its exceptions do not leave the bridge.
    unsafe { luthier_onednn_is_available() }
}

/// Whether oneDNN can compute convolutions in bf16 on this processor.
pub(crate) fn onednn_has_bf16() -> bool {
    // SAFETY: the function takes no arguments, and its exceptions do not leave the bridge.
    unsafe { luthier_onednn_has_bf16() }
}

/// The function that follows a convolution without another pass over memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Relu,
}

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Shape {
    pub(crate) stride: i64,
    pub(crate) padding: i64,
    /// The number of groups of channels that do not mix.
    pub(crate) groups: i64,
}

/// A convolution whose weight lies in memory as oneDNN prefers it for inputs of one shape.
#[derive(Debug)]
pub(crate) struct PackedConv {
    weight: Tensor,
    bias: Tensor,
    shape: Shape,
}

impl PackedConv {
    /// Packs a weight `[out, in / groups, h, w]` for inputs of shape `[n, in, h, w]`.
    pub(crate) fn new(weight: &Tensor, bias: Tensor, shape: Shape, input_shape: [i64; 4]) -> Result<Self> {
        // SAFETY: the weight lives through the call, and the shape has the four numbers that are
        // read.
        let packed =
            tensor(|error| unsafe { luthier_onednn_reorder(weight.as_ptr(), shape, input_shape.as_ptr(), error) })?;
        Ok(PackedConv {
            weight: packed,
            bias,
            shape,
        })
    }

    /// The same convolution for another thread: the weight is not copied.
    pub(crate) fn share(&self) -> Self {
        PackedConv {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            shape: self.shape,
        }
    }

    pub(crate) fn run(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let attr = match activation {
            Activation::None => c"none",
            Activation::Relu => c"relu",
        };
        // SAFETY: all tensors and the text live through the call.
        tensor(|error| unsafe {
            luthier_onednn_convolution(
                x.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                self.shape,
                attr.as_ptr(),
                error,
            )
        })
    }

    /// relu(sum + convolution of x), in the memory of `sum`.
    pub(crate) fn run_add_relu(&self, x: &Tensor, sum: Tensor) -> Result<Tensor> {
        // SAFETY: all tensors live through the call; `sum` is written to, and taken by value
        // because of that.
        tensor(|error| unsafe {
            luthier_onednn_convolution_add_relu(
                sum.as_ptr(),
                x.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                self.shape,
                error,
            )
        })
    }
}

/// The values of a tensor in its memory's order.
///
/// # Panics
/// If it is not `f32` on the CPU, contiguous in C order.
pub(crate) fn values(tensor: &Tensor) -> &[f32] {
    let n = n_values(tensor);
    // SAFETY: the tensor holds `n` values of this type as long as it is borrowed, and nothing
    // writes to it meanwhile.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), n) }
}

/// A new tensor on the CPU, `f32` of this shape. `fill` must write all values: before, they are
/// arbitrary.
pub(crate) fn filled(shape: [i64; 4], fill: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape, (Kind::Float, tch::Device::Cpu))?;
    let n = n_values(&tensor);
    // SAFETY: the tensor holds `n` values of this type, any bits are a valid value, and nothing
    // else refers to the tensor yet.
    fill(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), n) });
    Ok(tensor)
}

fn n_values(tensor: &Tensor) -> usize {
    let is_plain = tensor.kind() == Kind::Float
        && tensor.device() == tch::Device::Cpu
        && tensor.is_contiguous()
        && tensor.numel() > 0;
    assert!(
        is_plain,
        "expected a contiguous f32 tensor on the CPU, found {tensor:?}"
    );
    tensor.numel()
}

/// Makes the C library keep freed memory for the next tensor instead of giving it back to the
/// system.
///
/// Otherwise a lane takes the memory of most activations from the system again for every image,
/// page by page.
pub(crate) fn keep_freed_memory() {
    // SAFETY: the function sets two limits of the allocator.
    unsafe { luthier_keep_freed_memory() }
}

/// Copies images, `u8 [n, side, side, 3]`, to a GPU by way of pinned memory, while other threads
/// compute there.
pub(crate) fn upload(images: &[u8], side: usize, gpu: usize) -> Result<Tensor> {
    let n = images.len() / (side * side * 3);
    // SAFETY: the function reads n·side·side·3 bytes, which the slice has, and copies them before
    // it returns.
    tensor(|error| unsafe { luthier_upload(images.as_ptr(), n as i64, side as i64, gpu as i64, error) })
}

/// The free memory of a GPU in bytes.
pub(crate) fn free_memory(gpu: usize) -> Result<u64> {
    // SAFETY: the function takes a number and returns a number.
    checked(|error| unsafe { luthier_free_memory(gpu as i64, error) })
}

/// Calls the bridge, and takes an error message back.
fn checked<T>(call: impl FnOnce(*mut *mut c_char) -> T) -> Result<T> {
    let mut error = std::ptr::null_mut();
    let result = call(&mut error);
    if error.is_null() {
        return Ok(result);
    }
    // SAFETY: a message ends in zero and lives until it is freed.
    let message = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
    // SAFETY: the message came from the bridge and is not used after this.
    unsafe { luthier_free(error) };
    Err(Error::torch(&message))
}

/// Calls the bridge for a tensor.
fn tensor(call: impl FnOnce(*mut *mut c_char) -> *mut C_tensor) -> Result<Tensor> {
    let tensor = checked(call)?;
    // SAFETY: without an error the bridge made this tensor with `new` and keeps no pointer to it:
    // tch deletes it.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_bridge_come_back_as_messages() {
        let bias = || Tensor::zeros([8], (Kind::Float, tch::Device::Cpu));
        let weight = Tensor::zeros([8, 4, 1, 1], (Kind::Float, tch::Device::Cpu));
        let shape = Shape {
            stride: 1,
            padding: 0,
            groups: 1,
        };
        let conv = PackedConv::new(&weight, bias(), shape, [1, 4, 2, 2]).unwrap();
        // The weight has 4 input channels, not 5.
        let x = Tensor::zeros([1, 5, 2, 2], (Kind::Float, tch::Device::Cpu));
        let error = conv.run(&x, Activation::None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "libtorch: Given groups=1, weight of size [8, 4, 1, 1], expected input[1, 5, 2, 2] to have 4 channels, but \
             got 5 channels instead"
        );
        // libtorch has no GPU of this number anywhere. What it says about it depends on how it was
        // built.
        for outcome in [free_memory(127).map(drop), upload(&[0; 3], 1, 127).map(drop)] {
            let error = outcome.unwrap_err();
            assert!(
                matches!(&error, Error::Torch(message) if message.to_lowercase().contains("device")),
                "{error}"
            );
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
