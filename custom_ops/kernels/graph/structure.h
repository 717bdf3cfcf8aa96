// Structure: which rows each position shows. Integers only, no weights.
#ifndef REUSE_TF_KERNELS_GRAPH_STRUCTURE_H_
#define REUSE_TF_KERNELS_GRAPH_STRUCTURE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/graph/graph.h"
#include "custom_ops/kernels/graph/tiles.h"
#include "custom_ops/kernels/patches/changed.h"
#include "custom_ops/kernels/patches/intern.h"

namespace reuse_tf {

enum class Reuse {
  kTemporal,  // id = position: a row is overwritten when its position changes
  kContent,   // id = patch: equal patches share a row, rows are only added
};

// The rows that have to be computed after a step, of one map.
struct NewRows {
  // Of the pixels: what is in them, `raw_stride` bytes each. Of others: the
  // rows of the maps before that are in them, [count, taps].
  const uint8_t* raw = nullptr;
  int64_t raw_stride = 0;
  const int32_t* patches = nullptr;
  int64_t count = 0;
  // Where they go: ids[i], or first + i if ids is null.
  const int32_t* ids = nullptr;
  int64_t first = 0;
};

// The activation maps of a graph over the frames of N streams, one for each
// node.
//
// Each map has its kind of reuse; no map of temporal reuse lies before one of
// content reuse. A step brings up to date what changed in maps of temporal
// reuse and in those that are an output. Of a map of content reuse that is only
// summed up it brings up to date the tiles that show what they never showed
// before, and the maps before as far as all that needs. It costs what the
// changed tiles cost, and the positions of new ones that have changed since
// they were last looked at.
//
// Under content reuse a node of one value a frame has new ids whenever anything
// before it changed: the number of the frame, counted in the order of the
// steps, times its positions, and so on. Its rows are not interned.
class Structure {
 public:
  struct Map {
    Reuse reuse = Reuse::kContent;
    int64_t height = 0, width = 0;
    PixelMask changed;               // in the last step: [streams * height]
    PixelMask stale;                 // changed and not brought up to date since
    PixelMask wanted;                // brought up to date in the last step
    std::vector<int32_t> positions;  // the same, as a list
    std::vector<int32_t> patches;    // of these, [positions, taps]
    std::vector<int32_t> ids;        // content reuse: [streams, height, width]
    std::unique_ptr<InternTable> table;  // content reuse
    NewRows rows;
    // Whether the masks have a mark.
    bool any_changed = false, any_stale = false, any_wanted = false;

    int64_t pixels() const { return height * width; }
    bool content() const { return reuse == Reuse::kContent; }
  };

  // A tile of a stream whose positions changed, and the number of what it now
  // shows: equal pixels under the same tile, in any stream, have the same one.
  // Numbers count up, those from first_new on are new; -1: not numbered.
  struct TileChange {
    int32_t stream, tile, id;
  };
  // A map that is looked at all over. Tiles change under content reuse only.
  struct Shown {
    Shown(const Graph& graph, int32_t node) : node(node), tiles(graph, node) {}

    const int32_t node;
    const Tiles tiles;
    int64_t max_contents = 0;         // of tiles; 0: they go without numbers
    std::vector<TileChange> changed;  // in the last step, by stream
    int64_t first_new = 0;
    std::unique_ptr<InternTable> table;
  };

  // Bounds of the tables of rows.
  struct Bounds {
    std::vector<int64_t> rows;  // of each map's
    // Where `bytes` is not 0: what all take together at most, what a row of
    // each map takes, and the rows that it may have if all have their part.
    int64_t bytes = 0;
    std::vector<int64_t> row_bytes = {}, parts = {};
  };

  // Under content reuse, `bounds` are those of the rows of maps, and max_tiles
  // of the contents of the tiles of each shown map. With few, or none, tiles go
  // without numbers.
  Structure(const Graph& graph, Bounds bounds,
            const std::vector<int64_t>& max_tiles,
            uint64_t hash_mask = ~uint64_t{});

