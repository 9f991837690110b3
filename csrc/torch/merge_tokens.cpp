#include "merge.h"

namespace stc {

Merge check_merge(const char* op, const Tensor& updated, const Tensor& cached, const Tensor& slot,
                  const std::optional<Tensor>& reference_index,
                  const std::optional<Tensor>& residual) {
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
  std::optional<Tensor> index, added;
  if (reference_index.has_value()) index = as_contiguous(*reference_index);
  if (residual.has_value()) {
    check_tokens(op, "residual", *residual);
    check_like(op, "residual", *residual, "cached", cached);
    check_shape(op, "residual", *residual, {frames, tokens, channels});
    added = with_unit_channel_stride(*residual);
  }
  const Tensor fresh = with_unit_channel_stride(updated);
  const Tensor stored = with_unit_channel_stride(cached);
  const Tokens added_view = added.has_value() ? view(*added) : Tokens{};
  return {fresh,        stored,     slots,  index,  added,   view(fresh),
          view(stored), added_view, frames, tokens, channels};
}

void Merge::run(void* out, int64_t begin, int64_t end) const {
  kernels().merge(updated_view, cached_view, data<int32_t>(slot), data<int64_t>(reference_index),
                  residual.has_value() ? &residual_view : nullptr, out, begin, end);
}

namespace {

Tensor merge_tokens(const Tensor& updated, const Tensor& cached, const Tensor& slot,
                    std::optional<Tensor> reference_index, std::optional<Tensor> residual) {
  const Merge merge = check_merge("merge_tokens", updated, cached, slot, reference_index, residual);
  Tensor out = empty({merge.frames, merge.tokens, merge.channels}, scalar_type_of(cached));
  void* target = out.data_ptr();
  const int64_t row_bytes = merge.channels * size_of(dtype_of(out));
  parallel_over(merge.frames * merge.tokens, 3 * row_bytes,
                [&](int64_t begin, int64_t end) { merge.run(target, begin, end); });
  return out;
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("merge_tokens", TORCH_BOX(&stc::merge_tokens));
}
