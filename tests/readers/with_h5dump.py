"""Reads an exported trace with the h5dump command, part of the HDF5 library's own tools."""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from digests import report


def dump(*arguments):
    """Return what h5dump prints."""
    done = subprocess.run(["h5dump", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def texts(printed):
    """Return the texts that h5dump printed; it writes bytes beyond ASCII in octal."""
    values = re.search(r"DATA \{(.*)\}\s*\}\s*\}\s*$", printed, re.DOTALL)[1]
    for text in re.findall(r'"((?:[^"\\]|\\.)*)"', values):
        octal = re.compile(rb"\\([0-7]{3,11})")
        plain = octal.sub(lambda found: bytes([int(found[1], 8) % 256]), text.encode())
        yield plain.replace(rb"\"", b'"').decode()


file = sys.argv[1]
found = {}
with tempfile.TemporaryDirectory() as folder:
    binary = Path(folder) / "values"
    for path in re.findall(r"^ dataset +/(.+)$", dump("-n", file), re.MULTILINE):
        header = dump("-H", "-A", "0", "-d", f"/{path}", file)
        sizes = re.search(r"DATASPACE  SIMPLE \{ \( ([0-9, ]+) \)", header)[1]
        shape = [int(size) for size in sizes.split(",")]
        if "H5T_STRING" in header:
            printed = dump("-A", "0", "-y", "-w", "0", "-d", f"/{path}", file)
            content = "".join(f"{text}\n" for text in texts(printed)).encode()
        else:
            binary.unlink(missing_ok=True)
            dump("-A", "0", "-d", f"/{path}", "-b", "LE", "-o", str(binary), file)
            content = binary.read_bytes() if binary.exists() else b""
        found[path] = {"shape": shape, "digest": hashlib.sha256(content).hexdigest()}
report(dump("--version").split()[-1], found)
