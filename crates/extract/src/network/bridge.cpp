// The parts of libtorch that tch does not reach: oneDNN's fused convolutions, which only the
// dispatcher has; on GPUs streams, pinned memory, and the amount of free memory.
//
// Only bridge.rs calls these functions. Tensors cross the border as `at::Tensor*`, which is also
// what tch holds. A function that fails sets `error` to a message, which luthier_free frees, and
// returns null or zero.

#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <string_view>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <ATen/DeviceAccelerator.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace {

using Lengths = c10::IntArrayRef;
using Name = std::string_view;
using Scalars = c10::List<std::optional<at::Scalar>>;

using Reorder = at::Tensor(const at::Tensor&, Lengths, Lengths, Lengths, int64_t, c10::OptionalIntArrayRef);
using Convolution = at::Tensor(
    const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, Lengths, Lengths, Lengths, int64_t, Name,
    Scalars, std::optional<Name>);
using ConvolutionInto = at::Tensor&(
    at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, Lengths, Lengths, Lengths,
    int64_t, Name, std::optional<at::Scalar>, std::optional<Name>, Scalars, std::optional<Name>);

using Places = c10::List<int64_t>;

using PackInt8 = at::Tensor(
    at::Tensor, at::Tensor, double, int64_t, Places, Places, Places, int64_t, std::optional<Places>);
using ConvolutionInt8 = at::Tensor(
    at::Tensor, double, int64_t, at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>, Places, Places, Places,
    int64_t, double, int64_t, std::optional<c10::ScalarType>, Name, Scalars, std::optional<Name>);
using ConvolutionAddInt8 = at::Tensor(
    at::Tensor, double, int64_t, at::Tensor, at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>, Places,
    Places, Places, int64_t, double, int64_t, std::optional<c10::ScalarType>, double, int64_t, Name,
    std::optional<at::Scalar>, std::optional<Name>, Scalars, std::optional<Name>);

// Operators are looked up once, and called unboxed. Otherwise the 53 convolutions of an image would
// take a percent more time in bf16. `typed` throws if this libtorch's operator has other arguments.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name, const char* overload) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

const c10::TypedOperatorHandle<Reorder>& reorder() {
    static const auto found = find<Reorder>("mkldnn::_reorder_convolution_weight", "");
    return found;
}

const c10::TypedOperatorHandle<Convolution>& convolution() {
    static const auto found = find<Convolution>("mkldnn::_convolution_pointwise", "");
    return found;
}

const c10::TypedOperatorHandle<ConvolutionInto>& convolution_into() {
    static const auto found = find<ConvolutionInto>("mkldnn::_convolution_pointwise_", "binary");
    return found;
}

const c10::TypedOperatorHandle<PackInt8>& pack_int8() {
    static const auto found = find<PackInt8>("onednn::qconv_prepack", "");
    return found;
}

const c10::TypedOperatorHandle<ConvolutionInt8>& convolution_int8() {
    static const auto found = find<ConvolutionInt8>("onednn::qconv2d_pointwise", "");
    return found;
}

const c10::TypedOperatorHandle<ConvolutionAddInt8>& convolution_add_int8() {
    static const auto found = find<ConvolutionAddInt8>("onednn::qconv2d_pointwise", "binary");
    return found;
}

// As in bridge.rs.
struct Shape {
    int64_t stride, padding, groups;
};

// As in bridge.rs: an 8-bit q stands for scale · (q − zero_point).
struct Quantum {
    double scale;
    int64_t zero_point;
};

// As in bridge.rs: a weight that is packed, and what it is packed for.
struct Int8Conv {
    const at::Tensor *weight, *weight_scales, *weight_zero_points, *bias;
    Quantum x;
    Shape shape;
};

Places twice(int64_t value) {
    return Places({value, value});
}

struct Pair {
    int64_t values[2];
    explicit Pair(int64_t value) : values{value, value} {}
    operator Lengths() const { return {values, 2}; }
};

// No exception may cross the border.
template <typename Function>
auto guarded(char** error, Function function) -> decltype(function()) {
    try {
        return function();
    } catch (const std::exception& exception) {
        *error = strdup(exception.what());
    } catch (...) {
        *error = strdup("unknown exception");
    }
    return {};
}

at::Tensor* leak(at::Tensor tensor) {
    return new at::Tensor(std::move(tensor));
}

}  // namespace

