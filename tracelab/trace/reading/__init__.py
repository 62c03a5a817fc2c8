"""A trace as labelled, lazy data: metadata checked before it is believed, shards as plain files."""
