"""Reads a trace with nothing but xarray."""

import sys

import xarray as xr
from digests import digest, report

tree = xr.open_datatree(sys.argv[1], engine="zarr")
report(
    xr.__version__,
    {
        f"{name}/{array}": digest(group[array].values)
        for name, group in tree.children.items()
        for array in group.variables
    },
)
