#include "custom_ops/kernels/structure.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace reuse_tf {
namespace {

// A pixel of one byte is its own id.
constexpr int64_t kByteValues = 256;

bool IsByte(const FrameShape& frame) {
  return frame.bytes && frame.channels == 1;
}

}  // namespace

Structure::Structure(const FrameShape& frame,
                     const std::vector<Window>& windows,
                     std::vector<int64_t> max_rows, uint64_t hash_mask)
    : frame_(frame),
      windows_(windows),
      max_rows_(std::move(max_rows)),
      hash_mask_(hash_mask),
      maps_(windows.size() + 1) {
  maps_[0].height = frame.height;
  maps_[0].width = frame.width;
  for (size_t i = 0; i < windows.size(); ++i) {
    maps_[i + 1].height = windows[i].out_height;
    maps_[i + 1].width = windows[i].out_width;
  }
  Restart(reuse_);
}

void Structure::Restart(Reuse reuse) {
  reuse_ = reuse;
  fresh_.assign(fresh_.size(), true);
  for (size_t i = 0; i < maps_.size(); ++i) {
    Map& map = maps_[i];
    if (reuse == Reuse::kTemporal) {
      map.table.reset();
      map.ids = {};
      continue;
    }
    map.ids.resize(streams() * map.pixels());
    if (map.table != nullptr) {
      map.table->Clear();
    } else if (i > 0) {
      map.table = std::make_unique<InternTable>(windows_[i - 1].taps(),
                                                max_rows_[i], hash_mask_);
    } else if (!IsByte(frame_)) {
      map.table = std::make_unique<InternTable>((frame_.pixel_size() + 3) / 4,
                                                max_rows_[i], hash_mask_);
    }
  }
}

bool Structure::Update(const uint8_t* frames, int64_t streams,
                       const ParallelFor& parallel) {
  if (streams != this->streams()) {
    fresh_.resize(streams, true);
    seen_.resize(streams * frame_.pixels() * frame_.pixel_size());
    for (Map& map : maps_) {
      map.stale.Extend(streams * map.height, map.width);
      if (reuse_ == Reuse::kContent) map.ids.resize(streams * map.pixels());
    }
  }
  had_fresh_ = std::find(fresh_.begin(), fresh_.end(), true) != fresh_.end();
  if (!UpdatePixels(frames, parallel)) return false;
  for (size_t i = 1; i < maps_.size(); ++i) {
    Map& map = maps_[i];
    map.changed.Resize(streams * map.height, map.width);
    if (maps_[0].positions.empty()) continue;
    for (int64_t n = 0; n < streams; ++n) {
      if (fresh_[n]) {
        // Even where nothing but padding lies under the window.
        for (int64_t y = 0; y < map.height; ++y) {
          map.changed.SetLine(n * map.height + y);
        }
      } else {
        ChangedPositions(windows_[i - 1], n, maps_[i - 1].changed,
                         &map.changed);
      }
    }
  }
  for (Map& map : maps_) map.stale.Add(map.changed);
  fresh_.assign(streams, false);
  return true;
}

bool Structure::Refresh(const PixelMask* wanted) {
  const int64_t last = maps_.size() - 1;
  // The pixels are always up to date. They are gone through here if they are
  // what is wanted.
  const int64_t first = std::min<int64_t>(1, last);
  for (int64_t i = last; i >= first; --i) {
    Map& map = maps_[i];
    if (wanted == nullptr) {
      map.wanted = map.stale;
    } else {
      if (i == last) {
        map.wanted = *wanted;
      } else {
        map.wanted.Resize(streams() * map.height, map.width);
        for (int64_t n = 0; n < streams(); ++n) {
          CoveredPixels(windows_[i], n, maps_[i + 1].wanted, &map.wanted);
        }
      }
      map.wanted.Intersect(map.stale);
    }
    map.stale.Remove(map.wanted);
  }
  for (int64_t i = first; i <= last; ++i) {
    Map& map = maps_[i];
    map.positions.clear();
    map.wanted.Append(0, streams() * map.height, &map.positions);
    if (i > 0 && !RefreshWindow(i)) return false;
  }
  return true;
}

bool Structure::UpdatePixels(const uint8_t* frames,
                             const ParallelFor& parallel) {
  Map& map = maps_[0];
  const int64_t lines = streams() * frame_.height;
  const int64_t line_size = frame_.width * frame_.pixel_size();
  map.changed.Resize(lines, frame_.width);
  map.positions.clear();
  for (int64_t n = 0; n < streams(); ++n) {
    const int64_t first = n * frame_.height;
    const uint8_t* now = frames + first * line_size;
    uint8_t* seen = seen_.data() + first * line_size;
    if (fresh_[n]) {
      std::memcpy(seen, now, frame_.height * line_size);
      for (int64_t y = 0; y < frame_.height; ++y) {
        map.changed.SetLine(first + y);
      }
    } else if (std::memcmp(seen, now, frame_.height * line_size) != 0) {
      UpdateSeen(now, seen, frame_.height, frame_.width, frame_.pixel_size(), 0,
                 parallel, &map.changed, first);
    }
  }
  map.changed.Append(0, lines, &map.positions);
  const int64_t count = map.positions.size(), size = frame_.pixel_size();
  map.rows = NewRows();
  if (reuse_ == Reuse::kContent && IsByte(frame_)) {
    for (const int32_t at : map.positions) map.ids[at] = seen_[at];
    // The rows of all values are computed at the first step.
    if (pixels_.size() != kByteValues) {
      pixels_.resize(kByteValues);
      std::iota(pixels_.begin(), pixels_.end(), 0);
    }
    map.rows.raw = pixels_.data();
    map.rows.raw_stride = 1;
    map.rows.count = kByteValues;
    return true;
  }
  // A pixel is a key of whole words.
  const int64_t words = (size + 3) / 4;
  map.patches.assign(count * words, 0);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(map.patches.data() + i * words,
                seen_.data() + map.positions[i] * size, size);
  }
  map.rows.raw_stride = words * 4;
  if (reuse_ == Reuse::kContent) {
    if (!Intern(&map)) return false;
  } else {
    map.rows.patches = map.patches.data();
    map.rows.count = count;
    map.rows.ids = map.positions.data();
  }
  map.rows.raw = reinterpret_cast<const uint8_t*>(map.rows.patches);
  return true;
}

bool Structure::RefreshWindow(int64_t index) {
  Map& map = maps_[index];
  const Map& from = maps_[index - 1];
  const Window& window = windows_[index - 1];
  const int64_t count = map.positions.size();
  map.patches.resize(count * window.taps());
  map.rows = NewRows();
  if (reuse_ == Reuse::kTemporal) {
    PatchIds(window, map.positions.data(), count, map.patches.data());
    map.rows.patches = map.patches.data();
    map.rows.count = count;
    map.rows.ids = map.positions.data();
    return true;
  }
  const int32_t* ids = from.ids.data();
  PatchIds(
      window, map.positions.data(), count,
      [ids](int64_t pixel) { return ids[pixel]; }, map.patches.data());
  return Intern(&map);
}

bool Structure::Intern(Map* map) {
  const int64_t known = map->table->size();
  new_ids_.resize(map->positions.size());
  if (!map->table->Intern(map->patches.data(), map->positions.size(),
                          new_ids_.data())) {
    return false;
  }
  for (size_t i = 0; i < new_ids_.size(); ++i) {
    map->ids[map->positions[i]] = new_ids_[i];
  }
  map->rows.patches = map->table->key(known);
  map->rows.count = map->table->size() - known;
  map->rows.first = known;
  return true;
}

}  // namespace reuse_tf
