//! The parts of libtorch that tch does not reach, by way of a small C++ bridge: oneDNN's fused
//! convolutions, and for GPUs pinned memory and copies that are not waited for. Also the values of tensors as slices.
//!
//! All unsafe code of the workspace is in this module and, for libheif, in `image/formats/heif.rs`.
//! What this module exports is safe. Each function of the bridge borrows its arguments for the
//! call, keeps no pointer, and gives away what it returns. No exception leaves the bridge.
#![expect(unsafe_code, reason = "the bridge is C++, and this module is the border to it")]

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
    fn luthier_int8_is_available() -> bool;
    fn luthier_int8_pack(
        weight: *const C_tensor,
        weight_scales: *const C_tensor,
        x: Quantum,
        shape: Shape,
        input_shape: *const i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_int8_convolution(
        input: *const C_tensor,
        conv: Int8Conv,
        y: Quantum,
        attr: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_int8_convolution_add_relu(
        sum: *const C_tensor,
        of_sum: Quantum,
        input: *const C_tensor,
        conv: Int8Conv,
        y: Quantum,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_keep_freed_memory();
    fn luthier_cudnn_convolution_relu(
        sum: *const C_tensor,
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        shape: Shape,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn luthier_load_cuda(error: *mut *mut c_char) -> bool;
    fn luthier_pinned(n: i64, side: i64, error: *mut *mut c_char) -> *mut C_tensor;
    fn luthier_read_back(x: *const C_tensor, error: *mut *mut c_char) -> *mut CReadback;
    fn luthier_wait(readback: *const CReadback, error: *mut *mut c_char) -> *mut C_tensor;
    fn luthier_drop_readback(readback: *mut CReadback);
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

/// Whether this libtorch has oneDNN's convolutions of 8-bit integers.
pub(crate) fn has_int8() -> bool {
    // SAFETY: the function looks names up in a table, and its exceptions do not leave the bridge.
    unsafe { luthier_int8_is_available() }
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

/// What the 8 bits of a number stand for: `q` is `scale · (q − zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct Quantum {
    pub(crate) scale: f64,
    pub(crate) zero_point: i64,
}

impl Quantum {
    /// Of a result that is not quantized.
    const FLOAT: Quantum = Quantum {
        scale: 0.0,
        zero_point: 0,
    };
}

/// What the bridge borrows of a [`PackedInt8Conv`].
#[repr(C)]
struct Int8Conv {
    weight: *const C_tensor,
    weight_scales: *const C_tensor,
    weight_zero_points: *const C_tensor,
    bias: *const C_tensor,
    x: Quantum,
    shape: Shape,
}

/// A convolution of 8-bit integers, its weight packed for inputs of one shape and quantum.
#[derive(Debug)]
pub(crate) struct PackedInt8Conv {
    weight: Tensor,
    weight_scales: Tensor,
    weight_zero_points: Tensor,
    bias: Tensor,
    x: Quantum,
    shape: Shape,
}

impl PackedInt8Conv {
    /// Packs a weight `i8 [out, in, h, w]`, each output channel of which is multiplied by a scale, `f32 [out]`, for inputs
    /// `u8 [n, in, h, w]` of the quantum `x`. The bias is `f32 [out]`.
    pub(crate) fn new(
        weight: &Tensor,
        weight_scales: Tensor,
        bias: Tensor,
        x: Quantum,
        shape: Shape,
        input_shape: [i64; 4],
    ) -> Result<Self> {
        // SAFETY: the tensors live through the call, and the shape has the four numbers that are read.
        let packed = tensor(|error| unsafe {
            luthier_int8_pack(
                weight.as_ptr(),
                weight_scales.as_ptr(),
                x,
                shape,
                input_shape.as_ptr(),
                error,
            )
        })?;
        Ok(PackedInt8Conv {
            weight: packed,
            weight_zero_points: Tensor::f_zeros(weight_scales.size(), (Kind::Int, tch::Device::Cpu))?,
            weight_scales,
            bias,
            x,
            shape,
        })
    }

    /// The same convolution for another thread: the weight is not copied.
    pub(crate) fn share(&self) -> Self {
        PackedInt8Conv {
            weight: self.weight.shallow_clone(),
            weight_scales: self.weight_scales.shallow_clone(),
            weight_zero_points: self.weight_zero_points.shallow_clone(),
            bias: self.bias.shallow_clone(),
            x: self.x,
            shape: self.shape,
        }
    }

    fn borrowed(&self) -> Int8Conv {
        Int8Conv {
            weight: self.weight.as_ptr(),
            weight_scales: self.weight_scales.as_ptr(),
            weight_zero_points: self.weight_zero_points.as_ptr(),
            bias: self.bias.as_ptr(),
            x: self.x,
            shape: self.shape,
        }
    }

    /// The quantum of the inputs.
    pub(crate) fn input(&self) -> Quantum {
        self.x
    }

    /// The result is `u8` of the quantum `y`.
    pub(crate) fn run(&self, x: &Tensor, activation: Activation, y: Quantum) -> Result<Tensor> {
        let attr = match activation {
            Activation::None => c"none",
            Activation::Relu => c"relu",
        };
        // SAFETY: all tensors and the text live through the call.
        tensor(|error| unsafe { luthier_int8_convolution(x.as_ptr(), self.borrowed(), y, attr.as_ptr(), error) })
    }

    /// The result is `f32`.
    pub(crate) fn run_to_float(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Activation::None, Quantum::FLOAT)
    }

    /// relu(sum + convolution of x) in `u8` of the quantum `y`. `sum` is `u8` of a quantum of its own.
    pub(crate) fn run_add_relu(&self, x: &Tensor, (sum, of_sum): (Tensor, Quantum), y: Quantum) -> Result<Tensor> {
        // SAFETY: all tensors live through the call; `sum` is written to, and taken by value because of that.
        tensor(|error| unsafe {
            luthier_int8_convolution_add_relu(sum.as_ptr(), of_sum, x.as_ptr(), self.borrowed(), y, error)
        })
    }
}

/// A number that tensors hold.
pub(crate) trait Element: Copy {
    /// libtorch's name of its type.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for u8 {
    const KIND: Kind = Kind::Uint8;
}

impl Element for i8 {
    const KIND: Kind = Kind::Int8;
}

/// The values of a tensor in its memory's order.
///
/// # Panics
/// If it is not of this type on the CPU, contiguous in C order.
pub(crate) fn values<T: Element>(tensor: &Tensor) -> &[T] {
    let n = n_values::<T>(tensor);
    // SAFETY: the tensor holds `n` values of this type as long as it is borrowed, and nothing
    // writes to it meanwhile.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), n) }
}

/// A new tensor on the CPU of this type and shape. `fill` must write all values: before, they are
/// arbitrary.
pub(crate) fn filled<T: Element>(shape: [i64; 4], fill: impl FnOnce(&mut [T])) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape, (T::KIND, tch::Device::Cpu))?;
    let n = n_values::<T>(&tensor);
    // SAFETY: the tensor holds `n` values of this type, any bits are a valid value, and nothing
    // else refers to the tensor yet.
    fill(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), n) });
    Ok(tensor)
}

