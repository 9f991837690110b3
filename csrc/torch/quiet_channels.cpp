#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "arguments.h"

namespace stc {
namespace {

// So many channels at once keep their running sums in the first-level cache.
constexpr int64_t kPanel = 512;

Tensor quiet_channels(const Tensor& tokens, int64_t keep) {
  const char* op = "quiet_channels";
  check_tokens(op, "tokens", tokens);
  const int64_t channels = tokens.size(2);
  check_count(op, "keep", keep, channels);
  const Tensor source = with_unit_channel_stride(tokens);
  const Tokens from = view(source);
  std::vector<float> variance(channels, kInfinity);
  if (from.frames > 0) {
    const int64_t panels = (channels + kPanel - 1) / kPanel;
    parallel_over(panels, kPanel * from.frames * from.tokens * 4, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<double[]> sums(new double[2 * kPanel]);
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanel, last = std::min(first + kPanel, channels);
        kernels().variance(from, first, last, sums.get(), variance.data() + first);
      }
    });
  }
  for (float& value : variance) {
    if (!(value < kInfinity)) value = kInfinity;
  }
  Tensor out = empty({keep}, ScalarType::Long);
  auto* index = static_cast<int64_t*>(out.data_ptr());
  std::vector<int64_t> order(channels);
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto quieter = [&](int64_t a, int64_t b) {
    return variance[a] < variance[b] || (variance[a] == variance[b] && a < b);
  };
  std::nth_element(order.begin(), order.begin() + (keep - 1), order.end(), quieter);
  std::sort(order.begin(), order.begin() + keep, quieter);
  std::copy_n(order.begin(), keep, index);
  return out;
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("quiet_channels", TORCH_BOX(&stc::quiet_channels));
}
