"""Small settings of every model family that packs documents into rows."""

SEQ_LEN = 48
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
FAMILIES = {
    "roberta": {"intermediate_size": 64},
    "bert": {"intermediate_size": 64},
    "distilbert": {"hidden_dim": 64},
    "albert": {"intermediate_size": 64, "embedding_size": 16},
    "electra": {"intermediate_size": 64, "embedding_size": 16},
    "xlm-roberta": {"intermediate_size": 64},
    # local attention of four tokens to each side in its second layer, which is narrower than the documents
    "modernbert": {
        "intermediate_size": 64,
        "local_attention": 8,
        "layer_types": ["full_attention", "sliding_attention"],
    },
}
