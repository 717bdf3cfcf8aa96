// Compares padding and what lies under a window with plain loops.

#include "custom_ops/kernels/patches/window.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "custom_ops/kernels/patches/changed.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

void TestPadding() {
  for (int64_t size = 1; size <= 12; ++size) {
    for (int64_t kernel = 1; kernel <= 5; ++kernel) {
      for (int64_t stride = 1; stride <= 4; ++stride) {
        for (int64_t dilation = 1; dilation <= 3; ++dilation) {
          const int64_t extent = (kernel - 1) * dilation + 1;
          int64_t pad = -1, out = -1, fitting = 0;
          PadAxis(false, size, kernel, stride, dilation, &pad, &out);
          for (int64_t i = 0; i + extent <= size; i += stride) ++fitting;
          CHECK(pad == 0);
          CHECK(out == fitting);
          PadAxis(true, size, kernel, stride, dilation, &pad, &out);
          int64_t starts = 0;
          for (int64_t i = 0; i < size; i += stride) ++starts;
          CHECK(out == starts);
          // What is added is no more than needed, the odd one after the end.
          const int64_t needed =
              std::max<int64_t>(0, (starts - 1) * stride + extent - size);
          CHECK(pad == needed / 2);
        }
      }
    }
  }
}

void TestPatchIds() {
  Random random(1);
  for (int i = 0; i < 200; ++i) {
    const Window w = RandomWindow(&random, false);
    const int64_t images = random.Int(1, 3), taps = w.taps();
    const std::vector<int32_t> want = reference::AllPatches(w, images);
    std::vector<int32_t> positions(images * w.positions());
    std::iota(positions.begin(), positions.end(), 0);
    random.Shuffle(&positions);
    std::vector<int32_t> got(positions.size() * taps, -7);
    PatchIds(w, positions.data(), positions.size(), got.data());
    for (size_t p = 0; p < positions.size(); ++p) {
      CHECK(SameBits(got.data() + p * taps, want.data() + positions[p] * taps,
                     taps));
    }
  }
}

// However large a kernel, stride or dilation is, what lies under it is found,
// and at once.
void TestHugeWindows() {
  Random random(11);
  const int64_t huge = std::numeric_limits<int32_t>::max();
  for (int i = 0; i < 400; ++i) {
    Window w;
    w.height = random.Int(1, 3);
    w.width = random.Pick<int64_t>({1, 5, 70});
    // As large as all that counts, then far larger.
    const auto size = [&] { return random.Pick<int64_t>({1, 2, 3, huge}); };
    w.kernel_height = size();
    w.kernel_width = size();
    w.stride_height = size();
    w.stride_width = size();
    w.dilation_height = size();
    w.dilation_width = size();
    Pad(random.Chance(70), &w);
    PixelMask mask, out;
    mask.Resize(w.height, w.width);
    std::vector<std::pair<int64_t, int64_t>> pixels;
    for (int k = 0; k < 3; ++k) {
      const int64_t y = random.Int(0, w.height - 1);
      const int64_t x = random.Int(0, w.width - 1);
      mask.Set(y, x);
      pixels.push_back({y, x});
    }
    out.Resize(w.out_height, w.out_width);
    ChangedPositions(w, 0, mask, &out);
    // Whether a tap stands at `offset` from the first.
    const auto covers = [](int64_t offset, int64_t kernel, int64_t dilation) {
      return offset >= 0 && offset % dilation == 0 &&
             offset / dilation < kernel;
    };
    const auto under = [&](int64_t y, int64_t x, int64_t out_y, int64_t out_x) {
      return covers(y - (out_y * w.stride_height - w.pad_top), w.kernel_height,
                    w.dilation_height) &&
             covers(x - (out_x * w.stride_width - w.pad_left), w.kernel_width,
                    w.dilation_width);
    };
    PixelMask covered;
    covered.Resize(w.height, w.width);
    CoveredPixels(w, 0, out, &covered);
    const auto marked = [](const PixelMask& m, int64_t y, int64_t x) {
      return (m.line(y)[x / 64] >> (x % 64) & 1) != 0;
    };
    for (int64_t y = 0; y < w.out_height; ++y) {
      for (int64_t x = 0; x < w.out_width; ++x) {
        bool any = false;
        for (const auto& [py, px] : pixels) any |= under(py, px, y, x);
        CHECK(marked(out, y, x) == any);
      }
    }
    for (int64_t y = 0; y < w.height; ++y) {
      for (int64_t x = 0; x < w.width; ++x) {
        bool any = false;
        for (int64_t oy = 0; oy < w.out_height; ++oy) {
          for (int64_t ox = 0; ox < w.out_width; ++ox) {
            any |= marked(out, oy, ox) && under(y, x, oy, ox);
          }
        }
        CHECK(marked(covered, y, x) == any);
      }
    }
  }
}

int Main() {
  TestPadding();
  TestPatchIds();
  TestHugeWindows();
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
