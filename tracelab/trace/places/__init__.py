"""Where traces live: folders, archives, open Zarr stores and object stores."""