extern "C" {

bool luthier_onednn_is_available() {
    try {
        reorder(), convolution(), convolution_into();
        return true;
    } catch (...) {
        return false;
    }
}

// Whether oneDNN has convolutions in bf16 for this processor. It heeds ONEDNN_MAX_CPU_ISA.
bool luthier_onednn_has_bf16() {
    try {
        return find<bool()>("mkldnn::_is_mkldnn_bf16_supported", "").call();
    } catch (...) {
        return false;
    }
}

void luthier_free(char* error) {
    std::free(error);
}

// Reorders a weight into the layout that oneDNN prefers for inputs of this shape.
at::Tensor* luthier_onednn_reorder(
    const at::Tensor* weight, Shape shape, const int64_t* input_shape, char** error) {
    return guarded(error, [&] {
        return leak(reorder().call(
            *weight, Pair(shape.padding), Pair(shape.stride), Pair(1), shape.groups,
            c10::OptionalIntArrayRef(Lengths(input_shape, 4))));
    });
}

// attr is "relu" or "none".
at::Tensor* luthier_onednn_convolution(
    const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, Shape shape,
    const char* attr, char** error) {
    return guarded(error, [&] {
        return leak(convolution().call(
            *input, *weight, *bias, Pair(shape.padding), Pair(shape.stride), Pair(1), shape.groups, attr, Scalars(),
            ""));
    });
}

// Replaces `sum` by relu(sum + convolution).
at::Tensor* luthier_onednn_convolution_add_relu(
    const at::Tensor* sum, const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, Shape shape,
    char** error) {
    return guarded(error, [&] {
        at::Tensor into = *sum;
        return leak(convolution_into().call(
            into, *input, *weight, *bias, Pair(shape.padding), Pair(shape.stride), Pair(1), shape.groups, "add",
            at::Scalar(1.0), "relu", Scalars(), ""));
    });
}

bool luthier_int8_is_available() {
    try {
        pack_int8(), convolution_int8(), convolution_add_int8();
        return true;
    } catch (...) {
        return false;
    }
}

// Reorders an 8-bit weight into the layout that oneDNN prefers for inputs of this shape and quantum.
at::Tensor* luthier_int8_pack(
    const at::Tensor* weight, const at::Tensor* weight_scales, Quantum x, Shape shape, const int64_t* input_shape,
    char** error) {
    return guarded(error, [&] {
        Places input;
        for (int place = 0; place < 4; ++place) input.push_back(input_shape[place]);
        return leak(pack_int8().call(
            *weight, *weight_scales, x.scale, x.zero_point, twice(shape.stride), twice(shape.padding), twice(1),
            shape.groups, input));
    });
}

// The result is 8 bits of the quantum `y`, or fp32 if that has no scale. attr is "relu" or "none".
at::Tensor* luthier_int8_convolution(
    const at::Tensor* input, Int8Conv conv, Quantum y, const char* attr, char** error) {
    return guarded(error, [&] {
        const bool is_float = y.scale == 0.0;
        return leak(convolution_int8().call(
            *input, conv.x.scale, conv.x.zero_point, *conv.weight, *conv.weight_scales, *conv.weight_zero_points,
            *conv.bias, twice(conv.shape.stride), twice(conv.shape.padding), twice(1), conv.shape.groups,
            is_float ? 1.0 : y.scale, y.zero_point, is_float ? at::kFloat : at::kByte, attr, Scalars(), ""));
    });
}

// Replaces `sum`, 8 bits of a quantum of its own, by relu(sum + convolution) in 8 bits of the quantum `y`.
at::Tensor* luthier_int8_convolution_add_relu(
    const at::Tensor* sum, Quantum of_sum, const at::Tensor* input, Int8Conv conv, Quantum y, char** error) {
    return guarded(error, [&] {
        return leak(convolution_add_int8().call(
            *input, conv.x.scale, conv.x.zero_point, *conv.weight, *conv.weight_scales, *conv.weight_zero_points,
            *sum, *conv.bias, twice(conv.shape.stride), twice(conv.shape.padding), twice(1), conv.shape.groups,
            y.scale, y.zero_point, at::kByte, of_sum.scale, of_sum.zero_point, "sum", at::Scalar(1.0), "relu",
            Scalars(), ""));
    });
}

// Makes glibc keep freed memory for the next tensor. It would give the memory back to the system,
// and take it again page by page, at every layer of every image.
void luthier_keep_freed_memory() {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that is allowed; a thread's own heaps hold no more either
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

// Copies images, `u8 [n, side, side, 3]`, to a GPU and waits for the copy. Pinned memory and a
// stream of its own let the copy overlap with what other threads compute.
at::Tensor* luthier_upload(const uint8_t* images, int64_t n, int64_t side, int64_t index, char** error) {
    return guarded(error, [&] {
        const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
        // from_blob takes no const pointer, and nothing writes to what it makes.
        auto borrowed = at::from_blob(const_cast<uint8_t*>(images), {n, side, side, 3}, at::kByte);
        const c10::impl::VirtualGuardImpl gpu(device.type());
        const c10::StreamGuard stream(gpu.getStreamFromGlobalPool(device));
        auto uploaded = borrowed.pin_memory().to(device, /*non_blocking=*/true);
        // The network computes on another stream.
        gpu.synchronizeStream(stream.current_stream());
        return leak(std::move(uploaded));
    });
}

// The free memory of a GPU in bytes.
uint64_t luthier_free_memory(int64_t index, char** error) {
    return guarded(error, [&] {
        const auto allocator = at::getDeviceAllocator(c10::DeviceType::CUDA);
        return uint64_t{allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(index)).first};
    });
}

}  // extern "C"
