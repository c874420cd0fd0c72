"""Data preparation: text -> corpus/ -> tokenizer/ -> shards/, each folder whole or absent."""
