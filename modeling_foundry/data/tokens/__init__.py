"""Token shards and the folders that hold them."""
