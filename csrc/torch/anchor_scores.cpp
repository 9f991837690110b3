#include <algorithm>
#include <cmath>
#include <memory>

#include "scores.h"

namespace stc {

namespace {

// Everything the two passes share, over all frames.
struct Workspace {
  int64_t tokens, channels, parts;           // a frame is read in so many parts at once
  std::unique_ptr<float[]> squares;          // [F, T]
  std::unique_ptr<float[]> dots;             // [F, T], or null without a past
  std::unique_ptr<float[]> totals;           // [F, parts, D]
  std::unique_ptr<int64_t[]> finite;         // [F, parts]
  std::unique_ptr<float[]> temporal;         // [D] or [F, D] as float32, or null
  std::unique_ptr<float[]> temporal_square;  // a value for each row of temporal
  int64_t temporal_stride;                   // 0 where one row serves all frames
  const int64_t* picked;                     // the channels scored on, or null for all
};

// The part of one frame's tokens that part `part` of `parts` has.
struct Span {
  int64_t begin, end;
};

Span span(const Workspace& space, int64_t part) {
  return {space.tokens * part / space.parts, space.tokens * (part + 1) / space.parts};
}

FrameRows rows_of(const Tokens& tokens, const Workspace& space, int64_t frame, Span part,
                  float* chosen) {
  const int64_t count = part.end - part.begin;
  if (space.picked == nullptr) {
    return {tokens.row_bytes(frame, part.begin), tokens.dtype, tokens.token_stride, count,
            tokens.channels};
  }
  for (int64_t i = 0; i < count; ++i) {
    kernels().pick_channels(tokens.row_bytes(frame, part.begin + i), tokens.dtype, space.picked,
                            space.channels, chosen + i * space.channels);
  }
  return {chosen, DType::kFloat32, space.channels, count, space.channels};
}

void first_pass(const ScoreArguments& arguments, Workspace& space, int64_t frame, int64_t part,
                const FrameRows& rows) {
  const Span of = span(space, part);
  const int64_t at = frame * space.tokens + of.begin, total = frame * space.parts + part;
  const float* temporal =
      space.temporal ? space.temporal.get() + frame * space.temporal_stride : nullptr;
  const auto scales = scratch<float>(rows.count);
  space.finite[total] = kernels().anchor_first_pass(
      rows, arguments.strategy, temporal, space.totals.get() + total * space.channels,
      space.squares.get() + at, space.dots ? space.dots.get() + at : nullptr, scales.get());
}

// Turns the sums of a frame's parts into its mean, in place of the first of them.
void finish_mean(Workspace& space, int64_t frame) {
  float* mean = space.totals.get() + frame * space.parts * space.channels;
  int64_t finite = 0;
  for (int64_t part = 0; part < space.parts; ++part)
    finite += space.finite[frame * space.parts + part];
  const float count = static_cast<float>(std::max<int64_t>(finite, 1));
  for (int64_t c = 0; c < space.channels; ++c) {
    for (int64_t part = 1; part < space.parts; ++part) mean[c] += mean[part * space.channels + c];
    mean[c] /= count;
  }
}

void second_pass(const ScoreArguments& arguments, Workspace& space, int64_t frame, int64_t part,
                 const FrameRows& rows, float* out) {
  const int64_t at = frame * space.tokens + span(space, part).begin;
  const float* mean = space.totals.get() + frame * space.parts * space.channels;
  const float temporal_square =
      space.temporal ? space.temporal_square[space.temporal_stride == 0 ? 0 : frame] : 0.0f;
  kernels().anchor_second_pass(rows, arguments.strategy, static_cast<float>(arguments.alpha),
                               static_cast<float>(1.0 - arguments.alpha), mean,
                               kernels().square_sum(mean, space.channels), temporal_square,
                               space.squares.get() + at,
                               space.dots ? space.dots.get() + at : nullptr, out + at);
}

void read_temporal(const Tensor& anchor, Strategy strategy, Workspace& space) {
  const int64_t channels = space.channels, rows = anchor.numel() / channels;
  space.temporal = as_floats(anchor);
  space.temporal_stride = anchor.dim() == 1 ? 0 : channels;
  space.temporal_square = scratch<float>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = space.temporal.get() + r * channels;
    float square = kernels().square_sum(row, channels);
    if (strategy == Strategy::kGaussian) {
      // Divided, not scaled: of a finite past whose square overflows, c/∞ = 0 is left, as the
      // definition has it.
      const float norm = std::fmax(std::sqrt(square), kNormFloor);
      for (int64_t c = 0; c < channels; ++c) row[c] /= norm;
      square = kernels().square_sum(row, channels);
    }
    space.temporal_square[r] = square;
  }
}

}  // namespace