fn n_values<T: Element>(tensor: &Tensor) -> usize {
    let is_plain =
        tensor.kind() == T::KIND && tensor.device() == tch::Device::Cpu && tensor.is_contiguous() && tensor.numel() > 0;
    assert!(
        is_plain,
        "expected a contiguous {:?} tensor on the CPU, found {tensor:?}",
        T::KIND
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

/// Loads the parts for CUDA that lie beside the CPU's; whether there are any. It is called before anything else is asked
/// of CUDA.
pub(crate) fn load_cuda() -> Result<bool> {
    // SAFETY: the libraries are libtorch's own, and stay loaded.
    checked(|error| unsafe { luthier_load_cuda(error) })
}

/// relu(sum + convolution of x), or without the sum, in one kernel of cuDNN.
pub(crate) fn cudnn_convolution_relu(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    sum: Option<&Tensor>,
    shape: Shape,
) -> Result<Tensor> {
    let sum = sum.map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: all tensors live through the call, and the sum may be null.
    tensor(|error| unsafe {
        luthier_cudnn_convolution_relu(sum, x.as_ptr(), weight.as_ptr(), bias.as_ptr(), shape, error)
    })
}

/// Pinned memory for `n` images, `u8 [n, side, side, 3]`, which `fill` must write whole. A copy from there to a GPU need
/// not be waited for.
pub(crate) fn pinned(n: usize, side: usize, fill: impl FnOnce(&mut [u8])) -> Result<Tensor> {
    // SAFETY: the function takes numbers.
    let tensor = tensor(|error| unsafe { luthier_pinned(n as i64, side as i64, error) })?;
    let n = n_values::<u8>(&tensor);
    // SAFETY: the tensor holds `n` bytes, and nothing else refers to it: the allocator gives memory out again only when
    // copies from it are complete.
    fill(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), n) });
    Ok(tensor)
}

/// The bridge's `Readback`.
#[repr(C)]
struct CReadback {
    _opaque: [u8; 0],
}

/// A tensor on its way from a GPU.
#[derive(Debug)]
pub(crate) struct Readback(*mut CReadback);

impl Readback {
    /// Has the GPU copy a tensor when it is computed. Work that is asked of it later does not delay that.
    pub(crate) fn new(x: &Tensor) -> Result<Self> {
        // SAFETY: the tensor lives through the call, and the copy keeps its memory.
        checked(|error| unsafe { luthier_read_back(x.as_ptr(), error) }).map(Readback)
    }

    /// Waits until it has come.
    pub(crate) fn wait(self) -> Result<Tensor> {
        // SAFETY: the pointer came from the bridge and is dropped once, by `drop`.
        tensor(|error| unsafe { luthier_wait(self.0, error) })
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the bridge and is not used after this. The allocator keeps memory until copies to
        // it are complete.
        unsafe { luthier_drop_readback(self.0) };
    }
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
    }
}
