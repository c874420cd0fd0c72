"""Data preparation: text -> corpus -> clean -> dedup -> tokenizer -> shards -> rows, each folder whole or absent."""
