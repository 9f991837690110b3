// Which patches of a picture changed since another? One op, called from C++ without Python.
//
// No C++ class of libtorch is used: the stable ABI's headers over its C functions, so the program
// runs with every torch from 2.10 on. `make select_dynamic` builds and runs it.
#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;

constexpr int64_t kSide = 12;      // patches across and down
constexpr int64_t kChannels = 64;  // pixels of a patch

// The picture's patches, [1, 144, 64]: a bright square of 3 by 3 patches on a gradient.
std::vector<float> picture(int64_t top, int64_t left) {
  std::vector<float> values(kSide * kSide * kChannels);
  for (int64_t i = 0; i < std::ssize(values); ++i) {
    const int64_t row = i / kChannels / kSide;
    const int64_t column = i / kChannels % kSide;
    const bool inside = row >= top && row < top + 3 && column >= left && column < left + 3;
    values[i] = inside ? 1.0f : 0.1f + 0.001f * static_cast<float>(i % 97);
  }
  return values;
}

// A tensor over memory that stays ours.
Tensor tensor(std::vector<float>& values) {
  return torch::stable::from_blob(values.data(), {1, kSide * kSide, kChannels},
                                  {kSide * kSide * kChannels, kChannels, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU, 0),
                                  torch::headeronly::ScalarType::Float);
}

// index [F, k] and slot [F, T] of the k tokens least similar to their reference.
std::pair<Tensor, Tensor> select_dynamic(const Tensor& current, const Tensor& reference,
                                         int64_t k) {
  // The arguments in the order of the schema; the results take their place.
  std::array<StableIValue, 5> stack = {
      from(current),           from(reference), from(k), from(std::optional<Tensor>()),
      from(std::string("l2")),
  };
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("stc_kernels::select_dynamic", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s path/to/libstc_kernels.so\n", argv[0]);
    return 2;
  }
  // Loading the library registers its ops.
  if (dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  std::vector<float> before = picture(2, 2);
  std::vector<float> after = picture(6, 5);
  const auto [index, slot] = select_dynamic(tensor(after), tensor(before), 18);

  const auto* place = static_cast<const int32_t*>(slot.data_ptr());
  for (int64_t token = 0; token < slot.numel(); ++token) {
    std::putchar(place[token] < 0 ? '.' : '#');
    if (token % kSide == kSide - 1) {
      std::putchar('\n');
    }
  }
  const auto* chosen = static_cast<const int64_t*>(index.data_ptr());
  std::printf("%lld of %lld patches chosen; the first: %lld\n",
              static_cast<long long>(index.numel()), static_cast<long long>(slot.numel()),
              static_cast<long long>(chosen[0]));
  return 0;
}
