// The fused convolutions of oneDNN, which are in libtorch's dispatcher but neither in its C++ API nor in tch.
//
// Every function is called from onednn.rs and nowhere else. Tensors cross the border as `at::Tensor*`, which is also
// what tch holds. A function that fails returns null and sets `error` to a message that luthier_onednn_free takes back.

#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace {

constexpr const char* kReorder = "mkldnn::_reorder_convolution_weight";
constexpr const char* kConvolution = "mkldnn::_convolution_pointwise";
constexpr const char* kConvolutionInto = "mkldnn::_convolution_pointwise_";

c10::List<int64_t> pair(int64_t value) {
    return c10::List<int64_t>({value, value});
}

template <typename... Arguments>
at::Tensor call(const char* name, const char* overload, Arguments&&... arguments) {
    torch::jit::Stack stack;
    torch::jit::push(stack, std::forward<Arguments>(arguments)...);
    c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).callBoxed(stack);
    return stack.at(0).toTensor();
}

template <typename Function>
at::Tensor* guarded(char** error, Function function) {
    try {
        return new at::Tensor(function());
    } catch (const std::exception& exception) {
        *error = strdup(exception.what());
    } catch (...) {
        *error = strdup("unknown exception");
    }
    return nullptr;
}

}  // namespace

extern "C" {

bool luthier_onednn_is_available() {
    auto& dispatcher = c10::Dispatcher::singleton();
    return dispatcher.findSchema({kReorder, ""}) && dispatcher.findSchema({kConvolution, ""}) &&
        dispatcher.findSchema({kConvolutionInto, "binary"});
}

void luthier_onednn_free(char* error) {
    std::free(error);
}

// Reorders a weight into the layout that oneDNN prefers for inputs of this shape.
at::Tensor* luthier_onednn_reorder(
    const at::Tensor* weight, int64_t stride, int64_t padding, const int64_t* input_shape, char** error) {
    return guarded(error, [&] {
        c10::List<int64_t> shape({input_shape[0], input_shape[1], input_shape[2], input_shape[3]});
        return call(kReorder, "", *weight, pair(padding), pair(stride), pair(1), int64_t{1}, shape);
    });
}

// attr is "relu" or "none".
at::Tensor* luthier_onednn_convolution(
    const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, int64_t stride, int64_t padding,
    const char* attr, char** error) {
    return guarded(error, [&] {
        c10::List<std::optional<at::Scalar>> scalars;
        return call(
            kConvolution, "", *input, *weight, *bias, pair(padding), pair(stride), pair(1), int64_t{1},
            std::string(attr), scalars, std::string());
    });
}

// Replaces `sum` by relu(sum + convolution).
at::Tensor* luthier_onednn_convolution_add_relu(
    const at::Tensor* sum, const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, int64_t stride,
    int64_t padding, char** error) {
    return guarded(error, [&] {
        c10::List<std::optional<at::Scalar>> scalars;
        return call(
            kConvolutionInto, "binary", *sum, *input, *weight, *bias, pair(padding), pair(stride), pair(1), int64_t{1},
            std::string("add"), at::Scalar(1.0), std::string("relu"), scalars, std::string());
    });
}

}  // extern "C"
