"""Settings: their table, URLs and keys, and the destination that follows from them."""
