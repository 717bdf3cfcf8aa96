"""Reading and writing moving pictures. All of them are made here."""

import contextlib
import fractions
import http.server
import io
import struct
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from reuse_tf.playing import video
from reuse_tf.playing.video import Frames, Writer

av = pytest.importorskip("av", reason="videos need the package av")

COUNT, SIZE = 60, (64, 96)


def pictures(count=COUNT, size=SIZE):
    """A block that moves over a ground that becomes lighter."""
    frames = np.zeros((count, *size, 3), np.uint8)
    for t, frame in enumerate(frames):
        frame[..., 0] = 4 * t
        frame[8:24, t % 40 : t % 40 + 16] = 255
    return frames


def make(path, frames, codec="libx264", file_format=None):
    """Writes frames by other means than `Writer`; returns the bytes."""
    height, width = frames.shape[1:3]
    with av.open(str(path), "w", format=file_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path.read_bytes()


def times(frames):
    """When each frame was, by how light its ground is."""
    return [round(float(frame[40:, :, 0].mean()) / 4) for frame in frames]


def difference(frames, expected):
    return np.abs(np.asarray(frames, int) - np.asarray(expected, int)).mean()


# -- Files ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, (63, 95)])
def test_what_was_written_is_read(tmp_path, size):
    expected = pictures(size=size)
    writer = Writer(".mp4", 12.5)
    for frame in expected:
        writer.add(frame)
    (tmp_path / "a.mp4").write_bytes(writer.finish())
    with Frames(tmp_path / "a.mp4") as frames:
        found = list(frames)
    assert frames.read == len(found) == COUNT
    assert frames.corrupt == frames.resized == frames.reopened == 0
    assert {(frame.dtype, frame.shape) for frame in found} == {
        # Of an odd size the last line is there twice.
        (np.dtype(np.uint8), (64, 96, 3))
    }
    found = np.array(found)
    assert difference(found[:, : size[0], : size[1]], expected) < 4
    assert difference(found[:, -1, :-1], found[:, -2, :-1]) < 4
    # As browsers play it.
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams.video
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12.5


def test_a_gif_is_written(tmp_path):
    expected = pictures(10)
    writer = Writer(".gif", 12.5)
    for frame in expected:
        writer.add(frame)
    with Image.open(io.BytesIO(writer.finish())) as picture:
        assert picture.format == "GIF"
        assert picture.n_frames == 10
        assert picture.info["duration"] == 80
        assert picture.info["loop"] == 0
        for i, frame in enumerate(expected):
            picture.seek(i)
            assert difference(picture.convert("RGB"), frame) < 4


@pytest.mark.parametrize("rate", [7, 12.5, 30, 60, 120])
def test_a_gif_takes_as_long_as_what_it_shows(rate):
    writer = Writer(".gif", rate)
    for frame in pictures(30):
        writer.add(frame)
    milliseconds = []
    with Image.open(io.BytesIO(writer.finish())) as picture:
        for i in range(picture.n_frames):
            picture.seek(i)
            milliseconds.append(picture.info["duration"])
    assert min(milliseconds) >= 20  # or else they are shown for 100
    assert abs(sum(milliseconds) - 1000 * 30 / rate) <= 20


@pytest.mark.parametrize("rate", [fractions.Fraction(1, 5000), 1e-9])
@pytest.mark.parametrize("ending", [".gif", ".mp4"])
def test_pictures_that_stand_for_hours(ending, rate):
    """As long as such a file can have it."""
    writer = Writer(ending, rate)
    for frame in pictures(3):
        writer.add(frame)
    content = writer.finish()
    if ending == ".gif":
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.n_frames == 3
            assert picture.info["duration"] == 655_350


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).swapaxes(0, 1)),
    ],
)
@pytest.mark.parametrize("size", [None, (20, 12)])
def test_a_video_of_a_turned_camera(tmp_path, matrix, turn, size):
    path = tmp_path / "a.mp4"
    make(path, pictures(5))
    upright = list(Frames(path))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    frames = Frames(path, size=size)
    for found, frame in zip(frames, upright, strict=True):
        if size is None:
            np.testing.assert_array_equal(found, turn(frame))
        assert found.shape == (*(size or found.shape[:2]), 3)
    assert frames.resized == 0


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mjpeg")]
)
def test_every_nth_frame_of_a_size(tmp_path, name, codec):
    make(tmp_path / name, pictures(), codec)
    frames = Frames(tmp_path / name, size=(32, 31), every=7)
    found = list(frames)
    assert {frame.shape for frame in found} == {(32, 31, 3)}
    grounds = [frame[20:, :, 0].mean() / 4 for frame in found]
    np.testing.assert_allclose(grounds, np.arange(0, COUNT, 7), atol=1)
    assert frames.read == COUNT
    assert frames.resized == 0


