// The ops' arguments: checked with the words of stc_kernels/_checks.py, then seen as the kernels
// want them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "stc/kernels.h"

namespace stc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws std::runtime_error: "stc_kernels.<op>: <argument> must <what it may be>, but <what it
// was>".
[[noreturn]] void fail(const char* op, const std::string& argument, const std::string& must,
                       const std::string& but);

// torch lets None pass for a Tensor argument: the first thing to check of one.
void check_defined(const char* op, const char* name, const Tensor& tensor);
void check_tokens(const char* op, const char* name, const Tensor& tensor,
                  bool may_be_empty = false);
void check_like(const char* op, const char* name, const Tensor& tensor, const char* other_name,
                const Tensor& other);
void check_no_grad(const char* op, const char* name, const Tensor& tensor);
void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType dtype);
void check_shape(const char* op, const char* name, const Tensor& tensor,
                 const std::vector<int64_t>& shape);
void check_count(const char* op, const char* name, int64_t value, int64_t limit);

// Checks the arguments that say which reference belongs to which frame; `name` is the references'
// own.
void check_references(const char* op, const std::optional<Tensor>& reference_index,
                      const Tensor& reference, const char* name, int64_t frames);

Metric parse_metric(const char* op, const std::string& metric);

std::string shape_text(const Tensor& tensor);
std::string dtype_text(ScalarType dtype);
// As Tensor::scalar_type, which takes longer and throws for the rarer dtypes.
ScalarType scalar_type_of(const Tensor& tensor);
std::string number_text(double value);

// The tensor itself where its channels lie next to each other, else a contiguous copy of it.
Tensor with_unit_channel_stride(const Tensor& tensor);
Tensor as_contiguous(const Tensor& tensor);

// Views of tensors that were checked; with_unit_channel_stride comes first for tokens.
Tokens view(const Tensor& tensor);
DType dtype_of(const Tensor& tensor);

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}

// A tensor's values as float32, in order.
std::unique_ptr<float[]> as_floats(const Tensor& tensor);

// Throws unless every value of a contiguous integer tensor lies in low..end-1.
template <typename T>
void check_range(const char* op, const char* name, const Tensor& tensor, int64_t low, int64_t end) {
  const T* values = data<T>(tensor);
  const int64_t count = tensor.numel();
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < low || values[i] >= end) {
      fail(op, name, "hold values in " + std::to_string(low) + ".." + std::to_string(end - 1),
           "holds " + std::to_string(values[i]));
    }
  }
}

// A new tensor on the CPU, of float32, float16, bfloat16, int64 or int32.
Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype);

// Throws what torch says where there is no memory for so many items.
[[noreturn]] void out_of_memory(int64_t count, int64_t item_bytes);

// Memory for an op's own use, not initialised.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t count) {
  try {
    return std::unique_ptr<T[]>(new T[count]);
  } catch (const std::bad_alloc&) {
    out_of_memory(count, sizeof(T));
  }
}

// Runs f(begin, end) over 0..count in parallel, in parts worth at least about `bytes_each * part` =
// 32 KiB of work.
template <typename F>
void parallel_over(int64_t count, int64_t bytes_each, const F& f) {
  if (count == 0) return;
  const int64_t grain = 1 + (int64_t{32} << 10) / (bytes_each > 0 ? bytes_each : 1);
  // An exception does not pass through the stable interface: the first is carried around it.
  std::exception_ptr error;
  std::mutex first;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> one_at_a_time(first);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace stc
