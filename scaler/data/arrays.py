"""Write arrays as .npy files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from scaler.core.files import whole_file


def write_array(path: Path, array: np.ndarray) -> str:
    """Write an array as an .npy file that appears complete or not at all; return its checksum."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with whole_file(path) as file:  # np.save says of a full disk only how many bytes it could not write
        file.write(header.getbuffer())
        file.write(array.reshape(-1).data)
    return file.checksum()