@pytest.mark.parametrize(
    ("ending", "codec"), [("ts", "libx264"), ("mjpeg", "mjpeg")]
)
def test_another_size_in_mid_stream(tmp_path, ending, codec):
    path = tmp_path / f"two.{ending}"
    both = [
        make(tmp_path / f"{i}.{ending}", pictures(count, size), codec)
        for i, (count, size) in enumerate([(20, SIZE), (10, (48, 64))])
    ]
    path.write_bytes(b"".join(both))
    frames = Frames(path)
    found = list(frames)
    assert {frame.shape for frame in found} == {(*SIZE, 3)}
    # The decoder of H.264 forgets a frame that it holds back then.
    first = 20 if codec == "mjpeg" else 19
    np.testing.assert_allclose(
        times(found), [*range(first), *range(10)], atol=1
    )
    assert frames.read == len(found)
    assert frames.resized == 10
    frames = Frames(path, size=(10, 12), every=2)
    assert {frame.shape for frame in frames} == {(10, 12, 3)}
    assert frames.resized == 5


def test_a_file_that_was_cut_off(tmp_path):
    data = make(tmp_path / "a.mkv", pictures())
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 2 // 3])
    found = list(Frames(tmp_path / "a.mkv"))
    assert 20 < len(found) < COUNT
    np.testing.assert_allclose(times(found), np.arange(len(found)), atol=1)
    # What an MP4 has in it is told at its end.
    data = make(tmp_path / "a.mp4", pictures())
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=r"a.mp4' cannot be opened as a video"):
        Frames(tmp_path / "a.mp4")


def damage(path, numbers):
    """Overwrites some of the packets of a file."""
    data = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux()]
    for number in numbers:
        packet = packets[number]
        assert data.count(packet) == 1
        data = data.replace(packet, bytes(len(packet)))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mjpeg"), ("a.mkv", "libx264")]
)
def test_what_is_damaged_is_skipped(tmp_path, name, codec):
    make(tmp_path / name, pictures(), codec)
    damage(tmp_path / name, [20, 21, 40])
    frames = Frames(tmp_path / name)
    found = times(frames)
    kept = [i for i in range(COUNT) if i not in (20, 21, 40)]
    assert frames.read == len(found)
    if codec == "mjpeg":
        np.testing.assert_allclose(found, kept, atol=1)
        assert frames.corrupt == 3
    else:
        # Frames build on each other: some are wrong, and some held back.
        assert 30 < len(found) < COUNT
        assert frames.corrupt > 0


def test_where_nothing_can_be_read(tmp_path):
    make(tmp_path / "a.avi", pictures(2), "mjpeg")
    damage(tmp_path / "a.avi", [0, 1])
    frames = Frames(tmp_path / "a.avi")
    with pytest.raises(ValueError, match="no picture in .*a.avi' that can be"):
        next(frames)
    assert frames.corrupt == 2


def test_what_is_no_video(tmp_path):
    with pytest.raises(FileNotFoundError, match="directory: '.*missing.mp4'"):
        Frames(tmp_path / "missing.mp4")
    for name in ("text.txt", "text.mp4"):
        (tmp_path / name).write_text("some words\n" * 100)
        with pytest.raises(ValueError, match=name):
            Frames(tmp_path / name)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"empty.mp4"):
        Frames(tmp_path / "empty.mp4")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), "s16", "mono"
        )
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match=r"no moving picture in .*sound.mkv"):
        Frames(tmp_path / "sound.mkv")


