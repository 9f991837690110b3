#include "similarity.h"

namespace stc {

Metric check_similarity(const char* op, const Tensor& current, const Tensor& reference,
                        const std::optional<Tensor>& reference_index, const std::string& metric) {
  check_tokens(op, "current", current);
  check_tokens(op, "reference", reference);
  check_like(op, "reference", reference, "current", current);
  const int64_t tokens = current.size(1), channels = current.size(2);
  if (reference.size(1) != tokens || reference.size(2) != channels) {
    fail(op, "reference",
         "have shape [references, " + std::to_string(tokens) + ", " + std::to_string(channels) +
             "] like current",
         "has shape " + shape_text(reference));
  }
  const Metric parsed = parse_metric(op, metric);
  check_references(op, reference_index, reference, "reference", current.size(0));
  return parsed;
}

void similarity_into(const Tensor& current, const Tensor& reference,
                     const std::optional<Tensor>& reference_index, Metric metric, float* out) {
  const Tensor a = with_unit_channel_stride(current), b = with_unit_channel_stride(reference);
  std::optional<Tensor> index;
  if (reference_index.has_value()) index = as_contiguous(*reference_index);
  const Tokens view_a = view(a), view_b = view(b);
  const int64_t* held_against = data<int64_t>(index);
  const int64_t row_bytes = 2 * view_a.channels * size_of(view_a.dtype);
  parallel_over(view_a.frames * view_a.tokens, row_bytes, [&](int64_t begin, int64_t end) {
    kernels().similarity(view_a, view_b, held_against, metric, out, begin, end);
  });
}

namespace {

Tensor patch_similarity(const Tensor& current, const Tensor& reference,
                        std::optional<Tensor> reference_index, std::string metric) {
  const Metric parsed =
      check_similarity("patch_similarity", current, reference, reference_index, metric);
  Tensor out = empty({current.size(0), current.size(1)}, ScalarType::Float);
  similarity_into(current, reference, reference_index, parsed, static_cast<float*>(out.data_ptr()));
  return out;
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("patch_similarity", TORCH_BOX(&stc::patch_similarity));
}
