// The ops on NumPy arrays: the same kernels, no torch. Arguments are checked in
// python/stc_numpy/__init__.py; arrays arrive contiguous and of the right dtype.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "stc/kernels.h"

namespace py = pybind11;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using IndexArray = py::array_t<int64_t, py::array::c_style>;
using SlotArray = py::array_t<int32_t, py::array::c_style>;
using ByteArray = py::array_t<uint8_t, py::array::c_style>;
// An array, so that NumPy says what is missing where there is no memory.
template <typename T>
using Scratch = py::array_t<T>;

stc::Tokens view(const FloatArray& array) {
  const int64_t tokens = array.shape(1), channels = array.shape(2);
  return {array.data(), stc::DType::kFloat32, array.shape(0), tokens,
          channels,     tokens * channels,    channels};
}

const int64_t* data(const std::optional<IndexArray>& index) {
  return index.has_value() ? index->data() : nullptr;
}

FloatArray patch_similarity(const FloatArray& current, const FloatArray& reference,
                            const std::optional<IndexArray>& reference_index, int metric) {
  const stc::Tokens a = view(current), b = view(reference);
  FloatArray out({a.frames, a.tokens});
  float* target = out.mutable_data();
  const int64_t* held_against = data(reference_index);
  const py::gil_scoped_release released;
  stc::kernels().similarity(a, b, held_against, static_cast<stc::Metric>(metric), target, 0,
                            a.frames * a.tokens);
  return out;
}

// index [F, k] and, where wanted, slot [F, T] of the k highest or lowest scores of each frame.
py::tuple select_scores(const FloatArray& scores, int64_t k, bool largest, bool with_slot) {
  const int64_t frames = scores.shape(0), tokens = scores.shape(1);
  IndexArray index({frames, k});
  SlotArray slot({with_slot ? frames : 0, tokens});
  const float* values = scores.data();
  int64_t* places = index.mutable_data();
  int32_t* slots = with_slot ? slot.mutable_data() : nullptr;
  Scratch<uint32_t> scratch(tokens);
  uint32_t* keys = scratch.mutable_data();
  {
    const py::gil_scoped_release released;
    for (int64_t f = 0; f < frames; ++f) {
      stc::kernels().select(values + f * tokens, tokens, k, largest, places + f * k,
                            with_slot ? slots + f * tokens : nullptr, keys);
    }
  }
  return py::make_tuple(index, slot);
}

FloatArray frame_difference(const ByteArray& current, const ByteArray& reference, int64_t patch) {
  const int64_t height = current.shape(0), width = current.shape(1);
  const int64_t across = (width + patch - 1) / patch;
  FloatArray out({(height + patch - 1) / patch, across});
  float* target = out.mutable_data();
  const uint8_t *a = current.data(), *b = reference.data();
  Scratch<uint32_t> column_scratch(3 * width);
  Scratch<uint64_t> total_scratch(across);
  uint32_t* columns = column_scratch.mutable_data();
  uint64_t* totals = total_scratch.mutable_data();
  const py::gil_scoped_release released;
  stc::kernels().frame_difference(a, b, height, width, patch, columns, totals, target);
  return out;
}

}  // namespace

PYBIND11_MODULE(_kernels, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels behind stc_numpy.";
  m.def("patch_similarity", &patch_similarity);
  m.def("select_scores", &select_scores);
  m.def("frame_difference", &frame_difference);
}
