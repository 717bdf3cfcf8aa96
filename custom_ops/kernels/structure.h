// Structure: which rows each position shows. Integers only, no weights.
#ifndef REUSE_TF_KERNELS_STRUCTURE_H_
#define REUSE_TF_KERNELS_STRUCTURE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "custom_ops/kernels/changed.h"
#include "custom_ops/kernels/intern.h"
#include "custom_ops/kernels/parallel.h"
#include "custom_ops/kernels/window.h"

namespace reuse_tf {

enum class Reuse {
  kTemporal,  // id = position: a row is overwritten when its position changes
  kContent,   // id = patch: equal patches share a row, rows are only added
};

// The frames that come in.
struct FrameShape {
  int64_t height = 0, width = 0, channels = 0;
  bool bytes = false;  // uint8, or else float

  int64_t pixels() const { return height * width; }
  int64_t pixel_size() const { return channels * (bytes ? 1 : 4); }
};

// The rows that have to be computed after a step, of one map.
struct NewRows {
  // Of the pixels: what is in them, `raw_stride` bytes each. Of a window: the
  // rows of the map before that are in them, [count, taps].
  const uint8_t* raw = nullptr;
  int64_t raw_stride = 0;
  const int32_t* patches = nullptr;
  int64_t count = 0;
  // Where they go: ids[i], or first + i if ids is null.
  const int32_t* ids = nullptr;
  int64_t first = 0;
};

// The activation maps of a chain of windows over the frames of N streams: map
// 0 is the frames themselves, map i what window i - 1 makes of map i - 1.
//
// A step takes a frame of each stream and then brings the last map up to date,
// as far as wanted, and the maps before as far as that needs. It costs what the
// positions cost that have changed since they were last wanted.
class Structure {
 public:
  struct Map {
    int64_t height = 0, width = 0;
    PixelMask changed;  // in the last step: [streams * height]
    PixelMask stale;    // changed and not brought up to date since
    PixelMask wanted;
    std::vector<int32_t> positions;  // brought up to date in the last step
    std::vector<int32_t> patches;    // of these, [positions, taps]
    std::vector<int32_t> ids;        // content reuse: [streams, height, width]
    std::unique_ptr<InternTable> table;  // content reuse
    NewRows rows;

    int64_t pixels() const { return height * width; }
  };

  // max_rows[i] bounds the rows of map i under content reuse.
  Structure(const FrameShape& frame, const std::vector<Window>& windows,
            std::vector<int64_t> max_rows, uint64_t hash_mask = ~uint64_t{});

  // Forgets everything and goes on with this kind of reuse.
  void Restart(Reuse reuse);
  // Forgets one stream.
  void Reset(int64_t stream) {
    if (stream < streams()) fresh_[stream] = true;
  }

  // Takes a frame [height, width, channels] of each of `streams` streams, and
  // marks what changed in all maps. Streams beyond those of the last step are
  // new, missing ones are forgotten. False if a table is full: nothing can be
  // said then until Restart.
  bool Update(const uint8_t* frames, int64_t streams,
              const ParallelFor& parallel);
  // Brings the last map up to date, or the positions `wanted` of it. False as
  // for Update. Under temporal reuse all must be wanted: a row shows what was
  // last computed of it.
  bool Refresh(const PixelMask* wanted = nullptr);
  bool Step(const uint8_t* frames, int64_t streams,
            const ParallelFor& parallel) {
    return Update(frames, streams, parallel) && Refresh();
  }

  Reuse reuse() const { return reuse_; }
  int64_t streams() const { return fresh_.size(); }
  // Whether the last step had streams of which nothing was known before.
  bool had_fresh_streams() const { return had_fresh_; }
  const std::vector<Map>& maps() const { return maps_; }
  const std::vector<Window>& windows() const { return windows_; }

  // What was last seen of a stream.
  const uint8_t* frame(int64_t stream) const {
    return seen_.data() + stream * frame_.pixels() * frame_.pixel_size();
  }
  // The row that a position shows; positions are numbered through the streams.
  int32_t id(int64_t map, int64_t position) const {
    return reuse_ == Reuse::kTemporal ? static_cast<int32_t>(position)
                                      : maps_[map].ids[position];
  }

 private:
  bool UpdatePixels(const uint8_t* frames, const ParallelFor& parallel);
  bool RefreshWindow(int64_t map);
  // Interns the patches of a map's positions and numbers them.
  bool Intern(Map* map);

  FrameShape frame_;
  std::vector<Window> windows_;
  std::vector<int64_t> max_rows_;
  uint64_t hash_mask_;
  Reuse reuse_ = Reuse::kContent;
  std::vector<bool> fresh_;  // by stream: its maps are unknown
  bool had_fresh_ = false;
  std::vector<uint8_t> seen_;    // the last frames
  std::vector<uint8_t> pixels_;  // the changed pixels, packed
  std::vector<int32_t> new_ids_;
  std::vector<Map> maps_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_STRUCTURE_H_
