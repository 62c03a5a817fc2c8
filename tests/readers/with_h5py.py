"""Reads an exported trace with nothing but h5py."""

import sys

import h5py
from digests import digest, report

arrays = {}
with h5py.File(sys.argv[1]) as file:
    for name, group in file.items():
        for array, dataset in group.items():
            texts = h5py.check_string_dtype(dataset.dtype) is not None
            arrays[f"{name}/{array}"] = digest(dataset.asstr()[:] if texts else dataset[:])
report(f"{h5py.__version__}, HDF5 {h5py.version.hdf5_version}", arrays)
