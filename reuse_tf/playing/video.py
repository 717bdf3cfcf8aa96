"""Moving pictures: the frames of files, cameras and URLs, and files of frames.

They are read and written by PyAV, whose wheels carry FFmpeg. It is imported
when it is needed, as GIFs are written without it.
"""

import fractions
import io
import itertools
import math
import sys
import time

import numpy as np

from reuse_tf.extras import extra

with extra("video"):
    from PIL import Image

# Seconds to wait for a URL: for it to be opened, and for more of it.
_TIMEOUT = (10, 10)
# Frames after which what was opened again has not broken off at once.
_STEADY = 1000
# Errors in a row after which there is nothing more to be read, and seconds to
# wait where a camera has no frame yet, which is one of them.
_ERRORS, _WAIT = 1000, 0.01
# Of the files that are written, and the colours of the first.
ENDINGS = (".gif", ".mp4")
# Of a GIF; milliseconds that a picture of it can stand for.
_COLORS, _LONGEST = 64, 655_350


class Frames:
    """The frames of a video, one after the other, as an iterator.

    Frames are uint8 arrays `[height, width, 3]` of red, green and blue, all of
    one size, and turned as the video says. What FFmpeg finds damaged and cannot
    conceal is skipped. A URL or a camera that breaks off is opened again: a
    camera, or a URL of unknown length, which is taken to be live, goes on with
    what it shows then, another URL behind the last frame that was read.

    Examples:
        >>> with Frames("video.mp4", size=(84, 84)) as frames:
        ...     for frame in frames:
        ...         print(frame.mean())

    Args:
        source: A file; the number of a camera, an integer or its digits; or a
            URL (`"http://..."`, `"rtsp://..."`).
        size: Height and width of the frames. By default those of the first.
            An attribute too, which can be set until the first is given.
        every: Only every n-th frame is given, from the first one on.
        attempts: How often a URL or a camera is opened again, if no 1000
            frames come in between.
        pause: Seconds before the first of these attempts. Before each further
            one it is twice as long.

    Attributes:
        read: Frames that were read, whether they were given or not.
        corrupt: Packets and frames that were skipped, as they were damaged.
            Those that a decoder leaves out by itself are not among them.
        resized: Frames that were given and had not the size of the first.
        reopened: How often the URL or camera was opened again.
        rate: Frames per second, a fraction: 25 if the source does not say.

    Raises:
        ImportError: If PyAV is not installed.
        ValueError: If an argument is not as above, or there is no picture in
            the source. This and the next are raised while iterating too.
        OSError: If the source cannot be opened or read, or broke off and could
            not be opened again.
    """

    def __init__(self, source, *, size=None, every=1, attempts=5, pause=1.0):
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(
                "`size` must be a positive height and width. Received: "
                f"size={size}"
            )
        if every < 1:
            raise ValueError(
                f"`every` must be a positive integer. Received: every={every}"
            )
        self.read = self.corrupt = self.resized = self.reopened = 0
        self._av = _import_av()
        self._source = str(source)
        self._options = {}
        self._is_camera = self._source.isdecimal()
        self._is_file = not self._is_camera and "://" not in self._source
        if self._is_camera and sys.platform == "darwin":
            self._options["format"] = "avfoundation"
        elif self._is_camera:
            self._source = f"/dev/video{self._source}"
            self._options["format"] = "v4l2"
        elif not self._is_file:
            self._options["timeout"] = _TIMEOUT
        self.size = size
        self._every = every
        self._attempts = attempts
        self._pause = pause
        self._open()
        self._frames = self._given()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._frames)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets go of the file, the camera or the connection."""
        self._frames.close()
        self._container.close()

    def _open(self):
        try:
            self._container = self._av.open(self._source, **self._options)
        except self._av.error.FFmpegError as error:
            raise self._error("cannot be opened as a video", error) from error
        streams = [
            stream
            for stream in self._container.streams.video
            # Not the cover of a record.
            if not stream.disposition & self._av.stream.Disposition.attached_pic
        ]
        # FFmpeg draws text files.
        if not streams or self._container.format.name == "tty":
            self._container.close()
            raise ValueError(f"There is no moving picture in {self._source!r}")
        self._stream = streams[0]
        self.rate = self._stream.average_rate or fractions.Fraction(25)

    def _error(self, what, error):
        """Returns an error of FFmpeg's as one that names the source."""
        if isinstance(error, OSError):
            return OSError(error.errno, error.strerror, self._source)
        kind = OSError if _is_silence(error) else ValueError
        return kind(f"{self._source!r} {what}: {_reason(error)}")

    def _given(self):
        """Yields what is given of the frames that are read."""
        first = None
        for frame in self._unbroken():
            self.read += 1
            if (self.read - 1) % self._every:
                continue
            # As phones write it, a picture may have to be turned; before that
            # its height is its width.
            swapped, *flips = self._turns(frame)
            around = -1 if swapped else 1
            size = (frame.height, frame.width)[::around]
            first = first or size
            self.resized += size != first
            height, width = (self.size or first)[::around]
            picture = frame.to_ndarray(
                format="rgb24", height=height, width=width
            )
            if swapped:
                picture = picture.swapaxes(0, 1)
            down, right = (-1 if flip else 1 for flip in flips)
            yield np.ascontiguousarray(picture[::down, ::right])
        if not self.read:
            raise ValueError(
                f"There is no picture in {self._source!r} that can be read"
            )

    def _turns(self, frame):
        """Whether to swap a picture's axes, and then to flip which of them."""
        kind = self._av.sidedata.sidedata.Type.DISPLAYMATRIX
        matrix = frame.side_data.get(kind)
        if matrix is None:
            return False, False, False
        # A pixel at (x, y) belongs at (a x + c y, b x + d y), but for shifts.
        (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3)
        if abs(b) > abs(a):
            return True, b < 0, c < 0
        return False, d < 0, a < 0

    def _unbroken(self):
        """Yields the frames, opening again what breaks off."""
        attempts, last, since = 0, None, 0
        while True:
            # What is live begins anew, with other times.
            live = self._is_camera or self._container.duration is None
            try:
                for frame in self._whole():
                    known = not live and None not in (last, frame.time)
                    if attempts and known and frame.time <= last:
                        continue
                    last = frame.time
                    since += 1
                    if since == _STEADY:
                        attempts = 0
                    yield frame
                if not self._is_camera:
                    return
                error = EOFError("it has ended")
            except self._av.error.FFmpegError as broken:
                error = broken
            if self._is_file:
                raise self._error("cannot be read", error) from error
            attempts, since = self._open_again(attempts, error), 0

    def _open_again(self, attempts, error):
        """Opens what broke off; returns how many attempts there were by now."""
        self._container.close()
        while attempts < self._attempts:
            time.sleep(self._pause * 2**attempts)
            attempts += 1
            try:
                self._open()
            except (OSError, ValueError) as again:
                error = again
                continue
            self.reopened += 1
            return attempts
        raise OSError(
            f"{self._source!r} broke off, and {attempts} attempts to go on "
            f"failed: {_reason(error)}"
        ) from error

    def _whole(self):
        """Yields the frames that are not damaged, up to the end or an error."""
        for packet in self._packets():
            try:
                frames = [] if packet.is_corrupt else packet.decode()
            except self._av.error.InvalidDataError:
                frames = []
                self.corrupt += 1
            self.corrupt += packet.is_corrupt
            for frame in frames:
                if frame.is_corrupt:
                    self.corrupt += 1
                else:
                    yield frame

    def _packets(self):
        """Yields the packets of the stream, the last of which is empty."""
        errors = 0
        while errors < _ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    errors = 0
                    yield packet
                return
            except BlockingIOError:
                time.sleep(_WAIT)
            except self._av.error.InvalidDataError:
                self.corrupt += 1
            errors += 1


