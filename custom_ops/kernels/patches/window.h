// The sliding window of a convolution or a pooling: which input pixels lie
// under the kernel at each output position.
#ifndef REUSE_TF_KERNELS_PATCHES_WINDOW_H_
#define REUSE_TF_KERNELS_PATCHES_WINDOW_H_

#include <algorithm>
#include <cstdint>

namespace reuse_tf {

// The frames that come in.
struct FrameShape {
  int64_t height = 0, width = 0, channels = 0;
  bool bytes = false;  // uint8, or else float

  int64_t pixels() const { return height * width; }
  int64_t pixel_size() const { return channels * (bytes ? 1 : 4); }
  // A pixel of one byte is its own id.
  bool is_byte() const { return bytes && channels == 1; }
};

constexpr int64_t kByteValues = 256;

// The window slides over a grid on which the input's pixels lie `up` apart, 1
// but for a transposed convolution. Padding is that of the grid; where it is
// negative, pixels are cut off.
struct Window {
  int64_t height = 0, width = 0;  // of the input
  int64_t kernel_height = 1, kernel_width = 1;
  int64_t stride_height = 1, stride_width = 1;
  int64_t dilation_height = 1, dilation_width = 1;
  int64_t up_height = 1, up_width = 1;
  int64_t pad_top = 0, pad_left = 0;
  int64_t out_height = 0, out_width = 0;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t pixels() const { return height * width; }
  int64_t positions() const { return out_height * out_width; }
  bool up() const { return up_height > 1 || up_width > 1; }
  int64_t grid_height() const { return (height - 1) * up_height + 1; }
  int64_t grid_width() const { return (width - 1) * up_width + 1; }
  // The same window as one over the pixels of the grid.
  Window OverGrid() const {
    Window grid = *this;
    grid.height = grid_height();
    grid.width = grid_width();
    grid.up_height = grid.up_width = 1;
    return grid;
  }
};

// Sets the padding and the output size of one axis as TensorFlow's "SAME" and
// "VALID" do. An input smaller than the kernel has no "VALID" positions.
inline void PadAxis(bool same, int64_t size, int64_t kernel, int64_t stride,
                    int64_t dilation, int64_t* pad, int64_t* out) {
  const int64_t extent = (kernel - 1) * dilation + 1;
  if (same) {
    *out = (size + stride - 1) / stride;
    *pad = std::max<int64_t>(0, (*out - 1) * stride + extent - size) / 2;
  } else {
    *out = std::max<int64_t>(0, (size - extent + stride) / stride);
    *pad = 0;
  }
}

inline void Pad(bool same, Window* w) {
  PadAxis(same, w->grid_height(), w->kernel_height, w->stride_height,
          w->dilation_height, &w->pad_top, &w->out_height);
  PadAxis(same, w->grid_width(), w->kernel_width, w->stride_width,
          w->dilation_width, &w->pad_left, &w->out_width);
}

// The same with so much padding on each side.
inline void Pad(int64_t top, int64_t bottom, int64_t left, int64_t right,
                Window* w) {
  int64_t none;
  PadAxis(false, w->grid_height() + top + bottom, w->kernel_height,
          w->stride_height, w->dilation_height, &none, &w->out_height);
  PadAxis(false, w->grid_width() + left + right, w->kernel_width,
          w->stride_width, w->dilation_width, &none, &w->out_width);
  w->pad_top = top;
  w->pad_left = left;
}

// What lies under the window at `count` output positions, as patches[count,
// taps]: id_of(pixel) for each pixel, -1 where the window reaches into the
// padding. Pixels and positions are numbered through the batch:
// (n * height + y) * width + x, of the input and of the output.
template <typename IdOf>
inline void PatchIds(const Window& w, const int32_t* positions, int64_t count,
                     const IdOf& id_of, int32_t* patches) {
  const int64_t extent_y = (w.kernel_height - 1) * w.dilation_height;
  const int64_t extent_x = (w.kernel_width - 1) * w.dilation_width;
  const bool up = w.up();
  // Where a place of the grid is in the input, or -1.
  const auto pixel_at = [](int64_t place, int64_t apart, int64_t size) {
    if (apart == 1) return place < size ? place : -1;
    return place >= 0 && place % apart == 0 && place / apart < size
               ? place / apart
               : -1;
  };
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t row = static_cast<uint32_t>(positions[i]) /
                         static_cast<uint32_t>(w.out_width);
    const uint32_t image = row / static_cast<uint32_t>(w.out_height);
    const int64_t top =
        (row - image * w.out_height) * w.stride_height - w.pad_top;
    const int64_t left =
        (positions[i] - row * w.out_width) * w.stride_width - w.pad_left;
    if (!up && top >= 0 && left >= 0 && top + extent_y < w.height &&
        left + extent_x < w.width) {
      const int64_t first = (image * w.height + top) * w.width + left;
      const int64_t step = w.dilation_height * w.width;
      if (w.kernel_width == 3 && w.dilation_width == 1) {  // the usual one
        for (int64_t ky = 0, line = first; ky < w.kernel_height;
             ++ky, line += step, patches += 3) {
          patches[0] = id_of(line);
          patches[1] = id_of(line + 1);
          patches[2] = id_of(line + 2);
        }
        continue;
      }
      for (int64_t ky = 0, line = first; ky < w.kernel_height;
           ++ky, line += step) {
        for (int64_t kx = 0; kx < w.kernel_width; ++kx) {
          *patches++ = id_of(line + kx * w.dilation_width);
        }
      }
      continue;
    }
    for (int64_t ky = 0; ky < w.kernel_height; ++ky) {
      const int64_t y =
          pixel_at(top + ky * w.dilation_height, w.up_height, w.height);
      if (y < 0) {
        patches = std::fill_n(patches, w.kernel_width, -1);
        continue;
      }
      const int64_t line = (image * w.height + y) * w.width;
      for (int64_t kx = 0; kx < w.kernel_width; ++kx) {
        const int64_t x =
            pixel_at(left + kx * w.dilation_width, w.up_width, w.width);
        *patches++ = x >= 0 ? id_of(line + x) : -1;
      }
    }
  }
}

// The same where the id of a pixel is its number.
inline void PatchIds(const Window& w, const int32_t* positions, int64_t count,
                     int32_t* patches) {
  PatchIds(
      w, positions, count,
      [](int64_t pixel) { return static_cast<int32_t>(pixel); }, patches);
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_PATCHES_WINDOW_H_
