#include <algorithm>
#include <numeric>

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
  const auto variance = scratch<float>(channels);
  std::fill_n(variance.get(), channels, kInfinity);
  if (from.frames > 0) {
    const int64_t panels = (channels + kPanel - 1) / kPanel;
    parallel_over(panels, kPanel * from.frames * from.tokens * 4, [&](int64_t begin, int64_t end) {
      const auto sums = scratch<double>(2 * kPanel);
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanel, last = std::min(first + kPanel, channels);
        kernels().variance(from, first, last, sums.get(), variance.get() + first);
      }
    });
  }
  for (int64_t c = 0; c < channels; ++c) {
    if (!(variance[c] < kInfinity)) variance[c] = kInfinity;
  }
  Tensor out = empty({keep}, ScalarType::Long);
  auto* index = static_cast<int64_t*>(out.data_ptr());
  const auto order = scratch<int64_t>(channels);
  std::iota(order.get(), order.get() + channels, int64_t{0});
  const auto quieter = [&](int64_t a, int64_t b) {
    return variance[a] < variance[b] || (variance[a] == variance[b] && a < b);
  };
  std::nth_element(order.get(), order.get() + (keep - 1), order.get() + channels, quieter);
  std::sort(order.get(), order.get() + keep, quieter);
  std::copy_n(order.get(), keep, index);
  return out;
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("quiet_channels", TORCH_BOX(&stc::quiet_channels));
}
