#include "arguments.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <stdexcept>

namespace stc {

namespace {

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// The stable interface has no requires_grad: but a view made in grad mode is a leaf only if there
// is nothing to track.
bool requires_grad(const Tensor& tensor) {
  if (!aoti_torch_grad_mode_is_enabled()) return false;
  StableIValue stack[1] = {torch::stable::detail::from(tensor)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::alias", "", stack, TORCH_ABI_VERSION));
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::is_leaf", "", stack, TORCH_ABI_VERSION));
  return !torch::stable::detail::to<bool>(stack[0]);
}

// glibc takes this much and more from the system anew each time: in pages of 4 KiB, zeroed one by
// one at the first touch, that costs more than any op's own work.
constexpr int64_t kFromTheSystem = int64_t{32} << 20;

void ask_for_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes < kFromTheSystem) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / page * page;
  // Advice: where the system has no huge pages, or none left, all goes on as before.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

int64_t item_bytes(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Long:
      return 8;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    default:
      return 4;
  }
}

// What `make` makes, of so many items. It is for memory alone that it can fail: the stable
// interface tells its errors apart to nobody but the log.
template <typename F>
Tensor allocated(int64_t count, int64_t item_bytes, const F& make) {
  try {
    return make();
  } catch (const std::exception&) {
    out_of_memory(count, item_bytes);
  }
}

Tensor contiguous_copy(const Tensor& tensor) {
  return allocated(tensor.numel(), static_cast<int64_t>(tensor.element_size()),
                   [&] { return torch::stable::contiguous(tensor); });
}

void check_device(const char* op, const char* name, const Tensor& tensor, const char* other_name) {
  if (!tensor.is_cpu()) {
    fail(op, name, std::string("be on device cpu like ") + other_name, "is on another device");
  }
}

}  // namespace

void fail(const char* op, const std::string& argument, const std::string& must,
          const std::string& but) {
  throw std::runtime_error(std::string("stc_kernels.") + op + ": " + argument + " must " + must +
                           ", but " + but);
}

void check_defined(const char* op, const char* name, const Tensor& tensor) {
  if (!tensor.defined()) fail(op, name, "be a tensor", "is None");
}

void check_tokens(const char* op, const char* name, const Tensor& tensor, bool may_be_empty) {
  check_defined(op, name, tensor);
  if (tensor.dim() != 3) {
    fail(op, name, "have shape [frames, tokens, channels]", "has shape " + shape_text(tensor));
  }
  const ScalarType dtype = scalar_type_of(tensor);
  if (dtype != ScalarType::Float && dtype != ScalarType::Half && dtype != ScalarType::BFloat16) {
    fail(op, name, "have dtype float32, float16 or bfloat16", "has dtype " + dtype_text(dtype));
  }
  if (tensor.size(2) == 0 || (tensor.size(1) == 0 && !may_be_empty)) {
    fail(op, name, "have at least one token and one channel", "has shape " + shape_text(tensor));
  }
  check_no_grad(op, name, tensor);
}

void check_like(const char* op, const char* name, const Tensor& tensor, const char* other_name,
                const Tensor& other) {
  const ScalarType dtype = scalar_type_of(tensor), wanted = scalar_type_of(other);
  if (dtype != wanted) {
    fail(op, name, "have dtype " + dtype_text(wanted) + " like " + other_name,
         "has dtype " + dtype_text(dtype));
  }
  check_device(op, name, tensor, other_name);
}

void check_no_grad(const char* op, const char* name, const Tensor& tensor) {
  if (requires_grad(tensor))
    fail(op, name, "not require grad in grad mode (the op has no gradient)", "does");
}

void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType dtype) {
  check_defined(op, name, tensor);
  if (scalar_type_of(tensor) != dtype) {
    fail(op, name, "have dtype " + dtype_text(dtype),
         "has dtype " + dtype_text(scalar_type_of(tensor)));
  }
  check_device(op, name, tensor, "the tokens");
}

void check_shape(const char* op, const char* name, const Tensor& tensor,
                 const std::vector<int64_t>& shape) {
  if (shape_of(tensor) != shape)
    fail(op, name, "have shape " + text(shape), "has shape " + shape_text(tensor));
}

