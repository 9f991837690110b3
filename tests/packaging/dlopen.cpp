// Loads the compiled ops into a program without Python and calls one: argv[1] is the library.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

torch::stable::Tensor tensor(float* values, const std::vector<int64_t>& sizes,
                             const std::vector<int64_t>& strides) {
  AtenTensorHandle handle;
  STD_TORCH_CHECK(aoti_torch_create_tensor_from_blob(
                      values, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
                      aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &handle) == 0,
                  "no tensor");
  return torch::stable::Tensor(handle);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) == nullptr) {
    std::fprintf(stderr, "dlopen: %s\n", argc == 2 ? dlerror() : "say which library");
    return 1;
  }
  // One frame of four tokens, two channels each; the second and the fourth score highest.
  std::array<float, 8> values = {10, 11, 20, 21, 30, 31, 40, 41};
  std::array<float, 4> scores = {0.1f, 0.9f, 0.2f, 0.8f};
  std::array<StableIValue, 4> stack = {
      torch::stable::detail::from(tensor(values.data(), {1, 4, 2}, {8, 2, 1})),
      torch::stable::detail::from(tensor(scores.data(), {1, 4}, {4, 1})),
      torch::stable::detail::from(int64_t{2}),
      torch::stable::detail::from(true),
  };
  if (torch_call_dispatcher("stc_kernels::topk_gather", "", stack.data(), TORCH_ABI_VERSION) != 0) {
    std::fprintf(stderr, "the call failed\n");
    return 1;
  }
  const auto kept = torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
  const auto index = torch::stable::detail::to<torch::stable::Tensor>(stack[1]);
  for (int64_t i = 0; i < kept.numel(); ++i) {
    std::printf("%g ", static_cast<const float*>(kept.data_ptr())[i]);
  }
  for (int64_t i = 0; i < index.numel(); ++i) {
    std::printf("%lld ", static_cast<long long>(static_cast<const int64_t*>(index.data_ptr())[i]));
  }
  std::printf("\n");
  return 0;
}
