"""Text to tokens: corpora, tokenizers, token shards, packed sequences, conversation samples."""
