// The parts of libtorch that tch does not reach: oneDNN's fused convolutions, which only the
// dispatcher has; on GPUs pinned memory and copies that are not waited for.
//
// Only bridge.rs calls these functions. Tensors cross the border as `at::Tensor*`, which is also
// what tch holds. A function that fails sets `error` to a message, which luthier_free frees, and
// returns null or zero.

#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string_view>
#ifdef __linux__
#include <dlfcn.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cudnn_convolution_add_relu.h>
#include <ATen/ops/cudnn_convolution_relu.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
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

// Loads the parts for CUDA, which a libtorch for the CPU lacks, and which then register themselves.
//
// They lie beside libtorch_cpu. So that one program serves machines with and without, it is not linked to them. NVRTC,
// with which cuDNN compiles kernels, looks for its built-ins in the system's folders only: they are loaded from where the
// CUDA runtime lies, as PyTorch does.
bool luthier_load_cuda(char** error) {
    return guarded(error, [&] {
#ifdef __linux__
        const auto folder_of = [](const void* symbol) {
            Dl_info found;
            const bool is_found = symbol != nullptr && dladdr(symbol, &found) != 0;
            return is_found ? std::filesystem::path(found.dli_fname).parent_path() : std::filesystem::path();
        };
        const auto cuda = folder_of(reinterpret_cast<const void*>(&at::globalContext)) / "libtorch_cuda.so";
        if (!std::filesystem::exists(cuda)) return false;
        const auto load = [](const std::filesystem::path& library) {
            if (dlopen(library.c_str(), RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
        };
        load(cuda);
        const auto runtime = folder_of(dlsym(RTLD_DEFAULT, "cudaGetDeviceCount"));
        if (!runtime.empty())
            for (const auto& entry : std::filesystem::directory_iterator(runtime))
                if (entry.path().filename().string().rfind("libnvrtc-builtins.so", 0) == 0) load(entry.path());
#endif
        // In fp32 a convolution is one of 24-bit mantissas. By default cuDNN takes 11 bits (TF32).
        at::globalContext().setAllowTF32CuDNN(false);
        return true;
    });
}

// relu(convolution), or relu(sum + convolution) where there is a sum, in one kernel of cuDNN. tch has these too, but its
// functions with a scalar among their arguments panic when they fail.
at::Tensor* luthier_cudnn_convolution_relu(
    const at::Tensor* sum, const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, Shape shape,
    char** error) {
    return guarded(error, [&] {
        const Pair stride(shape.stride), padding(shape.padding), dilation(1);
        return leak(
            sum == nullptr
                ? at::cudnn_convolution_relu(*input, *weight, *bias, Lengths(stride), Lengths(padding), Lengths(dilation), shape.groups)
                : at::cudnn_convolution_add_relu(
                      *input, *weight, *sum, 1.0, *bias, Lengths(stride), Lengths(padding), Lengths(dilation), shape.groups));
    });
}

// Pinned memory for images, `u8 [n, side, side, 3]`: a copy to a GPU need not be waited for.
at::Tensor* luthier_pinned(int64_t n, int64_t side, char** error) {
    return guarded(error, [&] {
        return leak(at::empty({n, side, side, 3}, at::TensorOptions(at::kByte).pinned_memory(true)));
    });
}

// A result on its way from a GPU into pinned memory.
struct Readback {
    at::Tensor values;
    c10::Event is_there;
};

// Has the GPU copy `x` when it is computed. What the host asks of the GPU later does not delay that.
Readback* luthier_read_back(const at::Tensor* x, char** error) {
    return guarded(error, [&] {
        auto values = at::empty(x->sizes(), x->options().device(at::kCPU).pinned_memory(true));
        values.copy_(*x, /*non_blocking=*/true);
        c10::Event is_there(x->device().type());
        is_there.record(c10::impl::VirtualGuardImpl(x->device().type()).getStream(x->device()));
        return new Readback{std::move(values), std::move(is_there)};
    });
}

// Waits for the copy.
at::Tensor* luthier_wait(const Readback* readback, char** error) {
    return guarded(error, [&] {
        readback->is_there.synchronize();
        return leak(readback->values);
    });
}

void luthier_drop_readback(Readback* readback) {
    delete readback;
}

}  // extern "C"
