// Change detection: which pixels differ from what was last seen, and which
// output positions have such a pixel in their patch.
#ifndef REUSE_TF_KERNELS_CHANGED_H_
#define REUSE_TF_KERNELS_CHANGED_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "custom_ops/kernels/parallel.h"
#include "custom_ops/kernels/window.h"

namespace reuse_tf {

// Calls f(i) for each bit that is set, in ascending order.
template <typename F>
inline void ForEachBit(const uint64_t* bits, int64_t words, const F& f) {
  for (int64_t i = 0; i < words; ++i) {
    for (uint64_t word = bits[i]; word != 0; word &= word - 1) {
      f(i * 64 + __builtin_ctzll(word));
    }
  }
}

// One bit for each pixel, lines padded to whole words.
class PixelMask {
 public:
  void Resize(int64_t lines, int64_t width) {
    words_ = (width + 63) / 64;
    bits_.assign(lines * words_, 0);
  }
  int64_t words() const { return words_; }
  uint64_t* line(int64_t i) { return bits_.data() + i * words_; }
  const uint64_t* line(int64_t i) const { return bits_.data() + i * words_; }
  void SetLine(int64_t line_index, int64_t width) {
    for (int64_t x = 0; x < width; x += 64) {
      line(line_index)[x / 64] =
          ~uint64_t{0} >> (64 - std::min<int64_t>(64, width - x));
    }
  }
  void Set(int64_t line_index, int64_t x) {
    line(line_index)[x / 64] |= uint64_t{1} << (x % 64);
  }
  // Calls f(x) for each marked pixel of a line, in ascending order.
  template <typename F>
  void ForEach(int64_t line_index, const F& f) const {
    ForEachBit(line(line_index), words_, f);
  }

 private:
  int64_t words_ = 0;
  std::vector<uint64_t> bits_;
};

namespace internal {

// Whether any of `n` values is no longer the remembered one. Bits are compared
// when the threshold is 0, so that a NaN is a value like any other; with a
// threshold a NaN always differs.
template <typename T>
inline bool Differ(const T* now, const T* seen, int64_t n, float threshold) {
  if (threshold == 0) {
    return n == 1 ? std::memcmp(now, seen, sizeof(T)) != 0
                  : std::memcmp(now, seen, n * sizeof(T)) != 0;
  }
  int differ = 0;  // Without an early exit the compiler uses vectors.
  for (int64_t i = 0; i < n; ++i) {
    const float a = static_cast<float>(now[i]), b = static_cast<float>(seen[i]);
    // Equal infinities have no difference to compare.
    differ |= (a != b) & !(std::fabs(a - b) <= threshold);
  }
  return differ != 0;
}

}  // namespace internal

// Compares one line of pixels, `now` with `seen`, both [width, channels], sets
// the bits of `mask` where they differ, clears the others, and makes `seen`
// agree. Equal stretches are skipped at the speed of memcmp, or, with a
// threshold, of a vector loop: 64 pixels at once, then 8, then one.
template <typename T>
inline void UpdateLine(const T* now, T* seen, int64_t width, int64_t channels,
                       float threshold, uint64_t* mask) {
  const int64_t size = channels * sizeof(T);
  for (int64_t x0 = 0; x0 < width; x0 += 64) {
    const int64_t end = std::min(width, x0 + 64);
    uint64_t word = 0;
    if (internal::Differ(now + x0 * channels, seen + x0 * channels,
                         (end - x0) * channels, threshold)) {
      for (int64_t x1 = x0; x1 < end; x1 += 8) {
        const int64_t stop = std::min(end, x1 + 8);
        if (!internal::Differ(now + x1 * channels, seen + x1 * channels,
                              (stop - x1) * channels, threshold)) {
          continue;
        }
        for (int64_t x = x1; x < stop; ++x) {
          const T* from = now + x * channels;
          T* to = seen + x * channels;
          if (internal::Differ(from, to, channels, threshold)) {
            std::memcpy(to, from, size);
            word |= uint64_t{1} << (x - x0);
          }
        }
      }
    }
    mask[x0 / 64] = word;
  }
}

// Compares `now` with `seen`, both [lines, width, channels], marks the pixels
// that changed in the lines of `mask` from `first_line` on, and makes `seen`
// agree there. With a threshold, pixels all of
// whose values lie within it keep what is remembered of them: what is computed
// from `seen` is never off by more than the threshold, however slowly the
// scene drifts.
template <typename T>
void UpdateSeen(const T* now, T* seen, int64_t lines, int64_t width,
                int64_t channels, float threshold, const ParallelFor& parallel,
                PixelMask* mask, int64_t first_line = 0) {
  const int64_t stride = width * channels;
  // Two streams are read, some 16 bytes a cycle together.
  parallel(lines, 1 + stride * sizeof(T) / 8, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      UpdateLine(now + i * stride, seen + i * stride, width, channels,
                 threshold, mask->line(first_line + i));
    }
  });
}

// Appends, in ascending order, the output positions of one image of the batch
// whose window holds a marked pixel. `mask` has `height` lines for each image;
// the positions are marked in `out_mask`, which has `out_height` cleared ones.
inline void ChangedPositions(const Window& w, int64_t image,
                             const PixelMask& mask,
                             std::vector<int32_t>* positions,
                             PixelMask* out_mask = nullptr) {
  const int64_t words = mask.words();
  const int64_t out_words = (w.out_width + 63) / 64;
  thread_local std::vector<uint64_t> columns, hits;
  columns.resize(words);
  hits.resize(out_words);
  for (int64_t out_y = 0; out_y < w.out_height; ++out_y) {
    const int64_t top = out_y * w.stride_height - w.pad_top;
    uint64_t any = 0;
    std::fill(columns.begin(), columns.end(), 0);
    for (int64_t ky = 0; ky < w.kernel_height; ++ky) {
      const int64_t y = top + ky * w.dilation_height;
      if (y < 0 || y >= w.height) continue;
      const uint64_t* line = mask.line(image * w.height + y);
      for (int64_t i = 0; i < words; ++i) any |= columns[i] |= line[i];
    }
    if (any == 0) continue;
    std::fill(hits.begin(), hits.end(), 0);
    ForEachBit(columns.data(), words, [&](int64_t x) {
      // The outputs whose window covers x: out * stride + kx * dilation
      // == x + pad, for some tap kx.
      for (int64_t kx = 0; kx < w.kernel_width; ++kx) {
        const int64_t at = x + w.pad_left - kx * w.dilation_width;
        if (at < 0) break;
        const int64_t out = w.stride_width == 1 ? at : at / w.stride_width;
        if (out * w.stride_width == at && out < w.out_width) {
          hits[out / 64] |= uint64_t{1} << (out % 64);
        }
      }
    });
    if (out_mask != nullptr) {
      std::copy(hits.begin(), hits.end(),
                out_mask->line(image * w.out_height + out_y));
    }
    const int64_t row = (image * w.out_height + out_y) * w.out_width;
    ForEachBit(hits.data(), out_words, [&](int64_t x) {
      positions->push_back(static_cast<int32_t>(row + x));
    });
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_CHANGED_H_
