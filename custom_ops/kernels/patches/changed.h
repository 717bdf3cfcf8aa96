// Change detection: which pixels differ from what was last seen, and which
// output positions have such a pixel in their patch.
#ifndef REUSE_TF_KERNELS_PATCHES_CHANGED_H_
#define REUSE_TF_KERNELS_PATCHES_CHANGED_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/patches/window.h"

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

// What a call of a library does for processors without an instruction for it.
inline int64_t CountBits(uint64_t word) {
  word -= word >> 1 & 0x5555555555555555u;
  word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int64_t>(word * 0x0101010101010101u >> 56);
}

// One bit for each pixel, lines padded to whole words.
class PixelMask {
 public:
  // Clears all.
  void Resize(int64_t lines, int64_t width) {
    SetShape(width);
    bits_.assign(lines * words_, 0);
  }
  // Keeps what is marked. Requires the same width as before, or no lines.
  void Extend(int64_t lines, int64_t width) {
    SetShape(width);
    bits_.resize(lines * words_);
  }
  int64_t words() const { return words_; }
  bool Any() const {
    for (const uint64_t word : bits_) {
      if (word != 0) return true;
    }
    return false;
  }
  uint64_t* line(int64_t i) { return bits_.data() + i * words_; }
  const uint64_t* line(int64_t i) const { return bits_.data() + i * words_; }
  void Clear() { std::fill(bits_.begin(), bits_.end(), 0); }
  void SetLine(int64_t line_index) {
    for (int64_t x = 0; x < width_; x += 64) {
      line(line_index)[x / 64] =
          ~uint64_t{0} >> (64 - std::min<int64_t>(64, width_ - x));
    }
  }
  void Set(int64_t line_index, int64_t x) {
    line(line_index)[x / 64] |= uint64_t{1} << (x % 64);
  }
  int64_t Count() const {
    int64_t count = 0;
    for (const uint64_t word : bits_) {
      if (word != 0) count += CountBits(word);
    }
    return count;
  }
  // The union, intersection and difference with a mask of the same shape.
  void Add(const PixelMask& other) {
    for (size_t i = 0; i < bits_.size(); ++i) bits_[i] |= other.bits_[i];
  }
  void AddLines(const PixelMask& other, int64_t first, int64_t count) {
    for (int64_t i = first * words_; i < (first + count) * words_; ++i) {
      bits_[i] |= other.bits_[i];
    }
  }
  void Intersect(const PixelMask& other) {
    for (size_t i = 0; i < bits_.size(); ++i) bits_[i] &= other.bits_[i];
  }
  void Remove(const PixelMask& other) {
    for (size_t i = 0; i < bits_.size(); ++i) bits_[i] &= ~other.bits_[i];
  }
  // Calls f(x) for each marked pixel of a line, in ascending order.
  template <typename F>
  void ForEach(int64_t line_index, const F& f) const {
    ForEachBit(line(line_index), words_, f);
  }
  // Appends the marked pixels of lines [begin, end), line * width + x, in
  // ascending order.
  void Append(int64_t begin, int64_t end, std::vector<int32_t>* pixels) const {
    for (int64_t i = begin; i < end; ++i) {
      ForEach(i, [&](int64_t x) {
        pixels->push_back(static_cast<int32_t>(i * width_ + x));
      });
    }
  }

 private:
  void SetShape(int64_t width) {
    width_ = width;
    words_ = (width + 63) / 64;
  }

  int64_t width_ = 0, words_ = 0;
  std::vector<uint64_t> bits_;
};

