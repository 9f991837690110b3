#include <tuple>

#include "similarity.h"

namespace stc {
namespace {

std::tuple<Tensor, Tensor> select_dynamic(const Tensor& current, const Tensor& reference, int64_t k,
                                          std::optional<Tensor> reference_index,
                                          std::string metric) {
  const char* op = "select_dynamic";
  const Metric parsed = check_similarity(op, current, reference, reference_index, metric);
  const int64_t frames = current.size(0), tokens = current.size(1);
  check_count(op, "k", k, tokens);
  Tensor index = empty({frames, k}, ScalarType::Long),
         slot = empty({frames, tokens}, ScalarType::Int);
  const auto scores = scratch<float>(frames * tokens);
  similarity_into(current, reference, reference_index, parsed, scores.get());
  auto* places = static_cast<int64_t*>(index.data_ptr());
  auto* slots = static_cast<int32_t*>(slot.data_ptr());
  // Finding the k-th of T scores reads them some forty times.
  parallel_over(frames, 40 * tokens * sizeof(float), [&](int64_t begin, int64_t end) {
    const auto keys = scratch<uint32_t>(tokens);
    for (int64_t f = begin; f < end; ++f) {
      kernels().select(scores.get() + f * tokens, tokens, k, false, places + f * k,
                       slots + f * tokens, keys.get());
    }
  });
  return {index, slot};
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("select_dynamic", TORCH_BOX(&stc::select_dynamic));
}