void check_count(const char* op, const char* name, int64_t value, int64_t limit) {
  if (value < 1 || value > limit)
    fail(op, name, "be in 1.." + std::to_string(limit), "is " + std::to_string(value));
}

void check_references(const char* op, const std::optional<Tensor>& reference_index,
                      const Tensor& reference, const char* name, int64_t frames) {
  const int64_t count = reference.size(0);
  if (!reference_index.has_value()) {
    if (count != 1 && count != frames) {
      fail(op, name,
           "hold 1 or " + std::to_string(frames) + " references when reference_index is not given",
           "holds " + std::to_string(count));
    }
    return;
  }
  check_dtype(op, "reference_index", *reference_index, ScalarType::Long);
  check_shape(op, "reference_index", *reference_index, {frames});
  check_range<int64_t>(op, "reference_index", as_contiguous(*reference_index), 0, count);
}

Metric parse_metric(const char* op, const std::string& metric) {
  if (metric == "cosine") return Metric::kCosine;
  if (metric == "dot") return Metric::kDot;
  if (metric == "l1") return Metric::kL1;
  if (metric == "l2") return Metric::kL2;
  fail(op, "metric", "be cosine, dot, l1 or l2", "is '" + metric + "'");
}

std::string shape_text(const Tensor& tensor) { return text(shape_of(tensor)); }

std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      break;
  }
  // All newer ones are called the same in Python, but for the capitals.
  std::string name = torch::headeronly::toString(dtype);
  for (char& letter : name) letter = static_cast<char>(std::tolower(letter));
  return name;
}

ScalarType scalar_type_of(const Tensor& tensor) {
  static const int32_t float32 = aoti_torch_dtype_float32(), float16 = aoti_torch_dtype_float16(),
                       bfloat16 = aoti_torch_dtype_bfloat16(), int64 = aoti_torch_dtype_int64(),
                       int32 = aoti_torch_dtype_int32();
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  if (dtype == float32) return ScalarType::Float;
  if (dtype == bfloat16) return ScalarType::BFloat16;
  if (dtype == float16) return ScalarType::Half;
  if (dtype == int64) return ScalarType::Long;
  if (dtype == int32) return ScalarType::Int;
  // No op takes these: the number serves an error's words alone.
  return static_cast<ScalarType>(dtype);
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

Tensor with_unit_channel_stride(const Tensor& tensor) {
  return tensor.stride(2) == 1 || tensor.size(2) == 1 ? tensor : contiguous_copy(tensor);
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : contiguous_copy(tensor);
}

Tokens view(const Tensor& tensor) {
  return {tensor.data_ptr(), dtype_of(tensor), tensor.size(0),  tensor.size(1),
          tensor.size(2),    tensor.stride(0), tensor.stride(1)};
}

DType dtype_of(const Tensor& tensor) {
  switch (scalar_type_of(tensor)) {
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

std::unique_ptr<float[]> as_floats(const Tensor& tensor) {
  const Tensor source = as_contiguous(tensor);
  auto out = scratch<float>(source.numel());
  kernels().to_float32(source.data_ptr(), dtype_of(source), source.numel(), out.get());
  return out;
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  const auto fresh = [&] {
    return torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt,
                                torch::stable::Device(torch::headeronly::DeviceType::CPU));
  };
  int64_t count = 1;
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(count, size, &count)) count = INT64_MAX;
  }
  Tensor out = allocated(count, item_bytes(dtype), fresh);
  ask_for_huge_pages(out.data_ptr(), count * item_bytes(dtype));
  return out;
}

void out_of_memory(int64_t count, int64_t item_bytes) {
  int64_t bytes;
  const bool known = !__builtin_mul_overflow(count, item_bytes, &bytes);
  // torch's own words, which programs look for to try again with less.
  throw std::runtime_error(
      "DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
      (known ? std::to_string(bytes) : "more than " + std::to_string(INT64_MAX)) +
      " bytes. Error code 12 (Cannot allocate memory)");
}

}  // namespace stc
