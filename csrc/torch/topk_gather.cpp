#include "gather.h"

namespace stc {

std::tuple<Tensor, Tensor> keep_scored(const Tensor& tokens, const float* scores, int64_t k,
                                       bool largest) {
  const int64_t frames = tokens.size(0), length = tokens.size(1);
  Tensor index = empty({frames, k}, ScalarType::Long);
  Tensor kept = empty({frames, k, tokens.size(2)}, scalar_type_of(tokens));
  auto* places = static_cast<int64_t*>(index.data_ptr());
  parallel_over(frames, 40 * length * sizeof(float), [&](int64_t begin, int64_t end) {
    const auto keys = scratch<uint32_t>(length);
    for (int64_t f = begin; f < end; ++f) {
      kernels().select(scores + f * length, length, k, largest, places + f * k, nullptr,
                       keys.get());
    }
  });
  gather_into(tokens, places, k, kept.data_ptr());
  return {kept, index};
}

namespace {

std::tuple<Tensor, Tensor> topk_gather(const Tensor& tokens, const Tensor& scores, int64_t k,
                                       bool largest) {
  const char* op = "topk_gather";
  check_tokens(op, "tokens", tokens);
  check_dtype(op, "scores", scores, ScalarType::Float);
  check_shape(op, "scores", scores, {tokens.size(0), tokens.size(1)});
  check_no_grad(op, "scores", scores);
  check_count(op, "k", k, tokens.size(1));
  const Tensor values = as_contiguous(scores);
  return keep_scored(tokens, data<float>(values), k, largest);
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("topk_gather", TORCH_BOX(&stc::topk_gather));
}
