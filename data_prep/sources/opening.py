"""Open files of text, plain or compressed, and name what is wrong with one that cannot be read."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from scaler.core.errors import PASSING, ScalerError, TryAgain

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # byte order marks of UTF-16 and UTF-32
LEAST_WIDE = 16  # bytes from which on zeros tell
ZSTD_WINDOW: dict[int, int] = {
    zstd.DecompressionParameter.window_log_max: 31
}  # the largest of the format, as of `zstd --long=31`
AGAIN = "fetch it again"


def opened(path: Path) -> IO[bytes]:
    """Open a file for reading its bytes, decompressed where its name says so.

    Raises: ScalerError for text in UTF-16 or UTF-32, of which every second byte is no text in UTF-8.
    """
    name = path.name.lower()
    file: Any
    if name.endswith(".gz"):
        file = gzip.GzipFile(path)
    elif name.endswith(".zst") and path.stat().st_size:  # an empty file is read as one, as gzip does
        file = zstd.ZstdFile(path, options=ZSTD_WINDOW)
    else:
        file = path.open("rb")
    try:
        _refuse_wide(file.peek(64)[:64], path)
    except BaseException:
        file.close()
        raise
    return cast(IO[bytes], file)


def _refuse_wide(head: bytes, path: Path) -> None:
    zeros = [head[place::4].count(0) for place in range(4)]
    # of Latin text without a mark every second byte is zero, or three of four, and in one place of four none
    unmarked = len(head) >= LEAST_WIDE and sum(zeros) * 3 >= len(head) and min(zeros) == 0
    if head.startswith(WIDE_MARKS) or unmarked:
        raise ScalerError(f"{path}: text in UTF-16 or UTF-32; convert it, for example with `iconv -f utf-16 -t utf-8`")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk and of decoders into one line that names the file, what is wrong and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise ScalerError(f"{path}: has vanished while the corpus was read; bring it back and run again") from error
    except EOFError as error:
        raise ScalerError(f"{path}: the file is cut short ({error}); {AGAIN}") from error
    except gzip.BadGzipFile as error:
        raise ScalerError(f"{path}: {_of_gzip(str(error))} ({error}); {AGAIN}") from error
    except zlib.error as error:
        raise ScalerError(f"{path}: the file is damaged ({error}); {AGAIN}") from error
    except zstd.ZstdError as error:
        raise ScalerError(f"{path}: {_of_zstd(str(error))}") from error
    except MemoryError as error:
        raise ScalerError(f"{path}: needs more memory than there is; read it with fewer --processes") from error
    except OSError as error:
        if error.errno is None:  # of pyarrow, for pages that it cannot decode
            raise ScalerError(f"{path}: the file is damaged ({' '.join(str(error).split())}); {AGAIN}") from error
        kind = TryAgain if error.errno in PASSING else ScalerError
        remedy = "make it readable" if isinstance(error, PermissionError) else "look at the disk, and run again"
        raise kind(f"{path}: cannot be read ({os.strerror(error.errno)}); {remedy}") from error


def _of_gzip(reason: str) -> str:
    if reason.startswith("Not a gzipped file"):
        return "no gzip, as its name says, or other bytes stand behind it"
    return "an unknown kind of gzip" if reason.startswith("Unknown compression method") else "the file is damaged"


def _of_zstd(reason: str) -> str:
    """Describe an error of zstd, of which only some are damage. The words are those of zstd's error_private.c."""
    if "emory" in reason:
        return f"more memory is needed than there is, for a long window ({reason}); read it with fewer --processes"
    if "Dictionary" in reason:
        return f"compressed with a dictionary of its own ({reason}); decompress it with that dictionary"
    if "Unknown frame descriptor" in reason:
        return f"no zstd, as its name says, or other bytes stand behind it ({reason}); {AGAIN}"
    if "Unsupported" in reason or "Version" in reason:
        return (
            f"compressed in a way that this zstd cannot read ({reason}); decompress it with the program that wrote it"
        )
    return f"the file is damaged ({reason}); {AGAIN}"
