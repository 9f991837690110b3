// Runs the package that export_package.py wrote: a projection and the pruning of its tokens,
// compiled ahead of time by AOTInductor, with any number of frames and without Python.
// `make run_package` writes the package, and builds and runs this.
#include <ATen/ops/arange.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <vector>

namespace {

constexpr int64_t kTokens = 49;
constexpr int64_t kWidth = 32;

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s path/to/libstc_kernels.so package.pt2 frames\n", argv[0]);
    return 2;
  }
  // The package calls the ops by name, so they must be registered before it runs.
  if (dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader package(argv[2]);
  const int64_t frames = std::atoll(argv[3]);
  const at::Tensor place = at::arange(frames * kTokens * kWidth, at::kFloat);
  const at::Tensor features = place.mul(place).mul(1e-3).cos().view({frames, kTokens, kWidth});
  const std::vector<at::Tensor> results = package.run({features});
  const at::Tensor& kept = results[0];
  const at::Tensor& index = results[1];
  std::cout << "kept " << kept.sizes() << "\n";
  for (int64_t frame = 0; frame < frames; ++frame) {
    const int64_t* row = index.const_data_ptr<int64_t>() + frame * index.size(1);
    for (int64_t i = 0; i < index.size(1); ++i) {
      std::cout << row[i] << (i + 1 < index.size(1) ? ' ' : '\n');
    }
  }
  return 0;
}