class Writer:
    """Makes a moving picture, in memory.

    Args:
        ending: `".mp4"`, H.264 as browsers play it, or `".gif"`, in 64 colours.
        rate: Frames per second, a number or a fraction.

    Raises:
        ImportError: If PyAV is not installed, which MP4 needs.
        ValueError: If the ending is none of these.
    """

    def __init__(self, ending, rate):
        if ending not in ENDINGS:
            raise ValueError(
                f"`ending` must be one of {', '.join(ENDINGS)}. Received: "
                f"ending={ending!r}"
            )
        rate = fractions.Fraction(rate).limit_denominator(1000)
        self._rate = max(rate, fractions.Fraction(1, 1000))
        self._added = 0
        # A GIF counts in hundredths of a second, and none shows more than 50
        # pictures in a second.
        self._pictures = []
        self._every = math.ceil(self._rate / 50)
        self._file = io.BytesIO()
        self._container = self._stream = None
        if ending == ".mp4":
            self._av = _import_av()
            self._container = self._av.open(self._file, "w", format="mp4")

    def add(self, frame):
        """Adds a frame.

        Args:
            frame: uint8 `[height, width, 3]`, of the size of the first. In an
                MP4 the last row and column of an odd size are there twice.
        """
        self._added += 1
        if self._container is None:
            if (self._added - 1) % self._every:
                return
            picture = Image.fromarray(frame)
            self._pictures.append(
                picture.quantize(_COLORS, dither=Image.Dither.NONE)
            )
            return
        height, width, _ = frame.shape
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self._stream is None:
            self._stream = self._container.add_stream(
                "libx264", self._rate, options={"crf": "18"}
            )
            self._stream.pix_fmt = "yuv420p"
            self._stream.height, self._stream.width, _ = even.shape
        self._encode(self._av.VideoFrame.from_ndarray(even, "rgb24"))

    def finish(self):
        """Returns what was added, as the bytes of a file."""
        if self._container is not None:
            self._encode(None)
            self._container.close()
        else:
            first, *others = self._pictures
            times = [
                round(100 * i * self._every / self._rate)
                for i in range(len(self._pictures) + 1)
            ]
            first.save(
                self._file,
                "GIF",
                save_all=True,
                append_images=others,
                duration=[
                    min(10 * (b - a), _LONGEST)
                    for a, b in itertools.pairwise(times)
                ],
                loop=0,
            )
        return self._file.getvalue()

    def _encode(self, frame):
        self._container.mux(self._stream.encode(frame))


def _import_av():
    with extra("video"):
        import av
    return av


def _is_silence(error):
    # FFmpeg is made to stop waiting.
    return type(error).__name__ == "ExitError"


def _reason(error):
    if _is_silence(error):
        return f"it has sent nothing for {_TIMEOUT[1]} seconds"
    return getattr(error, "strerror", None) or str(error)
