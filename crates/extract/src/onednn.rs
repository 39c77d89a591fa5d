//! oneDNN's fused convolutions, by way of a small C++ bridge to libtorch's dispatcher.
//!
//! They are twice as fast as plain ones, and their result does not depend on the number of threads, which that of plain
//! ones does in the last bits.
#![expect(
    unsafe_code,
    reason = "libtorch's dispatcher is C++: this module is the border, and the only one"
)]

use std::ffi::{CStr, c_char};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::Result;

unsafe extern "C" {
    fn luthier_onednn_is_available() -> bool;
    fn luthier_onednn_free(error: *mut c_char);
    fn luthier_onednn_reorder(
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        input_shape: *const i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_onednn_convolution(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        attr: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_onednn_convolution_add_relu(
        sum: *const C_tensor,
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
}

/// Whether this libtorch has the operators.
pub(crate) fn is_available() -> bool {
    // SAFETY: looks names up in a table and catches nothing because nothing is thrown.
    unsafe { luthier_onednn_is_available() }
}

/// What follows a convolution without a further pass over memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Relu,
}

/// A convolution whose weight lies in memory as oneDNN prefers it for inputs of one shape.
#[derive(Debug)]
pub(crate) struct PackedConv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl PackedConv {
    /// Packs a weight `[out, in, h, w]` for inputs of shape `[n, in, h, w]`.
    pub(crate) fn new(weight: &Tensor, bias: Tensor, stride: i64, padding: i64, input_shape: [i64; 4]) -> Result<Self> {
        // SAFETY: the weight lives through the call, and the shape has the four numbers that are read.
        let packed = checked(|error| unsafe {
            luthier_onednn_reorder(weight.as_ptr(), stride, padding, input_shape.as_ptr(), error)
        })?;
        Ok(PackedConv {
            weight: packed,
            bias,
            stride,
            padding,
        })
    }

    pub(crate) fn run(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let attr = match activation {
            Activation::None => c"none",
            Activation::Relu => c"relu",
        };
        // SAFETY: all tensors and the text live through the call.
        checked(|error| unsafe {
            luthier_onednn_convolution(
                x.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                self.stride,
                self.padding,
                attr.as_ptr(),
                error,
            )
        })
    }

    /// relu(sum + convolution of x), in the memory of `sum`.
    pub(crate) fn run_add_relu(&self, x: &Tensor, sum: Tensor) -> Result<Tensor> {
        // SAFETY: all tensors live through the call; `sum` is written to, and taken by value because of that.
        checked(|error| unsafe {
            luthier_onednn_convolution_add_relu(
                sum.as_ptr(),
                x.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                self.stride,
                self.padding,
                error,
            )
        })
    }
}

/// Calls the bridge and takes over what it returns: a tensor of our own, or an error message to give back.
fn checked(call: impl FnOnce(*mut *mut c_char) -> *mut C_tensor) -> Result<Tensor> {
    let mut error = std::ptr::null_mut();
    let tensor = call(&mut error);
    if tensor.is_null() {
        // SAFETY: without a tensor there is a message, which ends in zero and lives until it is given back.
        let message = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        // SAFETY: the message came from the bridge and is not used any more.
        unsafe { luthier_onednn_free(error) };
        return Err(TchError::Torch(message).into());
    }
    // SAFETY: the bridge made this tensor with `new` and keeps no pointer to it: tch deletes it.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}