def test_arguments(tmp_path):
    make(tmp_path / "a.mkv", pictures(2))
    for arguments in ({"size": (0, 3)}, {"size": (3,)}, {"every": 0}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            Frames(tmp_path / "a.mkv", **arguments)
    with pytest.raises(ValueError, match="`ending` must be one of .gif, .mp4"):
        Writer(".avi", 25)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for use in (lambda: Frames("a.mp4"), lambda: Writer(".mp4", 25)):
        with pytest.raises(ImportError, match=r"'reuse-tf\[video\]'"):
            use()
    Writer(".gif", 25)


# -- URLs and cameras ----------------------------------------------------------


@contextlib.contextmanager
def served(data, lengths, stall=None):
    """A URL of which each answer has so many bytes only, the later ones all.

    With `stall`, an event, the rest of an answer waits for that.
    """
    lengths = list(lengths)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data[: lengths.pop(0) if lengths else None])
                self.wfile.flush()
            if stall is not None:
                stall.wait(60)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/video"
    finally:
        if stall is not None:
            stall.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_url_that_breaks_off_goes_on_where_it_was(tmp_path):
    data = make(tmp_path / "a.mkv", pictures())
    with served(data, [len(data) // 2, len(data) * 3 // 4, 10]) as url:
        frames = Frames(url, pause=0.001)
        found = list(frames)
    np.testing.assert_allclose(times(found), np.arange(COUNT), atol=1)
    assert frames.read == COUNT
    assert frames.reopened == 2


def test_what_is_live_goes_on_as_it_is_then(tmp_path):
    # Of no length that can be known.
    data = make(tmp_path / "a.ts", pictures())
    with served(data, [len(data) // 2]) as url:
        frames = Frames(url, pause=0.001)
        found = times(frames)
    again = len(found) - COUNT
    assert 10 < again < COUNT
    np.testing.assert_allclose(found, [*range(again), *range(COUNT)], atol=1)
    assert frames.reopened == 1


def test_a_url_that_stays_away_is_one_clear_error(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    data = make(tmp_path / "a.mkv", pictures())
    half = len(data) // 2
    with served(data, [half] * 99) as url:
        frames = Frames(url, attempts=3, pause=2)
        with pytest.raises(OSError, match="3 attempts to go on failed") as one:
            list(frames)
        assert repr(url) in str(one.value)
    assert pauses == [2, 4, 8]
    assert 10 < frames.read < COUNT
    # Nobody answers any more.
    with pytest.raises(OSError, match=f"Connection refused: {url!r}"):
        Frames(url)


def test_a_url_that_falls_silent_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_TIMEOUT", (0.3, 0.3))
    data = make(tmp_path / "a.mkv", pictures())
    with served(data, [10] * 99, threading.Event()) as url:
        with pytest.raises(OSError, match="has sent nothing for"):
            Frames(url)


def test_what_broke_off_long_ago_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_STEADY", 20)
    data = make(tmp_path / "a.ts", pictures())
    with served(data, [len(data) // 2] * 5) as url:
        frames = Frames(url, attempts=2, pause=0.001)
        assert len(list(frames)) == frames.read
    assert frames.reopened == 5


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")
def test_a_camera(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="/dev/video999"):
        Frames(999)
    make(tmp_path / "a.mkv", pictures())
    opened, really = [], av.open

    def fake(name, **options):
        opened.append((name, options))
        return really(str(tmp_path / "a.mkv"))

    monkeypatch.setattr(av, "open", fake)
    frames = Frames("1", attempts=2, pause=0.001)
    found = []
    with pytest.raises(OSError, match="'/dev/video1' broke off, and 2 att"):
        found += map(np.mean, frames)
    # Its end is none; it is opened again and shows what it shows.
    assert opened == [("/dev/video1", {"format": "v4l2"})] * 3
    assert frames.read == 3 * COUNT
    frames.close()
