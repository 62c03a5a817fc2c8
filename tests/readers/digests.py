"""What every reader prints of an array: its shape, and the SHA-256 of its little-endian bytes."""

import hashlib
import json
import sys

import numpy as np


def digest(values):
    """Return shape and digest of numbers, booleans (bytes 0 and 1) or texts (lines)."""
    values = np.asarray(values)
    if values.dtype.kind in "OUT":
        content = "".join(f"{text}\n" for text in values.ravel().tolist()).encode()
    else:
        content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return {"shape": list(values.shape), "digest": hashlib.sha256(content).hexdigest()}


def report(version, arrays):
    """Print the digests of arrays by path, for whoever started this reader."""
    assert "tracelab" not in sys.modules, "tracelab must not be needed"
    print(json.dumps({"version": version, "found": arrays}))