// Whether any of `n` values is no longer the remembered one. Bits are compared
// when the threshold is 0, so that a NaN is a value like any other; with a
// threshold a NaN always differs.
template <typename T>
inline bool Differ(const T* now, const T* seen, int64_t n, float threshold) {
  if (threshold == 0) {
    return n == 1 ? std::memcmp(now, seen, sizeof(T)) != 0
                  : std::memcmp(now, seen, n * sizeof(T)) != 0;
  }
  // Without an early exit the compiler uses vectors.
  if constexpr (std::is_same_v<T, uint8_t>) {
    const uint8_t limit = static_cast<uint8_t>(std::min(threshold, 255.0f));
    uint8_t differ = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t a = now[i], b = seen[i];
      const uint8_t apart = std::max(a, b) - std::min(a, b);
      differ |= apart > limit;
    }
    return differ != 0;
  } else {
    int differ = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float a = static_cast<float>(now[i]);
      const float b = static_cast<float>(seen[i]);
      // Equal infinities have no difference to compare.
      differ |= (a != b) & !(std::fabs(a - b) <= threshold);
    }
    return differ != 0;
  }
}

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
    if (Differ(now + x0 * channels, seen + x0 * channels, (end - x0) * channels,
               threshold)) {
      for (int64_t x1 = x0; x1 < end; x1 += 8) {
        const int64_t stop = std::min(end, x1 + 8);
        if (!Differ(now + x1 * channels, seen + x1 * channels,
                    (stop - x1) * channels, threshold)) {
          continue;
        }
        for (int64_t x = x1; x < stop; ++x) {
          const T* from = now + x * channels;
          T* to = seen + x * channels;
          if (Differ(from, to, channels, threshold)) {
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

namespace internal {

// to[x + shift] |= from[x], as far as there is room.
inline void OrShifted(const uint64_t* from, int64_t words, int64_t shift,
                      uint64_t* to, int64_t to_words) {
  const int64_t whole = shift >> 6, rest = shift & 63;
  for (int64_t i = 0; i < words; ++i) {
    const int64_t at = i + whole;
    if (at >= 0 && at < to_words) to[at] |= from[i] << rest;
    if (rest != 0 && at + 1 >= 0 && at + 1 < to_words) {
      to[at + 1] |= from[i] >> (64 - rest);
    }
  }
}

// Clears what lies behind the last pixel of a line.
inline void Trim(int64_t width, uint64_t* line) {
  if (width % 64 != 0) line[width / 64] &= (uint64_t{1} << (width % 64)) - 1;
}

}  // namespace internal

// The first tap of a kernel that does not stand before 0, where tap 0 stands at
// `first` and the others `dilation` apart from each other. However large a
// kernel is, a loop from there on to the end of the map is short.
inline int64_t FirstTap(int64_t first, int64_t dilation) {
  return first >= 0 ? 0 : (dilation - 1 - first) / dilation;
}

namespace internal {

// to[i] |= from[i * stride], for bits i in [0, count).
inline void TakeEvery(const uint64_t* from, int64_t stride, int64_t count,
                      uint64_t* to) {
  for (int64_t i = 0; i < count;) {
    const int64_t x = i * stride;
    const uint64_t word = from[x / 64];
    // The bits of one word.
    const int64_t end = std::min(count, (x / 64 * 64 + 63) / stride + 1);
    if (word == 0) {
      i = end;
      continue;
    }
    for (; i < end; ++i) {
      to[i / 64] |= (word >> (i * stride % 64) & 1) << (i % 64);
    }
  }
}

// to[i * stride] |= from[i].
inline void SpreadOut(const uint64_t* from, int64_t words, int64_t stride,
                      uint64_t* to) {
  ForEachBit(from, words, [=](int64_t i) {
    const int64_t x = i * stride;
    to[x / 64] |= uint64_t{1} << (x % 64);
  });
}

// The places of an axis at which tap 0 of a window may stand.
inline int64_t Places(int64_t out, int64_t stride) {
  return (out - 1) * stride + 1;
}

// Over the grid of a window; images begin at the lines given.
inline void ChangedPositions(const Window& w, const PixelMask& mask,
                             int64_t mask_line, PixelMask* out,
                             int64_t out_line) {
  if (w.out_width == 0) return;
  const int64_t words = mask.words();
  const int64_t places = Places(w.out_width, w.stride_width);
  const int64_t place_words = (places + 63) / 64;
  thread_local std::vector<uint64_t> columns, touched;
  columns.resize(words);
  for (int64_t out_y = 0; out_y < w.out_height; ++out_y) {
    const int64_t top = out_y * w.stride_height - w.pad_top;
    uint64_t any = 0;
    std::fill(columns.begin(), columns.end(), 0);
    for (int64_t ky = FirstTap(top, w.dilation_height); ky < w.kernel_height;
         ++ky) {
      const int64_t y = top + ky * w.dilation_height;
      if (y >= w.height) break;
      const uint64_t* line = mask.line(mask_line + y);
      for (int64_t i = 0; i < words; ++i) any |= columns[i] |= line[i];
    }
    if (any == 0) continue;
    // The places whose window covers x: place + kx * dilation == x + pad, for
    // some tap kx.
    uint64_t* hits = out->line(out_line + out_y);
    uint64_t* to = hits;
    if (w.stride_width > 1) {
      touched.assign(place_words, 0);
      to = touched.data();
    }
    for (int64_t kx = FirstTap(places - 1 - w.pad_left, w.dilation_width);
         kx < w.kernel_width; ++kx) {
      const int64_t shift = w.pad_left - kx * w.dilation_width;
      if (shift <= -w.width) break;
      OrShifted(columns.data(), words, shift, to, place_words);
    }
    if (w.stride_width > 1) {
      TakeEvery(to, w.stride_width, w.out_width, hits);
    } else {
      Trim(w.out_width, hits);
    }
  }
}

inline void CoveredPixels(const Window& w, const PixelMask& out,
                          int64_t out_line, PixelMask* mask,
                          int64_t mask_line) {
  if (w.out_width == 0) return;
  const int64_t words = mask->words();
  const int64_t places = Places(w.out_width, w.stride_width);
  const int64_t place_words = (places + 63) / 64;
  thread_local std::vector<uint64_t> columns, touched;
  for (int64_t out_y = 0; out_y < w.out_height; ++out_y) {
    const uint64_t* hits = out.line(out_line + out_y);
    uint64_t any = 0;
    for (int64_t i = 0; i < out.words(); ++i) any |= hits[i];
    if (any == 0) continue;
    if (w.stride_width > 1) {
      touched.assign(place_words, 0);
      SpreadOut(hits, out.words(), w.stride_width, touched.data());
      hits = touched.data();
    }
    columns.assign(words, 0);
    for (int64_t kx = FirstTap(places - 1 - w.pad_left, w.dilation_width);
         kx < w.kernel_width; ++kx) {
      const int64_t shift = kx * w.dilation_width - w.pad_left;
      if (shift >= w.width) break;
      OrShifted(hits, place_words, shift, columns.data(), words);
    }
    Trim(w.width, columns.data());
    const int64_t top = out_y * w.stride_height - w.pad_top;
    for (int64_t ky = FirstTap(top, w.dilation_height); ky < w.kernel_height;
         ++ky) {
      const int64_t y = top + ky * w.dilation_height;
      if (y >= w.height) break;
      uint64_t* line = mask->line(mask_line + y);
      for (int64_t i = 0; i < words; ++i) line[i] |= columns[i];
    }
  }
}

}  // namespace internal

// Marks the output positions of one image of the batch whose window holds a
// marked pixel. `mask` has `height` lines for each image; `out` has
// `out_height`, those of the image being clear.
inline void ChangedPositions(const Window& w, int64_t image,
                             const PixelMask& mask, PixelMask* out) {
  const int64_t line = image * w.height, out_line = image * w.out_height;
  if (!w.up()) {
    internal::ChangedPositions(w, mask, line, out, out_line);
    return;
  }
  thread_local PixelMask grid;
  grid.Resize(w.grid_height(), w.grid_width());
  for (int64_t y = 0; y < w.height; ++y) {
    mask.ForEach(line + y,
                 [&](int64_t x) { grid.Set(y * w.up_height, x * w.up_width); });
  }
  internal::ChangedPositions(w.OverGrid(), grid, 0, out, out_line);
}

// The same for a whole batch, as a list in ascending order.
inline void ChangedPositions(const Window& w, int64_t images,
                             const PixelMask& mask,
                             std::vector<int32_t>* positions) {
  thread_local PixelMask out;
  out.Resize(images * w.out_height, w.out_width);
  for (int64_t n = 0; n < images; ++n) ChangedPositions(w, n, mask, &out);
  positions->clear();
  out.Append(0, images * w.out_height, positions);
}

// The converse: marks the pixels of one image that lie under the window at a
// marked output position.
inline void CoveredPixels(const Window& w, int64_t image, const PixelMask& out,
                          PixelMask* mask) {
  const int64_t line = image * w.height, out_line = image * w.out_height;
  if (!w.up()) {
    internal::CoveredPixels(w, out, out_line, mask, line);
    return;
  }
  thread_local PixelMask grid;
  grid.Resize(w.grid_height(), w.grid_width());
  internal::CoveredPixels(w.OverGrid(), out, out_line, &grid, 0);
  for (int64_t y = 0; y < w.height; ++y) {
    grid.ForEach(y * w.up_height, [&](int64_t x) {
      if (x % w.up_width == 0) mask->Set(line + y, x / w.up_width);
    });
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_PATCHES_CHANGED_H_
