// Structure: which rows each position shows. Integers only, no weights.
#ifndef REUSE_TF_KERNELS_STRUCTURE_H_
#define REUSE_TF_KERNELS_STRUCTURE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "custom_ops/kernels/changed.h"
#include "custom_ops/kernels/intern.h"
#include "custom_ops/kernels/parallel.h"
#include "custom_ops/kernels/tiles.h"
#include "custom_ops/kernels/window.h"

namespace reuse_tf {

enum class Reuse {
  kTemporal,  // id = position: a row is overwritten when its position changes
  kContent,   // id = patch: equal patches share a row, rows are only added
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
// A step brings up to date the tiles of the last map that show what they never
// showed before, and the maps before as far as that needs. It costs what the
// changed tiles cost, and the positions of new ones that have changed since
// they were last looked at.
class Structure {
 public:
  struct Map {
    int64_t height = 0, width = 0;
    PixelMask changed;               // in the last step: [streams * height]
    PixelMask stale;                 // changed and not brought up to date since
    PixelMask wanted;                // brought up to date in the last step
    std::vector<int32_t> positions;  // the same, as a list
    std::vector<int32_t> patches;    // of these, [positions, taps]
    std::vector<int32_t> ids;        // content reuse: [streams, height, width]
    std::unique_ptr<InternTable> table;  // content reuse
    NewRows rows;

    int64_t pixels() const { return height * width; }
  };

  // A tile of a stream whose positions changed, and the number of what it now
  // shows: equal pixels under the same tile, in any stream, have the same one.
  // Numbers count up, those from first_new_tile() on are new; -1: not numbered.
  struct TileChange {
    int32_t stream, tile, id;
  };

  // Under content reuse, max_rows[i] bounds the rows of map i, and max_tiles
  // the contents of tiles. With few, or none, tiles go without numbers.
  Structure(const FrameShape& frame, const std::vector<Window>& windows,
            std::vector<int64_t> max_rows, int64_t max_tiles,
            uint64_t hash_mask = ~uint64_t{});

  // Forgets everything and goes on with this kind of reuse. Has to be called
  // when anything threw; may be, when it threw itself.
  void Restart(Reuse reuse);
  // Gives up the tables, and with them their memory, before a Restart.
  void Release() {
    tile_table_.reset();
    for (Map& map : maps_) map.table.reset();
  }
  // Forgets one stream.
  void Reset(int64_t stream) {
    if (stream < streams()) fresh_[stream] = true;
  }

  // One frame [height, width, channels] of each of `streams` streams. Streams
  // beyond those of the last step are new, missing ones are forgotten. False if
  // a table of rows is full: nothing can be said then until Restart.
  bool Step(const uint8_t* frames, int64_t streams,
            const ParallelFor& parallel);

  Reuse reuse() const { return reuse_; }
  int64_t streams() const { return fresh_.size(); }
  // Whether the last step had streams of which nothing was known before.
  bool had_fresh_streams() const { return had_fresh_; }
  const std::vector<Map>& maps() const { return maps_; }
  const std::vector<Window>& windows() const { return windows_; }

  const Tiles& tiles() const { return tiles_; }
  // Under content reuse, of the last step, by stream.
  const std::vector<TileChange>& changed_tiles() const {
    return changed_tiles_;
  }
  int64_t first_new_tile() const { return first_new_tile_; }
  // The row that a position showed when it was last brought up to date;
  // positions are numbered through the streams.
  int32_t id(int64_t map, int64_t position) const {
    return reuse_ == Reuse::kTemporal ? static_cast<int32_t>(position)
                                      : maps_[map].ids[position];
  }

 private:
  // What changed: pixels, positions of the other maps, tiles.
  bool UpdatePixels(const uint8_t* frames, const ParallelFor& parallel);
  void UpdateWindows();
  void UpdateTiles();
  // What is wanted of the last map, or all that is stale if that is null.
  bool Refresh(const PixelMask* wanted);
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

  const Tiles tiles_;
  const int64_t max_tiles_;
  std::unique_ptr<InternTable> tile_table_;
  std::vector<TileChange> changed_tiles_;
  int64_t first_new_tile_ = 0;
  std::vector<int32_t> tile_keys_, tile_ids_;
  PixelMask wanted_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_STRUCTURE_H_