  // Forgets everything and goes on with these kinds of reuse, one for each map.
  // Has to be called when anything threw; may be, when it threw itself.
  void Restart(const std::vector<Reuse>& reuse);
  // Gives up the tables, and with them their memory, before a Restart.
  void Release() {
    for (Shown& shown : shown_) shown.table.reset();
    for (Map& map : maps_) map.table.reset();
  }
  // Forgets one stream.
  void Reset(int64_t stream) {
    if (stream < streams()) fresh_[stream] = true;
  }
  // Goes over to temporal reuse in one map, where every map behind it is
  // already of it. What was stale is brought up to date in the next step.
  void MakeTemporal(int64_t map);

  // One frame [height, width, channels] of each of `streams` streams. Streams
  // beyond those of the last step are new, missing ones are forgotten. False if
  // a table of rows is full: nothing can be said then until Restart.
  bool Step(const uint8_t* frames, int64_t streams,
            const ParallelFor& parallel);
  // The same, where every map is of temporal reuse, in parts: Begin, then for
  // each map in its turn Update, after which its rows can be computed, and
  // HandOn, which leaves of what changed in it only the positions that are
  // marked in moved[positions], and End. Has to be ended, or Restart called.
  void Begin(const uint8_t* frames, int64_t streams,
             const ParallelFor& parallel);
  void Update(int64_t map);
  void HandOn(int64_t map, const std::vector<uint8_t>& moved);
  void End();
  // Until End: whether nothing was known of a stream.
  bool fresh(int64_t stream) const { return fresh_[stream]; }

  // The map whose table was full, or, if all together were, the first one with
  // more than its part.
  int64_t full() const { return full_; }
  const Bounds& bounds() const { return bounds_; }

  int64_t streams() const { return fresh_.size(); }
  // Whether the last step had streams of which nothing was known before.
  bool had_fresh_streams() const { return had_fresh_; }
  const Graph& graph() const { return graph_; }
  const std::vector<Map>& maps() const { return maps_; }
  const std::vector<Shown>& shown() const { return shown_; }
  // Whether anything of a map changed in a stream in the last step.
  bool changed(int64_t map, int64_t stream) const;

  // The row that a position showed when it was last brought up to date;
  // positions are numbered through the streams.
  int32_t id(int64_t map, int64_t position) const {
    return maps_[map].content() ? maps_[map].ids[position]
                                : static_cast<int32_t>(position);
  }

 private:
  void SetStreams(int64_t streams);
  // What changed: pixels, positions of the other maps, tiles.
  bool UpdatePixels(const uint8_t* frames, const ParallelFor& parallel);
  void UpdateFrame(const uint8_t* now, uint8_t* seen,
                   const ParallelFor& parallel, int64_t first_line);
  void UpdateMap(int64_t map);
  void UpdateTiles(Shown* shown);
  // What is wanted of maps, from the last one to the first.
  void Want();
  // All that is stale of a map.
  void WantStale(Map* map);
  void WantInputs(int64_t map);
  bool Refresh(int64_t map);
  // The patches of a map's positions.
  void FindPatches(int64_t map);
  // Interns them and numbers them.
  bool Intern(int64_t map);
  void CountTaken();

  const Graph graph_;
  const Bounds bounds_;
  const uint64_t hash_mask_;
  std::vector<bool> fresh_;  // by stream: its maps are unknown
  bool had_fresh_ = false;
  int64_t frames_ = 0;           // stepped since the last restart
  std::vector<uint8_t> seen_;    // the last frames
  std::vector<uint8_t> pixels_;  // the changed pixels, packed
  std::vector<int32_t> new_ids_;
  std::vector<Map> maps_;
  std::vector<Shown> shown_;
  std::vector<int32_t> tile_keys_, tile_ids_;
  int64_t taken_ = 0;  // bytes that the tables have memory of
  int64_t full_ = 0;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_STRUCTURE_H_
