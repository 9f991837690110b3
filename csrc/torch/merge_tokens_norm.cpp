#include <algorithm>
#include <tuple>

#include "merge.h"
#include "norm.h"

namespace stc {
namespace {

constexpr int64_t kRowsAtOnce = 4;

std::tuple<Tensor, Tensor> merge_tokens_norm(const Tensor& updated, const Tensor& cached,
                                             const Tensor& slot, const Tensor& weight,
                                             std::optional<Tensor> bias,
                                             std::optional<Tensor> reference_index,
                                             std::optional<Tensor> residual, double eps) {
  const char* op = "merge_tokens_norm";
  const Merge merge = check_merge(op, updated, cached, slot, reference_index, residual);
  const Norm norm = check_norm(op, weight, bias, eps, cached);
  Tensor merged = empty({merge.frames, merge.tokens, merge.channels}, scalar_type_of(cached));
  Tensor normed = empty({merge.frames, merge.tokens, merge.channels}, scalar_type_of(cached));
  const DType dtype = dtype_of(merged);
  const int64_t row_bytes = merge.channels * size_of(dtype);
  char* rows = static_cast<char*>(merged.data_ptr());
  char* targets = static_cast<char*>(normed.data_ptr());
  parallel_over(merge.frames * merge.tokens, 4 * row_bytes, [&](int64_t begin, int64_t end) {
    // Some rows at a time, so that the norm finds them in the cache.
    for (int64_t first = begin; first < end; first += kRowsAtOnce) {
      const int64_t last = std::min(first + kRowsAtOnce, end);
      merge.run(rows, first, last);
      for (int64_t row = first; row < last; ++row) {
        kernels().norm(rows + row * row_bytes, dtype, merge.channels, norm.weight.get(),
                       norm.bias.get(), norm.eps, targets + row * row_bytes);
      }
    }
  });
  return {merged, normed};
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("merge_tokens_norm", TORCH_BOX(&stc::merge_tokens_norm));
}
