// Tiles: blocks of the positions of a map, known again by the pixels under
// them. A game shows few pictures in any one place, and shows them again and
// again: where a whole tile comes back, none of its positions need be looked
// at.
#ifndef REUSE_TF_KERNELS_GRAPH_TILES_H_
#define REUSE_TF_KERNELS_GRAPH_TILES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "custom_ops/kernels/graph/graph.h"
#include "custom_ops/kernels/patches/changed.h"

namespace reuse_tf {

// The geometry of tiles of kSide by kSide positions of a node's map. The tiles
// at the right and the bottom may reach beyond the map.
class Tiles {
 public:
  static constexpr int64_t kSide = 4, kPositions = kSide * kSide;

  Tiles(const Graph& graph, int64_t node)
      : frame_(graph.frame),
        height_(graph.nodes[node].height),
        width_(graph.nodes[node].width),
        rows_((height_ + kSide - 1) / kSide),
        columns_((width_ + kSide - 1) / kSide) {
    int64_t height = 0, width = 0;
    for (int64_t i = 0; i < rows_; ++i) {
      y_.push_back(UnderNode(graph, node,
                             {i * kSide, std::min((i + 1) * kSide, height_)},
                             Axis::kHeight));
      height = std::max(height, y_.back().end - y_.back().begin);
    }
    for (int64_t i = 0; i < columns_; ++i) {
      x_.push_back(UnderNode(graph, node,
                             {i * kSide, std::min((i + 1) * kSide, width_)},
                             Axis::kWidth));
      width = std::max(width, x_.back().end - x_.back().begin);
    }
    key_words_ = 1 + (height * width * frame_.pixel_size() + 3) / 4;
  }

  int64_t count() const { return rows_ * columns_; }
  // Calls f(position, place) for the positions of a tile within the map, place
  // counting those of the tile line by line, [0, kPositions).
  template <typename F>
  void ForEachPosition(int64_t tile, const F& f) const {
    const int64_t top = tile / columns_ * kSide;
    const int64_t left = tile % columns_ * kSide;
    for (int64_t y = top; y < std::min(top + kSide, height_); ++y) {
      for (int64_t x = left; x < std::min(left + kSide, width_); ++x) {
        f(y * width_ + x, (y - top) * kSide + x - left);
      }
    }
  }
  // For each position, its number if they are counted tile by tile, kPositions
  // for each tile.
  std::vector<int32_t> Order() const {
    std::vector<int32_t> order(height_ * width_);
    for (int64_t tile = 0; tile < count(); ++tile) {
      ForEachPosition(tile, [&](int64_t position, int64_t place) {
        order[position] = static_cast<int32_t>(tile * kPositions + place);
      });
    }
    return order;
  }

  // Calls f(tile) for each tile of one image that has a marked position.
  template <typename F>
  void ForEach(const PixelMask& positions, int64_t image, const F& f) const {
    static_assert(kSide == 4, "bits in groups of four");
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t begin = row * kSide, end = std::min(begin + kSide, height_);
      for (int64_t i = 0; i < positions.words(); ++i) {
        uint64_t any = 0;
        for (int64_t y = begin; y < end; ++y) {
          any |= positions.line(image * height_ + y)[i];
        }
        any |= any >> 1;
        any |= any >> 2;
        for (any &= 0x1111111111111111u; any != 0; any &= any - 1) {
          f(row * columns_ + (i * 64 + __builtin_ctzll(any)) / kSide);
        }
      }
    }
  }

  // Marks the positions of a tile of one image.
  void Mark(int64_t tile, int64_t image, PixelMask* positions) const {
    const int64_t top = tile / columns_ * kSide, x = tile % columns_ * kSide;
    const uint64_t bits = (uint64_t{1} << std::min(kSide, width_ - x)) - 1;
    for (int64_t y = top; y < std::min(top + kSide, height_); ++y) {
      positions->line(image * height_ + y)[x / 64] |= bits << (x % 64);
    }
  }

  // What a tile's activations follow from, as key[key_words]: the tile, as
  // there may be padding under it, and the pixels under it. The first word is
  // never 0.
  int64_t key_words() const { return key_words_; }
  void Key(int64_t tile, const uint8_t* frame, int32_t* key) const {
    const Range y = y_[tile / columns_], x = x_[tile % columns_];
    const int64_t size = (x.end - x.begin) * frame_.pixel_size();
    const int64_t stride = frame_.width * frame_.pixel_size();
    key[key_words_ - 1] = 0;  // may be filled in part
    key[0] = static_cast<int32_t>(tile) + 1;
    auto* to = reinterpret_cast<uint8_t*>(key + 1);
    auto* const end = reinterpret_cast<uint8_t*>(key + key_words_);
    const uint8_t* from =
        frame + y.begin * stride + x.begin * frame_.pixel_size();
    for (int64_t i = y.begin; i < y.end; ++i, from += stride, to += size) {
      Copy(from, size, to);
    }
    std::memset(to, 0, end - to);
  }

 private:
  struct Range {
    int64_t begin = 0, end = 0;

    void Add(Range other) {
      if (other.begin >= other.end) return;
      *this = begin < end ? Range{std::min(begin, other.begin),
                                  std::max(end, other.end)}
                          : other;
    }
  };
  enum class Axis { kHeight, kWidth };

  // The pixels of a frame that lie under a range of a node's positions, and
  // those between them.
  static Range UnderNode(const Graph& graph, int64_t node, Range range,
                         Axis axis) {
    const bool y = axis == Axis::kHeight;
    std::vector<Range> ranges(node + 1);
    ranges[node] = range;
    for (int64_t i = node; i > 0; --i) {
      const Range out = ranges[i];
      if (out.begin >= out.end) continue;
      const Node& at = graph.nodes[i];
      for (const int32_t input : at.inputs) {
        const Node& from = graph.nodes[input];
        if (at.windowed()) {
          const Window& w = at.window;
          ranges[input].Add(
              y ? Under(out, w.stride_height, w.pad_top, w.dilation_height,
                        w.kernel_height, w.up_height, w.height)
                : Under(out, w.stride_width, w.pad_left, w.dilation_width,
                        w.kernel_width, w.up_width, w.width));
        } else if (at.whole() || from.pixels() == 1) {
          ranges[input].Add({0, y ? from.height : from.width});
        } else {
          ranges[input].Add(out);
        }
      }
    }
    return ranges[0];
  }

  // What lies under a range of outputs, in an axis of `size` inputs.
  static Range Under(Range range, int64_t stride, int64_t pad, int64_t dilation,
                     int64_t kernel, int64_t up, int64_t size) {
    const int64_t begin = std::max<int64_t>(0, range.begin * stride - pad);
    const int64_t end =
        (range.end - 1) * stride - pad + (kernel - 1) * dilation + 1;
    return {(begin + up - 1) / up,
            std::min(size, (std::max<int64_t>(0, end) + up - 1) / up)};
  }

  // Quicker than memcpy for the few bytes that they are.
  static void Copy(const uint8_t* from, int64_t size, uint8_t* to) {
    if (size < 8 || size > 64) {
      std::memcpy(to, from, size);
      return;
    }
    for (int64_t i = 0; i + 8 < size; i += 8) std::memcpy(to + i, from + i, 8);
    std::memcpy(to + size - 8, from + size - 8, 8);
  }

  FrameShape frame_;
  int64_t height_, width_, rows_, columns_;
  std::vector<Range> y_, x_;  // the pixels under rows and columns of tiles
  int64_t key_words_ = 0;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_TILES_H_
