// Compares changed pixels and positions with plain loops.

#include "custom_ops/kernels/patches/changed.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

// Changes some of the values, in ways that comparisons may get wrong.
template <typename T>
void Change(Random* random, std::vector<T>* values) {
  const int64_t percent = random->Pick<int64_t>({0, 0, 1, 5, 30, 100});
  for (T& value : *values) {
    if (!random->Chance(percent)) continue;
    if constexpr (std::is_same_v<T, float>) {
      value =
          random->Pick<float>({random->Float(), value + 0.05f, value - 0.05f,
                               NAN, -NAN, INFINITY, -INFINITY, 0.f, -0.f});
    } else {
      value = static_cast<T>(random->Int(0, 5));
    }
  }
  // The corners, where loops begin and end.
  if (random->Chance(30)) values->front() = T(9);
  if (random->Chance(30)) values->back() = T(8);
}

template <typename T>
void TestChanges(uint32_t seed) {
  Random random(seed);
  for (int i = 0; i < 150; ++i) {
    const Window w = RandomWindow(&random, true);
    const int64_t images = random.Int(1, 3);
    const int64_t channels = random.Pick<int64_t>({1, 1, 2, 3, 4, 20});
    const float threshold =
        random.Chance(50) ? 0 : random.Pick({0.06f, 0.5f, 2.f});
    std::vector<T> now(images * w.pixels() * channels, T(1));
    std::vector<T> seen = now;
    for (int frame = 0; frame < 4; ++frame) {
      Change(&random, &now);
      std::vector<T> want_seen = seen, parallel_seen = seen;
      const std::vector<char> want =
          reference::UpdateSeen(now, channels, threshold, &want_seen);
      PixelMask mask, parallel_mask;
      mask.Resize(images * w.height, w.width);
      parallel_mask.Resize(images * w.height, w.width);
      UpdateSeen(now.data(), seen.data(), images * w.height, w.width, channels,
                 threshold, Serial, &mask);
      UpdateSeen(now.data(), parallel_seen.data(), images * w.height, w.width,
                 channels, threshold, Threads(i), &parallel_mask);
      CHECK(SameBits(seen, want_seen));
      CHECK(SameBits(parallel_seen, want_seen));
      std::vector<char> got(want.size(), 0), parallel_got = got;
      for (int64_t line = 0; line < images * w.height; ++line) {
        int64_t last = -1;
        mask.ForEach(line, [&](int64_t x) {
          CHECK(last < x && x < w.width);
          got[line * w.width + x] = 1;
          last = x;
        });
        parallel_mask.ForEach(
            line, [&](int64_t x) { parallel_got[line * w.width + x] = 1; });
      }
      CHECK(SameBits(got, want));
      CHECK(SameBits(parallel_got, want));
      std::vector<int32_t> positions = {-5};  // is overwritten
      ChangedPositions(w, images, mask, &positions);
      CHECK(SameBits(positions, reference::ChangedPositions(w, images, want)));
      // The pixels under the window at some of these.
      PixelMask asked, covered;
      asked.Resize(images * w.out_height, w.out_width);
      covered.Resize(images * w.height, w.width);
      std::vector<char> want_covered(images * w.pixels(), 0);
      std::vector<char> got_covered(want_covered.size(), 0);
      for (const int32_t at : positions) {
        if (random.Chance(50)) continue;
        asked.Set(at / w.out_width, at % w.out_width);
        std::vector<int32_t> patch(w.taps());
        PatchIds(w, &at, 1, patch.data());
        for (const int32_t pixel : patch) {
          if (pixel >= 0) want_covered[pixel] = 1;
        }
      }
      for (int64_t n = 0; n < images; ++n) {
        CoveredPixels(w, n, asked, &covered);
      }
      std::vector<int32_t> pixels;
      covered.Append(0, images * w.height, &pixels);
      CHECK(covered.Count() == static_cast<int64_t>(pixels.size()));
      for (const int32_t pixel : pixels) got_covered[pixel] = 1;
      CHECK(SameBits(got_covered, want_covered));
    }
  }
}

int Main() {
  TestChanges<float>(10);
  TestChanges<uint8_t>(11);
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
