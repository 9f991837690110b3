#include "arguments.h"

namespace stc {
namespace {

Tensor merge_tokens(const Tensor& updated, const Tensor& cached, const Tensor& slot,
                    std::optional<Tensor> reference_index, std::optional<Tensor> residual) {
  const char* op = "merge_tokens";
  check_tokens(op, "cached", cached);
  check_tokens(op, "updated", updated, true);
  check_like(op, "updated", updated, "cached", cached);
  const int64_t frames = updated.size(0), tokens = cached.size(1), channels = cached.size(2);
  if (updated.size(2) != channels) {
    fail(op, "updated", "have " + std::to_string(channels) + " channels like cached",
         "has shape " + shape_text(updated));
  }
  check_dtype(op, "slot", slot, ScalarType::Int);
  check_shape(op, "slot", slot, {frames, tokens});
  const Tensor slots = as_contiguous(slot);
  check_range<int32_t>(op, "slot", slots, -1, updated.size(1));
  check_references(op, reference_index, cached, "cached", frames);
  if (residual.has_value()) {
    check_tokens(op, "residual", *residual);
    check_like(op, "residual", *residual, "cached", cached);
    check_shape(op, "residual", *residual, {frames, tokens, channels});
  }

  const Tensor fresh = with_unit_channel_stride(updated), stored = with_unit_channel_stride(cached);
  std::optional<Tensor> index, added;
  if (reference_index.has_value()) index = as_contiguous(*reference_index);
  if (residual.has_value()) added = with_unit_channel_stride(*residual);
  const Tokens fresh_view = view(fresh), stored_view = view(stored);
  const Tokens added_view = added.has_value() ? view(*added) : Tokens{};
  Tensor out = empty({frames, tokens, channels}, cached.scalar_type());
  void* target = out.data_ptr();
  parallel_over(
      frames * tokens, 3 * channels * size_of(stored_view.dtype), [&](int64_t begin, int64_t end) {
        kernels().merge(fresh_view, stored_view, data<int32_t>(slots), data<int64_t>(index),
                        added.has_value() ? &added_view : nullptr, target, begin, end);
      });
  return out;
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("merge_tokens", TORCH_BOX(&stc::merge_tokens));
}