ScoreArguments check_scores(const char* op, const Tensor& tokens,
                            const std::optional<Tensor>& temporal_anchor,
                            const std::string& strategy, double alpha,
                            const std::optional<Tensor>& channels) {
  check_tokens(op, "tokens", tokens);
  if (strategy != "dual_anchor" && strategy != "gaussian") {
    fail(op, "strategy", "be dual_anchor or gaussian", "is '" + strategy + "'");
  }
  if (!(alpha >= 0.0 && alpha <= 1.0)) fail(op, "alpha", "be in 0..1", "is " + number_text(alpha));
  const int64_t frames = tokens.size(0);
  int64_t width = tokens.size(2);
  std::optional<Tensor> picked;
  if (channels.has_value()) {
    check_dtype(op, "channels", *channels, ScalarType::Long);
    if (channels->dim() != 1 || channels->size(0) == 0) {
      fail(op, "channels", "have shape [c], c at least 1", "has shape " + shape_text(*channels));
    }
    picked = as_contiguous(*channels);
    check_range<int64_t>(op, "channels", *picked, 0, width);
    width = channels->size(0);
  }
  if (temporal_anchor.has_value()) {
    const ScalarType dtype = scalar_type_of(*temporal_anchor);
    if (dtype != ScalarType::Float && dtype != scalar_type_of(tokens)) {
      fail(op, "temporal_anchor", "have dtype float32 or that of tokens",
           "has dtype " + dtype_text(dtype));
    }
    const auto sizes = temporal_anchor->sizes();
    const bool one = sizes.size() == 1 && sizes[0] == width;
    const bool each = sizes.size() == 2 && sizes[0] == frames && sizes[1] == width;
    if (!one && !each) {
      fail(op, "temporal_anchor",
           "have shape [" + std::to_string(width) + "] or [" + std::to_string(frames) + ", " +
               std::to_string(width) + "]",
           "has shape " + shape_text(*temporal_anchor));
    }
    check_no_grad(op, "temporal_anchor", *temporal_anchor);
  }
  const Strategy parsed = strategy == "gaussian" ? Strategy::kGaussian : Strategy::kDualAnchor;
  return {tokens, temporal_anchor, parsed, alpha, picked};
}

void scores_into(const ScoreArguments& arguments, float* out) {
  const Tensor source = with_unit_channel_stride(arguments.tokens);
  const Tokens tokens = view(source);
  if (tokens.frames == 0) return;
  Workspace space = {};
  space.tokens = tokens.tokens;
  space.channels = arguments.channels.has_value() ? arguments.channels->numel() : tokens.channels;
  space.picked = data<int64_t>(arguments.channels);
  // Few frames are read in parts, so that every core has one; many frames, whole, so that the
  // second pass finds the frame where the first left it in the cache.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t frame_bytes = tokens.tokens * space.channels * size_of(tokens.dtype);
  const bool whole = tokens.frames >= 2 * threads || frame_bytes < (int64_t{64} << 10);
  space.parts = whole ? 1 : std::min(threads, tokens.tokens);
  space.squares = scratch<float>(tokens.frames * tokens.tokens);
  space.totals = scratch<float>(tokens.frames * space.parts * space.channels);
  space.finite = scratch<int64_t>(tokens.frames * space.parts);
  if (arguments.temporal_anchor.has_value()) {
    read_temporal(*arguments.temporal_anchor, arguments.strategy, space);
    space.dots = scratch<float>(tokens.frames * tokens.tokens);
  }
  const int64_t chosen_values =
      space.picked == nullptr ? 0 : (tokens.tokens / space.parts + 1) * space.channels;

  if (space.parts == 1) {
    parallel_over(tokens.frames, 2 * frame_bytes, [&](int64_t begin, int64_t end) {
      const auto chosen = scratch<float>(chosen_values);
      for (int64_t f = begin; f < end; ++f) {
        const FrameRows rows = rows_of(tokens, space, f, span(space, 0), chosen.get());
        first_pass(arguments, space, f, 0, rows);
        finish_mean(space, f);
        second_pass(arguments, space, f, 0, rows, out);
      }
    });
    return;
  }
  const auto over_parts = [&](const auto& body) {
    parallel_over(
        tokens.frames * space.parts, frame_bytes / space.parts, [&](int64_t begin, int64_t end) {
          const auto chosen = scratch<float>(chosen_values);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t frame = i / space.parts, part = i % space.parts;
            body(frame, part, rows_of(tokens, space, frame, span(space, part), chosen.get()));
          }
        });
  };
  over_parts([&](int64_t frame, int64_t part, const FrameRows& rows) {
    first_pass(arguments, space, frame, part, rows);
  });
  for (int64_t f = 0; f < tokens.frames; ++f) finish_mean(space, f);
  over_parts([&](int64_t frame, int64_t part, const FrameRows& rows) {
    second_pass(arguments, space, frame, part, rows, out);
  });
}

namespace {

Tensor anchor_scores(const Tensor& tokens, std::optional<Tensor> temporal_anchor,
                     std::string strategy, double alpha, std::optional<Tensor> channels) {
  const ScoreArguments arguments =
      check_scores("anchor_scores", tokens, temporal_anchor, strategy, alpha, channels);
  Tensor out = empty({tokens.size(0), tokens.size(1)}, ScalarType::Float);
  scores_into(arguments, static_cast<float*>(out.data_ptr()));
  return out;
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("anchor_scores", TORCH_BOX(&stc::anchor_scores));
}
